import os
import pickle
import tarfile
from collections import OrderedDict

import jsonschema
import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.doctor import checkpoint
from batchnorm.doctor.as_json import SCHEMA
from batchnorm.doctor.checkpoint import load
from batchnorm.errors import ArgumentError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def names(prefix: str = "") -> list[str]:
    return [f"{prefix}{name}" for name in net().state_dict()]


LIGHTNING = {
    "epoch": 3,
    "global_step": 10,
    "hyper_parameters": {"width": 4},
    "state_dict": {f"model.{name}": each for name, each in net().state_dict().items()},
    "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
}


@pytest.mark.parametrize(
    ("content", "within", "found"),
    [
        (net().state_dict(), ((),), names()),
        ({f"module.{name}": each for name, each in net().state_dict().items()}, ((),), names("module.")),
        ({"model": net().state_dict(), "epoch": 3}, (("model",),), names()),
        (LIGHTNING, (("state_dict",),), names("model.")),
        ({"ema": {"shadow": net().state_dict()}, "best": 0.5}, (("ema", "shadow"),), names()),
        (
            {"generator": net().state_dict(), "critic": net().state_dict()},
            (("generator",), ("critic",)),
            names("generator.") + names("critic."),
        ),
    ],
    ids=["plain", "parallel", "nested", "lightning", "deeper", "several"],
)
def test_it_is_found_wherever_it_lies_and_put_back_there(tmp_path, content, within, found):
    path, mended = tmp_path / "model.pt", tmp_path / "mended.pt"
    torch.save(content, path)
    read = load(path)
    assert read.within == within
    assert list(read.state) == found
    changed = next(name for name in read.state if name.endswith("running_var"))
    read.state[changed] = torch.full((4,), 7.0)
    read.save(mended)
    again = load(mended)
    assert list(again.state) == found
    assert torch.equal(again.state[changed], torch.full((4,), 7.0))
    assert all(torch.equal(each, read.state[name]) for name, each in again.state.items())
    whole = torch.load(mended, weights_only=True)
    assert whole.keys() == content.keys()
    rest = [key for key in content if not isinstance(content[key], dict | torch.Tensor)]
    assert all(whole[key] == content[key] for key in rest)


def test_an_entry_that_a_mend_takes_away_is_gone_from_the_file(tmp_path):
    torch.save({"model": net().state_dict()}, tmp_path / "model.pt")
    read = load(tmp_path / "model.pt")
    del read.state["0.bias"]
    read.save(tmp_path / "mended.pt")
    assert "0.bias" not in torch.load(tmp_path / "mended.pt", weights_only=True)["model"]


def test_versions_of_modules_are_kept(tmp_path):
    torch.save(net().state_dict(), tmp_path / "model.pth")
    load(tmp_path / "model.pth").save(tmp_path / "mended.pth")
    again = torch.load(tmp_path / "mended.pth", weights_only=True)
    assert isinstance(again, OrderedDict)
    assert again._metadata == net().state_dict()._metadata
    net().load_state_dict(again)


def test_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors", {"format": "pt", "author": "me"})
    read = load(tmp_path / "model.safetensors")
    assert list(read.state) == sorted(model.state_dict())
    read.state["1.running_var"] = torch.full((4,), 7.0)
    read.save(tmp_path / "mended.safetensors")
    assert torch.equal(load_file(tmp_path / "mended.safetensors")["1.running_var"], torch.full((4,), 7.0))
    assert load(tmp_path / "mended.safetensors")._metadata == {"format": "pt", "author": "me"}
    model[2].weight = model[0].weight  # one memory under two names
    checkpoint.save(model.state_dict(), tmp_path / "tied.safetensors")
    assert torch.equal(load_file(tmp_path / "tied.safetensors")["2.weight"], model[0].weight)
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ArgumentError, match=r"bad\.safetensors is no checkpoint, or damaged"):
        load(tmp_path / "bad.safetensors")


class Malicious:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_a_malicious_file_is_refused_and_does_not_run(tmp_path, form, suffix):
    mark, path = tmp_path / "it-ran", tmp_path / f"model{suffix}"
    content = {"state_dict": net().state_dict(), "note": Malicious(str(mark))}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ArgumentError, match="nothing of it was run") as caught:
        load(path)
    assert not mark.exists()
    assert "weights_only=False" not in str(caught.value)
    # It would have, had it been loaded otherwise: the test can fail.
    if form == "zip":
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_what_is_refused_is_named(tmp_path):
    torch.save(net(), tmp_path / "whole.pt")
    with pytest.raises(ArgumentError, match=r"it asks for torch\.nn\.modules\.container\.Sequential\."):
        load(tmp_path / "whole.pt")
    torch.save({"state_dict": net().state_dict(), "note": Malicious("x")}, tmp_path / "evil.pt")
    with pytest.raises(ArgumentError, match=r"it asks for posix\.mkdir"):
        load(tmp_path / "evil.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no checkpoint, or damaged: EOFError"),
        (b"hello, this is text", "no checkpoint, or damaged"),
        (b"PK\x03\x04 and then nothing", "no checkpoint, or damaged: RuntimeError"),
    ],
)
def test_a_damaged_file(tmp_path, content, message):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        load(tmp_path / "model.pt")


def test_half_a_file(tmp_path):
    torch.save(net().state_dict(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArgumentError, match="damaged"):
        load(tmp_path / "model.pt")


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt")
    with pytest.raises(ArgumentError, match=r"nothing is known of \.onnx"):
        load(tmp_path / "model.onnx")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ArgumentError, match="is a folder"):
        load(tmp_path / "folder.pt")
    torch.jit.script(nn.BatchNorm1d(2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(ArgumentError, match="TorchScript archive"):
        load(tmp_path / "script.pt")
    for content, seen in ((nn.Linear(2, 2).state_dict(), "weight, bias"), ([1, 2], "a list"), ({}, "an empty dict")):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ArgumentError, match=rf"no running_mean lies in it \(looked at: {seen}\)"):
            load(tmp_path / "other.pt")


def test_it_is_never_written_over_nor_in_another_format(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": net().state_dict(), "epoch": 3}, path)
    before = path.read_bytes()
    read = load(path)
    for name, message in (
        ("model.pt", "is the checkpoint that was read"),
        ("mended.safetensors", "would have another format"),
        ("mended.txt", "nothing is known of .txt"),
    ):
        with pytest.raises(ArgumentError, match=message):
            read.save(tmp_path / name)
    (tmp_path / "link.pt").symlink_to(path)
    with pytest.raises(ArgumentError, match="is the checkpoint that was read"):
        read.save(tmp_path / "link.pt")
    assert path.read_bytes() == before


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    torch.save(net().state_dict(), tmp_path / "model.pt")
    read = load(tmp_path / "model.pt")
    (tmp_path / "mended.pt").write_bytes(b"former")

    def fails(content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(KeyboardInterrupt):
        read.save(tmp_path / "mended.pt")
    assert (tmp_path / "mended.pt").read_bytes() == b"former"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mended.pt", "model.pt"]


def test_what_was_found_can_be_diagnosed(tmp_path):
    model = net()
    model[1].running_var[0] = -1.0
    torch.save(
        {"state_dict": {f"model.{name}": each for name, each in model.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    (found,) = batchnorm.diagnose(load(tmp_path / "a.ckpt").state, select=["BN004"]).findings
    assert found.layer == "model.1"


def poisoned() -> dict[str, torch.Tensor]:
    state = net().state_dict()
    state["1.running_var"][0] = -1.0
    return state


@pytest.mark.parametrize(
    ("content", "within", "layer"),
    [
        ({"state_dict": net().state_dict(), "ema": [poisoned()]}, (("state_dict",), ("ema", 0)), "ema.0.1"),
        ({**net().state_dict(), "ema": poisoned()}, ((), ("ema",)), "ema.1"),
        ({"state_dict": net().state_dict(), "swa": {0: poisoned()}}, (("state_dict",), ("swa", 0)), "swa.0.1"),
        ((poisoned(), {"epoch": 3}), ((0,),), "1"),
        ({0: net().state_dict(), 1: poisoned()}, ((0,), (1,)), "1.1"),
        ({"a": {"b": {"c": {"d": {"e": {"f": poisoned()}}}}}}, (("a", "b", "c", "d", "e", "f"),), "1"),
    ],
    ids=["list", "beside", "integer", "tuple", "integers", "deep"],
)
def test_it_is_found_in_lists_under_integers_and_beside_other_tensors(tmp_path, content, within, layer):
    path, mended = tmp_path / "model.pt", tmp_path / "mended.pt"
    torch.save(content, path)
    read = load(path)
    assert read.within == within
    (found,) = batchnorm.diagnose(read.state, select=["BN004"]).findings
    assert found.layer == layer
    read.state[f"{layer}.running_var"] = torch.ones(4)
    read.save(mended)
    again = load(mended)
    assert again.within == within
    assert batchnorm.diagnose(again.state, select=["BN004"]).ok
    assert type(torch.load(mended, weights_only=True)) is type(content)


def test_one_dictionary_under_two_names_is_one_and_a_circle_ends(tmp_path):
    state = poisoned()
    content = {"state_dict": state, "ema": state}
    content["self"] = content
    torch.save(content, tmp_path / "model.pt")
    read = load(tmp_path / "model.pt")
    assert read.within == (("state_dict",),)
    read.state["1.running_var"] = torch.ones(4)
    read.save(tmp_path / "mended.pt")
    whole = torch.load(tmp_path / "mended.pt", weights_only=True)
    assert whole["ema"] is whole["state_dict"]
    assert torch.equal(whole["ema"]["1.running_var"], torch.ones(4))


def test_an_optimizers_state_is_passed_by(tmp_path):
    moments = {number: {"exp_avg": torch.zeros(1), "step": number} for number in range(2000)}
    content = {"model": net().state_dict(), "optimizer": {"state": moments}, "losses": [0.5] * 100_000}
    torch.save(content, tmp_path / "model.pt")
    assert load(tmp_path / "model.pt").within == (("model",),)


def test_keys_with_dots_are_put_back_where_they_lay(tmp_path):
    torch.save({"net": net().state_dict(), "net.ema": net().state_dict(), "epoch": 4}, tmp_path / "model.pt")
    read = load(tmp_path / "model.pt")
    assert list(read.state) == names("net.") + names("net.ema.")
    read.state["net.ema.1.running_var"] = torch.full((4,), 7.0)
    read.save(tmp_path / "mended.pt")
    whole = torch.load(tmp_path / "mended.pt", weights_only=True)
    assert [list(whole[key]) for key in ("net", "net.ema")] == [names(), names()]
    net().load_state_dict(whole["net"])
    assert torch.equal(whole["net.ema"]["1.running_var"], torch.full((4,), 7.0))
    assert torch.equal(whole["net"]["1.running_var"], torch.ones(4))


def norm(prefix: str, variance: float) -> dict[str, torch.Tensor]:
    return {f"{prefix}running_mean": torch.zeros(3), f"{prefix}running_var": torch.full((3,), variance)}


@pytest.mark.parametrize(
    ("content", "layers"),
    [
        ({"net": norm("ema.1.", -1.0), "net.ema": norm("1.", 1.0)}, ["['net'].ema.1", "['net.ema'].1"]),
        ({"net": {**norm("ema.1.", -1.0), "ema": norm("1.", 1.0)}}, ["['net'].ema.1", "['net']['ema'].1"]),
        ({0: norm("1.", -1.0), "0": norm("1.", 1.0)}, ["[0].1", "['0'].1"]),
    ],
)
def test_names_that_would_collide_are_told_apart(tmp_path, content, layers):
    torch.save(content, tmp_path / "model.pt")
    read = load(tmp_path / "model.pt")
    done = batchnorm.diagnose(read.state, select=["BN004"])
    assert [each.path for each in done.evidence.layers] == layers
    assert [each.layer for each in done.findings] == layers[:1]


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    content = {**norm("['net'].1.", 1.0), **norm("net.1.", 1.0), "net": norm("1.", -1.0)}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ArgumentError, match=r"two dictionaries with tensors of \"\['net'\]\.1\"\. Mend: give them in"):
        load(tmp_path / "model.pt")


def test_the_name_that_torchs_own_example_gives_and_tar_archives(tmp_path):
    torch.save({"state_dict": poisoned()}, tmp_path / "checkpoint.pth.tar")
    read = load(tmp_path / "checkpoint.pth.tar")
    read.save(tmp_path / "mended.pth.tar")
    assert load(tmp_path / "mended.pth.tar").state.keys() == read.state.keys()
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        archive.add(tmp_path / "mended.pth.tar", "mended")
    with pytest.raises(ArgumentError, match="is a tar archive") as caught:
        load(tmp_path / "archive.tar")
    assert "weights_only" not in str(caught.value)


ODD = {
    "shapes": ({"running_var": torch.ones(5)}, r"of shapes \(4,\) \(weight\), .* \(5,\) \(running_var\)"),
    "no-dimension": (
        {"running_mean": torch.tensor(0.0), "running_var": torch.tensor(torch.nan)},
        r"of shapes .*, \(\) \(running_mean\)",
    ),
    "sparse": ({"running_var": torch.ones(4).to_sparse()}, "running_var is sparse_coo"),
    "meta": ({"running_mean": torch.zeros(4, device="meta")}, "running_mean has no values"),
    "complex": ({"running_mean": torch.zeros(4, dtype=torch.complex64)}, "running_mean is of complex64"),
    "counts": ({"num_batches_tracked": torch.tensor([1, 2])}, "num_batches_tracked is no number"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("odd", "why"), ODD.values(), ids=ODD)
def test_what_no_norm_has_is_left_out_with_words(odd, why):
    state = {**net().state_dict(), **{f"1.{name}": each for name, each in odd.items()}}
    with pytest.raises(ArgumentError, match=rf"hold no batch norm \(1: {why}"):
        batchnorm.diagnose(state)
    state |= {f"2.{name}": each for name, each in nn.BatchNorm2d(4).state_dict().items()}
    done = batchnorm.diagnose(state)
    assert [each.path for each in done.evidence.layers] == ["2"]
    (words,) = done.evidence.unread.values()
    assert f"not looked at: 1: {words}" in str(done)
    content = done.to_json()
    jsonschema.validate(content, SCHEMA)
    assert content["unread"] == {"1": words}
    notes = done.to_sarif()["runs"][0]["invocations"][0]["toolConfigurationNotifications"]
    assert f"1 was not looked at: {words}" in [each["message"]["text"] for each in notes]


def test_a_running_scale_of_one_number_is_no_norm():
    scalar = {"reward.running_mean": torch.tensor(0.0), "reward.running_var": torch.tensor(1.0)}
    done = batchnorm.diagnose({**scalar, **net().state_dict()}, select=["BN004"])
    assert done.evidence.unread == {"reward": "of shapes () (running_mean), () (running_var)"}

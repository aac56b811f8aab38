from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from batchnorm.study import Dense, Own, Run, Stack, StudyError, registered
from batchnorm.study.claims.dropout_shift import DropoutShift
from batchnorm.study.claims.placement import Placement
from batchnorm.study.data import Split, split
from batchnorm.study.engine import prepare
from batchnorm.study.fingerprint import _built, ingredients
from batchnorm.study.subjects import check
from study.helpers import DIGITS, run_here

OWN = Own("study.own_networks:small")


def test_the_same_seed_builds_the_same_weights_and_draws_nothing_else() -> None:
    parts = split(DIGITS, 0)
    for subject in (Stack(((8, 2), (16, 1))), Dense((12,)), OWN):
        state = torch.random.get_rng_state()
        first, again, other = (subject.build(parts, seed) for seed in (3, 3, 4))
        # What a user's callable draws is seeded for it alone.
        assert subject is not OWN or torch.equal(torch.random.get_rng_state(), state)
        weights, repeated, others = (list(model.state_dict().values()) for model in (first, again, other))
        assert all(torch.equal(one, two) for one, two in zip(weights, repeated, strict=True))
        assert not all(torch.equal(one, two) for one, two in zip(weights, others, strict=True))
        assert first.training
        assert first(parts.train[0][:4]).shape == (4, 10)
        check(subject, parts, ("none", "group", "batch", "ghost", "renorm", "frozen"))


def test_they_say_what_they_are() -> None:
    assert Stack(((8, 2), (16, 1)), "tanh").description == (
        "2 convolutions of 3×3 with 8 (stride 2), 16 channels, each with batch norm before its tanh, "
        "then the average over space and a linear layer"
    )
    assert Dense((100,)).description == "1 hidden layer of 100 units, each with batch norm and ReLU"
    assert OWN.description == "your own, study.own_networks:small"


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("study.own_networks:missing", "study.own_networks has no missing"),
        ("study.own_networks:raising", "calling it raised ValueError: no weights here"),
        ("study.own_networks:number", "it returned int, not a torch.nn.Module"),
        ("study.own_networks:without_norm", "Sequential has no batch norm, so there is nothing to study"),
        ("study.own_networks:for_other_images", r"does not take images of shape \(4, 1, 8, 8\) and dtype float32"),
        ("study.own_networks:double", r"and dtype float32.* Mend: return model\.float\(\)"),
        ("study.own_networks:too_few_classes", r"gives \(4, 4\) in training mode for 4 images of 10 classes"),
        ("study.own_networks:a_map", r"gives \(4, 10, 8, 8\) in training mode for 4 images"),
        ("study.own_networks:auxiliary", "gives tuple in training mode"),
        ("study.own_networks:shared", "is not built anew at each call: stem.weight is one tensor in two"),
        ("study.own_networks:drawn_elsewhere", r"after the same torch\.manual_seed: head\.bias differs"),
        ("study.own_networks:lazy", "has lazy layers, which have no sizes yet"),
        ("study.own_networks:frozen", "the norm norm1 is frozen"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_runs(target: str, problem: str) -> None:
    with pytest.raises(StudyError, match=problem):
        prepare([Placement().on(Own(target))], [0], DIGITS)


def test_a_claim_refuses_what_only_it_cannot_take() -> None:
    with pytest.raises(StudyError, match=r"placement: the network .* has no batch norm with an activation directly"):
        prepare([Placement().on(Own("study.own_networks:functional"))], [0], DIGITS)


def test_a_claim_that_a_network_cannot_take_is_no_loss_of_the_others() -> None:
    claims = [claim.on(Own("study.own_networks:functional")) for claim in (Placement(), DropoutShift())]
    refused: list[StudyError] = []
    plan = prepare([*claims, registered()["eps-placement"]], [0], DIGITS, left_out=refused.append)
    assert [claim.id for claim in plan.experiments] == ["dropout-shift", "eps-placement"]
    assert {run.claim for _, run, _ in plan.runs} == {"dropout-shift", "eps-placement"}
    assert [error.problem.split(":")[0] for error in refused] == ["placement"]
    for few, options in ((claims, {}), (claims[:1], {"left_out": refused.append})):  # named, or none left
        with pytest.raises(StudyError, match="placement: the network"):
            prepare(few, [0], DIGITS, **options)


def test_whatever_a_network_raises_is_told_before_anything_runs() -> None:
    class Odd(Placement):
        def check(self, parts: Split) -> None:
            raise IndexError("tuple index out of range")

    with pytest.raises(StudyError, match=r"placement: the network \(your own, .*\) cannot be used for it: IndexError"):
        prepare([Odd().on(OWN)], [0], DIGITS)


def test_a_claim_runs_on_an_own_network_and_knows_its_code() -> None:
    claim = replace(Placement(relu_rates=(0.1,), steps=30, every=30), blank=0).on(OWN)
    results = run_here(claim, seeds=range(2))
    assert [result.run.arm for result in results[:2]] == ["own before 0.1", "own after 0.1"]
    assert results[0].values["validation"] != results[1].values["validation"]
    conclusion = claim.conclude(results)
    assert "its activations" in conclusion.effects[0].name
    wanted = ingredients(claim, results[0].run)
    assert wanted["network"] != ingredients(claim.on(Own("study.own_networks:functional")), results[0].run)["network"]
    assert ingredients(Placement(), results[0].run)["network"] is None


def test_weights_from_a_file_and_packages_that_the_code_imports_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_network_of_mine.py").write_text(
        "import PIL, torch\nfrom torch import nn\ndef build():\n    model = nn.Sequential(nn.BatchNorm2d(1))\n"
        f"    model[0].weight.data.copy_(torch.load({str(tmp_path / 'w.pt')!r}))\n    return model\n"
    )
    run = Run("placement", "own before 0.1", 0, DIGITS)
    seen = []
    for value in (1.0, 2.0):
        torch.save(torch.full((1,), value), tmp_path / "w.pt")
        _built.cache_clear()
        seen.append(ingredients(Placement().on(Own("a_network_of_mine:build")), run)["network"])
    first, second = seen
    assert first["built"] != second["built"]
    assert first["code"] == second["code"]
    assert first["pillow"] == version("pillow")

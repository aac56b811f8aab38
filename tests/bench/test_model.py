import contextlib
import sys
import threading
from collections import UserDict

import pytest
import torch
from torch import nn

from batchnorm.bench import model as measured
from batchnorm.bench import shares as shares_module
from batchnorm.bench.model import Model, measure_model, prepare
from batchnorm.bench.model_gate import Gate
from batchnorm.bench.norms import reasons
from batchnorm.bench.peers import chosen
from batchnorm.bench.step import Step, load
from batchnorm.bench.summary import wrong
from batchnorm.errors import ArgumentError, DifferentResultError, SurgeryError
from batchnorm.ops import cpu
from batchnorm.surgery.fuse import fuse
from batchnorm.surgery.proof import Errors
from batchnorm.surgery.result import Outcome, Surgery
from batchnorm.targets import TargetError

TARGETS = """
from collections import namedtuple
import torch
from torch import nn

def net(dropout=0.0):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * 36, 2), nn.BatchNorm1d(2))

def images():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))

def pair():
    return net(), images()

def with_loss():
    return net(), (images(),), lambda output: nn.functional.cross_entropy(output, torch.zeros(8, dtype=torch.long))

def random():
    return net(0.5), images()

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.x = net(), images()
    def forward(self):
        return self.net(self.x).square().mean()

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, *, pixels, scale):
        return {"logits": self.net(pixels) * scale, "count": torch.tensor(3)}

def named():
    return Named(), {"pixels": images(), "scale": 2.0}

class Pair(namedtuple("Pair", "pixels scale")):
    pass

class Taking(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, pair):
        return self.net(pair.pixels) * pair.scale

def namedtuples():
    return Taking(), (Pair(images(), torch.tensor(2.0)),)

instance = Whole()
number = 3
def no_norm():
    return nn.Linear(3, 3), torch.randn(2, 3)
def raises():
    raise ValueError("not today")
def nothing():
    return None
def four():
    return net(), images(), None, None
def bad_loss():
    return net(), images(), 3
def does_not_fit():
    return net(), torch.randn(8, 5, 8, 8)
def no_tensor():
    return nn.Sequential(nn.BatchNorm1d(3), nn.Identity()), torch.randn(4, 3), lambda output: 3.0
"""


@pytest.fixture
def targets(tmp_path, monkeypatch):
    (tmp_path / "bench_targets.py").write_text(TARGETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "bench_targets"


def measure(target, *peers, rounds=2):
    """Rows by contender, and that of inference by "inference" before it."""
    return by_name(measure_model(prepare(target) if isinstance(target, str) else target, chosen(peers), rounds))


def by_name(rows):
    names = [row.contender if row.mode == "model" else f"inference {row.contender}" for row in rows]
    assert len(set(names)) == len(names)
    return dict(zip(names, rows, strict=True))


@pytest.mark.parametrize("name", ["pair", "with_loss", "Whole", "named", "namedtuples", "instance", "random"])
def test_a_model_is_measured_as_given_fused_lean_and_folded(targets, name):
    rows = measure(f"{targets}:{name}")
    assert list(rows) == ["eager", "fuse", "lean", "inference eager", "inference fold"]
    assert {row.status: row.reason for row in rows.values()} == {"timed": ""}
    given, fused, lean, folded = (rows[each] for each in ("eager", "fuse", "lean", "inference fold"))
    assert all(row.case == f"{targets}:{name}" for row in rows.values())
    assert given.ratio == pytest.approx(given.microseconds / fused.microseconds)
    assert lean.ratio == pytest.approx(lean.microseconds / fused.microseconds)
    assert lean.speedup == pytest.approx(given.microseconds / lean.microseconds)
    assert rows["inference eager"].ratio == pytest.approx(folded.speedup)
    assert fused.norms == ("1 fused: relu | 1 replaced: its output leaves the model" if name in TRACED else fused.norms)
    counts = (fused.norms_fused, fused.norms_replaced, fused.norms_folded, fused.norms_kept)
    assert counts == (1, 1, 0, 0)
    assert folded.norms_folded == 2
    assert 0 < lean.kept_bytes < fused.kept_bytes <= given.kept_bytes
    assert lean.norms.startswith("1 recomputed") or lean.norms.startswith("2 recomputed")
    assert fused.max_error_float64 < 1e-9
    assert lean.max_error == (0 if cpu.available else pytest.approx(0, abs=1e-6))
    assert 0 < given.norm_share < 1
    assert 0 < given.activation_share < 1 - given.norm_share
    assert max(fused.tolerance_share, lean.tolerance_share) <= 1


TRACED = ("pair", "with_loss", "random")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "is a int, which cannot be called"),
        ("raises", "calling it raised ValueError: not today. Mend: name a callable"),
        ("nothing", "returned NoneType. Mend: name a callable without arguments that returns"),
        ("four", "returned Sequential, Tensor, NoneType, NoneType"),
        ("bad_loss", "the loss is a int"),
        ("does_not_fit", "its step raised RuntimeError: Given groups=1, .*[.]$"),
        ("no_tensor", "its step raised AttributeError"),
        ("missing", "has no missing"),
    ],
)
def test_what_is_wrong_with_a_target_is_named(targets, name, message):
    with pytest.raises(TargetError, match=message.replace("(", r"\(")):
        measure(f"{targets}:{name}")


def test_a_model_without_a_batch_norm_is_refused(targets):
    with pytest.raises(ArgumentError, match="has no batch norm layer"):
        prepare(f"{targets}:no_norm")


def scaled(output, factor):
    if isinstance(output, dict):
        return {name: scaled(value, factor) for name, value in output.items()}
    return output * factor if output.is_floating_point() else output


def off_by(factor):
    """``fuse``, if it gave a model whose output is off."""

    def broken(module, inputs):
        surgery = fuse(module, inputs)
        surgery.model.register_forward_hook(lambda layer, given, output: scaled(output, factor))
        return surgery

    return broken


@pytest.mark.parametrize("name", ["pair", "named", "namedtuples"])
def test_what_runs_in_float64_is_held_to_a_fine_tolerance(targets, monkeypatch, name):
    # Beside the model as given alone, half a percent would pass.
    monkeypatch.setattr(measured, "fuse", off_by(1.005))
    assert measure(f"{targets}:{name}")["fuse"].status == "wrong"


def test_a_wrong_result_costs_fuse_its_time_and_lean_its_model(targets, monkeypatch):
    monkeypatch.setattr(measured, "fuse", off_by(1.05))
    rows = measure(f"{targets}:with_loss")
    assert (rows["fuse"].status, rows["fuse"].microseconds) == ("wrong", None)
    assert "relative error" in rows["fuse"].reason
    assert (rows["lean"].status, rows["lean"].reason) == ("unavailable", "there is no fused model to train with it")
    assert rows["eager"].status == "timed"
    assert rows["eager"].ratio is None
    assert rows["inference fold"].status == "timed"


def test_a_recomputation_that_is_off_costs_lean_its_time(targets, monkeypatch):
    @contextlib.contextmanager
    def broken(report=False):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: scaled(tensor, 1.05)):
            yield

    monkeypatch.setattr(measured, "lean", broken)
    rows = measure(f"{targets}:pair")
    assert (rows["lean"].status, rows["lean"].microseconds) == ("wrong", None)
    assert "(gradient): relative error" in rows["lean"].reason
    assert rows["fuse"].status == "timed"


def test_a_rewrite_that_computes_something_else_is_wrong(monkeypatch, targets):
    def refuse(*given):
        raise DifferentResultError("it differs.", "report it.")

    for tool in ("fuse", "fold"):
        monkeypatch.setattr(measured, tool, refuse)
    rows = measure(f"{targets}:pair")
    for name in ("fuse", "inference fold"):
        assert (rows[name].status, rows[name].reason) == ("wrong", "it differs. Mend: report it.")
    assert len(wrong(rows.values())) == 2


@pytest.mark.parametrize("error", [SurgeryError("it differs.", "report it."), TypeError("a fault of ours")])
def test_what_cannot_be_rewritten_says_why_and_the_others_go_on(targets, monkeypatch, error):
    def refuse(*given):
        raise error

    reason = str(error) if isinstance(error, SurgeryError) else "TypeError: a fault of ours"
    for tool, name in (("fuse", "fuse"), ("fold", "inference fold")):
        with monkeypatch.context() as patch:
            patch.setattr(measured, tool, refuse)
            rows = measure(f"{targets}:pair")
        assert (rows[name].status, rows[name].reason) == ("unavailable", reason)
        others = {each for each, row in rows.items() if row.status == "timed"}
        assert others == set(rows) - ({"fuse", "lean"} if tool == "fuse" else {name})


class Locked(nn.Sequential):
    """Cannot be copied."""

    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.lock = threading.Lock()


def test_a_model_that_cannot_be_copied_is_timed_as_given():
    x = torch.randn(8, 3)
    rows = measure(Model("locked", Step(Locked(), x), x))
    assert rows.pop("eager").status == "timed"
    reasons = {row.reason.partition(":")[0] for name, row in rows.items() if name != "lean"}
    assert reasons == {"the model cannot be copied"}


class Watched(nn.Module):
    """Remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(3), []

    def forward(self, x):
        self.calls.append((self.training, torch.is_grad_enabled()))
        return self.norm(x)


def test_inference_runs_in_evaluation_without_gradients_and_leaves_the_model_alone(monkeypatch):
    x = torch.randn(8, 3)
    given = Watched()

    def keep(module, inputs):
        return Surgery(module, [], [], Errors({"float32": 0.0}, None))

    for tool in ("fuse", "fold"):
        monkeypatch.setattr(measured, tool, keep)
    copies = []
    monkeypatch.setattr(measured, "copied", lambda module: copies.append(Watched()) or copies[-1])
    rows = measure(Model("watched", Step(given, x), x))
    assert rows["inference eager"].status == "timed"
    assert given.training
    assert set(copies[-1].calls) == {(False, False)}
    assert {training for training, _ in given.calls} == {True}


def test_the_example_is_what_is_rewritten_and_judged_and_the_inputs_are_what_is_timed(monkeypatch):
    seen = []

    def watched(module, inputs):
        seen.append(len(inputs))
        return fuse(module, inputs)

    monkeypatch.setattr(measured, "fuse", watched)
    module, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()), torch.randn(64, 3)
    sizes = set()
    module[0].register_forward_hook(lambda layer, given, output: sizes.add(len(output)))
    rows = measure(Model("net", Step(module, x), x[:8]))
    assert {row.status for row in rows.values()} == {"timed"}
    assert seen == [8]
    assert sizes == {8, 64}
    assert rows["eager"].kept_bytes > 64 * 4 * 4


def test_a_peer_without_a_model_says_so(targets):
    row = measure(f"{targets}:pair", "jax")["jax"]
    assert (row.status, row.reason) == ("unavailable", "jax is not measured on a model")


def test_a_compiler_that_is_not_there_is_named(targets, monkeypatch):
    monkeypatch.setattr(measured, "why_no_compiler", lambda: "no compiler here")
    row = measure(f"{targets}:pair", "compile")["compile"]
    assert (row.status, row.reason) == ("unavailable", "no compiler here")


def test_what_is_compiled_passes_the_gate_too(targets, monkeypatch):
    monkeypatch.setattr(measured, "why_no_compiler", lambda: "")
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    assert measure(f"{targets}:pair", "compile")["compile"].status == "timed"

    def broken(module, **options):
        module.register_forward_hook(lambda layer, given, output: output * 1.01)
        return module

    monkeypatch.setattr(torch, "compile", broken)
    rows = measure(f"{targets}:pair", "compile")
    assert rows["compile"].status == "wrong"
    assert rows["fuse"].status == "timed"


def test_reasons_are_grouped_whatever_layer_they_are_of():
    outcomes = [
        Outcome("a.0", "BatchNorm2d", "replaced", "its output is read by a.b.c (Conv2d) and aten.add in a.b"),
        Outcome("a.1", "BatchNorm2d", "replaced", "its output is read by d.e (Conv2d) and aten.add in d"),
        Outcome("a.2", "BatchNorm2d", "kept", "its output is added to another tensor in place"),
    ]
    assert reasons(Surgery(nn.Identity(), [], outcomes, Errors({}, None))) == [
        "2 replaced: its output is read by Conv2d and aten.add",
        "1 kept: its output is added to another tensor in place",
    ]


class Half(nn.Sequential):
    """Computes in bfloat16, which neither its parameters nor its loss tell."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_a_model_under_autocast_is_judged_in_the_dtype_it_computes_in():
    module, x = Half(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(64, 3)
    step = Step(module, x)
    assert step.forward().dtype is torch.float32
    assert Gate(step).standard.dtype is torch.bfloat16
    assert measure(Model("half", step, x))["fuse"].status == "timed"


def test_inputs_in_a_mapping_of_another_kind_are_seen(targets, monkeypatch):
    import bench_targets

    monkeypatch.setattr(
        bench_targets, "named", lambda: (bench_targets.Named(), UserDict(pixels=bench_targets.images(), scale=2.0))
    )
    step = load(f"{targets}:named")
    assert type(step.inputs) is dict
    assert step.forward().dim() == 0


def test_a_step_takes_tensors_tuples_and_keywords_and_leaves_no_gradient(targets):
    for name in ("pair", "with_loss", "named", "Whole"):
        step = load(f"{targets}:{name}")
        assert step.forward().dim() == 0
        step.step()
        assert all(parameter.grad is None for parameter in step.parameters())


def test_a_target_that_exits_is_named(targets, monkeypatch):
    import bench_targets

    monkeypatch.setattr(bench_targets, "exits", lambda: sys.exit(0), raising=False)
    with pytest.raises(TargetError, match="calling it raised SystemExit: 0"):
        load(f"{targets}:exits")


def test_an_output_without_a_gradient_asks_for_a_loss():
    with pytest.raises(ArgumentError, match="holds no tensor that needs a gradient"):
        Step(lambda: {"count": torch.tensor([3])}).forward()


def test_the_default_loss_is_the_outputs_own_where_it_has_one():
    class Output:
        loss = torch.tensor(4.0)

    assert float(Step(Output).forward()) == 4.0
    x = torch.tensor([3.0], requires_grad=True)
    assert Step(lambda: (x, [2 * x])).forward().item() == 9.0 + 36.0


def test_shares_are_of_the_whole_step():
    x = torch.randn(64, 64, requires_grad=True)
    norm = nn.BatchNorm1d(64)
    norms, rest = shares_module.shares(lambda: torch.relu(norm(x)).sum().backward())
    assert norms > 0
    assert rest > 0
    assert norms + rest < 1
    assert shares_module.shares(lambda: x @ x) == (0.0, 0.0)

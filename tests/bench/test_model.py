import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.bench import model as measured
from batchnorm.bench import shares as shares_module
from batchnorm.bench.model import measure_model, prepare
from batchnorm.bench.peers import chosen
from batchnorm.bench.replacement import replaced
from batchnorm.bench.step import Step, load
from batchnorm.errors import ArgumentError
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


@pytest.mark.parametrize("name", ["pair", "with_loss", "Whole", "named", "namedtuples", "instance", "random"])
def test_a_model_is_measured_as_given_and_with_our_layers(targets, name):
    ours, given = measure_model(prepare(f"{targets}:{name}"), chosen([]), 2)
    assert (ours.contender, given.contender) == ("batchnorm", "eager")
    assert (ours.status, given.status) == ("timed", "timed"), ours.reason
    assert ours.case == f"{targets}:{name}"
    assert given.ratio == pytest.approx(given.microseconds / ours.microseconds)
    assert ours.kept_bytes > 0
    assert given.kept_bytes > 0
    assert 0 < given.norm_share < 1
    assert 0 < given.activation_share < 1 - given.norm_share
    assert ours.tolerance_share <= 1


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
        measure_model(prepare(f"{targets}:{name}"), chosen([]), 2)


def test_a_model_without_a_torch_norm_is_refused(targets):
    with pytest.raises(ArgumentError, match="has no torch"):
        measure_model(prepare(f"{targets}:no_norm"), chosen([]), 2)


@pytest.mark.parametrize("name", ["pair", "named", "namedtuples"])
def test_what_runs_in_float64_is_held_to_a_fine_tolerance(targets, monkeypatch, name):
    def broken(module):
        copied, count = replaced(module)
        copied.register_forward_hook(lambda layer, given, output: _scaled(output, 1.005))
        return copied, count

    # Beside torch alone, half a percent would pass.
    monkeypatch.setattr(measured, "replaced", broken)
    ours, _ = measure_model(prepare(f"{targets}:{name}"), chosen([]), 2)
    assert ours.status == "wrong"


def _scaled(output, factor):
    if isinstance(output, dict):
        return {name: _scaled(value, factor) for name, value in output.items()}
    return output * factor if output.is_floating_point() else output


def test_a_wrong_gradient_costs_us_the_time(targets, monkeypatch):
    def broken(module):
        copied, count = replaced(module)
        copied[1].register_forward_hook(lambda layer, given, output: output * 1.05)
        return copied, count

    monkeypatch.setattr(measured, "replaced", broken)
    ours, given = measure_model(prepare(f"{targets}:with_loss"), chosen([]), 2)
    assert (ours.status, ours.microseconds) == ("wrong", None)
    assert "relative error" in ours.reason
    assert given.status == "timed"
    assert given.ratio is None


def test_a_peer_without_a_model_says_so(targets):
    rows = measure_model(prepare(f"{targets}:pair"), chosen(["jax"]), 2)
    assert (rows[2].contender, rows[2].status) == ("jax", "unavailable")
    assert rows[2].reason == "jax is not measured on a model"


def test_a_compiler_that_is_not_there_is_named(targets, monkeypatch):
    monkeypatch.setattr(measured, "why_no_compiler", lambda: "no compiler here")
    rows = measure_model(prepare(f"{targets}:pair"), chosen(["compile"]), 2)
    assert (rows[2].status, rows[2].reason) == ("unavailable", "no compiler here")


def shared_and_odd():
    class Own(nn.BatchNorm2d):
        pass

    norm = nn.BatchNorm2d(3, eps=1e-3, momentum=None)
    watched = nn.BatchNorm2d(3)
    watched.register_forward_hook(lambda *given: None)
    frozen = nn.BatchNorm2d(3, affine=False).eval()
    return nn.Sequential(norm, nn.ReLU(), norm, Own(3), watched, nn.ModuleDict({"inner": frozen}))


def test_replacement_shares_parameters_copies_buffers_and_leaves_the_model_alone():
    module = shared_and_odd()
    before = copy.deepcopy(module.state_dict())
    new, count = replaced(module)
    assert count == 2
    assert type(module[0]) is nn.BatchNorm2d
    assert type(new[0]) is batchnorm.BatchNorm2d
    assert new[0] is new[2]
    assert new[0].weight is module[0].weight
    assert new[0].running_mean is not module[0].running_mean
    assert (new[0].eps, new[0].momentum, new[0].training) == (1e-3, None, True)
    assert type(new[3]) is type(module[3])
    assert type(new[4]) is nn.BatchNorm2d
    inner = new[5]["inner"]
    assert type(inner) is batchnorm.BatchNorm2d
    assert (inner.affine, inner.weight, inner.training) == (False, None, False)
    new[:5](torch.randn(4, 3, 2, 2))
    after = module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_norm_that_is_the_model_is_replaced():
    new, count = replaced(nn.BatchNorm1d(3))
    assert (type(new), count) == (batchnorm.BatchNorm1d, 1)


def test_a_step_takes_tensors_tuples_and_keywords_and_leaves_no_gradient(targets):
    for name in ("pair", "with_loss", "named", "Whole"):
        step = load(f"{targets}:{name}")
        assert step.forward().dim() == 0
        step.step()
        assert all(parameter.grad is None for parameter in step.parameters())


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

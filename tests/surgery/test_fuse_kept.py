"""What ``fuse`` leaves alone, and the reason that it gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchnorm
from batchnorm.surgery import fuse
from surgery.fuse_tools import images, outcomes


class Norm(nn.Module):
    """A norm, and code after it."""

    def __init__(self, code, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.code, self.norm = code, norm if norm is not None else nn.BatchNorm2d(3)
        self.linear = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.norm, x)


class Own(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def read_twice(y):
    return y.relu() + y


def doubled(y):
    return torch.relu(y + y)


def residual_in_place(norm, x):
    r = x * 1
    y = norm(x) + r
    r.mul_(0.5)
    return torch.relu(y) + r


REFUSED = {
    "read twice": (lambda n, x: read_twice(n(x)), "its output is read by aten.relu and aten.add"),
    "called twice": (lambda n, x: torch.relu(n(torch.relu(n(x)))), "it is called 2 times"),
    "no activation": (lambda n, x: n(x).mean(1), "followed by aten.mean"),
    "an activation without a kernel": (lambda n, x: F.mish(n(x)), "followed by aten.mish"),
    "the end": (lambda n, x: n(x), "its output leaves the model"),
    "a sum at the end": (lambda n, x: n(x) + x, "its output leaves the model"),
    "a broadcast": (lambda n, x: torch.relu(n(x) + x[:1]), "the sum after it broadcasts (1, 3, 6, 6) and (4, 3, 6, 6)"),
    "alpha": (lambda n, x: torch.relu(torch.add(n(x), x, alpha=2)), "the sum after it has a factor alpha"),
    "dtypes": (
        lambda n, x: torch.relu(n(x) + x.to(torch.bfloat16)),
        "the sum after it has dtypes torch.float32 and torch.bfloat16",
    ),
    "in place on the other": (
        lambda n, x: torch.relu((x * 1).add_(n(x))),
        "its output is added to another tensor in place",
    ),
    "a number": (lambda n, x: torch.relu(n(x) + 1), "followed by aten.add"),
    "itself": (lambda n, x: doubled(n(x)), "followed by aten.add"),
    "not called": (lambda n, x: x * 2, "it is not called"),
    "residual modified": (residual_in_place, "aten.mul modifies a tensor in place before add + relu"),
    "data": (
        lambda n, x: torch.relu(n(x)) if x.sum() > -1e9 else x,
        "its output is read by code that does not trace",
    ),
    "past torch's functions": (
        lambda n, x: torch.ops.aten.relu(n(x)),
        "a run did not compute it with what follows (relu)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fuse_is_replaced_and_says_why(name):
    code, reason = REFUSED[name]
    given = Norm(code)
    result = fuse(given, images())
    assert outcomes(result) == {"norm": ("replaced", reason)}
    assert type(result.model.norm) is batchnorm.BatchNorm2d
    torch.testing.assert_close(result.model(images()), copy.deepcopy(given)(images()))


def test_an_input_that_is_modified_in_place():
    def code(norm, x):
        x = x * 1
        y = norm(x)
        x.add_(1)
        return torch.relu(y)

    result = fuse(Norm(code, nn.BatchNorm2d(3, affine=False)), images())
    assert outcomes(result) == {"norm": ("replaced", "aten.add modifies a tensor in place before relu")}


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (Own(3), "Own is a class of its own and may compute something else"),
        (nn.SyncBatchNorm(3).eval(), "SyncBatchNorm is a class of its own and may compute something else"),
        (batchnorm.BatchNormAct2d(3), "its activation is fused already"),
    ],
)
def test_what_is_no_plain_norm_is_kept(norm, reason):
    result = fuse(Norm(lambda n, x: torch.relu(n(x)), norm), images())
    assert outcomes(result) == {"norm": ("kept", reason)}
    assert type(result.model.norm) is type(norm)


def test_other_normalizations_are_no_batch_norms():
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.GroupNorm(3, 3), nn.ReLU())
    result = fuse(model, images())
    assert outcomes(result) == {}
    assert str(result).startswith("no norms")


def test_what_is_left_out_by_where():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    result = fuse(model, images(), where=lambda path, layer: layer.num_features == 4)
    assert outcomes(result) == {"0": ("kept", "left out by where"), "3": ("fused", "relu")}
    assert type(result.model[0]) is nn.BatchNorm2d


def residual_through_a_view(norm, x):
    r = x * 2
    y = norm(x) + r
    r[:, 0] = 0
    return torch.relu(y) + r


@torch.jit.script
def scripted(y: Tensor) -> Tensor:
    return torch.relu(y) * 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            residual_through_a_view,
            "computed with add + relu, the model raises ModifiedError: the other side of the sum",
        ),
        (lambda n, x: scripted(torch.relu(n(x)) + torch.relu(x)), ""),
        (lambda n, x: F.relu(n(x) + n.running_mean.mean()), ""),
    ],
)
def test_what_the_graph_does_not_show_is_found_in_a_run(code, reason):
    given = Norm(code)
    (outcome,) = fuse(given, images()).changed
    assert outcome.action == ("replaced" if reason else outcome.action)
    assert outcome.detail.startswith(reason)


class Viewed(nn.Module):
    """Needs the output of its norm to be contiguous, as torch's is and this library's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other, self.conv = nn.BatchNorm1d(5), nn.BatchNorm1d(5), nn.Conv1d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.other(self.conv(x)))
        return self.norm(x.transpose(1, 2).contiguous().transpose(1, 2)).view(len(x), -1) + y.view(len(x), -1)


def test_a_norm_that_must_be_torchs_stays_so_and_the_others_do_not():
    given = Viewed()
    x = torch.randn(3, 5, 4)
    result = fuse(given, x)
    found = outcomes(result)
    assert found["other"][0] == "replaced"  # and by export's own account the model does not trace
    assert found["norm"][0] == "kept"
    assert found["norm"][1].startswith("computed by this library, the model raises RuntimeError: view size is not")
    torch.testing.assert_close(result.model(x), copy.deepcopy(given)(x))


def test_hooks_see_what_they_saw():
    given = Norm(lambda n, x: torch.relu(n(x)))
    seen = []
    given.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.min().item()))
    result = fuse(given, images())
    assert outcomes(result) == {"norm": ("replaced", "its hooks see its output")}
    seen.clear()
    result.model(images())
    assert len(seen) == 1
    assert seen[0] < 0


def test_a_module_at_two_places_stays_one():
    norm, act = nn.BatchNorm2d(3), nn.ReLU()
    model = nn.Sequential(nn.Sequential(norm, act), nn.Conv2d(3, 3, 1), norm, act)
    result = fuse(model, images())
    assert outcomes(result) == {"0.0": ("replaced", "it is called 2 times")}
    assert result.model[0][0] is result.model[2]
    assert result.model[0][1] is result.model[3]
    only = nn.Sequential(norm, act)
    only.again = norm
    assert fuse(Norm(lambda n, x: n[1](n.again(x)), only), images()).changed[0].action == "fused"

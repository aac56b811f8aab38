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
        "what follows (relu) is called in a form that does not fuse",
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

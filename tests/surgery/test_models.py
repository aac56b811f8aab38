"""``fuse``, ``lean`` and ``fold`` on the networks of others: whole architectures, with few channels."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from batchnorm.bench.norms import counts, reasons
from batchnorm.memory import lean
from batchnorm.nn._base import Norm
from batchnorm.ops import cpu
from batchnorm.surgery.copying import copied
from batchnorm.surgery.fold import fold
from batchnorm.surgery.fuse import fuse
from batchnorm.surgery.result import Surgery
from surgery.filled import calibrated
from surgery.models import NETWORKS

RESNET, MOBILENET, DENSENET, REGNET, EFFICIENTNET, LEVIT, UNET, SEGRESNET, CREPE, SEQUENTIAL = NETWORKS

# Of training: what norms are fused with, and how many are ours but computed alone.
FUSED = {
    RESNET: ({"relu": 33, "add + relu": 16}, 4),
    MOBILENET: ({"hardtanh(min_val=0, max_val=6)": 35, "add": 10}, 7),
    DENSENET: ({"relu": 121}, 0),
    REGNET: ({"relu": 45, "add + relu": 22}, 4),
    EFFICIENTNET: ({"silu": 33}, 16),
    LEVIT: ({"hardswish": 17}, 46),
    UNET: ({"relu": 9}, 0),
    SEGRESNET: ({"relu": 9}, 0),
    CREPE: ({}, 6),
    SEQUENTIAL: ({"relu": 1, "silu": 1, "leaky_relu(negative_slope=0.1)": 1}, 1),
}

# Of inference: how many norms are folded, and why others are not.
_CAT = "before: its input is read by aten.cat too; after: its output is read by ReLU"
_SUM = "before: its input is read by aten.add too; after: its output is read by ReLU"
FOLDED = {
    RESNET: (53, []),
    MOBILENET: (52, []),
    DENSENET: (
        59,
        [f"58 kept: {_CAT}", "4 kept: before: its input is given by aten.cat; after: its output is read by ReLU"],
    ),
    REGNET: (71, []),
    EFFICIENTNET: (49, []),
    LEVIT: (63, []),
    UNET: (9, []),
    SEGRESNET: (
        4,
        [f"4 kept: {_SUM}", "1 kept: before: its input is given by aten.add; after: its output is read by ReLU"],
    ),
    CREPE: (0, ["6 kept: before: its input is given by aten.relu; after: its output is read by aten.max_pool2d"]),
    SEQUENTIAL: (4, []),
}

every_network = pytest.mark.parametrize("name", list(NETWORKS))


@cache
def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    found = NETWORKS[name]
    return found.module(found.small_size, small=True), found.inputs(8, found.small_size)


@cache
def fused(name: str) -> Surgery:
    return fuse(*network(name))


def tensors(output: Any) -> list[torch.Tensor]:
    return list(tree_leaves(output if isinstance(output, torch.Tensor) else dict(output)))


def loss(output: Any) -> torch.Tensor:
    # Not the plain square: the sum of what comes out of a norm is no function of what goes into it.
    return sum((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).sin().sum() for tensor in tensors(output))


@every_network
def test_fuse(name):
    (model, _), done = network(name), fused(name)
    with_what, alone = FUSED[name]
    found: dict[str, int] = {}
    for outcome in done.changed:
        if outcome.action == "fused":
            found[outcome.detail] = found.get(outcome.detail, 0) + 1
    assert found == with_what
    assert counts(done) == {"fused": sum(with_what.values()), "replaced": alone, "folded": 0, "kept": 0}
    assert done.errors.by_dtype["float64"] < 1e-6
    assert not any(isinstance(layer, Norm) for layer in model.modules())
    norms = [layer for layer in done.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == sum(with_what.values()) + alone
    assert all(isinstance(layer, Norm) for layer in norms)
    assert list(done.model.state_dict()) == list(model.state_dict())
    for state in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(done.model, state)()), dict(getattr(model, state)())
        assert all(ours[key] is tensor for key, tensor in theirs.items())


def trained(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of the first of two steps, and the state after the second with the outputs in evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    gradients = {}
    for step in range(2):
        torch.manual_seed(step)  # of dropout
        optimizer.zero_grad()
        loss(model(x)).backward()
        if not gradients:
            gradients = {key: each.grad.clone() for key, each in model.named_parameters() if each.grad is not None}
        optimizer.step()
    with torch.no_grad():
        outputs = tensors(model.eval()(x))
    return gradients, {**model.state_dict(), **{f"output {place}": each for place, each in enumerate(outputs)}}


def assert_near(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert found.keys() == right.keys()
    largest = max(float(each.double().norm()) for each in right.values())
    for key, tensor in right.items():
        off = float((found[key] - tensor).double().norm())
        assert off <= 1e-6 * max(float(tensor.double().norm()), 1e-3 * largest), key


@every_network
def test_the_fused_network_trains_as_the_given_one_does(name):
    """In float64, where roundings do not hide a wrong formula: gradients, two steps, running statistics, evaluation."""
    (model, x), done = network(name), fused(name)
    gradients, state = trained(copied(model).double(), x.double())
    ours, after = trained(copied(done.model).double(), x.double())
    assert_near(ours, gradients)
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        assert int(after[key]) == int(state[key])
    assert_near(after, state)


# What is kept with lean, at most, by what the fused network keeps without: with few channels, and eager keeps more.
SHARES = {
    RESNET: 0.65,
    MOBILENET: 1.0,  # that of transformers pads before every convolution: nothing keeps a norm's own output
    DENSENET: 0.54,
    REGNET: 0.62,
    EFFICIENTNET: 0.76,
    LEVIT: 0.81,
    UNET: 0.75,
    SEGRESNET: 0.57,
    CREPE: 0.75,
    SEQUENTIAL: 0.76,
}


@every_network
def test_lean(name):
    """The same gradients and buffers, to the last bit by the compiled kernels, of fewer bytes."""
    _, x = network(name)
    model = copied(fused(name).model)
    found = []
    for around in (False, True):
        step = copied(model)
        torch.manual_seed(0)
        if around:
            with lean(report=True) as report:
                value = loss(step(x))
        else:
            value = loss(step(x))
        value.backward()
        found.append({key: each.grad for key, each in step.named_parameters() if each.grad is not None})
        found[-1] |= dict(step.named_buffers())
    if cpu.available:
        assert found[0].keys() == found[1].keys()
        assert [key for key, each in found[0].items() if not torch.equal(each, found[1][key])] == []
    else:
        assert_near(found[1], found[0])
    assert report.kept_bytes <= SHARES[name] * report.kept_bytes_without


@every_network
def test_fold(name):
    torch.manual_seed(1)
    model, x = network(name)
    batches = x, NETWORKS[name].inputs(8, NETWORKS[name].small_size)
    model = calibrated(copied(model), *batches) if name != CREPE else copied(model)
    done = fold(model, x)
    folded, why = FOLDED[name]
    assert counts(done) == {
        "fused": 0,
        "replaced": 0,
        "folded": folded,
        "kept": sum(int(each.split()[0]) for each in why),
    }
    assert [each for each in reasons(done) if " kept: " in each] == why
    assert done.errors.by_dtype["float64"] < 1e-12
    left = [layer for layer in done.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert len(left) == len(done.kept)
    other, ours, given = NETWORKS[name].inputs(3, NETWORKS[name].small_size), done.model, model
    if NETWORKS[name].autocast:  # whose roundings would hide what is wrong; it leaves float64 as it is
        other, ours, given = other.double(), copied(done.model).double(), copied(model).double()
    with torch.no_grad():
        found, right = tensors(ours(other)), tensors(given.eval()(other))
    for output, wanted in zip(found, right, strict=True):
        assert float((output - wanted).norm()) < 1e-4 * float(wanted.norm())

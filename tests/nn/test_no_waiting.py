"""Nothing waits for the device, forward or backward: no value is read.

No GPU is asked for that: ``float(tensor)``, ``if tensor:`` and ``tensor[mask]`` are seen on the CPU too, as an operator
where plain operations serve, as a call where the Triton kernels do, in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.ops import dispatch
from nn.every_layer import CASES, CHANNELS, IDS, LAYERS, SHAPE, Layer, Operators, run, tensors, world_of_one

cases = pytest.mark.parametrize(("name", "masked", "momentum"), CASES, ids=IDS)


class Calls(TorchFunctionMode):
    """Notes every call of torch's Python functions that reads a value."""

    READS = frozenset(
        {
            *("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__len__"),
            *("nonzero", "equal", "allclose", "is_nonzero", "masked_select", "unique"),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.READS and isinstance(args[0] if args else None, Tensor):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _serving_by_triton() -> Any:
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton.runtime.interpreter import GridExecutor

    from batchnorm.ops import synced
    from batchnorm.ops.triton import kernels
    from batchnorm.population import sinks
    from ops.triton_interpreter import is_interpreted
    from ops.triton_serving import serving

    if not is_interpreted:
        pytest.skip("Triton compiles here, and kernels for the CPU are its interpreter's alone")
    launched = GridExecutor.__call__

    def unseen(*arguments: Any, **named: Any) -> Any:
        with torch._C.DisableTorchFunction():  # the interpreter reads what a GPU would
            return launched(*arguments, **named)

    stack = ExitStack()
    stack.enter_context(serving())
    for owner, name, value in (
        (synced, "rank_kernels", lambda input: kernels),
        (sinks, "running_mover", lambda mean, direct: kernels.update_running),
        (GridExecutor, "__call__", unseen),
    ):
        stack.enter_context(patch.object(owner, name, value))
    return stack


@pytest.fixture(params=["plain operations", "triton"], scope="module")
def watching(request: pytest.FixtureRequest) -> Iterator[type[Operators] | type[Calls]]:
    """What serves, and how to watch it."""
    if request.param == "triton":
        with _serving_by_triton():
            yield Calls
    else:
        with patch.object(dispatch, "_compiled", None):
            yield Operators


@pytest.fixture(autouse=True, scope="module")
def _group() -> Iterator[None]:
    with world_of_one("gloo"):
        yield


def _run_in_both_modes(layer: Layer, masked: bool, momentum: float | None) -> None:
    module = layer.build(momentum=momentum)
    for mode in (True, False):
        run(module.train(mode), tensors(layer, masked, "cpu"))


@cases
def test_no_value_is_read(name: str, masked: bool, momentum: float | None, watching: Any) -> None:
    with watching() as watched:
        _run_in_both_modes(LAYERS[name], masked, momentum)
    assert not watched.seen


def test_values_that_are_read_are_seen(watching: Any) -> None:
    x, mask = torch.ones(3), torch.tensor([True, False, True])
    for read in (lambda: float(x.sum()), lambda: 1 if x.sum() else 0, lambda: torch.equal(x, x), mask.nonzero):
        with watching() as watched:
            read()
        assert watched.seen, read


# --- around layers ----------------------------------------------------------------------------------------------


def _network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(CHANNELS, CHANNELS, 1),
        batchnorm.BatchNormAct2d(CHANNELS),
        torch.nn.Conv2d(CHANNELS, CHANNELS, 1),
        batchnorm.BatchRenorm2d(CHANNELS),
        batchnorm.SyncBatchNorm(CHANNELS, activation="relu"),
        torch.nn.Conv2d(CHANNELS, CHANNELS, 1),
    )


def _lean(model: torch.nn.Module, x: Tensor) -> None:
    with batchnorm.lean(report=True) as report:
        loss = model(x).square().sum()
    loss.backward()
    assert report.recipes == 3


def _accumulated(model: torch.nn.Module, x: Tensor) -> None:
    with batchnorm.accumulate_statistics(model):
        for part in x.split(2):
            model(part).square().sum().backward()


def _accumulated_by_torch(model: torch.nn.Module, x: Tensor) -> None:
    _accumulated(torch.nn.Sequential(torch.nn.BatchNorm2d(CHANNELS), model), x)


def _checkpointed(reentrant: bool) -> Any:
    def step(model: torch.nn.Module, x: Tensor) -> None:
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()

    return step


def _observed(model: torch.nn.Module, x: Tensor) -> None:
    """Values are brought when the record is made, between steps: not here."""
    monitor = batchnorm.monitor(model, lambda record: None)
    model(x).square().sum().backward()
    monitor._watcher._observation = None
    monitor.close()


def _converted(model: torch.nn.Module, x: Tensor) -> None:
    for kind in ("ghost", "domain", "frozen"):
        batchnorm.convert(model, kind, where=lambda path, norm: path != "4")(x).square().sum().backward()


STEPS = {
    "lean": _lean,
    "accumulate_statistics": _accumulated,
    "accumulate_statistics of torch's norms": _accumulated_by_torch,
    "reentrant checkpoint": _checkpointed(True),
    "checkpoint": _checkpointed(False),
    "monitor": _observed,
    "convert": _converted,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_no_value_is_read_around_layers(step: Any, watching: Any) -> None:
    with watching() as watched:
        step(_network(), torch.randn(SHAPE, requires_grad=True))
    assert not watched.seen


def test_standardize_reads_no_value() -> None:
    layer = batchnorm.Standardize(CHANNELS).fit(torch.randn(SHAPE))
    with Operators() as watched:
        layer.inverse(layer(torch.randn(SHAPE, requires_grad=True))).sum().backward()
    assert not watched.seen

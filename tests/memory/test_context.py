"""``lean`` among other things: threads, nesting, checkpoints, compilers, transforms, exceptions."""

from __future__ import annotations

import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from batchnorm.errors import ArgumentError
from batchnorm.functional import batch_norm
from batchnorm.memory import Report, lean
from batchnorm.memory.session import sessions
from batchnorm.ops.observers import observers
from memory.lean_tools import Model, assert_equal, assert_over, gradients, plain


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 5, 5)


def test_a_decorator_is_a_block_at_each_call(model: Model, x: Tensor) -> None:
    expected = gradients(model, x, plain)
    seen = []

    @lean()
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        """Words."""
        seen.append(len(sessions))
        return model(x)  # type: ignore[no-any-return]

    assert forward.__doc__ == "Words."
    for _ in range(2):
        assert_equal(gradients(model, x, forward), expected)
    assert seen == [1, 1]
    assert_over()
    with pytest.raises(ArgumentError, match="with lean"):
        lean(report=True)(plain)


def _generator() -> Iterator[None]:
    yield


async def _coroutine() -> None: ...


async def _asynchronous_generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("function", [_generator, _coroutine, _asynchronous_generator])
def test_a_decorator_refuses_what_only_makes_a_generator(function: Callable[[], object]) -> None:
    """The block would be over before the first line runs."""
    with pytest.raises(ArgumentError, match=rf"^{function.__name__} is a generator or coroutine function"):
        lean()(function)


def test_an_exception_restores_everything(model: Model, x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="channels"), lean(), lean():
        model(x[:, 1:])
    assert_over()
    y = model.first(x)
    reference = StorageWeakRef(y.untyped_storage())
    z = model.middle(y)
    del y
    assert not reference.expired()
    assert z.requires_grad


def test_nested_blocks_are_one_with_two_reports(model: Model, x: Tensor) -> None:
    with lean(report=True) as outer:
        y = model.first(x)
        with lean(report=True) as inner:
            assert len(observers) == 1
            y = model.middle(y)  # what the outer block saw made
            y = model.middle(y)
        assert len(observers) == 1
        model.last(y)
    assert outer is not None
    assert inner is not None
    assert (outer.recipes, inner.recipes) == (3, 2)
    assert outer.kept_bytes > inner.kept_bytes
    assert_over()
    again = lean(report=True)
    for _ in range(2):
        with again as first, again as second:
            model(x)
        assert first == second
        assert isinstance(first, Report)
        assert first.recipes == 3
    assert_over()


def test_other_threads_are_left_alone(model: Model, x: Tensor) -> None:
    inside, done = threading.Event(), threading.Event()
    alive: list[bool] = []

    def other() -> None:
        inside.wait(10)
        y = model.first(x)
        reference = StorageWeakRef(y.untyped_storage())
        z = model.middle(y)
        del y
        alive.append(not reference.expired())
        with lean(report=True) as report:
            model(x)
        assert report is not None
        alive.append(report.recipes == 3)
        del z
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with lean(report=True) as report:
        inside.set()
        assert done.wait(60)
        assert len(observers) == 1
    thread.join()
    assert alive == [True, True]
    assert report is not None
    assert report.kept_bytes_without == 0
    assert_over()


def test_a_backward_pass_in_another_thread(model: Model, x: Tensor) -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with lean():
            loss = model(x)
        thread = threading.Thread(target=lambda: loss.backward(retain_graph=True))
        thread.start()
        thread.join()
        model.zero_grad()
        return loss

    assert_equal(gradients(model, x, forward), gradients(model, x, plain))


@pytest.mark.parametrize("is_reentrant", [True, False])
@pytest.mark.parametrize("where", ["inside", "outside", "both"])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_checkpoints(model: Model, x: Tensor, is_reentrant: bool, where: str, backward_inside: bool) -> None:
    """Inside, outside: where the checkpoint stands."""
    expected = gradients(model, x, plain)
    inner, outer = [], []

    def around(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        def leanly(x: Tensor) -> Tensor:
            with lean(report=True) as report:
                inner.append(report)
                return function(x)

        return checkpoint(leanly if where != "inside" else function, x, use_reentrant=is_reentrant)  # type: ignore[no-any-return]

    model.around = around
    block = lean(report=True) if where != "outside" else nullcontext(None)

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with block as report:
            loss: Tensor = model(x)
            if backward_inside:
                loss.backward(retain_graph=True)
                model.zero_grad()
        outer.append(report)
        return loss

    assert_equal(gradients(model, x, forward), expected)
    report = outer[0]
    if where == "inside":
        # The first block's output, which the checkpoint keeps as its own input, and the last one's.
        assert report is not None
        assert report.recipes == 2
    if not is_reentrant:
        assert all("checkpoint" in str(report) for report in inner)
        assert report is None or "checkpoint" in str(report)
    assert_over()


def test_other_hooks_that_were_there_before_stay(model: Model, x: Tensor) -> None:
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda t: t), lean(report=True) as report:
        model(x)
    assert len(packed) > 9
    assert report is not None
    assert report.recipes == 0
    assert "other hooks" in str(report)
    with lean(report=True) as report:
        with saved_tensors_hooks(pack, lambda t: t):
            model(x)
        model(x)
    assert report is not None
    assert report.recipes == 3
    assert next(iter(report.reasons.values())) == 3
    assert_over()


def test_without_gradients_there_is_nothing_to_keep(model: Model, x: Tensor) -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with lean(report=True) as report, mode():
            model(x)
        assert report is not None
        assert (report.kept_bytes_without, report.recipes) == (0, 0)
        assert "no norm of this library ran" in str(report)
    with torch.inference_mode():
        data = x.clone()
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    with lean(report=True) as report:
        frozen(data)
    assert report is not None
    assert report.kept_bytes_without == 0


@pytest.mark.parametrize("what", ["input", "weight"])
def test_inference_tensors_are_refused_in_torch_s_words(what: str, x: Tensor) -> None:
    with torch.inference_mode():
        data = x.clone()
        vector = torch.ones(4)
    weight, bias = (vector, torch.zeros(4)) if what == "weight" else (torch.ones(4), torch.zeros(4))
    for is_lean in (True, False):
        with lean() if is_lean else nullcontext(), pytest.raises(RuntimeError, match="cannot be saved for backward"):
            batch_norm(data if what == "input" else x, None, None, weight, bias.requires_grad_(), training=True)
    assert_over()


def test_what_is_no_plain_tensor_is_kept_as_it_is(x: Tensor) -> None:
    weight = torch.randn(4, 4).to_sparse().requires_grad_()
    dense = torch.randn(4, 4, requires_grad=True)
    with lean():
        loss = torch.sparse.mm(weight, dense).sum()
    loss.backward()
    assert dense.grad is not None

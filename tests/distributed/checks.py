"""What holds on the ranks of a process group: each check runs on all of them at once (``ranks.py``)."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import SyncBatchNorm, functional, reference
from batchnorm.errors import ArgumentError
from batchnorm.population.accumulate import accumulate_statistics
from contract import NoSynchronization
from distributed.whole import CHANNELS, Whole, assert_alike, assert_as_whole, random_whole, split, total
from tolerance import assert_three_way, double


def _own(whole: Tensor) -> Tensor:
    """This rank's samples, the same number on each."""
    return whole.chunk(dist.get_world_size())[dist.get_rank()].clone()


def _state(layer: torch.nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def _assert_unmoved(layer: torch.nn.Module, before: dict[str, Tensor]) -> None:
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name]), f"{name} moved"


_compiled_before = torch.compile(SyncBatchNorm(CHANNELS), fullgraph=True, backend="aot_eager")


def before_the_group() -> None:
    """What a script does before it knows of other ranks."""
    _compiled_before(torch.randn(4, CHANNELS))


def check_compiled_before_the_group_was_there() -> None:
    """The compiler took for a constant that there was none: each rank went on by itself."""
    x = torch.randn(4, CHANNELS) + 10 * dist.get_rank()
    eager = copy.deepcopy(_compiled_before._orig_mod)
    torch.testing.assert_close(_compiled_before(x), eager(x))
    torch.testing.assert_close(_compiled_before._orig_mod.running_mean, eager.running_mean)


def check_as_one_process_with_the_whole_batch() -> None:
    """Shapes, splits with empty ranks, dtypes, formats, masks, activations and residuals as they fall."""
    ranks = dist.get_world_size()
    for seed in range(100 * ranks, 100 * ranks + (50 if ranks == 2 else 20)):
        whole = random_whole(seed, ranks)
        assert_as_whole(f"seed {seed}, {tuple(whole.input.shape)}, {whole.arguments}, {whole.parts}", whole)


def _whole(parts: list[slice], scale: float = 1.0, mean: float = 0.0, **arguments: Any) -> Whole:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, CHANNELS, 3, 4, generator=generator) * scale + mean
    dy = torch.randn(x.shape, generator=generator)
    return Whole(x, None, None, dy, arguments, parts, "contiguous")


def check_one_rank_has_everything() -> None:
    for owner in range(dist.get_world_size()):
        parts = [slice(0, 12) if rank == owner else slice(0, 0) for rank in range(dist.get_world_size())]
        assert_as_whole(f"rank {owner}", _whole(parts, activation="relu"))


def check_a_large_mean_cancels_nothing() -> None:
    """In float32, E[x²] − E[x]² would leave nothing of a variance of 1e-2 beside a mean of 1e4."""
    ranks, mean, std = dist.get_world_size(), 1e4, 0.1
    whole = _whole(split(12, ranks, random.Random(0)), std, mean, momentum=1.0)
    layer = whole.layer()
    ours, truth = whole.run(layer, dist.get_rank()), whole.reference(layer)
    # Merged in float64, as if one process had seen all; the mean that normalises is rounded to float32 as everywhere.
    np.testing.assert_allclose(double(layer.running_mean), truth["running_mean"], rtol=2**-23)
    np.testing.assert_allclose(double(layer.running_var), truth["running_var"], rtol=1e-6)
    part = whole.parts[dist.get_rank()]
    np.testing.assert_allclose(double(ours["output"]), truth["output"][part], atol=2 * mean * 2**-24 / std)


def check_one_value_a_rank() -> None:
    """Which no rank could normalise alone."""
    size = dist.get_world_size()
    x, dy = torch.randn(2, size, CHANNELS, generator=torch.Generator().manual_seed(0))
    parts = [slice(rank, rank + 1) for rank in range(size)]
    assert_as_whole("one value a rank", Whole(x, None, None, dy, {}, parts, "contiguous"))


def check_spatial_sizes_may_differ() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, CHANNELS, 2 + r, 5, generator=generator) for r in range(size)]
    values = torch.cat([image.movedim(1, -1).reshape(-1, CHANNELS) for image in images])
    layer = SyncBatchNorm(CHANNELS)
    output = layer(images[rank])
    mean, var = values.mean(0), values.var(0, correction=0)
    wanted = (images[rank] - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + layer.eps).sqrt()
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * values.var(0))


def check_an_empty_batch_on_all_ranks_counts_and_moves_nothing() -> None:
    for mask in (None, torch.ones(0, 3, dtype=torch.bool)):
        layer, plain = SyncBatchNorm(CHANNELS), batchnorm.BatchNorm1d(CHANNELS)
        x = torch.empty(0, CHANNELS, 3, requires_grad=True)
        output = layer(x, mask=mask)
        plain(x, mask=mask)
        output.sum().backward()
        assert output.shape == x.grad.shape == x.shape
        assert (layer.weight.grad == 0).all()
        _assert_unmoved(layer, _state(plain))
        assert int(layer.num_batches_tracked) == 1


def check_too_few_valid_values_move_nothing() -> None:
    """One valid value on all ranks gives activation(bias), none gives zeros; neither is counted, as with one rank."""
    first = dist.get_rank() == 0
    for valid in (0, 1):
        layer = SyncBatchNorm(CHANNELS, activation="relu")
        torch.nn.init.constant_(layer.bias, 0.5)
        before = _state(layer)
        mask = torch.zeros(2, 3, dtype=torch.bool)
        mask[0, 0] = first and valid
        x = torch.randn(2, CHANNELS, 3, requires_grad=True)
        output = layer(x, mask=mask)
        output.sum().backward()
        wanted = 0.5 * mask.unsqueeze(1).expand(x.shape)
        torch.testing.assert_close(output, wanted, rtol=0, atol=1e-4)  # torch's own kernel rounds mean / √eps
        assert (x.grad == 0).all()
        _assert_unmoved(layer, before)


def check_one_value_on_all_ranks_together_moves_nothing() -> None:
    layer = SyncBatchNorm(CHANNELS)
    before = _state(layer)
    x = torch.randn(1 if dist.get_rank() == 0 else 0, CHANNELS)
    torch.testing.assert_close(layer(x), torch.zeros_like(x), rtol=0, atol=1e-4)
    _assert_unmoved(layer, before)


def check_what_is_not_finite_on_one_rank_is_skipped_on_all() -> None:
    last = dist.get_rank() == dist.get_world_size() - 1
    for value in (float("nan"), float("inf")):
        x = torch.randn(4, CHANNELS, 3)
        if last:
            x[1, 2, 0] = value
        layer = SyncBatchNorm(CHANNELS)
        before = _state(layer)
        x.requires_grad_()
        output = layer(x)
        output.sum().backward()
        _assert_unmoved(layer, before)
        for tensor in (output, x.grad):
            assert tensor[:, 2].isnan().all()
            assert tensor[:, [0, 1, 3, 4]].isfinite().all()
        layer = SyncBatchNorm(CHANNELS, nonfinite="propagate")
        layer(x)
        assert layer.running_mean[2].isfinite().logical_not()
        assert int(layer.num_batches_tracked) == 1
        assert_alike("running_mean", layer.running_mean)


def check_running_statistics_over_several_batches() -> None:
    for momentum in (0.1, None):
        layer, plain = SyncBatchNorm(CHANNELS, momentum=momentum), batchnorm.BatchNorm1d(CHANNELS, momentum=momentum)
        for step in range(3):
            x = torch.randn(2 * dist.get_world_size(), CHANNELS, generator=torch.Generator().manual_seed(step))
            layer(_own(x) + step)
            plain(x + step)
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(buffer, plain.get_buffer(name))


def check_sub_groups() -> None:
    """Ranks of a group share statistics, those of another do not; a rank outside of the group is told so."""
    rank, size = dist.get_rank(), dist.get_world_size()
    all_but_last, last = dist.new_group(list(range(size - 1))), dist.new_group([size - 1])
    mine = last if rank == size - 1 else all_but_last
    layer = SyncBatchNorm(CHANNELS, process_group=mine)
    assert layer.process_group is mine
    everywhere = torch.randn(2 * size, CHANNELS, generator=torch.Generator().manual_seed(0))
    seen = everywhere[-2:] if rank == size - 1 else everywhere[:-2]
    wanted = (seen - seen.mean(0)) / (seen.var(0, correction=0) + layer.eps).sqrt()
    own = slice(0, 2) if rank == size - 1 else slice(2 * rank, 2 * rank + 2)
    x = _own(everywhere).requires_grad_()
    output = layer(x)
    torch.testing.assert_close(output, wanted[own])
    output.pow(2).sum().backward()

    outside = SyncBatchNorm(CHANNELS, process_group=all_but_last)
    if rank == size - 1:
        with pytest.raises(ArgumentError, match="not in the process group"):
            outside(x)
        outside.eval()(x)  # which needs nobody

    twin = copy.deepcopy(layer)
    assert twin.process_group is mine
    torch.testing.assert_close(twin(x), wanted[own])
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for read in (pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert repr(read) == repr(layer)
        read.eval()(x)
        read.train()
        with pytest.raises(ArgumentError, match=r"set layer\.process_group"):
            read(x)
        read.process_group = mine
        torch.testing.assert_close(read(x), wanted[own])
    for group in (all_but_last, last):
        if group is mine:
            dist.barrier(group)
            dist.destroy_process_group(group)


def check_evaluation_needs_nobody() -> None:
    """Only one rank calls: with a collective this would wait for the others. So does a batch without statistics."""
    if dist.get_rank() == 0:
        x = torch.randn(4, CHANNELS)
        tracked, untracked = SyncBatchNorm(CHANNELS).eval(), SyncBatchNorm(CHANNELS, track_running_stats=False).eval()
        torch.testing.assert_close(tracked(x), x / (1 + tracked.eps) ** 0.5)
        torch.testing.assert_close(untracked(x).mean(0), torch.zeros(CHANNELS), atol=1e-6, rtol=0)


def check_without_running_statistics() -> None:
    x = torch.randn(4 * dist.get_world_size(), CHANNELS, generator=torch.Generator().manual_seed(0))
    layer = SyncBatchNorm(CHANNELS, track_running_stats=False)
    torch.testing.assert_close(layer(_own(x)), _own(batchnorm.BatchNorm1d(CHANNELS)(x)))


def check_no_grad_moves_the_buffers_and_records_nothing() -> None:
    layer = SyncBatchNorm(CHANNELS, activation="relu")
    with torch.no_grad():
        output = layer(torch.randn(4, CHANNELS), torch.randn(4, CHANNELS))
    assert output.grad_fn is None
    assert int(layer.num_batches_tracked) == 1


def check_partial_gradients() -> None:
    """Frozen parameters; an input without a gradient, and a residual with one."""
    layer, x = SyncBatchNorm(CHANNELS, activation="relu"), torch.randn(4, CHANNELS)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    residual = torch.randn(4, CHANNELS, requires_grad=True)
    output = layer(x, residual)
    output.sum().backward()
    assert torch.equal(residual.grad, (output > 0).float())


def check_nothing_waits_for_the_device() -> None:
    for mask in (None, torch.rand(4, 3) < 0.7):
        for activation in (None, "relu", "silu"):
            for momentum in (0.1, None):
                layer = SyncBatchNorm(CHANNELS, momentum=momentum, activation=activation)
                x = torch.randn(4, CHANNELS, 3, requires_grad=True)
                residual = torch.randn(4, CHANNELS, 3, requires_grad=True)
                with NoSynchronization():
                    layer(x, residual, mask).sum().backward()


class _Collectives(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def check_one_collective_each_way() -> None:
    layer, x = SyncBatchNorm(CHANNELS), torch.randn(4, CHANNELS, requires_grad=True)
    with _Collectives() as forward:
        output = layer(x)
    with _Collectives() as backward:
        output.sum().backward()
    assert [name for name in forward.seen if name != "wait_tensor"] == ["all_gather_into_tensor"], forward.seen
    assert [name for name in backward.seen if name != "wait_tensor"] == ["all_reduce"], backward.seen


def check_kept_for_backward() -> None:
    """The input, vectors, and with a residual one bit an element or the residual.

    Without the compiled kernels, whose passes agree on each z to the last bit, bits are kept without a residual too.
    """
    compiled = batchnorm.backends()[0].available
    for name in batchnorm.activation.ACTIVATIONS:
        for with_residual in (False, True):
            activation = batchnorm.Activation(name)
            layer = SyncBatchNorm(CHANNELS, activation=activation)
            x = torch.randn(16, CHANNELS, 3, 4, requires_grad=True)
            residual = torch.randn_like(x, requires_grad=True) if with_residual else None
            sizes: dict[int, int] = {}

            def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                output = layer(x, residual)
            assert output.untyped_storage().data_ptr() not in sizes
            kept = sum(sizes.values())
            allowed = x.untyped_storage().nbytes() + 8 * (2 * CHANNELS + 1) + 2 * 4 * CHANNELS  # and the parameters
            if activation.needs_bit and (with_residual or not compiled):
                allowed += CHANNELS * ((x.numel() // CHANNELS + 7) // 8)
            elif with_residual and name != "identity":
                allowed += x.untyped_storage().nbytes()
            assert kept <= allowed, f"{name}, residual {with_residual}: {kept} bytes, allowed {allowed}"


def check_lean() -> None:
    """Under lean() the convolution after the norm keeps no output of it, and the gradients are the same bits."""
    found = []
    for lean in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), SyncBatchNorm(8, activation="relu"), torch.nn.Conv2d(8, 4, 3)
        )
        x = torch.randn(4, 3, 9, 9)
        if lean:
            with batchnorm.lean(report=True) as report:
                loss = model(x).pow(2).sum()
            assert report.recipes == 1, report
        else:
            loss = model(x).pow(2).sum()
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def check_checkpointing() -> None:
    """The recomputation repeats the collectives on all ranks, and moves nothing a second time."""
    x = torch.randn(4, CHANNELS, 3)
    for reentrant in (True, False):
        results = []
        for checkpointed in (False, True):
            layer, inner = SyncBatchNorm(CHANNELS, activation="tanh"), x.clone().requires_grad_()
            output = checkpoint(layer, inner, use_reentrant=reentrant) if checkpointed else layer(inner)
            output.pow(2).sum().backward()
            results.append((inner.grad, layer.weight.grad, *layer.buffers()))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True)), f"reentrant {reentrant}"


def check_what_cannot_cross_ranks_raises() -> None:
    layer, x = SyncBatchNorm(CHANNELS), torch.randn(4, CHANNELS, requires_grad=True)
    before = _state(layer)
    plain = x.detach()
    with pytest.raises(ArgumentError, match=r"torch\.func"):
        torch.func.grad(lambda t: layer(t).sum())(plain)
    with pytest.raises(ArgumentError, match=r"torch\.func"):
        torch.func.vmap(layer)(torch.randn(2, 4, CHANNELS))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(plain, torch.ones_like(plain))
        with pytest.raises(ArgumentError, match="forward mode"):
            layer(dual)
    with pytest.raises(ArgumentError, match=r"torch\.jit\.trace"):
        torch.jit.trace(layer, (plain,))
    _assert_unmoved(layer, before)
    with pytest.raises(ArgumentError, match="create_graph"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    batch = torch.randn(3, 4, CHANNELS)
    with pytest.raises(ArgumentError, match="is_grads_batched"):
        torch.autograd.grad(layer(x), x, batch, is_grads_batched=True)


class _Sink:
    def __init__(self) -> None:
        self.mean, self.var, self.seen = torch.zeros(CHANNELS), torch.ones(CHANNELS), torch.tensor(0)
        self.count: Tensor | None = None

    def buffers(self, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean, self.var, self.seen

    def counted(self, count: Tensor) -> None:
        self.count = count


def check_who_takes_the_batches_learns_the_count_of_all_ranks() -> None:
    layer, sink = SyncBatchNorm(CHANNELS), _Sink()
    before = _state(layer)
    layer._sink = sink
    x = torch.randn(2 + dist.get_rank(), CHANNELS, 3)
    layer(x)
    size = dist.get_world_size()
    assert int(sink.count) == 3 * (2 * size + size * (size - 1) // 2)
    torch.testing.assert_close(sink.mean, total(x.sum((0, 2))) / int(sink.count))
    _assert_unmoved(layer, before)


def check_accumulated_statistics() -> None:
    """Micro-batches on several ranks move the buffers once, as one batch of all of them."""
    size = dist.get_world_size()
    x = torch.randn(2, 3 * size, CHANNELS, generator=torch.Generator().manual_seed(0))
    layer, plain = SyncBatchNorm(CHANNELS), batchnorm.BatchNorm1d(CHANNELS)
    with accumulate_statistics(layer):
        for micro in x:
            layer(_own(micro))
    plain(x.flatten(0, 1))
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(buffer, plain.get_buffer(name))


def _network() -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=False),
        SyncBatchNorm(8, activation="relu"),
        torch.nn.Conv2d(8, 8, 3, bias=False),
        SyncBatchNorm(8),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 2),
    )


def _train(model: torch.nn.Module, part: Callable[[Tensor], Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        x = torch.randn(4 * dist.get_world_size(), 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(part(x)).pow(2).mean().backward()
        optimizer.step()


def _trained_in_one_process() -> torch.nn.Module:
    model = _network()
    for module in model.modules():
        if isinstance(module, SyncBatchNorm):
            module._batch_norm = functional.batch_norm
    _train(model, lambda x: x)
    return model


def _assert_trained_alike(model: torch.nn.Module, state: dict[str, Tensor] | None = None) -> None:
    for name, wanted in _trained_in_one_process().state_dict().items():
        found = (state or model.state_dict())[name]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def check_distributed_data_parallel() -> None:
    """Training on parts, under each setting of DDP, ends where one process with the whole batch ends."""
    for arguments in ({}, {"broadcast_buffers": False}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has another name from torch 2.13 on
        model = _network()
        _train(DistributedDataParallel(model, **arguments), _own)
        _assert_trained_alike(model)


def check_distributed_data_parallel_compiled() -> None:
    torch._dynamo.reset()
    model = _network()
    _train(DistributedDataParallel(torch.compile(model, fullgraph=True, backend="aot_eager")), _own)
    _assert_trained_alike(model)


def check_fully_sharded() -> None:
    from torch.distributed.fsdp import fully_shard

    model = _network()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    fully_shard(model)
    _train(model, _own)
    state = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}
    _assert_trained_alike(model, state)


def _check_compiled(backend: str, *activations: str) -> None:
    """Forward and backward in one graph each, with a mask and a residual, and what the buffers become."""
    torch._dynamo.reset()
    for activation in activations:
        x, residual = torch.randn(4, CHANNELS, 3, 4), torch.randn(4, CHANNELS, 3, 4)
        mask = torch.rand(4, 3, 4) < 0.7
        results = []
        for compiled in (False, True):
            layer = SyncBatchNorm(CHANNELS, activation=activation, momentum=None)
            call = torch.compile(layer, fullgraph=True, backend=backend) if compiled else layer
            inputs = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
            for _ in range(2):
                output = call(*inputs, mask)
                output.pow(2).sum().backward()
            results.append((output, *(t.grad for t in inputs), layer.weight.grad, *layer.buffers()))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def check_compiled() -> None:
    _check_compiled("aot_eager", "relu", "silu")


def check_compiled_by_inductor() -> None:
    _check_compiled("inductor", "relu")


def check_against_the_reference_merged() -> None:
    """Statistics of ranks far apart, against the reference's own merge of the same parts."""
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = [torch.randn(3 + r, CHANNELS, generator=torch.Generator().manual_seed(r)) + 100 * r for r in range(size)]
    layer = SyncBatchNorm(CHANNELS, momentum=1.0)
    layer(parts[rank])
    merged = reference.pooled_moments([reference.moments(double(part)) for part in parts])
    plain = batchnorm.BatchNorm1d(CHANNELS, momentum=1.0)
    plain(torch.cat(parts))
    assert_three_way("mean", layer.running_mean, plain.running_mean, merged.mean)
    assert_three_way("var", layer.running_var, plain.running_var, merged.unbiased_variance)


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")
}
# Seconds each, and no other on three ranks than on two.
SLOW = ("compiled", "compiled_by_inductor", "distributed_data_parallel_compiled", "fully_sharded", "lean")

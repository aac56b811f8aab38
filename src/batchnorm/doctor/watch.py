"""Hooks on the norms of a model that is being run: what reaches each, what it gives, what it does to its buffers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..nn._base import Norm
from ..ops.running import is_recomputation
from ..population.pool import Pool
from .evidence import Gradient, LayerRun, NormCall, Padding
from .histogram import Histogram

__all__ = ["Watch", "Watched"]

# Histograms are of so many values a call, drawn at random: enough for a share to within half a percent.
_SAMPLED = 2**15
# Half-open ranges that a healthy norm fills: standardised values, and outputs by their distance from 0.
_STANDARDIZED, _OUTPUT, _BINS = 6.0, 12.0, 96


class Watched:
    """What one layer did in one mode."""

    def __init__(self, path: str, layer: _NormBase) -> None:
        self.path, self.layer = path, layer
        self.calls: list[NormCall] = []
        self.pool = Pool(layer.num_features, torch.device("cpu"))
        self.input: Histogram | None = None
        self.standardized = Histogram(-_STANDARDIZED, _STANDARDIZED, _BINS)
        self.output = Histogram(-_OUTPUT, _OUTPUT, 2 * _BINS)
        self.output_moments: tuple[Tensor, Tensor] | None = None
        # Squares of gradients and how many they are: of the output and of the input.
        self.squares: dict[str, tuple[float, int]] = {}
        self.first_sample: list[Tensor] = []
        forward = type(layer).forward
        self._names = list(inspect.signature(forward).parameters)[1:]

    def called_with(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """Input and mask of a call."""
        given = {**dict(zip(self._names, arguments, strict=False)), **keywords}
        input = arguments[0] if arguments else next(iter(keywords.values()), None)
        mask = given.get("mask") if isinstance(self.layer, Norm) else None
        return input if isinstance(input, Tensor) else None, mask

    def run(self) -> LayerRun | None:
        """What was seen; None where nothing was."""
        if not self.calls:
            return None
        mean, var = self.output_moments or (None, None)
        return LayerRun(
            tuple(self.calls),
            int(self.pool.count),
            self.pool.mean,
            self.pool.var,
            self.input or Histogram(0.0, 1.0, _BINS),
            self.standardized,
            self.output,
            mean,
            var,
        )

    def gradient(self) -> Gradient:
        """Of what came back."""
        rms = {name: (total / count) ** 0.5 for name, (total, count) in self.squares.items() if count}
        for name in ("weight", "bias"):
            parameter = getattr(self.layer, name, None)
            gradient = None if parameter is None else parameter.grad
            if gradient is not None and gradient.numel():
                rms[name] = float(gradient.detach().to(torch.float64).square().mean().sqrt())
        return Gradient(**rms)


class Watch:
    """The hooks. Who starts them ends them by putting the modules' hook dictionaries back (:class:`Keeping`).

    Args:
        layers: Paths and norms.

    Attributes:
        batch: Which batch runs.
        records: Whether calls are recorded; else only ``first_sample`` is kept.
        order: Paths by their first call.
        entered: Norms that were called and have not returned yet, with the shape of their input.
    """

    def __init__(self, layers: Sequence[tuple[str, _NormBase]]) -> None:
        self.layers = layers
        self.watched = {path: Watched(path, layer) for path, layer in layers}
        self.batch, self.records = 0, True
        self.order: dict[str, None] = {}
        self.entered: list[tuple[str, tuple[int, ...] | None]] = []
        self._before: list[tuple[Tensor | None, ...]] = []
        self._draw = torch.Generator()

    def start(self) -> None:
        """Registers the hooks: before a layer behind those that are there, which may change its input."""
        for path, layer in self.layers:
            layer.register_forward_pre_hook(self._enters(path), with_kwargs=True)
            layer.register_forward_hook(self._leaves(path), with_kwargs=True, prepend=True)

    def _enters(self, path: str) -> Any:
        watched = self.watched[path]

        def enters(layer: _NormBase, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            input, _ = watched.called_with(arguments, keywords)
            self.order.setdefault(path)
            self.entered.append((path, None if input is None else tuple(input.shape)))
            self._before.append(_buffers(layer))

        return enters

    def _leaves(self, path: str) -> Any:
        watched = self.watched[path]

        def leaves(layer: _NormBase, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            self.entered.pop()
            before = self._before.pop()
            input, mask = watched.called_with(arguments, keywords)
            if input is None or not isinstance(output, Tensor):
                return
            with torch.no_grad():
                if self.records:
                    self._record(watched, layer, before, input, mask, output)
                elif output.dim():
                    watched.first_sample.append(output[:1].detach().clone())
            if self.records and self.batch == 0 and not is_recomputation():
                _square(watched, "output", output)
                _square(watched, "input", input)

        return leaves

    def _record(
        self,
        watched: Watched,
        layer: _NormBase,
        before: tuple[Tensor | None, ...],
        input: Tensor,
        mask: Tensor | None,
        output: Tensor,
    ) -> None:
        recomputed = is_recomputation()
        fits = input.dim() >= 2 and input.shape[1] == layer.num_features and input.is_floating_point()
        if fits:
            count, mean, var = _moments(input, mask)
        else:
            count, mean, var = torch.tensor(0), torch.full((0,), torch.nan), torch.full((0,), torch.nan)
        by_batch = layer.training or layer.running_mean is None
        earlier = [call for call in watched.calls if call.batch == self.batch and call.shape == tuple(input.shape)]
        # Another sweep over the values, for those inputs that need it.
        finite = None if bool(torch.isfinite(mean).all() & torch.isfinite(var).all()) else torch.isfinite(input)
        watched.calls.append(
            NormCall(
                batch=self.batch,
                shape=tuple(input.shape),
                dtype=input.dtype,
                values=int(count),
                mean=mean,
                var=var,
                nonfinite=0 if finite is None else int(finite.numel() - finite.sum()),
                by_batch=by_batch,
                moved=_differ(before, _buffers(layer)),
                recomputed=recomputed,
                masked=mask is not None,
                # By value: the memory of an input that is gone may be that of the next.
                same_input=any(torch.equal(call.mean, mean) and torch.equal(call.var, var) for call in earlier),
                padding=_padding(input, mean, var) if fits and mask is None and input.dim() == 3 else None,
            )
        )
        if recomputed or not fits or not int(count):
            return
        watched.pool.add(count, mean, var)
        self._count(watched, layer, input, mask, output, mean, var, by_batch)
        if watched.output_moments is None and output.dim() >= 2:
            watched.output_moments = _moments(output, mask)[1:]

    def _count(
        self,
        watched: Watched,
        layer: _NormBase,
        input: Tensor,
        mask: Tensor | None,
        output: Tensor,
        mean: Tensor,
        var: Tensor,
        by_batch: bool,
    ) -> None:
        """A sample of the values into the histograms."""
        places = torch.randint(input.numel(), (_SAMPLED,), generator=self._draw)
        if input.numel() <= _SAMPLED:
            places = torch.arange(input.numel())
        if mask is not None:
            places = places[mask.expand_as(input[:, :1]).expand_as(input).take(places.to(mask.device)).cpu()]
        channels = places // max(input[0, 0].numel(), 1) % input.shape[1]
        values = input.detach().take(places.to(input.device)).cpu().double()
        if watched.input is None:
            watched.input = _around(values)
        watched.input.add(values)
        if not by_batch:
            mean, var = layer.running_mean.cpu().double(), layer.running_var.cpu().double()  # type: ignore[union-attr]
        scale = (var + float(getattr(layer, "eps", 0.0))).rsqrt()
        watched.standardized.add((values - mean[channels]) * scale[channels])
        if output.shape == input.shape:
            watched.output.add(output.detach().take(places.to(output.device)))


def _moments(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance, in float64 on the CPU; computed in the values' own precision or float32."""
    count, mean, var = torch.ops.batchnorm.moments(values.detach(), mask)
    return count.cpu(), mean.cpu().double(), var.cpu().double()


def _buffers(layer: _NormBase) -> tuple[Tensor | None, ...]:
    return tuple(
        None if each is None else each.detach().clone()
        for each in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    )


def _differ(before: tuple[Tensor | None, ...], after: tuple[Tensor | None, ...]) -> bool:
    return any(
        one is not None and other is not None and not torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(before, after, strict=True)
    )


def _around(values: Tensor) -> Histogram:
    """One whose edges hold nearly all of these, and some room beyond."""
    finite = values[values.isfinite()]
    if not len(finite):
        return Histogram(0.0, 1.0, _BINS)
    low, high = (float(edge) for edge in torch.quantile(finite[:_SAMPLED], torch.tensor([0.001, 0.999]).to(finite)))
    room = 0.1 * (high - low) or max(abs(low), 1.0) * 0.1
    return Histogram(low - room, high + room, _BINS)


def _padding(input: Tensor, mean: Tensor, var: Tensor) -> Padding | None:
    """Stretches of equal positions at the samples' ends, of (N, C, L)."""
    length = input.shape[2]
    if length < 2 or not input.numel():
        return None
    same = (input == input[:, :, -1:]).all(dim=1)
    tails = same.flip(1).to(torch.int64).cumprod(1).sum(1)
    tails = torch.where(tails > 1, tails, torch.zeros_like(tails))
    share = float(tails.sum()) / same.numel()
    if not share or share == 1:
        return None
    kept = torch.arange(length, device=input.device) < (length - tails)[:, None]
    _, mean_kept, var_kept = _moments(input, kept)
    shift = (mean - mean_kept).abs() / var_kept.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    ratios = var / var_kept.clamp(min=torch.finfo(torch.float32).tiny)
    farthest = ratios[ratios.clamp(min=1e-30).log().abs().argmax()]
    return Padding(share, float(shift.max()), float(farthest))


def _square(watched: Watched, name: str, tensor: Tensor) -> None:
    """Has the square of a tensor's gradient added up when it comes."""
    if not tensor.requires_grad:
        return

    def add(gradient: Tensor) -> None:
        total, count = watched.squares.get(name, (0.0, 0))
        norm = float(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64))
        watched.squares[name] = (total + norm**2, count + gradient.numel())

    tensor.register_hook(add)

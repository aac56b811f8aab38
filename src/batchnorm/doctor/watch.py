"""Hooks on the norms of a model that is being run: what reaches each, what it gives, what it does to its buffers."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..activation import IDENTITY
from ..nn._base import Norm
from ..nn.domain import DomainNorm
from ..ops.running import is_recomputation
from ..population.pool import Pool
from ..surgery.kinds import activation_of
from .evidence import Gradient, LayerRun, NormCall
from .histogram import Histogram
from .keeping import same_bits
from .own_forward import has_own_forward, normalizes_by_batch
from .padding import padding_of

__all__ = ["Watch", "Watched", "buffers_of", "differ"]

# Histograms are of so many values a call, drawn at random: enough for a share to within a percent.
_SAMPLED = 2**13
# Half-open ranges that a healthy norm fills: standardised values, and outputs by their distance from 0.
_STANDARDIZED, _OUTPUT, _BINS = 6.0, 12.0, 96
# Where sigmoid has 7% of its greatest slope left, and tanh 0.1%.
_FAR = 4.0


class _Given(NamedTuple):
    """What a norm is called with: its input, the mask as (N, *spatial), and what it adds before its activation."""

    input: Tensor
    mask: Tensor | None
    residual: Tensor | None


class Watched:
    """What one layer did in one mode."""

    def __init__(self, path: str, layer: _NormBase) -> None:
        self.path, self.layer = path, layer
        self.calls: list[NormCall] = []
        self.pool = Pool(layer.num_features, torch.device("cpu"))
        self.input: Histogram | None = None
        self.standardized = Histogram(-_STANDARDIZED, _STANDARDIZED, _BINS)
        self.output = Histogram(-_OUTPUT, _OUTPUT, 2 * _BINS)
        own = Histogram(-_OUTPUT, _OUTPUT, 2 * _BINS)
        self.activated = None if activation_of(layer) == IDENTITY else own
        self.output_moments: tuple[Tensor, Tensor] | None = None
        self.output_high: Tensor | None = None
        # Of each channel's sampled outputs: how many, and how many of them are far from 0.
        self.sampled, self.far = (torch.zeros(layer.num_features, dtype=torch.int64, device="cpu") for _ in range(2))
        # Squares of gradients and how many they are: of the output and of the input.
        self.squares: dict[str, tuple[float, int]] = {}
        self.first_sample: list[Tensor] = []
        forward = type(layer).forward
        self._names = list(inspect.signature(forward).parameters)[1:]

    def called_with(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> _Given | None:
        """What a call is given; None where its input is no tensor."""
        given = {**dict(zip(self._names, arguments, strict=False)), **keywords}
        input = arguments[0] if arguments else given.get(self._names[0]) if self._names else None
        mask = given.get("mask") if isinstance(self.layer, Norm) else None
        if not isinstance(input, Tensor):
            return None
        mask = mask.squeeze(1) if isinstance(mask, Tensor) and mask.dim() == input.dim() else mask
        return _Given(input, mask, given.get("residual") if isinstance(self.layer, Norm) else None)

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
            activated=self.activated,
            output_high=self.output_high,
            output_far=None if self.output_high is None else self.far.double() / self.sampled.clamp(min=1),
        )

    def gradient(self) -> Gradient:
        """Of what came back."""
        rms = {name: (total / count) ** 0.5 for name, (total, count) in self.squares.items() if count}
        for name in ("weight", "bias"):
            parameter = getattr(self.layer, name, None)
            gradient = parameter.grad if parameter is not None and parameter.is_leaf else None
            if gradient is not None and gradient.numel():
                rms[name] = float(gradient.detach().to(torch.float64).square().mean().sqrt())
        return Gradient(**rms)


class Watch:
    """The hooks. Who starts them ends them by putting the modules' hook dictionaries back (:class:`Keeping`).

    Args:
        layers: Paths and norms.

    Attributes:
        batch: Which batch runs.
        valid: Which of its positions are no padding (:func:`valid_positions`).
        certain: Whether that holds for all that norms are given (:func:`says_of_all`).
        records: Whether calls are recorded; else only ``first_sample`` is kept.
        order: Paths by their first call.
    """

    def __init__(self, layers: Sequence[tuple[str, _NormBase]]) -> None:
        self.layers = layers
        self.watched = {path: Watched(path, layer) for path, layer in layers}
        self.batch, self.records = 0, True
        self.valid: Tensor | None = None
        self.certain = True
        self.order: dict[str, None] = {}
        # Of the last call of each norm, the shape of its input, and the buffers before it.
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._before: dict[str, tuple[Tensor | None, ...]] = {}
        self._draw = torch.Generator()

    def start(self) -> None:
        """Registers the hooks: before a layer behind those that are there, which may change its input."""
        for path, layer in self.layers:
            layer.register_forward_pre_hook(self._enters(path), with_kwargs=True)
            layer.register_forward_hook(self._leaves(path), with_kwargs=True, prepend=True)

    def _enters(self, path: str) -> Any:
        watched = self.watched[path]

        def enters(layer: _NormBase, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = watched.called_with(arguments, keywords)
            self.order.setdefault(path)
            self._shapes[path] = None if given is None else tuple(given.input.shape)
            self._before[path] = buffers_of(layer)

        return enters

    def raised(self, error: BaseException) -> tuple[str | None, tuple[int, ...] | None]:
        """The norm that an error was raised in, and the shape of that call's input; None where it was elsewhere."""
        # By its traceback. That a norm did not return says little: checkpointing stops a recomputation by an exception
        # as soon as it has what it needs, and that is in a norm as likely as not.
        paths = {id(layer): path for path, layer in self.layers}
        seen: set[int] = set()
        while id(error) not in seen:
            seen.add(id(error))
            for frame, _ in traceback.walk_tb(error.__traceback__):
                path = paths.get(id(frame.f_locals.get("self")))
                if path is not None:
                    return path, self._shapes.get(path)
            error = error.__cause__ or error.__context__ or error
        return None, None

    def _leaves(self, path: str) -> Any:
        watched = self.watched[path]

        def leaves(layer: _NormBase, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            before = self._before[path]
            given = watched.called_with(arguments, keywords)
            if given is None or not isinstance(output, Tensor):
                return
            with torch.no_grad():
                if self.records:
                    self._record(watched, layer, before, given, output)
                elif output.dim() and not is_recomputation():
                    watched.first_sample.append(output[:1].detach().clone())
            # In recomputations too: a reentrant checkpoint has no graph but that of these, and gradients come there.
            if self.records and self.batch == 0:
                _square(watched, "output", output)
                _square(watched, "input", given.input)

        return leaves

    def _record(
        self,
        watched: Watched,
        layer: _NormBase,
        before: tuple[Tensor | None, ...],
        given: _Given,
        output: Tensor,
    ) -> None:
        recomputed = is_recomputation()
        input, mask, _ = given
        fits = input.dim() >= 2 and input.shape[1] == layer.num_features and input.is_floating_point()
        if fits:
            count, mean, var = _moments(input, mask)
        else:
            count = torch.zeros((), dtype=torch.int64, device="cpu")
            mean = var = torch.zeros(0, dtype=torch.float64, device="cpu")
        moved = differ(before, buffers_of(layer))
        by_batch = layer.training or layer.running_mean is None
        if has_own_forward(layer):
            comparable = fits and int(count) and output.shape == input.shape and given.residual is None
            after = _moments(output, mask)[1:] if comparable else None
            by_batch = normalizes_by_batch(layer, (mean, var), after, moved=moved)
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
                moved=moved,
                recomputed=recomputed,
                masked=mask is not None,
                # By value: the memory of an input that is gone may be that of the next.
                same_input=any(torch.equal(call.mean, mean) and torch.equal(call.var, var) for call in earlier),
                padding=padding_of(input, mean, var, self.valid, certain=self.certain)
                if fits and mask is None and input.dim() == 3
                else None,
                domain=layer.domain if isinstance(layer, DomainNorm) else None,
                differentiable=output.requires_grad,
            )
        )
        if recomputed or not fits or not int(count):
            return
        watched.pool.add(count, mean, var)
        self._count(watched, layer, given, output, mean, var, by_batch)
        if watched.output_moments is None and output.dim() >= 2:
            watched.output_moments = _moments(output, mask)[1:]

    def _count(
        self,
        watched: Watched,
        layer: _NormBase,
        given: _Given,
        output: Tensor,
        mean: Tensor,
        var: Tensor,
        by_batch: bool,
    ) -> None:
        """A sample of the values into the histograms."""
        input, mask, residual = given
        places = torch.randint(input.numel(), (_SAMPLED,), generator=self._draw, device="cpu")
        if input.numel() <= _SAMPLED:
            places = torch.arange(input.numel(), device="cpu")
        if mask is not None:
            places = places[mask.reshape(input[:, :1].shape).expand_as(input).take(places.to(mask.device)).cpu()]
        channels = places // max(input[0, 0].numel(), 1) % input.shape[1]
        values = input.detach().take(places.to(input.device)).cpu().double()
        if watched.input is None:
            watched.input = _around(values)
        watched.input.add(values)
        if not by_batch:
            mean, var = layer.running_mean.cpu().double(), layer.running_var.cpu().double()  # type: ignore[union-attr]
        scale = (var + float(getattr(layer, "eps", 0.0))).rsqrt()
        standardized = (values - mean[channels]) * scale[channels]
        watched.standardized.add(standardized)
        if watched.activated is not None:
            for name, join in (("weight", torch.mul), ("bias", torch.add)):
                parameter = getattr(layer, name, None)
                if parameter is not None:
                    standardized = join(standardized, parameter.detach().cpu().double()[channels])
            if residual is not None:
                standardized = standardized + residual.detach().take(places.to(residual.device)).cpu()
            watched.activated.add(standardized)
        if output.shape == input.shape:
            after = output.detach().take(places.to(output.device)).cpu()
            watched.output.add(after)
            watched.sampled += torch.bincount(channels, minlength=layer.num_features)
            watched.far += torch.bincount(channels[after.abs() > _FAR], minlength=layer.num_features)
            most = _highest(output.detach(), mask)
            watched.output_high = most if watched.output_high is None else torch.maximum(watched.output_high, most)


def _moments(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance, in float64 on the CPU; computed in the values' own precision or float32."""
    count, mean, var = torch.ops.batchnorm.double_moments(values.detach(), mask)
    return count.cpu(), mean.cpu(), var.cpu()


def _highest(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        values = values.masked_fill(~mask.reshape(values[:, :1].shape), -torch.inf)
    return values.amax([0, *range(2, values.dim())]).cpu().double()


def buffers_of(layer: _NormBase) -> tuple[Tensor | None, ...]:
    """Copies of what a norm's forward pass may move; None for what is not there."""
    return tuple(
        None if each is None else each.detach().clone()
        for each in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    )


def differ(before: tuple[Tensor | None, ...], after: tuple[Tensor | None, ...]) -> bool:
    """Whether one of these is another than it was."""
    return any(
        one is not None and other is not None and not same_bits(one, other)
        for one, other in zip(before, after, strict=True)
    )


def _around(values: Tensor) -> Histogram:
    """One whose edges hold nearly all of these, and some room beyond."""
    finite = values[values.isfinite()]
    if not len(finite):
        return Histogram(0.0, 1.0, _BINS)
    edges = torch.quantile(finite[:_SAMPLED], finite.new_tensor([0.001, 0.999]))
    low, high = (float(edge) for edge in edges)
    room = 0.1 * (high - low) or max(abs(low), 1.0) * 0.1
    return Histogram(low - room, high + room, _BINS)


def _square(watched: Watched, name: str, tensor: Tensor) -> None:
    """Has the square of a tensor's gradient added up when it comes."""
    if not tensor.requires_grad:
        return

    def add(gradient: Tensor) -> None:
        total, count = watched.squares.get(name, (0.0, 0))
        precise = torch.promote_types(gradient.dtype, torch.float32)
        norm = float(torch.linalg.vector_norm(gradient.detach(), dtype=precise))
        watched.squares[name] = (total + norm**2, count + gradient.numel())

    tensor.register_hook(add)

"""``Standardize``: the whole data set's statistics, exactly, as a layer before the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ..errors import ArgumentError, NotFittedError, ShapeError
from ..ops import eager
from ..ops.moments import merge_moments
from ._tracing import as_one_node

__all__ = ["Standardize"]

# A feature whose spread is below this share of its mean is constant: the spread is rounding in float64 (2⁻⁵² a step).
_CONSTANT = 2.0**-46


def _floating(x: Tensor) -> torch.dtype:
    # Raw images are integers; rounded back to them, standardised values would all be 0 or wrap around.
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


class Standardize(torch.nn.Module):
    r"""Standardise each feature by the mean and standard deviation of a whole data set.

    .. math:: y = \frac{x - \mu}{\sigma}, \qquad x = y\,\sigma + \mu

    with :math:`\mu` and :math:`\sigma^2` the mean and the biased variance over every sample and position, fitted in
    one streaming pass by merging the batches' moments in float64 (Chan, Golub & LeVeque 1979): the result does not
    depend on how the data is cut into batches. This is the step that batch norm generalises to hidden layers.
    A constant feature becomes 0 (its :math:`\sigma` is taken as 1), so nothing is divided by zero and every value
    comes back from :meth:`inverse`.

    Statistics stay float64 when the model around is cast to half precision; the arithmetic is done in it, and the
    output has the input's dtype, or torch's default one for integers.

    Args:
        num_features: C, the size of dimension 1.
        device: Of the buffers.

    Shape:
        - input: (N, C, \*spatial), floating point or integers; output: the same shape.

    Raises:
        NotFittedError: Used before :meth:`fit`.
        ShapeError: Another number of features.

    Example:
        >>> layer = Standardize(2).fit([torch.tensor([[1.0, 100.0]]), torch.tensor([[3.0, 300.0]])])
        >>> y = layer(torch.tensor([[1.0, 300.0]]))
        >>> y, layer.inverse(y)
        (tensor([[-1., 1.]]), tensor([[ 1., 300.]]))
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, num_features: int, device: torch.device | str | int | None = None) -> None:
        super().__init__()
        if num_features < 1:
            raise ArgumentError(f"num_features={num_features}.", "give the number of features, 1 or more.")
        self.num_features = num_features
        self._fitted = False  # what `count` says, without asking the device
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("mean", torch.zeros(num_features, dtype=torch.float64, device=device))
        self.register_buffer("var", torch.ones(num_features, dtype=torch.float64, device=device))

    @torch.no_grad()
    def fit(self, batches: Tensor | Iterable[Any]) -> Standardize:
        """Take the statistics of ``batches`` in one pass, in place of any taken before.

        Args:
            batches: A tensor (N, C, *spatial), or an iterable of such, or of (input, target) pairs.

        Returns:
            The layer itself. On any exception it is as it was before.

        Raises:
            ArgumentError: No data, or a value that is not finite: which feature of which batch.
            ShapeError: Another number of features.
        """
        moments = (torch.zeros_like(self.count), torch.zeros_like(self.mean), torch.zeros_like(self.var))
        for index, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(x, Tensor):
                raise ArgumentError(
                    f"batch {index} is a {type(batch).__name__} that does not begin with a tensor.",
                    "give tensors or (input, target) pairs, for example (batch['input'] for batch in loader).",
                )
            self._check(x)
            batch_moments = eager.moments(x.to(self.mean.device, torch.float64))
            finite = torch.isfinite(batch_moments[1]) & torch.isfinite(batch_moments[2])
            if not bool(finite.all()):
                feature = int((~finite).nonzero()[0])
                raise ArgumentError(
                    f"batch {index} has a NaN, an infinite or an overflowing value in feature {feature}.",
                    "clean the data; the statistics are as they were before.",
                )
            moments = merge_moments(*moments, *batch_moments)
        if int(moments[0]) == 0:
            raise ArgumentError("there is no data to fit.", "give at least one batch with at least one sample.")
        for buffer, value in zip((self.count, self.mean, self.var), moments, strict=True):
            buffer.copy_(value)
        self._fitted = True
        return self

    def forward(self, input: Tensor) -> Tensor:
        """``(input − mean) / std``."""
        if isinstance(input, torch.fx.Proxy):
            traced: Tensor = as_one_node(self, input)
            return traced
        mean, std = self._statistics(input)
        return ((input - mean) / std).to(_floating(input))

    def inverse(self, input: Tensor) -> Tensor:
        """``input · std + mean``: what :meth:`forward` was given."""
        mean, std = self._statistics(input)
        return (input * std + mean).to(_floating(input))

    @property
    def std(self) -> Tensor:
        """(C,) float64: what features are divided by; 1 for a constant one."""
        std = self.var.sqrt()
        return torch.where(std <= _CONSTANT * self.mean.abs(), 1.0, std)

    def _statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        self._check(input)
        if not self._fitted:
            raise NotFittedError("no statistics were taken yet.", "call fit(batches) first.")
        shape = [1, -1] + [1] * (input.dim() - 2)
        return self.mean.view(shape), self.std.view(shape)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._fitted = self.count.device.type != "meta" and int(self.count) > 0

    def _check(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ShapeError(
                f"expected (N, {self.num_features}, *spatial), got {tuple(input.shape)}.",
                "features are dimension 1; transpose the input or mend num_features.",
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardize:
        exact = {"mean": self.mean, "var": self.var}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            moved = getattr(self, name)
            if moved.dtype != before.dtype:
                # .half() and .bfloat16() are meant for weights: statistics would lose what they were fitted for.
                setattr(self, name, before.to(moved.device))
        return self

    def extra_repr(self) -> str:
        """The number of features."""
        return str(self.num_features)

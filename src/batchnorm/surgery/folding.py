"""The arithmetic of folding: the weight and bias of a layer that computes a norm of fixed statistics as well.

Such a norm is ``scale · x + shift`` in each channel. After a layer ``W x + b`` it gives ``(scale · W) x + (scale · b +
shift)``, with one scale for each output channel; before it ``(W · scale) x + (b + W · shift)``, with one for each
input channel. All of it is computed in float64, on the processor, and rounded once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "LAYERS",
    "Kind",
    "Parameters",
    "computes_as",
    "folded_after",
    "folded_before",
    "kind_of",
    "pads",
    "parameters",
    "put",
    "scale_and_shift",
]


@dataclass(frozen=True)
class Kind:
    """What folding has to know of a layer's type.

    Attributes:
        spatial: How many dimensions follow the channels; 0 for a linear layer, whose features are the last one.
        transposed: Whether its weight is (in, out / groups, …) rather than (out, in / groups, …).
    """

    spatial: int
    transposed: bool = False


LAYERS: dict[type[torch.nn.Module], Kind] = {
    torch.nn.Linear: Kind(0),
    torch.nn.Conv1d: Kind(1),
    torch.nn.Conv2d: Kind(2),
    torch.nn.Conv3d: Kind(3),
    torch.nn.ConvTranspose1d: Kind(1, transposed=True),
    torch.nn.ConvTranspose2d: Kind(2, transposed=True),
    torch.nn.ConvTranspose3d: Kind(3, transposed=True),
}


# What a class may say of its own and still compute what the class does that it derives from.
_MADE_AND_PRINTED = {
    *("__init__", "reset_parameters", "extra_repr", "__repr__"),
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__constants__"),
    *("__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__"),
    *("__annotate__", "__annotate_func__", "__annotations_cache__"),
}


def computes_as(module: torch.nn.Module, types: Collection[type]) -> type | None:
    """The one of some classes whose computation a module's is: its own class, or one that it leaves as it is.

    A class that derives from one of these and has nothing of its own but how it is made and printed computes the same.
    Any other may not.

    Example:
        >>> class Depthwise(torch.nn.Conv2d):
        ...     def __init__(self, channels):
        ...         super().__init__(channels, channels, 3, groups=channels)
        >>> class Doubled(torch.nn.Conv2d):
        ...     def forward(self, input):
        ...         return 2 * super().forward(input)
        >>> computes_as(Depthwise(4), LAYERS).__name__, computes_as(Doubled(4, 4, 3), LAYERS)
        ('Conv2d', None)
    """
    # freeze() put a class in front that keeps the layer in evaluation mode, where folding needs it.
    for base in (getattr(type(module), "thawed_class", None) or type(module)).__mro__:
        if base in types:
            return base
        if not _MADE_AND_PRINTED.issuperset(vars(base)):
            return None
    return None


def kind_of(module: torch.nn.Module | None) -> Kind | None:
    """What kind of layer a module is; None for one that is none, and for a class that may compute something else."""
    base = None if module is None else computes_as(module, LAYERS)
    return None if base is None else LAYERS[base]


def _kind(layer: torch.nn.Module) -> Kind:
    kind = kind_of(layer)
    assert kind is not None
    return kind


@dataclass(frozen=True)
class Parameters:
    """Weight and bias of a layer, in float64; None for no bias."""

    weight: Tensor
    bias: Tensor | None


def scale_and_shift(norm: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """A norm in evaluation is ``scale · x + shift`` in each channel; both in float64.

    Example:
        >>> norm = torch.nn.BatchNorm1d(1, eps=0.0)
        >>> norm.running_mean.fill_(3.0), norm.running_var.fill_(4.0)
        (tensor([3.]), tensor([4.]))
        >>> scale_and_shift(norm)
        (tensor([0.5000], dtype=torch.float64), tensor([-1.5000], dtype=torch.float64))
    """
    mean, var = _exact(norm.running_mean), _exact(norm.running_var)
    scale = (var + float(norm.eps)).rsqrt()  # type: ignore[arg-type]  # torch has modules' attributes as tensors
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + _exact(norm.bias)
    return scale, shift


def _exact(tensor: Tensor | torch.nn.Module) -> Tensor:
    assert isinstance(tensor, Tensor)
    return tensor.detach().to("cpu", torch.float64)  # not every device has float64


def parameters(layer: torch.nn.Module) -> Parameters:
    """Those of a layer, in float64."""
    return Parameters(_exact(layer.weight), None if layer.bias is None else _exact(layer.bias))


def _groups(layer: torch.nn.Module) -> int:
    return int(getattr(layer, "groups", 1))  # a linear layer has none


def folded_after(layer: torch.nn.Module, old: Parameters, scale: Tensor, shift: Tensor) -> Parameters:
    """Parameters with which a layer gives ``scale · layer(x) + shift``.

    Args:
        layer: See ``LAYERS``.
        old: Its parameters.
        scale: (out,).
        shift: (out,).
    """
    groups = _groups(layer)
    taps = [1] * _kind(layer).spatial
    if _kind(layer).transposed:
        by_group = old.weight.unflatten(0, (groups, -1))  # (groups, in / groups, out / groups, *kernel)
        weight = (by_group * scale.reshape(groups, 1, -1, *taps)).flatten(0, 1)
    else:
        weight = old.weight * scale.reshape(-1, 1, *taps)
    return Parameters(weight, shift if old.bias is None else old.bias * scale + shift)


def folded_before(layer: torch.nn.Module, old: Parameters, scale: Tensor, shift: Tensor) -> Parameters:
    """Parameters with which a layer gives ``layer(scale · x + shift)``, wherever all taps of its kernel lie on x.

    Args:
        layer: See ``LAYERS``, and :func:`pads`.
        old: Its parameters.
        scale: (in,).
        shift: (in,).
    """
    groups = _groups(layer)
    taps = [1] * _kind(layer).spatial
    by_group = old.weight.unflatten(0, (groups, -1))
    if _kind(layer).transposed:  # (groups, in / groups, out / groups, *kernel)
        of_input, added = (groups, -1, 1, *taps), (1, *range(3, by_group.dim()))
    else:  # (groups, out / groups, in / groups, *kernel)
        of_input, added = (groups, 1, -1, *taps), tuple(range(2, by_group.dim()))
    weight = (by_group * scale.reshape(of_input)).flatten(0, 1)
    if not shift.any():
        return Parameters(weight, old.bias)
    constant = (by_group * shift.reshape(of_input)).sum(added).flatten()  # (out,)
    return Parameters(weight, constant if old.bias is None else old.bias + constant)


def pads(layer: torch.nn.Module) -> str:
    """How a layer computes with values that are not its input's; empty where it does not.

    Such values are 0, and would be ``shift`` if the norm came first: a norm before is folded only where there are
    none, or its shift is 0 in every channel.

    Example:
        >>> pads(torch.nn.Conv1d(2, 2, 3, padding=1)), pads(torch.nn.Conv1d(2, 2, 3))
        ('pads with zeros', '')
        >>> pads(torch.nn.ConvTranspose1d(2, 2, 3))
        'is a transposed convolution, at whose borders fewer taps of the kernel meet the input'
    """
    kind = _kind(layer)
    if kind.spatial == 0:
        return ""
    # A Conv2d has tuples of numbers here, or a word as padding.
    size, dilation, padding, stride = (
        getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    if kind.transposed:
        # One tap and one step: each output is one input. A dilation could come with an output padding.
        if {*size, *stride, *dilation} == {1} and set(layer.output_padding) == {0}:  # type: ignore[arg-type]
            return ""
        return "is a transposed convolution, at whose borders fewer taps of the kernel meet the input"
    if padding == "same":
        padding = tuple(reach * (taps - 1) for reach, taps in zip(dilation, size, strict=True))
    outside = padding != "valid" and any(padding)
    return "pads with zeros" if outside and layer.padding_mode == "zeros" else ""


def put(layer: torch.nn.Module, new: Parameters) -> str:
    """Gives a layer new parameters of its own, of the former ones' dtype, device, strides and ``requires_grad``.

    Returns:
        Why it cannot have them, and has the former ones still; empty where it has them.
    """
    rounded = {}
    for name, exact in (("weight", new.weight), ("bias", new.bias)):
        if exact is None:
            continue
        like = layer.weight if getattr(layer, name) is None else getattr(layer, name)
        assert isinstance(like, Tensor)
        # A weight of channels-last memory stays so: empty_like keeps strides, where the shape is the same.
        empty = torch.empty_like(like.detach()) if like.shape == exact.shape else like.detach().new_empty(exact.shape)
        rounded[name] = torch.nn.Parameter(empty.copy_(exact), requires_grad=like.requires_grad)
        if not rounded[name].isfinite().all():
            return f"the folded {name} is not finite in {str(like.dtype).removeprefix('torch.')}"
    for name, parameter in rounded.items():
        setattr(layer, name, parameter)
    return ""

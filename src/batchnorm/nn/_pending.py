"""A norm's output that is not computed yet, since what follows may be computed with it.

A :class:`Pending` stands for the output of one :class:`NormCall`. A sum with a tensor of its shape and dtype gives
another one; an activation that fuses computes norm, sum and activation in one pass and gives an ordinary tensor.
Anything else first computes what it stands for, and goes on with that. So the code that uses it need not know of it,
and gets what it would get of the plain norm, whatever it does; torch's ``__torch_function__`` is how it is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..activation import Activation
from ..errors import ArgumentError
from ._norm_call import ModifiedError, NormCall

__all__ = ["Pending"]


def _refuse_gradient(_: Tensor) -> Tensor | None:
    # The gradient has come to a tensor that stands for the norm's output and has no way back to the norm.
    raise RuntimeError(
        "the output of a norm that fuses with what follows was handed to an autograd.Function (or other code past "
        "torch's own functions), which cannot be followed back to the norm. Mend: keep this norm out of fuse(), or "
        "hand over a tensor of its own: norm(x).clone()."
    )


# As Tensor.register_hook leaves it, for all of them at once: 2 µs less for each.
_HOOKS: OrderedDict[int, Callable[[Tensor], Tensor | None]] = OrderedDict({0: _refuse_gradient})


class Pending(torch.Tensor):
    """The output of a norm, with a residual added or not, before it is computed; or a view of one.

    Attributes:
        call: The norm's.
        residual: What is added.
        base: What this is a view of; None for the output itself.
        seen_as: The function that gives this view of the base; ``like`` is what it gives, without memory.
        value: It, once it has been computed.
    """

    call: NormCall
    residual: Tensor | None = None
    version: int
    base: Pending | None = None
    seen_as: Callable[[Tensor], Tensor]
    like: Tensor
    value: Tensor | None = None

    @staticmethod
    def __new__(cls, call: NormCall, residual: Tensor | None = None, shape: torch.Size | None = None) -> Pending:
        """Has the shape, dtype and device of the norm's output, and no memory."""
        like = call.input
        differentiable = call.differentiable() or (residual is not None and call.grad and residual.requires_grad)
        new: Pending = torch.Tensor._make_wrapper_subclass(
            cls,
            like.shape if shape is None else shape,
            dtype=like.dtype,
            device=like.device,
            requires_grad=differentiable,
        )
        new.call = call
        if residual is not None:
            new.residual, new.version = residual, residual._version
        if differentiable:
            with torch._C.DisableTorchFunctionSubclass():
                new._backward_hooks = _HOOKS
        return new

    def computed(self) -> Tensor:
        """What it stands for, as an ordinary tensor: the same one every time."""
        if self.value is None:
            self._check()
            if self.base is not None:
                self.value = self.seen_as(self.base.computed())
            elif self.residual is None:
                self.value = self.call.settle()
            else:
                self._check_residual(self.residual)
                self.value = self.call.plus(self.residual)
        return self.value

    def _check_residual(self, residual: Tensor) -> None:
        if residual._version != self.version:
            self.call.ran = True
            raise ModifiedError("the other side of the sum that follows", self.call.layer)

    def _check(self) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            if self.grad_fn is not None:
                # An autograd.Function gave it out as an output of its own.
                _refuse_gradient(self)

    def _settled(self) -> bool:
        return self.value is not None or self.call.settled or not self.call.same_mode()

    def plus(self, other: Any) -> Pending | None:
        """The sum, if it can wait."""
        if isinstance(other, Pending):
            other = other.computed()
        if (
            self._settled()
            or self.base is not None
            or self.residual is not None
            or type(other) not in (torch.Tensor, torch.nn.Parameter)
        ):
            return None
        like = self.call.input
        if (
            other.is_inference()
            or other.shape != like.shape
            or other.dtype is not like.dtype
            or other.device != like.device
        ):
            return None
        return Pending(self.call, other)

    def activated(self, activation: Activation) -> Tensor | None:
        """The activation's output, if it can be computed in the same pass."""
        if self._settled():
            return None
        if self.base is not None:
            whole = self.base.activated(activation)
            return None if whole is None else self.seen_as(whole)
        self._check()
        if self.residual is not None:
            self._check_residual(self.residual)
        return self.call.run(self.residual, activation)

    def viewed(self, seen_as: Callable[[Tensor], Tensor]) -> Pending | None:
        """A view, which an activation may be computed before as well as after."""
        if self.value is not None:
            return None
        like = torch.empty_like(self.call.input, device="meta") if self.base is None else self.like
        seen = seen_as(like)  # raises as the view itself would
        if seen.dtype != like.dtype or seen.untyped_storage()._cdata != like.untyped_storage()._cdata:
            return None  # other numbers, or a copy, which in-place operations would part from what it is of
        new = Pending(self.call, self.residual, seen.shape)
        new.base, new.seen_as, new.like = self, seen_as, seen
        return new

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What every function of torch that gets one of these is handed to."""
        kwargs = kwargs or {}
        if func in _OF_SHAPE and args[0].value is None:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        meet = _MEETS.get(func)
        if meet is not None:
            met = meet(*args, **kwargs)
            if met is not None:
                return met
        if func in _OF_GRADIENTS and args[0].value is None and args[0].call.ran:
            raise RuntimeError(
                f"the output of a {type(args[0].call.layer).__name__} was computed together with what follows it, and "
                "is not in the graph: it gets no gradient. Mend: ask before the activation, or leave this norm out by "
                "fuse(where=…)."
            )
        args, kwargs = tree_map_only(Pending, Pending.computed, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own annotation lacks the function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Where torch's functions were passed by: there is nothing to compute with."""
        raise RuntimeError(
            f"{func} was called on a norm's output that is not computed yet, past torch's own functions."
        )


# What asks for nothing but shape, dtype and device.
_OF_SHAPE = {
    *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "__len__", "nelement")),
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout")),
    torch.numel,
    torch.is_floating_point,
}


# What asks for the gradient of the tensor itself.
_OF_GRADIENTS = {torch.Tensor.retain_grad, torch.Tensor.register_hook}


# --- what can be computed in the same pass -------------------------------------------------------------------


def _sum(input: Any, other: Any, *, alpha: float = 1, **others: Any) -> Any:
    if alpha != 1 or others:
        return None
    if (
        isinstance(input, Pending)
        and isinstance(other, Pending)
        and other.residual is None
        and input.residual is not None
    ):
        input, other = other, input
    if isinstance(input, Pending):
        met = input.plus(other)
        if met is not None:
            return met
    return other.plus(input) if isinstance(other, Pending) else None


def _sum_in_place(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """``input += other``, after which the input itself is the sum."""
    met = input.plus(other) if alpha == 1 and isinstance(input, Pending) else None
    if met is None:
        return None
    input.residual, input.version = met.residual, met.version
    return input


def _activates(name: str, *parameters: str) -> Callable[..., Tensor | None]:
    """As a function of torch with these parameters, in this order, and perhaps ``inplace``."""
    default = Activation(name)

    def meet(input: Any, *args: Any, inplace: bool = False, **named: Any) -> Tensor | None:
        activation = default
        if args or named:
            given = dict(zip((*parameters, "inplace"), args, strict=False)) | named
            inplace = given.pop("inplace", inplace)
            if not given.keys() <= set(parameters):
                return None
            try:
                activation = Activation(name, **given)
            except ArgumentError:
                return None  # torch may compute it all the same
        if not isinstance(input, Pending) or (inplace and input.base is not None):
            return None  # what it is a view of would have to change too
        output = input.activated(activation)
        if inplace:
            input.value = output  # that is what the tensor itself then holds
        return output

    return meet


def _in_place(meet: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    return lambda *args, **named: meet(*args, inplace=True, **named)


def _gelu(input: Any, *, approximate: str = "none") -> Tensor | None:
    return _activates("gelu_tanh" if approximate == "tanh" else "gelu")(input)


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return input if isinstance(input, Pending) and (p == 0 or not training) else None


def _views(func: Callable[..., Tensor]) -> Callable[..., Pending | None]:
    def meet(input: Any, *args: Any, **named: Any) -> Pending | None:
        if not isinstance(input, Pending) or any(isinstance(arg, Pending) for arg in args):
            return None
        return input.viewed(lambda tensor: func(tensor, *args, **named))

    return meet


_RELU, _SIGMOID, _TANH = _activates("relu"), _activates("sigmoid"), _activates("tanh")
_HARDTANH, _LEAKY = _activates("hardtanh", "min_val", "max_val"), _activates("leaky_relu", "negative_slope")
_ELU = _activates("elu", "alpha")

_MEETS: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), _sum),
    **dict.fromkeys((torch.Tensor.add_, torch.Tensor.__iadd__), _sum_in_place),
    **dict.fromkeys((torch.relu, torch.Tensor.relu, F.relu), _RELU),
    **dict.fromkeys((torch.relu_, torch.Tensor.relu_), _in_place(_RELU)),
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid), _SIGMOID),
    **dict.fromkeys((torch.sigmoid_, torch.Tensor.sigmoid_), _in_place(_SIGMOID)),
    **dict.fromkeys((torch.tanh, torch.Tensor.tanh), _TANH),
    **dict.fromkeys((torch.tanh_, torch.Tensor.tanh_), _in_place(_TANH)),
    F.relu6: _activates("relu6"),
    F.hardtanh: _HARDTANH,
    F.hardtanh_: _in_place(_HARDTANH),
    F.leaky_relu: _LEAKY,
    F.leaky_relu_: _in_place(_LEAKY),
    F.elu: _ELU,
    F.elu_: _in_place(_ELU),
    F.silu: _activates("silu"),
    F.hardswish: _activates("hardswish"),
    F.gelu: _gelu,
    **{
        func: _views(func)
        for owner in (torch, torch.Tensor)
        for name in ("reshape", "flatten", "unflatten", "transpose", "permute", "unsqueeze", "squeeze")
        for func in (getattr(owner, name),)
    },
    **{func: _views(func) for func in (torch.Tensor.view, torch.Tensor.view_as, torch.Tensor.reshape_as)},
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), _dropout),
}

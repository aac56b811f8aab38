"""Proof that two models compute the same on an example: outputs, gradients, buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import DifferentResultError, SurgeryError
from .copying import copied
from .example import call, fresh, said
from .randomness import seeded

__all__ = ["Difference", "Errors", "Results", "Standard", "distance", "in_double", "prove", "results"]

# In float64 the two may differ by roundings alone, which small batches and many layers can make larger; a wrong
# formula shows in the first digits.
EXACT = 1e-6
_REPORT = "please report the model, which is as it was."
_FARTHEST = 0.5  # a float64 run that differs by more is not of the same computation
# A rounding of each dtype.
_RESOLUTION = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@dataclass(frozen=True)
class Results:
    """What a model gives on an example, group by group, name by name.

    Attributes:
        groups: ``"output"``, ``"gradient"``, ``"buffer"``: tensors by their name in the group.
        dtypes: Of the tensors in the output, in order.
    """

    groups: dict[str, dict[str, Tensor]]
    dtypes: tuple[torch.dtype, ...]


@dataclass(frozen=True)
class Errors:
    """How far two models are from each other.

    Attributes:
        by_dtype: The largest difference in float64, if they run in it, and in their own dtype: of a tensor, as a share
            of its norm (or of a thousandth of the largest norm in its group, if that is more).
        own: How far the given model in its own dtype is from its float64 results; None without those.
    """

    by_dtype: dict[str, float]
    own: float | None

    @property
    def largest(self) -> float:
        """In the models' own dtype."""
        return list(self.by_dtype.values())[-1]

    def __str__(self) -> str:
        text = ", ".join(f"{error:.1e} in {dtype}" for dtype, error in self.by_dtype.items())
        return text if self.own is None else f"{text} (the model's own roundings: {self.own:.1e})"


def prove(
    given: torch.nn.Module,
    changed: torch.nn.Module,
    example_inputs: Any,
    *,
    gradients: bool,
    changed_in_double: torch.nn.Module | None = None,
) -> Errors:
    """The largest difference between two models, by dtype; neither model moves.

    In float64 both must agree but for roundings. In the model's own dtype the changed model may then be four times as
    far from the float64 results as the given one is (of a model that does not run in float64: not at all), and the
    square root of one rounding more, since an activation's derivative jumps where a rounding carries its input over the
    kink; and by what roundings grew to in float64, which small batches and many layers can make much. The random
    numbers (dropout) are the same in all runs.

    Args:
        given: The model as it was.
        changed: The model as it is now, in the same mode.
        example_inputs: As the model is called.
        gradients: Whether gradients of parameters and inputs, and the buffers after the pass, are compared too.
        changed_in_double: The changed model in float64, where that is more than its parameters in float64: where these
            were computed, and rounded to the model's dtype.

    Raises:
        SurgeryError: They differ; or the given model raises on the inputs.
    """
    try:
        standard = Standard.of(given, example_inputs, gradients=gradients)
    except Exception as error:
        raise SurgeryError(
            f"the model raises on the example inputs: {said(error)}.",
            "give inputs that it can be called with: a tensor, a tuple of arguments or a dict of keywords.",
        ) from error
    try:
        ours = results(copied(changed), example_inputs, gradients=gradients)
    except Exception as error:
        raise SurgeryError(f"the rewritten model raises on the example inputs: {said(error)}.", _REPORT) from error
    theirs, truth, dtype = standard.theirs, standard.truth, standard.dtype
    if not theirs.dtypes:
        raise SurgeryError(
            "the model's output on the example holds no tensor, so there is nothing to compare.",
            "let it return tensors, in tuples, lists, dicts, dataclasses or objects with attributes.",
        )
    if ours.dtypes != theirs.dtypes:
        raise DifferentResultError(
            f"the rewritten model gives {ours.dtypes} on the example, and the model {theirs.dtypes}."
        )
    errors: dict[str, float] = {}
    if truth is not None:
        again = in_double(changed_in_double or changed, example_inputs, gradients=gradients)
        if again is None:
            raise DifferentResultError("the rewritten model does not run in float64, and the model given does.")
        errors["float64"], where = distance(again, truth)
        _refuse_if(not errors["float64"] <= EXACT, "float64", errors["float64"], EXACT, where)
    # Where float64 has shown that they compute the same, only roundings are left, and they scatter.
    more = standard.grown(errors["float64"]) + 2 * (standard.own or 0.0) if errors else 0.0
    found = standard.judge(ours, more)
    _refuse_if(not (found.passes and math.isfinite(found.error)), _name(dtype), found.error, found.allowed, found.where)
    if dtype is not torch.float64:
        errors[_name(dtype)] = distance(ours, theirs)[0]
    return Errors(errors, standard.own)


@dataclass(frozen=True)
class Difference:
    """How far results are off.

    Attributes:
        error: As :func:`distance` measures it.
        allowed: The most that passes.
        where: The tensor that is off by most.
    """

    error: float
    allowed: float
    where: str

    @property
    def passes(self) -> bool:
        """Whether that is within what is allowed; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Standard:
    """What a model gives on an example: others are judged by it.

    Attributes:
        theirs: In the model's own dtype.
        truth: In float64; None where the model does not run in it.
        dtype: The coarsest of its parameters and outputs.
        own: How far ``theirs`` is from ``truth``; None without that.
    """

    theirs: Results
    truth: Results | None
    dtype: torch.dtype
    own: float | None

    @classmethod
    def of(cls, model: torch.nn.Module, example_inputs: Any, *, gradients: bool, **how: Any) -> Standard:
        """Runs copies of a model, in its own dtype and in float64; ``how`` is for :func:`results`."""
        theirs = results(copied(model), example_inputs, gradients=gradients, **how)
        truth = in_double(model, example_inputs, gradients=gradients, **how)
        own = None if truth is None else distance(theirs, truth)[0]
        return cls(theirs, truth, _coarsest(model, theirs), own)

    @property
    def known(self) -> bool:
        """Whether ``truth`` is there and of the same computation, not of other random masks."""
        return self.own is not None and self.own <= _FARTHEST

    def grown(self, double_error: float) -> float:
        """What roundings in ``dtype`` may grow to where those of float64 grew to ``double_error``."""
        return 4 * double_error * _RESOLUTION[self.dtype] / _RESOLUTION[torch.float64]

    def judge(self, ours: Results, more: float = 0.0) -> Difference:
        """How far others in the same dtype are off. Allowed is twice ``own``, the root of a rounding, and ``more``."""
        right = self.truth if self.known and self.truth is not None else self.theirs
        own = self.own if self.known and self.own is not None else 0.0
        error, where = distance(ours, right)
        return Difference(error, 2 * own + math.sqrt(_RESOLUTION[self.dtype]) + more, where)


def _refuse_if(different: bool, dtype: str, found: float, allowed: float, where: str) -> None:
    if different:
        raise DifferentResultError(
            f"on the example in {dtype}, {where} of the rewritten model differs by {found:.1e}, and {allowed:.1e} is "
            "allowed.",
            _REPORT,
        )


def results(
    model: torch.nn.Module,
    example_inputs: Any,
    *,
    gradients: bool,
    run: Callable[[torch.nn.Module, Any], Any] = call,
) -> Results:
    """Runs a model, which moves, from one fixed seed.

    Gradients are those of one random weighted sum of all outputs, by the parameters and the inputs that want one.

    Args:
        model: Whose parameters and buffers count.
        example_inputs: What it is called with.
        gradients: Whether there is a backward pass.
        run: Calls a model with such inputs, and gives what counts as its output.
    """
    inputs = fresh(example_inputs)
    leaves = {
        **{f"input {place}": leaf for place, leaf in enumerate(tree_leaves(inputs)) if isinstance(leaf, Tensor)},
        **dict(model.named_parameters()),
    }
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    for leaf in wanted.values():
        leaf.grad = None
    with seeded(), torch.set_grad_enabled(gradients):
        outputs = list(_tensors(run(model, inputs)))
        # Before the backward pass: in a checkpoint torch's own norms count a batch twice, which ours do not.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()} if gradients else {}
        pulled = [output for output in outputs if output.requires_grad and output.is_floating_point()]
        weights = [torch.randn(output.shape, dtype=torch.float64, device="cpu").to(output) for output in pulled]
        found: dict[str, Tensor] = {}
        if pulled and wanted:
            torch.autograd.backward(pulled, weights)
            found = {name: leaf.grad for name, leaf in wanted.items() if leaf.grad is not None}
    for leaf in wanted.values():
        leaf.grad = None
    groups = {
        "output": {f"output {place}": output.detach() for place, output in enumerate(outputs)},
        "gradient": found,
        "buffer": buffers,
    }
    return Results(groups, tuple(output.dtype for output in outputs))


def _tensors(output: Any, depth: int = 3) -> Iterator[Tensor]:
    """Those in an output, however it is nested: in mappings and objects that torch does not know, too."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, torch.nn.Module) or depth == 0:
            continue
        elif isinstance(leaf, Mapping):
            for value in leaf.values():
                yield from _tensors(value, depth - 1)
        elif hasattr(leaf, "__dict__") and not callable(leaf):
            for value in vars(leaf).values():
                yield from _tensors(value, depth - 1)
        elif hasattr(leaf, "__slots__"):
            for name in leaf.__slots__:
                yield from _tensors(getattr(leaf, name, None), depth - 1)


def in_double(model: torch.nn.Module, example_inputs: Any, **how: Any) -> Results | None:
    """The :func:`results` of a copy in float64; None where the model does not run in it."""

    def doubled(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    example_inputs = fresh(example_inputs)
    try:
        copy = copied(model).double()
        for module in copy.modules():  # double() passes by tensors that are plain attributes
            vars(module).update({name: doubled(held) for name, held in vars(module).items() if type(held) is Tensor})
        return results(copy, tree_map_only(Tensor, doubled, example_inputs), **how)
    except Exception:  # not every model runs in float64; the caller compares otherwise
        return None


def _coarsest(model: torch.nn.Module, found: Results) -> torch.dtype:
    dtypes = [parameter.dtype for parameter in model.parameters()] + list(found.dtypes)
    return max((dtype for dtype in dtypes if dtype in _RESOLUTION), key=_RESOLUTION.__getitem__, default=torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def distance(found: Results, right: Results) -> tuple[float, str]:
    """The largest difference of a tensor as a share of its norm, and which tensor that is.

    What is small beside the others of its group is measured by a thousandth of the largest: the gradient of a
    convolution's bias before a norm, for example, is 0 but for roundings. NaN agrees with NaN.
    """
    worst, where = 0.0, ""
    for group, tensors in right.groups.items():
        if found.groups[group].keys() != tensors.keys():
            return math.inf, f"the set of {group}s"
        norms = {name: float(tensor.double().nan_to_num().norm()) for name, tensor in tensors.items()}
        floor = 1e-3 * max(norms.values(), default=0.0)
        for name, tensor in tensors.items():
            other = found.groups[group][name]
            if other.shape != tensor.shape:
                return math.inf, f"the shape of {name}"
            a, b = other.double(), tensor.double()
            off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b)
            error = float(off.norm()) / (max(norms[name], floor) or 1.0)
            if not error <= worst:
                worst, where = error, f"{name} ({group})" if group != "output" else name
                if math.isnan(error):
                    return math.inf, where
    return worst, where

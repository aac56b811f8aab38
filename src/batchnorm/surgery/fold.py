"""``fold``: norms of fixed statistics become part of the convolutions and linear layers beside them."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import SurgeryError
from .attempt import Attempt, Plan
from .copying import copied
from .example import what_went_wrong
from .foldable import call_counts, functional
from .proof import prove
from .result import Surgery
from .trace import trace

__all__ = ["fold"]

# Attempts at finding the norms that break the proof; those that have not come through by then are kept.
_ATTEMPTS = 50
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"}


def fold(model: torch.nn.Module, example_inputs: Any) -> Surgery:
    r"""Folds batch norms into the layers beside them, for inference, and proves that the outputs are the same.

    A norm in evaluation computes :math:`s x + t` in each channel, with :math:`s = \gamma / \sqrt{\mathrm{Var} +
    \epsilon}` and :math:`t = \beta - s\,\mathrm{E}`. A layer before it takes on :math:`sW` and :math:`sb + t`; one
    after it :math:`Ws` and :math:`b + Wt`, where it pads with no zeros. ``docs/fold.md`` lists what folds.

    Args:
        model: Any module. It stays as it is, its mode included.
        example_inputs: A tensor, a tuple of arguments or a dict of keywords. What feeds what is found out on them.

    Returns:
        A copy for inference, in evaluation mode, of the same classes and with parameters of its own. Folded norms are
        ``torch.nn.Identity`` there (a ``BatchNormAct*`` leaves its sum and activation). ``changed`` says into what each
        norm was folded, ``kept`` why others were not.

    Raises:
        SurgeryError: The model cannot be copied, has no values yet or raises on the inputs; or no choice of norms gives
            the same outputs.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> folded = fold(model, torch.randn(2, 3, 16, 16))
        >>> print(folded)
        1  BatchNorm2d  folded  into 0 (Conv2d)
        1 folded; largest relative difference on the example: ... in float64, ... in float32 ...
        >>> folded.model
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
    """
    _check(model)
    given = copied(model)
    given.eval()
    graph = trace(given, example_inputs)
    plan = Plan(given, graph, call_counts(given, graph, example_inputs), example_inputs)
    attempt = Attempt(plan, {})
    try:
        errors = attempt.prove()
    except Exception as error:  # the user's own code, which may not bear an Identity where a norm was
        attempt = Attempt(plan, _culprits(plan, [outcome.layer for outcome in attempt.changed], error))
        try:
            errors = attempt.prove()
        except Exception as again:
            raise _wrong(again) from again
    return Surgery(attempt.model, attempt.changed, [*attempt.kept, *functional(graph)], errors)


def _check(model: torch.nn.Module) -> None:
    if not isinstance(model, torch.nn.Module):
        raise SurgeryError(f"a {type(model).__name__} is no torch.nn.Module.", "give the module itself.")
    for path, module in model.named_modules():
        # By name: to import them takes torch.distributed, which not every torch has.
        if any(base.__name__ in _WRAPPERS and base.__module__.startswith("torch.") for base in type(module).__mro__):
            name = f"model.{path}" if path else "model"
            where = f"{path} is" if path else "the model is"
            raise SurgeryError(
                f"{where} a {type(module).__name__}, which is for training in several processes or on several devices.",
                f"fold what it holds: {name}.module.",
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise SurgeryError(f"{path or 'the model'} is a torch.jit module.", "fold first, and script or trace then.")
        if any(
            torch.nn.parameter.is_lazy(state) for state in (*module._parameters.values(), *module._buffers.values())
        ):
            raise SurgeryError(f"{path} ({type(module).__name__}) has no values yet.", "call the model once before.")
    for name, state in (*model.named_parameters(), *model.named_buffers()):
        if state.is_meta:
            raise SurgeryError(f"{name} is on the meta device and has no values.", "load the weights first.")


# --- what breaks the proof -----------------------------------------------------------------------------------


def _culprits(plan: Plan, folded: list[str], error: Exception) -> dict[str, str]:
    """The norms without which the model computes something else, by halving; with what was seen.

    The user's code may look at a norm without calling it, or call it by a name that no module has.
    """
    prove(plan.given, copied(plan.given), plan.inputs, gradients=False)  # what no fold can mend is raised here
    if not folded:
        raise _wrong(error) from error
    attempts, found = 0, dict[str, str]()
    waiting, errors = [folded], {tuple(folded): error}
    while waiting:
        paths = waiting.pop()
        if tuple(paths) not in errors and attempts < _ATTEMPTS:
            attempts += 1
            try:
                Attempt(plan, {path: "" for path in folded if path not in paths}).prove()
                continue
            except Exception as other:
                errors[tuple(paths)] = other
        if len(paths) == 1 or attempts == _ATTEMPTS:
            found |= dict.fromkeys(paths, f"folded, {what_went_wrong(errors.get(tuple(paths), error))}")
        else:
            middle = len(paths) // 2
            waiting += [paths[:middle], paths[middle:]]
    return found


def _wrong(error: Exception) -> SurgeryError:
    return SurgeryError(
        f"the model cannot be folded: {what_went_wrong(error)}.", "please report the model; it is as it was."
    )

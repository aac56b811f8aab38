"""A user's own training step: as given, with its torch norms replaced by ours, and compiled."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..targets import TargetError
from .contenders import BATCHNORM, COMPILE, EAGER
from .faults import fault_seconds
from .kept import bytes_kept
from .peers import Peer
from .peers.compiled import why_no_compiler
from .replacement import replaced
from .row import UNAVAILABLE, WRONG, Environment, Row, with_times
from .shares import shares
from .step import Step, load, raised
from .timing import interleave, repetitions
from .tolerance import RESOLUTION

__all__ = ["MODE", "Model", "measure_model", "prepare"]

MODE = "model"


@dataclass(frozen=True)
class Model:
    """A user's training step, loaded and not yet run.

    Attributes:
        target: What names it.
        given: As it came.
        ours: With our layers.
    """

    target: str
    given: Step
    ours: Step


def prepare(target: str) -> Model:
    """Loads a training step, and replaces its torch norms in a copy: what can be refused unmeasured is refused here.

    Args:
        target: See :func:`load`.

    Raises:
        TargetError: See :func:`load`.
        ArgumentError: There is no torch norm to replace.
    """
    given = load(target)
    assert isinstance(given.module, torch.nn.Module)
    module, count = replaced(given.module)
    if not count:
        raise ArgumentError(
            f"{target}: the model has no torch.nn.BatchNorm1d, 2d or 3d of that exact type.",
            "there is nothing to replace; name another model.",
        )
    return Model(target, given, replace(given, module=module))


def measure_model(model: Model, peers: Sequence[Peer], rounds: int) -> list[Row]:
    """Measures a user's training step: a row with our layers, one as given, one compiled where that is asked for.

    Args:
        model: From :func:`prepare`.
        peers: ``eager`` is the model as given; ``compile`` is ``torch.compile`` of it; others have no such step.
        rounds: Samples a contender.

    Raises:
        TargetError: The step raises.
    """
    target, given, ours = model.target, model.given, model.ours
    environment = Environment.now(fault_seconds())
    try:
        verdict, share = _judge(given, ours)
    except Exception as error:
        raise TargetError(f"{target}: its step {raised(error)}") from error
    steps = {BATCHNORM: ours, EAGER: given}
    rows = {name: _row(target, name, environment) for name in (BATCHNORM, *(peer.name for peer in peers))}
    rows[BATCHNORM] = replace(rows[BATCHNORM], tolerance_share=share)
    if verdict:
        rows[BATCHNORM] = replace(rows[BATCHNORM], status=WRONG, reason=verdict)
        del steps[BATCHNORM]
    if COMPILE in rows:
        try:
            steps[COMPILE] = _compiled(given)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            rows[COMPILE] = replace(rows[COMPILE], reason=first)
        else:
            wrong, share = _judge(given, steps[COMPILE])
            rows[COMPILE] = replace(rows[COMPILE], tolerance_share=share)
            if wrong:
                rows[COMPILE] = replace(rows[COMPILE], status=WRONG, reason=wrong)
                del steps[COMPILE]
    norm, activation = shares(given.step)
    rows[EAGER] = replace(rows[EAGER], norm_share=norm, activation_share=activation)
    repeat = {name: repetitions(step.step) for name, step in steps.items()}
    samples = interleave({name: step.step for name, step in steps.items()}, rounds, repeat=repeat)
    for name, step in steps.items():
        timed = with_times(rows[name], samples[name], samples.get(BATCHNORM), repeat[name])
        rows[name] = replace(timed, kept_bytes=bytes_kept(step.forward, _state(step)))
    return list(rows.values())


def _state(step: Step) -> list[Tensor]:
    assert isinstance(step.module, torch.nn.Module)
    return [*step.module.parameters(), *step.module.buffers()]


def _row(target: str, name: str, environment: Environment) -> Row:
    return Row(
        case=target,
        networks="",
        shape="",
        format="",
        dtype="",
        mode=MODE,
        activation="",
        residual=False,
        contender=name,
        status=UNAVAILABLE,
        reason="" if name in (BATCHNORM, EAGER) else f"{name} is not measured on a model",
        environment=environment,
    )


def _compiled(given: Step) -> Step:
    if why_no_compiler():
        raise RuntimeError(why_no_compiler())
    torch._dynamo.reset()
    module: Any = torch.compile(given.module, dynamic=False)
    step = replace(given, module=module)
    step.step()
    return step


# How a step's results are judged, and nothing else of this file.

_FARTHEST = 0.1  # a float64 run that differs by more from torch's is not of the same computation


def _judge(given: Step, ours: Step) -> tuple[str, float]:
    """Why the step with our layers is wrong (empty where it is right), and its error as a share of what is allowed.

    Relative errors of the loss, and of all gradients and all running buffers as one vector each. An activation's
    derivative jumps where rounding carries its input over the kink, and a model has many of them: the floor is the
    square root of the resolution.
    """
    truth = _in_double(given)
    theirs, mine = _results(given), _results(ours)
    floor = _resolution(given) ** 0.5
    if truth is None or any(_distance(a, b) > _FARTHEST for a, b in zip(theirs, truth, strict=True)):
        # Nothing to compare both with: random masks that differ by dtype, operators without float64. Torch itself is
        # then what is compared with, and how far it is off cannot be known.
        truth, floor = theirs, RESOLUTION[torch.bfloat16] ** 0.5
    worst, reason = 0.0, ""
    for name, a, b, right in zip(("loss", "gradients", "running buffers"), mine, theirs, truth, strict=True):
        measured, limit = _distance(a, right), 2 * _distance(b, right) + floor
        share = float("inf") if math.isnan(measured) else measured / limit
        if share > worst:
            worst, reason = share, f"{name}: relative error {measured:.3g}, allowed {limit:.3g}"
    return (reason if worst > 1 else ""), worst


def _resolution(given: Step) -> float:
    """One rounding in the coarsest dtype that the parameters have; float32 at the finest."""
    return max(RESOLUTION[torch.float32], *(RESOLUTION.get(parameter.dtype, 0.0) for parameter in given.parameters()))


def _results(step: Step) -> tuple[Tensor, ...]:
    module: Any = step.module
    torch.manual_seed(0)
    loss = step.forward()
    loss.backward()
    gradients = [parameter.grad for parameter in step.parameters() if parameter.grad is not None]
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    nothing = torch.zeros(1, dtype=torch.float64)  # a model may have no buffers, or no gradients
    vectors = [
        torch.cat([nothing, *(each.detach().flatten().double() for each in group)]) for group in (gradients, buffers)
    ]
    found = loss.detach().double(), *vectors
    for parameter in step.parameters():
        parameter.grad = None
    return found


def _in_double(given: Step) -> tuple[Tensor, ...] | None:
    try:
        module: Any = copy.deepcopy(given.module)
        return _results(replace(given, module=module.double(), inputs=_doubled(given.inputs)))
    except Exception:  # not every model runs in float64; the caller compares otherwise
        return None


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _doubled(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_doubled(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # a namedtuple takes them apart
    return value


def _distance(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm()) / (float(right.norm()) or 1.0)

"""A user's own training step: as given, with its torch norms replaced by ours, and compiled."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..targets import TargetError
from .faults import fault_seconds, fault_share
from .kept import bytes_kept
from .peers import Peer
from .peers.compiled import why_no_compiler
from .replacement import replaced
from .row import TIMED, UNAVAILABLE, WRONG, Environment, Row
from .shares import shares
from .step import Step, load
from .timing import interleave, quantiles, ratio, repetitions
from .tolerance import RESOLUTION

__all__ = ["MODE", "measure_model"]

MODE = "model"
_OURS, _EAGER, _COMPILE = "batchnorm", "eager", "compile"

_FARTHEST = 0.1  # a float64 run that differs by more from torch's is not of the same computation


def measure_model(target: str, peers: Sequence[Peer], rounds: int) -> list[Row]:
    """Measures a user's training step: a row with our layers, one as given, one compiled where that is asked for.

    Args:
        target: See :func:`load`.
        peers: ``eager`` is the model as given; ``compile`` is ``torch.compile`` of it; others have no such step.
        rounds: Samples a contender.

    Raises:
        TargetError: See :func:`load`; or the step raises.
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
    environment = Environment.now(fault_seconds())
    ours = replace(given, module=module)
    try:
        verdict, share = _judge(given, ours)
    except Exception as error:
        raise TargetError(f"{target}: its step raised {type(error).__name__}: {error}") from error
    steps = {_OURS: ours, _EAGER: given}
    rows = {name: _row(target, name, environment) for name in (_OURS, *(peer.name for peer in peers))}
    rows[_OURS] = replace(rows[_OURS], tolerance_share=share)
    if verdict:
        rows[_OURS] = replace(rows[_OURS], status=WRONG, reason=verdict)
        del steps[_OURS]
    if _COMPILE in rows:
        try:
            steps[_COMPILE] = _compiled(given)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            rows[_COMPILE] = replace(rows[_COMPILE], reason=first)
        else:
            wrong, share = _judge(given, steps[_COMPILE])
            rows[_COMPILE] = replace(rows[_COMPILE], tolerance_share=share)
            if wrong:
                rows[_COMPILE] = replace(rows[_COMPILE], status=WRONG, reason=wrong)
                del steps[_COMPILE]
    norm, activation = shares(given.step)
    rows[_EAGER] = replace(rows[_EAGER], norm_share=norm, activation_share=activation)
    repeat = {name: repetitions(step.step) for name, step in steps.items()}
    samples = interleave({name: step.step for name, step in steps.items()}, rounds, repeat=repeat)
    for name, step in steps.items():
        sample, spread = samples[name], quantiles(samples[name].seconds)
        beside = ratio(sample.seconds, samples[_OURS].seconds) if _OURS in samples else None
        rows[name] = replace(
            rows[name],
            status=TIMED,
            microseconds_20=1e6 * spread.low,
            microseconds=1e6 * spread.median,
            microseconds_80=1e6 * spread.high,
            ratio=None if beside is None else beside.estimate,
            ratio_low=None if beside is None else beside.low,
            ratio_high=None if beside is None else beside.high,
            rounds=rounds,
            repetitions=repeat[name],
            kept_bytes=bytes_kept(step.forward, _state(step)),
            faults=sample.spent.faults / sample.calls,
            fault_share=fault_share(sample.spent),
        )
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
        reason="" if name in (_OURS, _EAGER) else f"{name} is not measured on a model",
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
        return type(value)(_doubled(item) for item in value)
    return value


def _distance(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm()) / (float(right.norm()) or 1.0)

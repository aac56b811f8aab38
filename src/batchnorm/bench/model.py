"""A user's own model: its training step as given, fused, lean and compiled; its inference as given and folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..memory import lean
from ..nn._base import is_batch_norm
from ..surgery.copying import copied
from ..surgery.example import said
from ..surgery.fold import fold
from ..surgery.fuse import fuse
from ..surgery.proof import Results, distance
from ..surgery.result import Surgery
from ..targets import TargetError
from .contenders import COMPILE, EAGER, FOLD, FUSE, LEAN
from .environment import Environment
from .kept import bytes_kept
from .model_gate import Gate
from .norms import counts, reasons
from .peers import Peer, Unavailable
from .peers.compiled import why_no_compiler
from .race import Race, Run, Wrong
from .row import INFERENCE, MODEL, Row
from .shares import shares
from .step import Step, load

__all__ = ["Model", "measure_model", "prepare"]


@dataclass(frozen=True)
class Model:
    """A user's training step, loaded and not yet run.

    Attributes:
        target: What names it.
        given: As it came.
        example: The inputs that it is rewritten for and judged on. They may be fewer than those of the step.
    """

    target: str
    given: Step
    example: Any

    @property
    def module(self) -> torch.nn.Module:
        """The model."""
        assert isinstance(self.given.module, torch.nn.Module)
        return self.given.module

    @property
    def device(self) -> str:
        """Where its step runs, as its parameters say: ``"cuda"``, or ``"cpu"`` for all else."""
        return "cuda" if any(parameter.is_cuda for parameter in self.module.parameters()) else "cpu"


def prepare(target: str) -> Model:
    """Loads a training step: what can be refused unmeasured is refused here.

    Args:
        target: See :func:`load`.

    Raises:
        TargetError: See :func:`load`.
        ArgumentError: The model has no batch norm.
    """
    given = load(target)
    model = Model(target, given, given.inputs)
    if not any(is_batch_norm(layer) for layer in model.module.modules()):
        raise ArgumentError(
            f"{target}: the model has no batch norm layer, torch's or ours.",
            "there is nothing to fuse or to fold; name another model.",
        )
    return model


def measure_model(model: Model, peers: Sequence[Peer], rounds: int) -> list[Row]:
    """Measures a user's model: the rows of its training step, then those of its inference.

    Training: as given; by :func:`batchnorm.fuse`; that with :func:`batchnorm.lean` around the forward pass; and
    ``torch.compile`` of the model as given, where that is asked for. Inference: as given, and by
    :func:`batchnorm.fold`. Who cannot take part, or gives wrong results, has a row that says why.

    Args:
        model: From :func:`prepare`.
        peers: ``eager`` is the model as given; ``compile`` is ``torch.compile`` of it; others have no such step.
        rounds: Samples a contender.

    Raises:
        TargetError: The step raises.
    """
    environment = Environment.measured(model.device)
    try:
        model.given.step()
    except Exception as error:
        raise TargetError(f"{model.target}: its step raised {said(error)}.") from error
    training = Race(model.target, MODEL, FUSE, environment)
    _Training(model, training).enter(peers)
    rows = training.timed(rounds)
    inference = Race(model.target, INFERENCE, FOLD, environment)
    _enter_inference(model, inference)
    return rows + inference.timed(rounds)


class _Training:
    """Makes the contenders of the training step."""

    def __init__(self, model: Model, race: Race) -> None:
        self.model, self.race, self.given = model, race, model.given
        self.gate: Gate | None = None
        self.fused: Surgery | None = None
        self.found: dict[str, Results] = {}

    def enter(self, peers: Sequence[Peer]) -> None:
        self.race.enter(EAGER, self.as_given)
        self.race.enter(FUSE, self.by_fuse)
        self.race.enter(LEAN, self.by_lean)
        for peer in peers:
            if peer.name != EAGER:
                self.race.enter(peer.name, self.by_compile if peer.name == COMPILE else _not_measured(peer))

    def as_given(self) -> Run:
        norm, activation = shares(self.given.step, self.model.device)
        self.race.note(EAGER, norm_share=norm, activation_share=activation, kept_bytes=_kept(self.given))
        return self.given.step

    def by_fuse(self) -> Run:
        self.fused = fuse(self.model.module, self.model.example)
        self.race.note(FUSE, **_said_of(self.fused))
        step = replace(self.given, module=self.fused.model)
        self.judge(FUSE, replace(step, module=copied(self.fused.model)))
        self.race.note(FUSE, kept_bytes=_kept(step))
        return step.step

    def by_lean(self) -> Run:
        if self.fused is None or FUSE not in self.race.runs:
            raise Unavailable("there is no fused model to train with it")
        plain = replace(self.given, module=self.fused.model)
        self.judge(LEAN, replace(plain, module=copied(self.fused.model), around=lean))
        with lean(report=True) as report:
            loss = plain.forward()
        del loss
        assert report is not None
        # Hooks see nothing where others lie within them: what lean saves is taken off what is kept without it.
        kept = _kept(plain) - (report.kept_bytes_without - report.kept_bytes)
        told = [f"{report.recipes} recomputed", *(f"{times} kept: {why}" for why, times in report.reasons.items())]
        off, _ = distance(self.found[LEAN], self.found[FUSE])
        self.race.note(LEAN, kept_bytes=kept, norms=" | ".join(told), max_error=off)
        return replace(plain, around=lean).step

    def by_compile(self) -> Run:
        if self.model.device == "cpu" and why_no_compiler():
            raise Unavailable(why_no_compiler())
        torch._dynamo.reset()
        module: Any = torch.compile(copied(self.model.module), dynamic=False)
        step = replace(self.given, module=module)
        self.judge(COMPILE, step)
        self.race.note(COMPILE, kept_bytes=_kept(step))
        return step.step

    def judge(self, name: str, step: Step) -> None:
        """Runs a step, which moves, on the example; raises ``Wrong``."""
        if self.gate is None:
            self.gate = Gate(replace(self.given, inputs=self.model.example))
        self.found[name] = self.gate.results(replace(step, inputs=self.model.example))
        roundings = 0.0 if self.fused is None else self.fused.errors.by_dtype.get("float64", 0.0)
        verdict = self.gate.judge(self.found[name], roundings)
        self.race.note(name, tolerance_share=verdict.worst)
        if not verdict.passed:
            raise Wrong(verdict.reason)


def _not_measured(peer: Peer) -> Any:
    def make() -> Run:
        raise Unavailable(f"{peer.name} is not measured on a model")

    return make


def _said_of(surgery: Surgery) -> dict[str, Any]:
    """What a row says of a rewritten model."""
    return {
        **{f"norms_{action}": count for action, count in counts(surgery).items()},
        "norms": " | ".join(reasons(surgery)),
        "max_error": surgery.max_error,
        "max_error_float64": surgery.errors.by_dtype.get("float64"),
    }


def _kept(step: Step) -> int:
    module: Any = step.module
    state: list[Tensor] = [*module.parameters(), *module.buffers()]
    return bytes_kept(step.forward, state)


def _enter_inference(model: Model, race: Race) -> None:
    def ready(module: torch.nn.Module) -> Run:
        run = torch.no_grad()(replace(model.given, module=module).output)
        run()
        return run

    def by_fold() -> Run:
        folded = fold(model.module, model.example)
        race.note(FOLD, **_said_of(folded))
        return ready(folded.model)

    race.enter(EAGER, lambda: ready(copied(model.module).eval()))
    race.enter(FOLD, by_fold)

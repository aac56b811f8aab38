"""``diagnose``: what is wrong with the batch norm in a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..nn._base import is_batch_norm
from ..population.batches import Forward
from ..population.engine import unwrapped
from .collect import MAX_BATCHES, Loss, collect
from .diagnosis import Diagnosis
from .evidence import Evidence, Settings
from .finding import SEVERITIES, Finding, Subject
from .frameworks import EPS
from .mends import addressed
from .ranks import Accord, together
from .registry import matching
from .registry import select as select_rules
from .rule import Need, Rule
from .static import of_tensors

__all__ = ["diagnose"]


def diagnose(
    model: torch.nn.Module | torch.export.ExportedProgram | Mapping[str, Tensor],
    *,
    batches: Iterable[Any] | Tensor | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    per_layer_ignores: Mapping[str, Iterable[str]] | None = None,
    forward: Forward | None = None,
    max_batches: int = MAX_BATCHES,
    accumulation_steps: int = 1,
    weights_from: str | None = None,
    before: torch.nn.Module | None = None,
) -> Diagnosis:
    """Looks for mistakes with batch norm in a model, by every rule for which there is enough to look at.

    With ``batches`` the model is run on a few of them in training and in evaluation mode, with one backward pass. It is
    left bit for bit as it was: parameters, buffers, gradients, modes, hooks and random numbers, on an exception or an
    interrupt too. So is what ``loss`` and ``forward`` hold, if it can be found: modules, and tensors with gradients, in
    their closures, attributes, bound objects, defaults and the global names that they use, up to four steps away. What
    else they change (lists, counters, files) they change. The optimizer is only read. Under ``torch.distributed`` every
    process calls this.

    Args:
        model: A module, or the tensors of a checkpoint by their names (a ``state_dict``): then rules that need the
            module are skipped. Of a program of ``torch.export`` or a scripted module only the graph can be looked at.
        batches: Yields tensors, (input, target) pairs (an input may be a dict of keywords) or dicts of keywords; or
            one tensor, or one dict. Mends do not run over those of an iterator, nor of what has no length and goes on.
        loss: Called as ``loss(output, target)``, for the backward pass; without it (and without a ``loss`` in the
            output) the outputs' sum along fixed random directions is differentiated.
        optimizer: For rules about weight decay.
        select: Codes of rules, their beginnings or names: only these.
        ignore: Not these.
        per_layer_ignores: For patterns of layers' paths (``"encoder.*"``), what to ignore there. Mends do not take the
            statistics of a layer anew where BN001, BN004 or BN010 is ignored.
        forward: Called as ``forward(model, batch)``, where the model takes its batches otherwise.
        max_batches: At most so many are run, in each mode.
        accumulation_steps: Backward passes for each step of the optimizer, where gradients are accumulated.
        weights_from: The framework that the weights were trained in, where it was another: ``"keras"``,
            ``"tensorflow"``, ``"flax"``, ``"caffe"`` or ``"paddle"``.
        before: The model as it was before its norms were converted, where they were.

    Returns:
        The findings, with the evidence behind them, and what was not looked at.

    Raises:
        ArgumentError: An argument means nothing, or the model raises on the batches where no rule says why.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, momentum=0.9))
        >>> for finding in diagnose(model, select=["BN011"]).findings:
        ...     print(finding.layer, finding.severity, finding.rule, finding.name)
        1 warning BN011 inverted-momentum
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module(check_guards=False)
    rules = select_rules(select, ignore)
    ignored = {pattern: matching(codes) for pattern, codes in (per_layer_ignores or {}).items()}
    settings = Settings(_steps(accumulation_steps), _framework(weights_from), before, ignored)
    _check(model, optimizer, before, loss=loss, forward=forward)
    once = isinstance(batches, Iterator)

    def look(first: bool = True) -> Diagnosis:
        if isinstance(model, Mapping):
            # Mends replace tensors in the dictionary itself, where it is one.
            own = model if isinstance(model, dict) else dict(model)
            state = own if first else subject.state or {}
            evidence = of_tensors(state, settings)
            return _diagnosed(rules, ignored, evidence, Subject(state=state) if first else subject)
        needs = frozenset(need for rule in rules for need in (*rule.needs, *rule.uses))
        modules = unwrapped(model).named_modules() if isinstance(model, torch.nn.Module) else ()
        paths = [(path, module.num_features) for path, module in modules if is_batch_norm(module)]
        evidence, ranks = together(
            paths,
            lambda agreed: collect(
                model,
                batches=batches,
                loss=loss,
                optimizer=optimizer,
                forward=forward,
                max_batches=max_batches,
                settings=settings,
                needs=needs,
                agreed=agreed,
            ),
            model if isinstance(model, torch.nn.Module) else None,
        )
        given = Subject(evidence.model, None, optimizer, None if once else batches, forward)
        evidence = replace(evidence, ranks=ranks)
        found = Accord(ranks is not None, evidence.model).step(lambda: _diagnosed(rules, ignored, evidence, given))
        return _for_wrapper(found, model)

    done = look()
    subject = done._subject
    return done if once else replace(done, _again=lambda: look(first=False))


def _steps(given: object) -> int:
    if not isinstance(given, int) or given < 1:
        raise ArgumentError(f"accumulation_steps is {given!r}.", "1 is a step for each backward pass.")
    return given


def _framework(given: object) -> str | None:
    """The name of a framework in small letters."""
    name = given.casefold() if isinstance(given, str) else given
    if name is None or name in EPS:
        return name
    raise ArgumentError(
        f"weights_from={given!r} is not known.", f"one of {', '.join(EPS)}; or leave it out, and set eps."
    )


def _check(model: object, optimizer: object, before: object, **functions: object) -> None:
    """Refuses what would be an error of Python's, or tell nothing."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ArgumentError(f"{name} is a {type(function).__name__}, which cannot be called.", "give a function.")
    if before is not None and not _is_module(before):
        raise ArgumentError(
            f"before is a {type(before).__name__} and no torch.nn.Module.", "give the model as it was before."
        )
    if optimizer is None:
        return
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__} and no torch.optim.Optimizer.",
            "give one; where several train the model, diagnose with each.",
        )
    own = {id(parameter) for parameter in model.parameters()} if isinstance(model, torch.nn.Module) else set()
    held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])  # type: ignore[attr-defined]
    if own and own.isdisjoint(held):
        raise ArgumentError(
            "the optimizer has none of the model's parameters.",
            "give the one that trains this model: after .to(device), or a copy, it is another; or leave it out.",
        )


def _for_wrapper(diagnosis: Diagnosis, model: object) -> Diagnosis:
    """Paths are those in the module inside of a wrapper; lines of code are for what was given."""
    inner = diagnosis.evidence.model
    if inner is model or not isinstance(model, torch.nn.Module):
        return diagnosis
    prefix = next(path for path, module in model.named_modules() if module is inner)
    return replace(
        diagnosis,
        findings=tuple(replace(each, mend=addressed(each.mend, prefix)) for each in diagnosis.findings),
    )


def _is_module(model: object) -> bool:
    return isinstance(model, torch.nn.Module)


def _diagnosed(
    rules: Sequence[Rule], ignored: Mapping[str, set[str]], evidence: Evidence, subject: Subject
) -> Diagnosis:
    run: list[Rule] = []
    skipped: dict[str, str] = {}
    findings: list[Finding] = []
    for rule in rules:
        missing = [need for need in rule.needs if not _there(need, evidence)]
        if missing:
            skipped[rule.code] = _reason(missing, evidence)
            continue
        run.append(rule)
        findings += rule.check(evidence)
    _explain_failures(evidence, findings)
    kept = [each for each in findings if not _ignored(each, ignored)]
    order = {layer.path: place for place, layer in enumerate(evidence.layers)}
    kept.sort(key=lambda each: (-SEVERITIES.index(each.severity), each.rule, order.get(each.layer, -1)))
    return Diagnosis(tuple(kept), tuple(run), skipped, len(findings) - len(kept), evidence, subject, None)


def _there(need: Need, evidence: Evidence) -> bool:
    there = {
        Need.MODEL: evidence.model is not None,
        Need.OPTIMIZER: evidence.optimizer is not None,
        Need.GRAPH: evidence.graph is not None,
        Need.BATCHES: evidence.training is not None,
        Need.BACKWARD: evidence.training is not None and not evidence.training.without_backward,
        Need.DEPLOYMENT: evidence.deployed is not None,
        Need.RANKS: evidence.ranks is not None,
    }
    return there[need]


def _reason(missing: Sequence[Need], evidence: Evidence) -> str:
    for need in (Need.MODEL, Need.BATCHES):
        if need in missing:
            return need.value
    if Need.BACKWARD in missing:
        why = evidence.training.without_backward if evidence.training else Need.BATCHES.value
        return f"{Need.BACKWARD.value}: {why}"
    if Need.GRAPH in missing:
        if evidence.model is None:
            return Need.MODEL.value
        return f"{Need.GRAPH.value}: {evidence.graph_failure}" if evidence.training else Need.BATCHES.value
    return missing[0].value


def _explain_failures(evidence: Evidence, findings: Sequence[Finding]) -> None:
    """A model that raises is an error, unless a rule says why."""
    for run in (evidence.training, evidence.evaluation):
        if run is None or run.failure is None:
            continue
        failure = run.failure
        where = failure.layer or "the model itself"
        if not any(each.severity == "error" and each.layer == failure.layer for each in findings):
            raise ArgumentError(
                f"the model raises in {run.mode} mode on batch {failure.batch}, at {where} with input of shape "
                f"{failure.shape}: {type(failure.error).__name__}: {failure.error}",
                "mend that first, or give batches that it takes.",
            ) from failure.error


def _ignored(finding: Finding, ignored: Mapping[str, set[str]]) -> bool:
    return any(fnmatchcase(finding.layer, pattern) and finding.rule in codes for pattern, codes in ignored.items())

"""torch-audit on the same models and batches, as its documents say: ``autopatch`` around a training loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from batchnorm.doctor.collect import MAX_BATCHES
from batchnorm.nn._base import is_batch_norm
from batchnorm.population.batches import Batches
from doctor.plant import Case

# As many batches as the doctor looks at.
_STEPS = MAX_BATCHES

#: Which of its rules name the mistake of one of ours, be it by chance: what it says there counts as found.
NAMES: dict[str, frozenset[str]] = {
    "BN001": frozenset({"TA301"}),  # values over 50 in the input
    "BN003": frozenset({"TA304"}),  # fewer than 8 samples with BatchNorm
    "BN004": frozenset({"TA100"}),  # NaN or infinity; it looks at parameters and gradients
    "BN005": frozenset({"TA501"}),  # a stateful layer called more than once in a forward pass
    "BN010": frozenset({"TA500"}),  # a layer that is never called
    "BN015": frozenset({"TA501"}),
    "BN016": frozenset({"TA402"}),  # weight decay on norms or biases
    "BN017": frozenset({"TA400"}),  # a bias before a norm, inside nn.Sequential
    "BN019": frozenset({"TA303"}),  # a suspicious layout, of four dimensions
    "BN020": frozenset({"TA103", "TA105", "TA405"}),  # zero gradients, outputs or filters
    "BN022": frozenset({"TA304"}),
    "BN025": frozenset({"TA304"}),
    "BN027": frozenset({"TA105"}),
}

# In place of a rule: where the model, or torch-audit, raises.
_RAISED = "raises"

_ABOUT_NORMS = frozenset({"TA304", "TA400", "TA501"})


@dataclass(frozen=True)
class Remark:
    """What it says.

    Attributes:
        rule: Its code.
        severity: ``INFO``, ``WARN``, ``ERROR`` or ``FATAL``.
        module: The path of one; empty where it names none.
        message: In its words.
        of_norm: Whether it is about a batch norm.
    """

    rule: str
    severity: str
    module: str
    message: str
    of_norm: bool


def audit(case: Case) -> list[Remark]:
    """Static and initial checks and a few steps of training, each remark once.

    What a user would have there is made up where the case has none: an optimizer (SGD without weight decay) and a loss
    (the mean square of the output). A model that raises ends the loop; what was said until then counts.
    """
    if not isinstance(case.model, torch.nn.Module):
        return []  # it takes no checkpoints
    from torch_audit import Auditor

    model = case.model
    optimizer = case.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer is None and parameters:
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
    auditor = Auditor(model, optimizer=optimizer, every_n_steps=1)
    raised = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            auditor.autopatch()
            _steps(case, model, optimizer)
        except Exception as error:
            raised = [Remark(_RAISED, "INFO", "", f"{type(error).__name__}: {error}", False)]
        finally:
            auditor.unpatch()
        found = auditor.finish().findings
    norms = {path for path, module in model.named_modules() if is_batch_norm(module)}
    return [*dict.fromkeys(_remark(each, norms) for each in found), *raised]


def _remark(finding: Any, norms: set[str]) -> Remark:
    # A parameter is "group_0::path.weight" of the module "optimizer", else "param:weight" of a module.
    owner = (finding.entity or "").rpartition("::")[2].rpartition(".")[0]
    of_norm = finding.rule_id in _ABOUT_NORMS or finding.module_path in norms or owner in norms
    return Remark(finding.rule_id, finding.severity.value, finding.module_path or "", finding.message, of_norm)


def _steps(case: Case, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    model.train()
    if case.batches is None:
        return
    feed = Batches(case.batches, forward=case.options.get("forward"))
    for batch, _ in islice(feed, _STEPS):
        loss = _objective(case, feed.run(model, batch), batch)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def _objective(case: Case, output: Any, batch: Any) -> Tensor:
    if case.loss is not None:
        return case.loss(output, batch[1])
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return sum(each.square().mean() for each in leaves if isinstance(each, Tensor) and each.is_floating_point())


def names(rule: str, remarks: list[Remark]) -> list[str]:
    """Those of its rules by which it found a mistake that is planted for one of ours."""
    found = [each for each in remarks if each.rule in NAMES.get(rule, ())]
    # Of the biases of other layers it says the same.
    return sorted({each.rule for each in found if rule != "BN016" or each.of_norm})

"""One of the processes of ``test_ranks.py``: ``python ranks_script.py RANK SIZE FOLDER``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import batchnorm
from batchnorm.doctor.finding import Finding, Fix, Measurement, Subject
from batchnorm.doctor.registry import registered
from batchnorm.doctor.rule import Rule
from doctor.plant import Case, Plant, plants

# Those with plants for several ranks; to import the others takes its time.
FILES = tuple(
    path.stem for path in sorted(Path(__file__).with_name("planted").glob("*.py")) if "ranks=" in path.read_text()
)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def grown(plant: Plant) -> dict[str, Any]:
    """What is found in a plant, and what its mends leave."""
    case = plant.case()
    before = state(case.model)
    diagnosis = case.diagnose(select=[plant.rule])
    unchanged = all(
        torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in state(case.model).items()
    )
    fixable = [each.layer for each in diagnosis.findings if each.fix is not None]
    mended = [each.layer for each in diagnosis.fix()]
    left = [each.layer for each in case.diagnose(select=[plant.rule]).findings]
    return {
        "found": [(each.layer, each.severity, each.message) for each in diagnosis.findings],
        "numbers": [(name, each.value) for finding in diagnosis.findings for name, each in finding.evidence.items()],
        "skipped": dict(diagnosis.skipped),
        "unchanged": unchanged,
        "fixable": fixable,
        "mended": mended,
        "left": left,
        "after": state(case.model),
    }


def raised(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Stub(Rule):
    """Finds something where it is told to, with a mend that does what it is told."""

    code, name, severity = "BN999", "stub", "error"

    def __init__(self, finds: bool, apply: Callable[[Subject], None] | None, key: str | None = None) -> None:
        self.finds, self.apply, self.key = finds, apply, key

    def check(self, evidence: Any) -> Any:
        if self.finds:
            fix = None if self.apply is None else Fix("a mend", self.apply, self.key)
            yield Finding(self.code, self.name, "0", "error", "It is.", {"a": Measurement(1, 0)}, "mend", fix)
        if not self.finds and self.apply is None:
            raise ValueError("this rule is broken")


def moved(subject: Subject) -> None:
    subject.model[0].running_mean.add_(1)


def moved_and_raises(subject: Subject) -> None:
    moved(subject)
    raise KeyError("half-way")


def mending(stub: Stub) -> dict[str, Any]:
    """What comes of ``fix()`` with a rule of one's own, on this rank, and of the model."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    registered()["BN999"] = stub
    found: dict[str, Any] = {"fixed": None, "diagnosed": "", "error": ""}
    try:
        diagnosis = None

        def look() -> None:
            nonlocal diagnosis
            diagnosis = batchnorm.diagnose(model, select=["BN999"])

        found["diagnosed"] = raised(look)
        if diagnosis is not None:
            stub.finds = stub.finds and not getattr(stub, "helps", False)
            stub.apply = stub.apply or moved  # from here on it is not broken

            def fix() -> None:
                found["fixed"] = len(diagnosis.fix())

            found["error"] = raised(fix)
    finally:
        del registered()["BN999"]
    found["mean"] = model[0].running_mean.clone()
    return found


def helping(finds: bool, apply: Callable[[Subject], None], key: str | None = None) -> Stub:
    stub = Stub(finds, apply, key)
    stub.helps = True
    return stub


class Raising(nn.Module):
    """Raises in its ``forward``, behind a norm."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.norm, self.raises = nn.BatchNorm1d(3), raises

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = self.norm(input)
        if self.raises:
            raise ValueError("out of order")
        return output


def uneven(rank: int) -> tuple[int, ...]:
    """The samples of the batches that are run: a norm that synchronises would wait for those of the others."""
    model = batchnorm.convert(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)), "sync")
    batches = [torch.randn(4 + rank, 2)] * (2 if rank else 5)
    evidence = batchnorm.diagnose(model, batches=batches, select=["BN0"]).evidence
    assert evidence.training is not None
    return evidence.training.samples


def compared(rank: int) -> dict[str, Any]:
    """How ranks compare, by hand."""
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0.5), nn.BatchNorm1d(2, track_running_stats=False))
    model[0].running_mean.copy_(torch.tensor([0.0, 3.0 * rank]))
    model[0].running_var.copy_(torch.tensor([0.5 + 1.5 * rank, 0.5]))
    model[0].num_batches_tracked.fill_(5 + rank)
    evidence = batchnorm.diagnose(model, batches=[torch.randn(4 + rank, 2)], select=["BN0"]).evidence
    assert evidence.ranks is not None
    return {name: getattr(evidence.ranks, name) for name in evidence.ranks.__dataclass_fields__}


def main(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    warnings.simplefilter("ignore")
    one = rank == 1
    other = nn.Sequential(nn.BatchNorm1d(2 + rank))
    found = {
        "plants": {str(plant): grown(plant) for plant in plants(ranks=size, files=FILES)},
        "compared": compared(rank),
        "the model raises on one": raised(
            lambda: batchnorm.diagnose(Raising(one), batches=[torch.randn(4, 3)], select=["BN008"])
        ),
        "no model on one": raised(lambda: batchnorm.diagnose(3 if one else nn.BatchNorm1d(2), select=["BN008"])),
        "no batches on one": raised(
            lambda: batchnorm.diagnose(nn.BatchNorm1d(2), batches=[] if one else [torch.randn(4, 2)], select=["BN008"])
        ),
        "no batches given on one": raised(
            lambda: batchnorm.diagnose(
                nn.BatchNorm1d(2), batches=None if one else [torch.randn(4, 2)], select=["BN008", "BN022"]
            )
        ),
        "fewer batches on one": uneven(rank),
        "other models": raised(lambda: batchnorm.diagnose(other, select=["BN008"])),
        "a rule raises on one": mending(Stub(finds=not one, apply=None)),
        "found on one": mending(helping(one, moved)),
        "found on all": mending(helping(True, moved)),
        "a mend raises on one": mending(helping(True, moved_and_raises if one else moved)),
        "a shared mend raises on one": mending(helping(True, moved_and_raises if one else moved, "shared")),
        "a mend does not help on one": mending(Stub(True, moved) if one else helping(True, moved)),
        "a shared mend on one": mending(helping(one, moved, "shared")),
        "nothing found": mending(helping(False, moved)),
        # After all that the ranks are still in step.
        "in step": Case(nn.Sequential(nn.BatchNorm1d(2))).diagnose(select=["BN008"]).ok,
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

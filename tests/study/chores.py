"""An experiment for tests of those who do the runs: its runs leave marks, may fail, and may kill their process."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from batchnorm.study.claim import Experiment, Report, Run, Value
from batchnorm.study.data import Source, load
from batchnorm.study.store import Store
from batchnorm.study.task import RESTARTS

ARMS = ("left", "right")


class HiddenError(Exception):
    """Cannot be pickled, and so cannot leave its process."""

    def __reduce__(self) -> str:
        raise TypeError("on purpose")


@dataclass(frozen=True)
class Chores(Experiment):
    """Two arms; each start of a run leaves a file in `marks`, which it also obeys.

    ``die-ARM-SEED`` with a number in it: that many starts of the run kill their process. ``fail-ARM-SEED``: it raises.
    ``wait``: every run waits, for a minute at most, until there is ``go``.
    """

    marks: str
    nap: float = 0.0
    images: int = 0

    @property
    def id(self) -> str:
        return "chores"

    @property
    def budget(self) -> float:
        return 1.0

    @property
    def smallest(self) -> int:
        return self.images

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        return [Run(self.id, arm, seed, data) for seed in seeds for arm in ARMS]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        name, marks = f"{run.arm}-{run.seed}", Path(self.marks)
        (marks / f"start-{name}-{os.getpid()}-{time.monotonic_ns()}").touch()
        report(0.5, "half")
        time.sleep(self.nap)
        for _ in range(600):
            if (marks / "wait").exists() and not (marks / "go").exists():
                time.sleep(0.1)
        die = marks / f"die-{name}"
        if die.exists() and starts(marks, name) <= int(die.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        if (marks / f"fail-{name}").exists():
            raise HiddenError("on purpose")
        numbers = torch.randn(300, 300, generator=torch.Generator().manual_seed(run.seed))
        values: dict[str, Value] = {"sum": float((numbers @ numbers).sum()), "threads": torch.get_num_threads()}
        variable = os.environ["OMP_NUM_THREADS"]
        return values | {"variable": variable, "pixels": float(load(run.data).x.sum()) if run.data else 0.0}


def starts(marks: Path, name: str = "") -> int:
    """How often runs were begun, or the run of that arm and seed."""
    return len(list(marks.glob(f"start-{name}-*" if name else "start-*")))


def always(marks: Path, name: str) -> None:
    """Lets every start of a run kill its process."""
    (marks / f"die-{name}").write_text(str(RESTARTS + 1))


def kept(store: Store) -> dict[str, str]:
    """The finished runs of a store, but for how long they took."""
    files = store.folder.rglob("*.json")
    return {file.name: "".join(line for line in file.open() if '"seconds"' not in line) for file in files}

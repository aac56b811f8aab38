import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchnorm.study import Progress, Run, Source, StudyError
from batchnorm.study.claim import Report, Value
from batchnorm.study.engine import prepare
from batchnorm.study.store import Store
from batchnorm.study.task import RESTARTS
from study.chores import Chores, always, starts

needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="sends SIGKILL")
NONE = Source("digits")  # no images are asked for


@needs_kill
def test_a_worker_that_is_killed_loses_its_own_run_only_which_another_begins_again(tmp_path: Path) -> None:
    (tmp_path / "die-left-1").write_text("1")
    seen: list[Progress] = []
    results = prepare([Chores(str(tmp_path), nap=0.1)], range(3), NONE).execute(workers=2, listen=seen.append)["chores"]
    assert [result.run for result in results] == Chores("").plan(range(3), None)  # which asks for no images
    assert starts(tmp_path, "left-1") == 2
    assert starts(tmp_path) == 7  # every other run was begun once
    assert [progress.finished for progress in seen if progress.state == "finished"] == [1, 2, 3, 4, 5, 6]
    processes = {path.name.split("-")[3] for path in tmp_path.glob("start-left-1-*")}
    assert len(processes) == 2
    assert not multiprocessing.active_children()


@needs_kill
def test_a_run_whose_workers_always_die_is_named_and_the_finished_ones_are_kept(tmp_path: Path) -> None:
    always(tmp_path, "right-0")
    store = Store(tmp_path / "runs")
    plan = prepare([Chores(str(tmp_path))], [0], NONE, store=store)
    message = r"chores: right, seed 0: 3 times a worker process was ended .* Mend: the same command goes on"
    with pytest.raises(StudyError, match=message):
        plan.execute(workers=1)
    assert starts(tmp_path, "right-0") == RESTARTS + 1
    assert not multiprocessing.active_children()
    assert len(prepare([Chores(str(tmp_path))], [0], NONE, store=store).kept) == 1


def test_an_exception_that_cannot_leave_its_process_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "fail-left-0").touch()
    with pytest.raises(StudyError, match=r"^chores: left, seed 0 failed: HiddenError: on purpose$") as caught:
        prepare([Chores(str(tmp_path))], [0], NONE).execute(workers=1)
    assert 'raise HiddenError("on purpose")' in str(caught.value.__cause__)
    assert starts(tmp_path, "left-0") == 1  # it would fail again


@dataclass(frozen=True)
class Unsendable(Chores):
    call: Any = None

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        return [Run(self.id, "left", 0, None)]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        return {}


def test_an_experiment_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"chores: left, seed 0 cannot be sent to a worker: .*lambda"):
        prepare([Unsendable(str(tmp_path), call=lambda: 0)], [0], NONE).execute(workers=1)
    assert not multiprocessing.active_children()

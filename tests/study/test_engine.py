import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from batchnorm.study import Claim, Conclusion, Effect, Progress, Result, Run, StudyError, Verdict, run_study
from batchnorm.study.claim import About, Report, Value
from batchnorm.study.environment import Environment
from batchnorm.study.output import results, write
from batchnorm.study.statistics import interval

ABOUT = About("toy", "<b>Toy</b>", "says & means", "a < b", "paper", None, "run", "metric", "up", "rule", 1, False)


@dataclass(frozen=True)
class Toy(Claim):
    """Doubles its seed; `broken` is an arm and seed that raises."""

    broken: tuple[str, int] | None = None
    nap: float = 0.0
    about: ClassVar[About] = ABOUT

    def plan(self, seeds: Sequence[int], data: str) -> list[Run]:
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in ("left", "right")]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        report(0.5, "half")
        if self.broken == (run.arm, run.seed):
            raise ZeroDivisionError("on purpose")
        time.sleep(self.nap)
        return {"double": 2.0 * run.seed, "threads": torch.get_num_threads(), "process": os.getpid()}

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        spread = interval([result.number("double") for result in results])
        return Conclusion(Verdict.INCONCLUSIVE, "toy", [Effect("double", spread)])


def test_results_come_in_the_order_of_the_plan_over_processes_of_one_thread() -> None:
    seen: list[Progress] = []
    (outcome,) = run_study([Toy(nap=0.3)], [3, 4], "", workers=2, listen=seen.append)
    assert [result.run for result in outcome.results] == Toy().plan([3, 4], "")
    assert [result.number("double") for result in outcome.results] == [6, 6, 8, 8]
    assert {result.number("threads") for result in outcome.results} == {1}
    processes = {result.number("process") for result in outcome.results}
    assert len(processes) == 2
    assert os.getpid() not in processes
    finished = [progress for progress in seen if progress.state == "finished"]
    assert [progress.finished for progress in finished] == [1, 2, 3, 4]
    assert {progress.total for progress in seen} == {4}
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != ""


class Confident(Toy):
    def conclude(self, results: Sequence[Result]) -> Conclusion:
        conclusion = super().conclude(results)
        return Conclusion(Verdict.REPRODUCED, conclusion.reason, conclusion.effects)


def test_fewer_than_five_seeds_conclude_nothing() -> None:
    for seeds, verdict in ((range(4), Verdict.INCONCLUSIVE), (range(5), Verdict.REPRODUCED)):
        (outcome,) = run_study([Confident()], list(seeds), "", workers=1)
        assert outcome.conclusion.verdict is verdict
    assert outcome.conclusion.reason == "toy"


def test_a_run_that_fails_names_claim_arm_and_seed_and_leaves_no_process() -> None:
    with pytest.raises(StudyError, match=r"toy: right, seed 4 failed: ZeroDivisionError: on purpose"):
        run_study([Toy(broken=("right", 4))], [3, 4], "", workers=1)
    assert not multiprocessing.active_children()


def test_an_interrupt_ends_the_children() -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_study([Toy(nap=60)], [0], "", workers=1, listen=interrupt)
    assert time.monotonic() - started < 40
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_command(sent: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "batchnorm", "study", "gradient-explosion", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[1/"):
                break
        process.send_signal(sent)
        code = process.wait(20)
    assert code == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (left := _session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _session(leader: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def test_results_are_json_and_the_page_escapes_names(tmp_path: Path) -> None:
    outcomes = run_study([Toy()], [5], "", workers=1)
    environment = Environment.now(seeds=[5], data="<digits>", workers=1, seconds=1.0)
    path = write(outcomes, environment, tmp_path / "deep" / "folder")
    stored = json.loads((path.parent / "results.json").read_text("utf-8"))
    assert stored == results(outcomes, environment)
    assert stored["claims"]["toy"]["verdict"] == "inconclusive"
    assert stored["claims"]["toy"]["runs"][0]["values"]["double"] == 10
    page = path.read_text("utf-8")
    assert "&lt;b&gt;Toy&lt;/b&gt;" in page
    assert "<b>Toy</b>" not in page
    assert not list(path.parent.glob("*.part"))


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    outcomes = run_study([Toy()], [5], "", workers=1)
    one = outcomes[0]
    lone = type(one)(one.claim, one.results[:1], Toy().conclude(one.results[:1]))
    environment = Environment.now(seeds=[5], data="", workers=1, seconds=1.0)
    effect = results([lone], environment)["claims"]["toy"]["effects"][0]
    assert effect["low"] is None
    assert effect["high"] is None

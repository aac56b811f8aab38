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

import numpy as np
import pytest
import torch

from batchnorm.study import Claim, Conclusion, Effect, Progress, Result, Run, Source, StudyError, Verdict, run_study
from batchnorm.study.claim import About, Report, Topic, Value
from batchnorm.study.data import load
from batchnorm.study.engine import conclude, prepare
from batchnorm.study.statistics import interval
from batchnorm.study.store import Store
from study.helpers import DIGITS

ABOUT = About(
    id="toy",
    topic=Topic.DOES,
    title="<b>Toy</b>",
    statement="says & means",
    formula="a < b",
    source="paper",
    paper=None,
    setup="run",
    metric="metric",
    direction="up",
    pass_rule="rule",
    control="nothing",
    budget=10,
)


@dataclass(frozen=True)
class Toy(Claim):
    """Doubles its seed; `broken` is an arm and seed that raises."""

    broken: tuple[str, int] | None = None
    nap: float = 0.0
    about: ClassVar[About] = ABOUT

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
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

    def without_effect(self) -> Claim:
        return self


def test_results_come_in_the_order_of_the_plan_over_processes_of_one_thread() -> None:
    seen: list[Progress] = []
    (outcome,) = run_study([Toy(nap=0.3)], [3, 4], DIGITS, workers=2, listen=seen.append)
    assert [result.run for result in outcome.results] == Toy().plan([3, 4], None)
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
        (outcome,) = run_study([Confident()], list(seeds), DIGITS, workers=1)
        assert outcome.conclusion.verdict is verdict
    assert outcome.conclusion.reason == "toy"


def test_a_run_that_fails_names_claim_arm_and_seed_and_leaves_no_process() -> None:
    with pytest.raises(StudyError, match=r"toy: right, seed 4 failed: ZeroDivisionError: on purpose"):
        run_study([Toy(broken=("right", 4))], [3, 4], DIGITS, workers=1)
    assert not multiprocessing.active_children()


def test_an_interrupt_ends_the_children() -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_study([Toy(nap=60)], [0], DIGITS, workers=1, listen=interrupt)
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


class Hungry(Toy):
    """Uses images: at least so many for training."""

    about: ClassVar[About] = About(**{**vars(ABOUT), "id": "hungry", "smallest": 60})

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        return {"double": float(load(run.source).x.sum())}


def _images(path: Path, count: int, value: int = 1) -> Source:
    images = np.arange(count * 16).reshape(count, 4, 4) % 7 * value
    np.savez(path, x=images, y=np.arange(count) % 2)
    return Source(str(path))


def test_fewer_images_than_a_batch_are_refused_before_anything_runs(tmp_path: Path) -> None:
    few, enough = _images(tmp_path / "few.npz", 90), _images(tmp_path / "enough.npz", 100)
    message = r"hungry needs batches of 60 images; of the 90 images of .*few.npz 54 are for training\. Mend: give more"
    with pytest.raises(StudyError, match=message):
        prepare([Hungry()], [0], few)
    assert len(prepare([Hungry()], [0], enough).runs) == 2
    with pytest.raises(StudyError, match="54 are for training"):
        prepare([Hungry()], [0], Source(enough.spec, samples=90))
    assert len(prepare([Toy()], [0], few).runs) == 2  # uses no images, so asks for none


def test_data_that_change_under_a_study_are_noticed(tmp_path: Path) -> None:
    source = _images(tmp_path / "own.npz", 100)
    plan = prepare([Hungry()], [0], source)
    _images(tmp_path / "own.npz", 100, value=2)
    with pytest.raises(StudyError, match=r"hungry: left, seed 0: its data changed since the study started"):
        plan.execute(workers=1)


@dataclass(frozen=True)
class Counting(Toy):
    """Leaves a file for each time that a run is really done; its second arm may stop the study."""

    folder: str = ""
    fatal: bool = False

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        marks = Path(os.environ["MARKS"])
        if (marks / "fatal").exists() and run.arm == "right":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        done = len(list(marks.glob(f"{run.arm}-{run.seed}-*")))
        (marks / f"{run.arm}-{run.seed}-{done}").touch()
        return {"double": 2.0 * run.seed + 0.1, "curve": [0.1 * run.seed, float("nan"), float("inf")], "word": "é"}


def test_what_is_kept_is_not_run_again_and_equals_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    store = Store(tmp_path / "runs")
    first = prepare([Counting()], [0, 1], DIGITS, store=store).execute(workers=1)
    again = prepare([Counting()], [0, 1, 2], DIGITS, store=store)
    assert again.counts(again.experiments[0]) == (6, 4)
    assert again.seconds_left(again.experiments[0]) == pytest.approx(10 * 3 / 5 * 2 / 6)
    seen: list[Progress] = []
    second = again.execute(workers=1, listen=seen.append)
    assert [p.finished for p in seen if p.state == "finished"] == [5, 6]
    assert len(list(tmp_path.glob("*-*-*"))) == 6
    for old, new in zip(first["toy"], second["toy"], strict=False):
        assert old.run == new.run
        assert repr(old.values) == repr(new.values)  # NaN is equal to nothing, but reads the same
    fresh = prepare([Counting()], [0], DIGITS, store=store, reuse=False)
    assert not fresh.kept


def test_other_settings_or_other_data_are_run_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    store = Store(tmp_path / "runs")
    prepare([Counting()], [0], DIGITS, store=store).execute(workers=1)
    assert len(prepare([Counting()], [0], DIGITS, store=store).kept) == 2
    assert not prepare([Counting(nap=1e-3)], [0], DIGITS, store=store).kept
    one, other = _images(tmp_path / "one.npz", 100), _images(tmp_path / "other.npz", 100, value=2)
    prepare([Hungry()], [0], one, store=store).execute(workers=1)
    assert len(prepare([Hungry()], [0], one, store=store).kept) == 2
    assert not prepare([Hungry()], [0], other, store=store).kept
    assert not prepare([Hungry()], [0], Source(one.spec, samples=99), store=store).kept


class Nonsense(Toy):
    def conclude(self, results: Sequence[Result]) -> Conclusion:
        raise ValueError("nan, nan")


def test_a_claim_that_cannot_be_judged_does_not_cost_the_others_their_page() -> None:
    results = prepare([Confident()], range(5), DIGITS).execute(workers=1)
    first, second = conclude([Nonsense(), Confident()], results, range(5))
    assert first.conclusion.verdict is Verdict.INCONCLUSIVE
    assert first.effect == ("none", "The results could not be judged: ValueError: nan, nan")
    assert second.conclusion.verdict is Verdict.REPRODUCED


def test_a_training_part_of_one_value_is_refused(tmp_path: Path) -> None:
    images = np.zeros((100, 4, 4))
    images[0] = 1
    np.savez(tmp_path / "dull.npz", x=images, y=np.arange(100) % 2)
    seeds = range(20)  # in some of them the one image that differs is not in the training part
    with pytest.raises(StudyError, match=r"dull.npz: with seed \d+ every pixel of the training part is 0\. Mend: give"):
        prepare([Hungry()], seeds, Source(str(tmp_path / "dull.npz")))


_THEIRS = """
import sys
from pathlib import Path
from batchnorm.study import Source, run_study
from batchnorm.study.store import Store
from study.test_engine import Toy

class Mine(Toy):
    pass

if __name__ == "__main__":
    run_study([Mine()], [0], Source("digits"), workers=1, store=Store(Path(sys.argv[1])))
"""


def test_a_claim_in_a_script_of_the_user_is_run_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path))))
    script = tmp_path / "script.py"
    for changed in ("", "# changed\n"):
        script.write_text(changed + _THEIRS)
        for _ in range(2):
            subprocess.run([sys.executable, script, tmp_path / "runs"], check=True, timeout=120)
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 4  # two runs, for each of the two scripts


_SCRIPT = """
import sys
from pathlib import Path
from batchnorm.study import Source, run_study
from batchnorm.study.store import Store
from study.test_engine import Counting

if __name__ == "__main__":
    run_study([Counting()], [0, 1, 2], Source("digits"), workers=1, store=Store(Path(sys.argv[1])))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="sends SIGKILL")
def test_after_a_kill_the_same_command_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process is killed, without warning, while its second run is going on."""
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("MARKS", str(marks))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parents[1], *sys.path))))
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)

    def study(folder: str) -> int:
        return subprocess.run([sys.executable, script, tmp_path / folder], check=False, timeout=120).returncode

    (marks / "fatal").touch()
    assert study("killed") == -signal.SIGKILL
    assert [path.name for path in marks.glob("*-*-*")] == ["left-0-0"]
    (marks / "fatal").unlink()
    assert study("killed") == 0
    names = [f"{arm}-{seed}-0" for arm in ("left", "right") for seed in (0, 1, 2)]
    assert sorted(path.name for path in marks.glob("*-*-*")) == names  # each run was done once
    assert study("whole") == 0

    def kept(folder: str) -> dict[str, str]:
        files = (tmp_path / folder).rglob("*.json")
        return {file.name: "".join(line for line in file.open() if "seconds" not in line) for file in files}

    assert kept("killed") == kept("whole")
    assert len(kept("whole")) == 6

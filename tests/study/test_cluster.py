import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from batchnorm.study import Progress, Result, Run, Source, StudyError
from batchnorm.study import cluster as clusters
from batchnorm.study.cluster import LOCAL
from batchnorm.study.engine import Plan, prepare
from batchnorm.study.store import Store
from batchnorm.study.task import RESTARTS, Crew, Task
from study.chores import Chores, always, kept, starts

NONE = Source("digits")  # no images are asked for


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One cluster of this machine for all tests, as a study starts it."""
    module = pytest.importorskip("ray")
    with clusters._joined(module, LOCAL, 2, 0):
        yield module
    assert not module.is_initialized()


def planned(marks: Path, seeds: int = 1, folder: str = "runs", **settings: Any) -> Plan:
    return prepare([Chores(str(marks), **settings)], range(seeds), NONE, store=Store(marks / folder))


def test_results_are_to_the_last_bit_those_of_the_local_run(ray: Any, tmp_path: Path) -> None:
    seen: list[Progress] = []
    crews: list[Crew] = []
    far = planned(tmp_path, 2, "far", nap=0.5).execute(workers=2, ray=LOCAL, listen=seen.append, met=crews.append)
    near = planned(tmp_path, 2, "near", nap=0.5).execute(workers=1)
    assert [(r.run, r.values) for r in far["chores"]] == [(r.run, r.values) for r in near["chores"]]
    assert kept(Store(tmp_path / "far")) == kept(Store(tmp_path / "near"))
    assert len(kept(Store(tmp_path / "far"))) == 4
    assert {(r.values["threads"], r.values["variable"]) for r in far["chores"]} == {(1, "1")}
    assert [progress.finished for progress in seen if progress.state == "finished"] == [1, 2, 3, 4]
    assert crews == [Crew(2, 1, ray.__version__)]
    assert str(crews[0]) == "2 Ray processes on 1 node"


def test_runs_tell_where_they_are(ray: Any, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def listen(progress: Progress) -> None:
        seen.append(progress)
        (tmp_path / "go").touch()

    (tmp_path / "wait").touch()
    planned(tmp_path).execute(workers=1, ray=LOCAL, listen=listen)
    assert seen[0].state == "running"
    assert (seen[0].run.arm, seen[0].run.seed) == ("left", 0)
    assert seen[0].note in ("starts", "half")


def test_a_worker_that_is_killed_loses_its_own_run_only(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "die-left-0").write_text("1")
    results = planned(tmp_path, 2, nap=0.2).execute(workers=2, ray=LOCAL)
    assert len(results["chores"]) == 4
    assert starts(tmp_path, "left-0") == 2
    assert starts(tmp_path) == 5  # every other run was begun once


def test_a_run_whose_workers_always_die_is_named_and_the_rest_goes_on_without_ray(ray: Any, tmp_path: Path) -> None:
    always(tmp_path, "right-0")
    plan = planned(tmp_path)
    with pytest.raises(
        StudyError, match=r"chores: right, seed 0: 3 times a worker process was ended .* Mend: the same"
    ):
        plan.execute(workers=1, ray=LOCAL)
    assert starts(tmp_path, "right-0") == RESTARTS + 1
    assert len(planned(tmp_path).kept) == 1


def test_a_run_that_fails_is_named_and_not_begun_again(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "fail-left-0").touch()
    with pytest.raises(StudyError, match=r"^chores: left, seed 0 failed: HiddenError: on purpose$") as caught:
        planned(tmp_path).execute(workers=1, ray=LOCAL)
    assert 'raise HiddenError("on purpose")' in str(caught.value.__cause__)
    assert starts(tmp_path, "left-0") == 1


def test_interrupted_it_keeps_what_is_finished_and_ends_the_rest(ray: Any, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.state == "finished":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planned(tmp_path, 2, nap=0.5).execute(workers=1, ray=LOCAL, listen=interrupt)
    begun = starts(tmp_path)
    again = planned(tmp_path, 2, nap=0.5)
    assert len(again.kept) == 1
    time.sleep(1)
    assert starts(tmp_path) == begun  # nothing goes on behind its back
    seen: list[Progress] = []
    again.execute(workers=1, ray=LOCAL, listen=seen.append)
    assert [progress.finished for progress in seen if progress.state == "finished"] == [2, 3, 4]


def test_images_come_from_the_driver_and_not_from_the_nodes_disk(ray: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=np.arange(1600).reshape(100, 4, 4) % 7, y=np.arange(100) % 2)
    plan = prepare([Chores(str(tmp_path), images=10)], [0], Source(str(path)))
    path.unlink()
    results = plan.execute(workers=1, ray=LOCAL)["chores"]
    assert [result.number("pixels") for result in results] == [float((np.arange(1600) % 7).sum())] * 2


def test_a_cluster_that_would_give_other_numbers_is_refused(ray: Any, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    other = {**plan.runs[0][2]["versions"], "torch": "1.0"}  # type: ignore[dict-item]
    runs = [(experiment, run, {**wanted, "versions": other}) for experiment, run, wanted in plan.runs]
    message = r"no node of the cluster .*: [\d.]+: its torch is .*, not 1\.0\. Mend: install the same versions"
    with pytest.raises(StudyError, match=message):
        replace(plan, runs=runs).execute(ray=LOCAL)
    runs = [(experiment, run, {**wanted, "code": "other"}) for experiment, run, wanted in plan.runs]
    with pytest.raises(StudyError, match=r"its code of chores is not that of this machine"):
        replace(plan, runs=runs).execute(ray=LOCAL)
    assert starts(tmp_path) == 0


def test_without_ray_the_mend_is_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"--ray needs Ray\. Mend: pip install 'batchnorm\[cluster\]'"):
        planned(tmp_path).execute(ray=LOCAL)


class InScript(Chores):
    __module__ = "__main__"


def test_a_claim_in_the_script_itself_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(StudyError, match=r"its claim is in the script .* Mend: put the claim into a module"):
        prepare([InScript(str(tmp_path))], [0], NONE).execute(ray=LOCAL)


@pytest.mark.parametrize("address", ["here", "http://cluster", "cluster:6379x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(StudyError, match=rf"--ray {re.escape(address)}: this is no address\. Mend: give the address"):
        clusters._answers(address)


def test_an_address_where_no_ray_is_is_refused_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-other\r\n")
                connection.recv(100)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(StudyError, match=r"what answers there is not Ray"):
            clusters._answers(f"127.0.0.1:{port}")
    with pytest.raises(StudyError, match=r"nothing answers there: .* Mend: give the address"):
        clusters._answers(f"ray://127.0.0.1:{port}")


def test_a_cluster_answers(ray: Any) -> None:
    clusters._answers(ray.get_runtime_context().gcs_address)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("found", ["variable", "file"])
def test_auto_that_leads_to_no_cluster_is_refused_soon(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    services = pytest.importorskip("ray._private.services")
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"  # nobody's, once this server is gone
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: where if found == "file" else None)
    monkeypatch.setenv("RAY_ADDRESS", where if found == "variable" else "")
    with pytest.raises(StudyError, match=rf"^--ray auto \({where}\): nothing answers there: .* Mend: give the address"):
        clusters._answers("auto")


def test_auto_is_left_to_ray_where_it_leads_nowhere_or_to_a_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    services = pytest.importorskip("ray._private.services")
    monkeypatch.setenv("RAY_ADDRESS", LOCAL)
    clusters._answers("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    clusters._answers("auto")
    monkeypatch.delattr(services, "get_ray_address_from_environment")
    clusters._answers("auto")


class CrashedError(Exception):
    """Stands for `ray.exceptions.RayError`, and for a worker that crashed."""


class NodeDiedError(CrashedError):
    """A node went while a run was there."""


class TaskUnschedulableError(CrashedError):
    """A run was sent to a node that is no more."""


class LocalRayletDiedError(CrashedError):
    """What connects the driver with the cluster went."""


class OtherError(CrashedError):
    """An error that no stand-in raises."""


class StandIn:
    """Of Ray what the driver uses: promises are pairs of a task's number and a node, kept when they are asked for.

    At nodes in `dying` each run ends with the errors given, the last of them again and again; from the first on such a
    node is gone, which the list of nodes says at once where it is `prompt`, and never otherwise.
    """

    def __init__(self, dying: dict[str, list[type[CrashedError]]], *, prompt: bool) -> None:
        self.dying, self.prompt, self.asked = dying, prompt, list[tuple[int, str]]()
        self.gone: set[str] = set()
        self.exceptions = SimpleNamespace(
            RayError=CrashedError,
            RayTaskError=OtherError,
            RuntimeEnvSetupError=OtherError,
            NodeDiedError=NodeDiedError,
            TaskUnschedulableError=TaskUnschedulableError,
            LocalRayletDiedError=LocalRayletDiedError,
        )
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=strategies)

    def remote(self, *classes: type, **_: Any) -> Any:
        read = SimpleNamespace(remote=lambda: None)
        board = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: SimpleNamespace(read=read)))

        def options(scheduling_strategy: str) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda task, number, given, board: (number, scheduling_strategy, object()))

        return board if classes else lambda work: SimpleNamespace(options=options)

    def wait(self, promises: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        ready = [promise for promise in promises[:1] if promise is not None]
        return ready, promises[len(ready) :]

    def get(self, promise: Any) -> Result:
        number, node, _ = promise
        self.asked.append((number, node))
        if node in self.dying:
            self.gone.add(node)
            errors = self.dying[node]
            raise (errors.pop(0) if len(errors) > 1 else errors[0])("it is gone")
        return Result(Run("chores", "left", number, None), {}, 0.0)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": not self.prompt or node not in self.gone} for node in ("first", "second")]

    def cancel(self, promise: Any, **_: Any) -> None: ...

    def kill(self, actor: Any) -> None: ...


def driven(ray: StandIn, runs: int = 6) -> list[int]:
    """Does runs on two nodes with two cores each, and gives the numbers of the finished ones."""
    finished: list[int] = []
    tasks = [Task(Chores(""), Run("chores", "left", number, None), {}, None) for number in range(runs)]
    driver = clusters._Driver(ray, tasks, None, {}, {"first": 2, "second": 2}, 4)
    driver.drive(lambda number, result: finished.append(number), lambda *_: None)
    return finished


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(
    "errors", [[NodeDiedError], [TaskUnschedulableError], [CrashedError, NodeDiedError, TaskUnschedulableError]]
)
def test_runs_of_a_node_that_dies_are_begun_again_on_the_others(errors: list[type[CrashedError]], prompt: bool) -> None:
    ray = StandIn({"first": list(errors)}, prompt=prompt)
    assert sorted(driven(ray)) == list(range(6))
    lost = [number for number, node in ray.asked if node == "first"]
    assert len(lost) <= 3  # the two that were there, and one more where its death has not got about
    assert len(set(lost)) == 2


def test_a_node_that_is_there_and_loses_its_workers_ends_the_study_by_and_by() -> None:
    with pytest.raises(StudyError, match=r"3 times a worker process was ended"):
        driven(StandIn({"first": [CrashedError], "second": [CrashedError]}, prompt=False))


def test_where_no_node_is_left_or_ray_itself_is_gone_the_study_ends_with_that() -> None:
    with pytest.raises(StudyError, match=r"^Every node of the cluster .* Mend: the same command"):
        driven(StandIn({"first": [NodeDiedError], "second": [NodeDiedError]}, prompt=False))
    ray = StandIn({"first": [LocalRayletDiedError], "second": [LocalRayletDiedError]}, prompt=False)
    with pytest.raises(StudyError, match=r"^The Ray process that connects the study .* Mend: the same command"):
        driven(ray)
    assert len(ray.asked) == 1

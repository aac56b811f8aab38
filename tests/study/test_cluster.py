import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm.study import Progress, Source, StudyError
from batchnorm.study import cluster as clusters
from batchnorm.study.cluster import LOCAL
from batchnorm.study.engine import Plan, prepare
from batchnorm.study.store import Store
from batchnorm.study.task import RESTARTS, Crew
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

"""Runs over a Ray cluster: on nodes that give the same numbers, and none lost but that of a worker that dies.

The driver, which is this process, keeps every result as it arrives and gives the workers the images: nodes need not
share a disk. What a run computes is what it computes in a process of this machine.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from .claim import Result
from .data import Source, load
from .data.images import Images
from .data.source import provide
from .error import StudyError
from .fingerprint import Ingredients, ingredients
from .processes import available_cores
from .task import Crew, Deaths, Failure, Task, perform
from .threads import THREAD_VARIABLES

__all__ = ["LOCAL", "perform_all"]

#: The address of a cluster that is this machine alone, started for the study and gone after it.
LOCAL = "local"

_ANSWER_SECONDS = 10.0  # for an address to answer at all
_PROBE_SECONDS = 120.0  # for a node to start Python, import torch and say what it is
_MOST_BYTES = 100 << 20  # of shared memory for a local cluster, beside the images; Ray takes a third of all otherwise
_CLIENT = "ray://"

_Pictures = Mapping[Source, Images]


def perform_all(
    tasks: Sequence[Task],
    address: str,
    workers: int | None,
    *,
    finished: Callable[[int, Result], None],
    running: Callable[[int, float, str], None],
    met: Callable[[Crew], None],
) -> None:
    """Does all tasks, as :func:`batchnorm.study.processes.perform_all` does, on the nodes of a Ray cluster.

    Args:
        tasks: What to do.
        address: ``"local"``, or what ``ray.init`` takes: ``"auto"``, ``"host:port"``, ``"ray://host:port"``. A process
            that is connected already stays so, wherever that is.
        workers: At most so many runs at once; by default one a core of each node.
        finished: Called here with the number of a task and its result, as soon as it is there.
        running: Called here with the number of a task, the share of it that is done, and a word on where it is.
        met: Called here once, with who does the runs.

    Raises:
        StudyError: If Ray is not installed, there is no cluster, none of its nodes would give the numbers that this
            machine gives; if a run fails, or its workers die again and again.
    """
    ray = _ray()
    for task in tasks:
        if type(task.experiment).__module__ == "__main__":
            raise StudyError(
                f"{task.run}: its claim is in the script that was started, which the workers of a cluster have not.",
                "put the claim into a module of its own, and import it",
            )
    sources = {task.run.data for task in tasks if task.run.data is not None}
    pictures = {source: load(source) for source in sources}
    size = sum(images.x.nbytes + images.y.nbytes for images in pictures.values())
    with _joined(ray, address, workers, size):
        given = ray.put(pictures)
        environment = _environment(address)
        slots, left_out = _fitting(ray, tasks, given, environment)
        most = min(workers or len(tasks), sum(slots.values()), len(tasks))
        met(Crew(most, len(slots), ray.__version__, tuple(left_out)))
        _Driver(ray, tasks, given, environment, slots, most).drive(finished, running)


class _Driver:
    """Hands out tasks to nodes, a core each, and takes what comes back."""

    def __init__(
        self,
        ray: Any,
        tasks: Sequence[Task],
        given: Any,
        environment: dict[str, str],
        slots: dict[str, int],
        most: int,
    ) -> None:
        self.ray, self.tasks, self.given, self.most = ray, tasks, given, most
        self.free = dict(slots)  # by node: cores of it that have no task of ours
        self.deaths = Deaths(tasks)
        self.waiting = deque(range(len(tasks)))
        self.under_way: dict[Any, tuple[int, str]] = {}  # by what will be the result: the task's number, and the node
        # Ray itself starts nothing again: whether a run failed or its process died is for us to tell.
        self.work = ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": environment})(_work)
        board = ray.remote(_board()).options(num_cpus=0, max_restarts=-1, **_on(ray, next(iter(slots)), soft=True))
        self.board = board.remote()
        self.reading = self.board.read.remote()

    def drive(self, finished: Callable[[int, Result], None], running: Callable[[int, float, str], None]) -> None:
        """Does all tasks."""
        ray = self.ray
        try:
            while self.waiting or self.under_way:
                self._hand_out()
                done, _ = ray.wait(list(self.under_way), num_returns=1, timeout=0.2)
                for number, fraction, note in self._read():
                    running(number, fraction, note)
                for promise in done:
                    number, result = self._take(promise)
                    if result is not None:
                        finished(number, result)
        finally:
            with suppress(ray.exceptions.RayError):
                for promise in self.under_way:
                    ray.cancel(promise, force=True)
                ray.kill(self.board)

    def _hand_out(self) -> None:
        while self.waiting and len(self.under_way) < self.most:
            node = max(self.free, key=self.free.__getitem__, default=None)
            if node is None:
                raise StudyError(
                    "Every node of the cluster that could do the runs is gone.",
                    "the same command goes on from the runs that are finished, on any cluster or without one",
                )
            if self.free[node] < 1:
                return
            number = self.waiting.popleft()
            work = self.work.options(**_on(self.ray, node))
            promise = work.remote(replace(self.tasks[number], store=None), number, self.given, self.board)
            self.under_way[promise] = number, node
            self.free[node] -= 1

    def _take(self, promise: Any) -> tuple[int, Result | None]:
        errors = self.ray.exceptions
        number, node = self.under_way.pop(promise)
        if node in self.free:  # not where it went while another run was there
            self.free[node] += 1
        task = self.tasks[number]
        try:
            outcome: Result | Failure = self.ray.get(promise)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            raise StudyError(f"{task.run}: a Ray worker cannot do it: {_gist(error)}") from error
        except errors.LocalRayletDiedError as error:
            raise StudyError(
                "The Ray process that connects the study with the cluster is gone.",
                "the same command goes on from the runs that are finished, on any cluster or without one",
            ) from error
        except errors.RayError as error:
            self._lose(number, node, error)
            return number, None
        if isinstance(outcome, Failure):
            outcome.throw()
        if task.store is not None:
            task.store.put(task.wanted, outcome)
        return number, outcome

    def _lose(self, number: int, node: str, error: BaseException) -> None:
        """A process died at a task, perhaps with its node and all others there: the task goes first of those left."""
        errors = self.ray.exceptions
        alive = set(_alive(self.ray))
        if isinstance(error, (errors.NodeDiedError, errors.TaskUnschedulableError)):
            alive -= {node}  # the list of nodes may be older than the error
        self.free = {other: cores for other, cores in self.free.items() if other in alive}
        if node in self.free:
            self.deaths.add(number, error)
        self.waiting.appendleft(number)

    def _read(self) -> Iterator[tuple[int, float, str]]:
        ready, _ = self.ray.wait([self.reading], timeout=0)
        if not ready:
            return
        numbers = {number for number, _ in self.under_way.values()}
        # Where the board's node is gone, it starts anew elsewhere, or there is nothing to read: the runs go on.
        with suppress(self.ray.exceptions.RayError):
            for number, (fraction, note) in self.ray.get(ready[0]).items():
                if number in numbers:
                    yield number, fraction, note
        self.reading = self.board.read.remote()


def _board() -> type:
    """Where workers write how far they are, and the driver reads it.

    A class in a function is sent as it is, and not as the name of a module that has to be imported, with torch.
    """

    class Board:
        def __init__(self) -> None:
            self.notes: dict[int, tuple[float, str]] = {}

        def write(self, number: int, fraction: float, note: str) -> None:
            self.notes[number] = fraction, note

        def read(self) -> dict[int, tuple[float, str]]:
            notes, self.notes = self.notes, {}
            return notes

    return Board


def _work(task: Task, number: int, pictures: _Pictures, board: Any) -> Result | Failure:
    torch.set_num_threads(1)
    provide(pictures)
    return perform(task, lambda fraction, note: board.write.remote(number, fraction, note) and None)


def _look(tasks: Sequence[Task], pictures: _Pictures) -> list[Ingredients]:
    provide(pictures)
    return [ingredients(task.experiment, task.run) for task in tasks]


def _fitting(
    ray: Any, tasks: Sequence[Task], given: Any, environment: dict[str, str]
) -> tuple[dict[str, int], list[str]]:
    """Cores by node, of the nodes where the results would be those of this machine; and why the others are left out."""
    # One run of each experiment: code, network and versions do not differ between its runs.
    samples = list({task.run.claim: task for task in reversed(tasks)}.values())
    sent = [replace(task, store=None) for task in samples]
    look = ray.remote(num_cpus=0, max_retries=1, runtime_env={"env_vars": environment})(_look)
    nodes = {name: node for name, node in _alive(ray).items() if node["Resources"].get("CPU", 0) >= 1}
    asked = {name: look.options(**_on(ray, name)).remote(sent, given) for name in nodes}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PROBE_SECONDS)
    slots: dict[str, int] = {}
    left_out = []
    for name, answer in asked.items():
        try:
            found = ray.get(answer, timeout=0)
            reason = _difference([task.wanted for task in samples], found)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(answer, force=True)
            reason = f"no answer in {_PROBE_SECONDS:.0f} s"
        except ray.exceptions.RayError as error:
            reason = f"the study cannot be run there: {_gist(error)}"
        if reason:
            left_out.append(f"{nodes[name]['NodeManagerAddress']}: {reason}")
        else:
            slots[name] = int(nodes[name]["Resources"]["CPU"])
    if not slots:
        raise StudyError(
            "no node of the cluster would give the numbers of this machine: "
            + "; ".join(left_out or ["it has none"])
            + ".",
            "install the same versions and the same code on nodes with this machine's processor, or run it there: "
            "start the command on such a node",
        )
    return slots, left_out


def _difference(wanted: Sequence[Ingredients], found: Sequence[Ingredients]) -> str:
    """What is different there, in words; empty where nothing is."""
    for here, there in zip(wanted, found, strict=True):
        for name, value in here.items():
            other = there[name]
            if isinstance(value, dict) and isinstance(other, dict):
                unlike = [key for key in {**value, **other} if value.get(key) != other.get(key)]
                if unlike:
                    return "; ".join(f"its {key} is {other.get(key)}, not {value.get(key)}" for key in unlike)
            elif other != value:
                return f"its {name} of {here['experiment']} is not that of this machine"
    return ""


def _alive(ray: Any) -> dict[str, Any]:
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _on(ray: Any, node: str, *, soft: bool = False) -> dict[str, Any]:
    strategies = ray.util.scheduling_strategies
    return {"scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node, soft=soft)}


def _environment(address: str) -> dict[str, str]:
    """Variables of the workers, which they have before they load anything."""
    variables = dict.fromkeys(THREAD_VARIABLES, "1")
    if address == LOCAL:
        # What this process can import, they can: as processes that it starts itself.
        variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return variables


def _gist(error: BaseException) -> str:
    """The last line of what Ray tells of an error in a worker, behind a traceback of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.util.scheduling_strategies  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StudyError("--ray needs Ray.", "pip install 'batchnorm[cluster]'") from error
    return ray


@contextmanager
def _joined(ray: Any, address: str, workers: int | None, size: int) -> Iterator[None]:
    """Connects this process to a cluster, and lets go of it again; starts and ends one where it is to be local."""
    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    folder = None
    try:
        if address == LOCAL:
            folder = tempfile.mkdtemp(prefix="bn-")  # short: the names of sockets may have some hundred letters only
            settings |= {"num_cpus": workers or available_cores(), "include_dashboard": False, "_temp_dir": folder}
            settings["object_store_memory"] = _MOST_BYTES + 2 * size
            os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: last of all on a machine that is shared
        else:
            _answers(address)
        # Ray tells of a worker's death on the terminal, whatever its settings; the study tells what matters.
        with suppress(AttributeError):
            ray._private.worker._worker_logs_enabled = False
        try:
            ray.init(**settings)
        except (Exception, SystemExit) as error:
            raise StudyError(
                f"--ray {address}: there is no cluster to join: {type(error).__name__}: {_gist(error)}",
                "ray start --head starts one, here or where host:port says; --ray local needs none",
            ) from error
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _answers(address: str) -> None:
    """Asks whether a server like Ray's is there: Ray itself tries for minutes, and then may end the process.

    Raises:
        StudyError: If there is none.
    """
    where = _leads_to(address)
    if where in ("auto", LOCAL) or "RAY_USE_TLS" in os.environ:
        return
    told = f"--ray {address}" if where == address else f"--ray {address} ({where})"
    host, separator, port = where.removeprefix(_CLIENT).rpartition(":")
    mend = "give the address that ray start --head printed, host:port (6379), or ray://host:port (10001) from outside"
    if not separator or not port.isdigit():
        raise StudyError(f"{told}: this is no address.", f"{mend}, or auto, or local")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            # Ray's servers speak HTTP/2, in which each side begins with its settings, a frame of type 4.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            connection.settimeout(_ANSWER_SECONDS)
            greeting = connection.recv(9)
    except OSError as error:
        raise StudyError(f"{told}: nothing answers there: {error}", mend) from error
    if len(greeting) < 4 or greeting[3] != 4:
        raise StudyError(f"{told}: what answers there is not Ray.", mend)


def _leads_to(address: str) -> str:
    """The address that Ray takes for ``auto``: of a variable, a cluster on this machine, or the last one joined here.

    It stays ``auto`` where there is none, which Ray says at once, or where this version of Ray has another way to it.
    """
    if address != "auto":
        return address
    with suppress(Exception):  # Ray's own matter, which may change
        from ray._private.services import get_ray_address_from_environment  # noqa: PLC0415

        return get_ray_address_from_environment(address, None) or address
    return address

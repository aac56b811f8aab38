"""The rows behind what is said of GPUs: everything checked and timed on one NVIDIA GPU, in under ten minutes.

``python benchmarks/gpu.py`` runs, in this order, the tests of the GPU kernels; a copy of plain memory; tiny inputs,
with the kernels that they launch; the cases of ``batchnorm bench``, some of every kind first; and training steps of
ResNet-50 and DenseNet-121; until ``--seconds`` are over. It writes ``benchmarks/gpu.csv`` after each and goes on from
there when it is started again. Work runs in a process of its own: who dies or hangs there has a row that says so.

``--device cpu`` rehearses all of it on small inputs and a processor's clock, into a file of its own: no row of that is
about a GPU. ``--tune`` sweeps the kernels' tiles instead, into ``benchmarks/gpu_tiles.csv``.
"""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from gpu_jobs import SCALES, Job, blank, jobs, lost, work

from batchnorm.bench.apart import Apart, Lost
from batchnorm.bench.cases import Case, all_cases, select
from batchnorm.bench.contenders import BATCHNORM, FUSE
from batchnorm.bench.environment import Environment, refuse_a_mixture
from batchnorm.bench.gpu import check
from batchnorm.bench.gpu_summary import bandwidth, gpu_findings
from batchnorm.bench.peers import GPU_PEERS, chosen
from batchnorm.bench.row import COPY, PASSED, TESTS, UNAVAILABLE, WRONG, Row, merged, read, write
from batchnorm.bench.run import ROUNDS
from batchnorm.bench.summary import losses, noise, wrong
from batchnorm.errors import ArgumentError

ROOT = Path(__file__).parents[1]
CSV = Path(__file__).with_suffix(".csv")
TILES = CSV.with_name("gpu_tiles.csv")
REHEARSAL = CSV.with_name("gpu_rehearsal.csv")
GPU_TESTS = ("tests/test_gpu.py", "tests/**/test_*_gpu.py")
TESTS_SHARE = 0.4  # of all seconds, at most


def tested(seconds: float, environment: Environment) -> Row:
    """Runs the tests of the GPU kernels; the row says how many passed."""
    row = blank(" ".join(GPU_TESTS), TESTS, BATCHNORM, environment)
    files = sorted({str(path) for pattern in GPU_TESTS for path in ROOT.glob(pattern)})
    if not files:
        return replace(row, reason="there are no such files")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", f"--junitxml={report}", *files]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return replace(row, reason=f"no end within {seconds:.0f} s")
        print(done.stdout[-4000:], end="", flush=True)
        suite = next(ElementTree.parse(report).getroot().iter("testsuite")) if report.exists() else {}
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    if not counts["tests"]:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return replace(row, reason=f"pytest: {said[-1] if said else f'exit code {done.returncode}'}")
    bad = counts["failures"] + counts["errors"]
    passed = counts["tests"] - bad - counts["skipped"]
    reason = f"{passed} passed, {bad} failed, {counts['skipped']} skipped"
    return replace(row, status=WRONG if bad else PASSED if passed else UNAVAILABLE, reason=reason)


class Table:
    """The rows, and their file, which is written whenever there are more.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = read(path) if path.exists() else []
        self.place = {case.name: number for number, case in enumerate(all_cases())}

    def take(self, found: Sequence[Row]) -> None:
        """Adds rows, or puts them in the place of former ones; and writes all."""
        rows = merged(self.rows, found)
        self.rows = sorted(rows, key=lambda row: self.place.get(row.case, -1))
        write(self.rows, self.path)

    def has(self, job: Job) -> bool:
        """Whether a job's rows are there, and the library's own says something: else something was in the way."""
        lost = {row.case for row in self.rows if row.contender == BATCHNORM and row.status == UNAVAILABLE}
        return job.name not in lost and {(job.name, *each) for each in job.rows} <= self.there()

    def there(self) -> set[tuple[str, str, str]]:
        """Case, mode and contender of every row."""
        return {self.key(row) for row in self.rows}

    @staticmethod
    def key(row: Row) -> tuple[str, str, str]:
        """Those of one."""
        return row.case, row.mode, row.contender


def run(table: Table, waiting: Iterator[Job], ends: float, apart: Apart) -> list[str]:
    """Does one job after the other while there is time; gives what was lost, in words.

    Args:
        table: Takes the rows.
        waiting: The jobs.
        ends: When time is over, by ``time.perf_counter``.
        apart: Does the work.
    """
    gone: list[str] = []
    took: dict[type, list[float]] = {}
    left_out = 0
    for number, job in enumerate(waiting, start=1):
        begun = time.perf_counter()
        guess = max(took.get(type(job.what), [job.guess])[-10:]) if isinstance(job.what, Case) else job.guess
        if ends - begun < guess:
            left_out += 1
            continue
        try:
            found, usable = apart(job, min(job.seconds, ends - begun))
        except Lost as error:
            apart.end()
            if time.perf_counter() >= ends:  # it was not the job that took too long
                left_out += 1
                continue
            # What was measured before, without the contender that was too much, stays.
            found, usable = [row for row in lost(job, str(error)) if table.key(row) not in table.there()], True
            gone.append(f"{job.name}: {error}")
        table.take(found)
        if not usable:
            apart.end()
        took.setdefault(type(job.what), []).append(time.perf_counter() - begun)
        print(f"[{number}, {ends - time.perf_counter():.0f} s left] {job.name}: {told(found)}", flush=True)
    if left_out:
        print(f"{left_out} more did not fit into the time; the same command goes on from here", flush=True)
    return gone


def told(rows: Sequence[Row]) -> str:
    """A job's rows in a line: our time, and the others' by ours."""
    words = []
    for row in rows:
        number = row.microseconds if row.contender in (BATCHNORM, FUSE, COPY) else row.ratio
        unit = " µs" if row.contender in (BATCHNORM, FUSE, COPY) else ""
        words.append(f"{row.contender} {row.status if number is None else f'{number:.4g}{unit}'}")
    return ", ".join(words)


def summary(table: Table, gone: Sequence[str]) -> None:
    """What the rows say, beside the targets."""
    rows = table.rows
    print()
    if any(row.environment.device == "cpu" for row in rows):
        print("A rehearsal on a processor: no number of it is about a GPU.")
    for row in rows:
        if row.mode == TESTS:
            print(f"{row.case}: {row.reason}")
    speed = bandwidth(rows)
    if speed is not None:
        print(f"copy: {speed / 1e12:.3g} TB/s read and written")
    for finding in gpu_findings(rows):
        name, value, target, cases = finding.cells
        verdict = {True: "met", False: "missed", None: ""}[finding.met]
        print(f"{name}: {value} (target: {target or 'none'}; {cases} cases) {verdict}".rstrip())
    for row in rows:
        if row.launches is not None:
            print(f"{row.case}, {row.contender}: {row.launches:.3g} kernels, {row.microseconds or 0:.3g} µs a step")
    slow = losses(rows)
    for row in slow[:10]:
        print(f"slower than eager: {row.case}: {row.ratio:.2f} [{row.ratio_low:.2f} {row.ratio_high:.2f}]")
    for line in (*(f"wrong: {row.case}, {row.contender}: {row.reason}" for row in wrong(rows)), *gone, noise(rows)):
        if line:
            print(line)
    print(f"{table.path}: {len(rows)} rows", flush=True)


def summary_of_tiles(table: Table, gone: Sequence[str]) -> None:
    """Where another choice is faster than the table's beyond noise, and by how much over all cases that tried it."""
    print()
    tried: dict[tuple[str, str], list[float]] = {}
    for row in table.rows:
        if "=" in row.contender and row.ratio is not None and row.ratio_high is not None:
            tried.setdefault((row.contender, row.dtype), []).append(row.ratio)
            if row.ratio_high < 1:
                print(f"{row.case}: {row.contender} takes {row.ratio:.3f} of the time")
    for (name, dtype), ratios in sorted(tried.items(), key=lambda each: statistics.geometric_mean(each[1])):
        mean = statistics.geometric_mean(ratios)
        print(f"{name}, {dtype}: {mean:.3f} of the time, the mean of {len(ratios)} cases; worst {max(ratios):.3f}")
    for line in gone:
        print(line)
    print(f"{table.path}: {len(table.rows)} rows", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Checks, measures, writes; exit code 1 where a result of ours broke the tolerance, a test failed, or work died."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(SCALES), default="cuda", help="cpu rehearses")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything together")
    parser.add_argument("--cases", action="append", metavar="WORDS", help="as of batchnorm bench")
    parser.add_argument("--peers", action="append", metavar="NAMES", help=f"default: all of {', '.join(GPU_PEERS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-tests", dest="tests", action="store_false")
    parser.add_argument("--no-models", dest="models", action="store_false")
    parser.add_argument("--tune", action="store_true", help="sweep tiles, and nothing else")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    parser.add_argument("--csv", type=Path, help="default: gpu.csv beside this; gpu_tiles.csv, gpu_rehearsal.csv")
    options = parser.parse_args(arguments)

    if options.rounds < 2:
        raise ArgumentError(f"--rounds {options.rounds} gives no quantiles.", f"use {ROUNDS}, or 2 at the least.")
    if not 0 < options.seconds < math.inf:
        raise ArgumentError(f"--seconds {options.seconds:g} is no time.", "give a positive number of seconds.")
    select(options.cases or [])  # words that mean nothing are refused now, and not after the tests
    chosen(options.peers or [], GPU_PEERS)
    check(options.device)
    path = options.csv or (REHEARSAL if options.device == "cpu" else TILES if options.tune else CSV)
    if options.device == "cpu" and path.resolve() in (CSV, TILES):
        raise ArgumentError(f"{path.name} is for rows of GPUs.", "name another --csv for a rehearsal.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        path.unlink(missing_ok=True)
    table = Table(path)
    environment = Environment.measured(options.device)
    refuse_a_mixture((row.environment for row in table.rows), environment)
    print(f"{environment.device_name or environment.processor}, torch {environment.torch}, {path}", flush=True)
    gone: list[str] = []
    apart = Apart(work)
    try:
        if options.tests and not options.tune and not any(row.status == PASSED for row in table.rows):
            table.take([tested(TESTS_SHARE * options.seconds, environment)])
        waiting = (job for job in jobs(options, environment) if not table.has(job))
        gone = run(table, waiting, started + options.seconds, apart)
    finally:
        apart.end()
        (summary_of_tiles if options.tune else summary)(table, gone)
    return 1 if gone or wrong(table.rows) else 0


if __name__ == "__main__":
    # A limit on time that ends this process in its own way still finds the rows summed up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except ArgumentError as error:
        sys.exit(f"benchmarks/gpu.py: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks/gpu.py: interrupted; finished jobs are kept, and the same command goes on from there.")

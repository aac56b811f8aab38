"""``benchmarks/gpu.py``: what it does first, that it goes on where it was, and that nothing it runs can stop it."""

import importlib
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from batchnorm.bench import networks
from batchnorm.bench.apart import Lost
from batchnorm.bench.cases import Case, all_cases, select
from batchnorm.bench.gpu_summary import DENSENET, RESNET
from batchnorm.bench.row import read, write
from batchnorm.errors import ArgumentError
from batchnorm.nn._base import is_batch_norm
from bench.helpers import ENVIRONMENT, beside, row

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = select(["2x8,norm,float32"]) + select(["64x16,norm,float32"])


def script(name):
    """A script as its neighbours import it."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.fixture
def gpu(monkeypatch):
    module = script("gpu")
    monkeypatch.setattr(module.Environment, "measured", lambda device: ENVIRONMENT)
    return module


def options(gpu, *words):
    """What a command line asks for, as ``jobs`` takes it."""
    caught = []

    def jobs(options, environment):
        caught.append(options)
        return iter(())

    before, gpu.jobs = gpu.jobs, jobs
    try:
        gpu.main(["--device", "cpu", "--no-tests", *words])
    finally:
        gpu.jobs = before
    return caught[0]


class Inline:
    """Takes the place of the other process."""

    def __init__(self, work):
        self.work, self.asked, self.ended = work, [], 0

    def __call__(self, job, seconds):
        self.asked.append((job.name, seconds))
        return self.work(job)

    def end(self):
        self.ended += 1


def made_up(job):
    """Rows of a job that took no time."""
    assert isinstance(job.what, Case)
    found = [row(job.what, name, ratio=1.0, ratio_low=0.9, ratio_high=1.1) for name in ("batchnorm", *job.peers)]
    return found, True


def some_jobs(cases=CASES, **values):
    jobs = script("gpu_jobs")
    return [jobs.Job(case, ("eager",), 2, ENVIRONMENT, 60.0, 10.0, **values) for case in cases]


def test_the_order_has_every_kind_of_case_before_the_models_and_the_models_before_the_rest(gpu, tmp_path):
    chosen = options(gpu, "--csv", str(tmp_path / "a.csv"))
    found = list(script("gpu_jobs").jobs(chosen, replace(ENVIRONMENT, device="cuda")))
    names = [job.name for job in found]
    assert names[0] == "copy"
    first, compiled = names.index(RESNET), len(names) - 1 - names[::-1].index(RESNET)
    assert names.index(DENSENET) == first + 1
    assert {(job.what.mode, job.what.format, job.what.dtype) for job in found[1:first]} == {
        (case.mode, case.format, case.dtype) for case in all_cases()
    }
    # Tiny inputs, whose launches are counted, are among them.
    assert {"2x8", "8x512x7x7"} <= {job.what.size for job in found[1:first]}
    assert first < 60
    assert [job.peers for job in found if job.name == RESNET] == [("eager",), ("eager", "compile")]
    assert compiled > first
    cases = [job.name for job in found if isinstance(job.what, Case)]
    assert len(cases) == len(set(cases)) == len(all_cases())


def test_options_choose(gpu, tmp_path):
    words = ("--csv", str(tmp_path / "a.csv"), "--cases", "2x8,norm,float32", "--peers", "compile", "--rounds", "3")
    chosen = options(gpu, *words, "--no-models")
    found = list(script("gpu_jobs").jobs(chosen, ENVIRONMENT))
    assert [job.name for job in found] == ["copy", CASES[0].name]
    assert (found[1].peers, found[1].rounds) == (("eager", "compile"), 3)
    found = list(script("gpu_jobs").jobs(options(gpu, *words, "--tune"), ENVIRONMENT))
    assert [(job.name, job.tune) for job in found] == [(CASES[0].name, True)]


def test_jobs_go_on_where_they_were(gpu, tmp_path, capsys):
    table, jobs, apart = gpu.Table(tmp_path / "a.csv"), some_jobs(), Inline(made_up)
    ends = time.perf_counter() + 100
    assert gpu.run(table, iter(jobs[:1]), ends, apart) == []
    again = gpu.Table(tmp_path / "a.csv")
    assert [again.has(job) for job in jobs] == [True, False]
    # A contender more is work to do.
    assert not again.has(replace(jobs[0], peers=("eager", "compile")))
    assert gpu.run(again, (job for job in jobs if not again.has(job)), ends, apart) == []
    assert [name for name, _ in apart.asked] == [job.name for job in jobs]
    in_order = [case.name for case in all_cases() if case in CASES]
    assert [each.case for each in read(tmp_path / "a.csv")] == [name for name in in_order for _ in range(2)]
    assert "s left] 2x8/norm/contiguous/float32: batchnorm 100 µs, eager 1" in capsys.readouterr().out


def test_what_dies_has_rows_that_say_so_and_the_rest_goes_on(gpu, tmp_path, capsys):
    def work(job):
        if job.what == CASES[0]:
            raise Lost("its process died (exit code -11)")
        return made_up(job)

    table, apart = gpu.Table(tmp_path / "a.csv"), Inline(work)
    assert gpu.run(table, iter(some_jobs()), time.perf_counter() + 100, apart) == [
        f"{CASES[0].name}: its process died (exit code -11)"
    ]
    found = {(each.case, each.contender): each for each in read(tmp_path / "a.csv")}
    dead = [found[CASES[0].name, name] for name in ("batchnorm", "eager")]
    assert [(each.status, each.reason, each.mode) for each in dead] == [
        ("unavailable", "its process died (exit code -11)", "norm")
    ] * 2
    assert found[CASES[1].name, "eager"].status == "timed"
    assert apart.ended == 1
    capsys.readouterr()


def test_what_was_measured_before_stays_where_more_is_lost(gpu, tmp_path, capsys):
    jobs = script("gpu_jobs")
    less, more = (jobs.Job(RESNET, peers, 2, ENVIRONMENT, 60.0, 1.0) for peers in (("eager",), ("eager", "compile")))

    def work(job):
        if job is more:
            raise Lost("no result within 60 s")
        return [row(Case((2, 8)), name, case=RESNET, mode="model") for _, name in job.rows], True

    table = gpu.Table(tmp_path / "a.csv")
    gpu.run(table, iter([less, more]), time.perf_counter() + 100, Inline(work))
    assert {each.contender: each.status for each in table.rows} == {
        **dict.fromkeys(("eager", "fuse", "lean"), "timed"),
        "compile": "unavailable",
    }
    assert table.has(more)
    capsys.readouterr()


def test_a_gpu_that_is_spoiled_costs_the_process_and_no_row(gpu, tmp_path, capsys):
    table, apart = gpu.Table(tmp_path / "a.csv"), Inline(lambda job: (made_up(job)[0], False))
    assert gpu.run(table, iter(some_jobs()), time.perf_counter() + 100, apart) == []
    assert apart.ended == 2
    assert {each.status for each in table.rows} == {"timed"}
    capsys.readouterr()


def test_time_is_kept(gpu, tmp_path, capsys):
    table, apart = gpu.Table(tmp_path / "a.csv"), Inline(made_up)
    # Ten seconds are guessed for a case: with five left none is begun, and none is said to have failed.
    assert gpu.run(table, iter(some_jobs()), time.perf_counter() + 5, apart) == []
    assert apart.asked == []
    assert "2 more did not fit into the time" in capsys.readouterr().out
    gpu.run(table, iter(some_jobs()), time.perf_counter() + 30, apart)
    (_, first), (_, second) = apart.asked
    assert second <= first <= 30

    def work(job):
        gpu.time.sleep(0.02)
        raise Lost("no result within 0 s")

    slow, late = some_jobs()[:1], Inline(work)
    slow = [replace(slow[0], guess=0.0)]
    empty = gpu.Table(tmp_path / "b.csv")
    # What the end of time cut off has no row: the next start measures it.
    assert gpu.run(empty, iter(slow), time.perf_counter() + 0.01, late) == []
    assert late.asked
    assert empty.rows == []
    capsys.readouterr()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("def test_a(): pass\ndef test_b(): pytest.skip('no')\n", "passed", "1 passed, 0 failed, 1 skipped"),
        ("def test_a(): assert False\ndef test_b(): pass\n", "wrong", "1 passed, 1 failed, 0 skipped"),
        ("def test_a(): pytest.skip('no GPU')\n", "unavailable", "0 passed, 0 failed, 1 skipped"),
        ("import time\ndef test_a(): time.sleep(60)\n", "unavailable", "no end within 1 s"),
        (None, "unavailable", "there are no such files"),
        ("", "unavailable", "pytest: no tests ran in "),
    ],
    ids=["passed", "failed", "skipped", "hangs", "missing", "empty"],
)
def test_tests_are_counted(gpu, body, status, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    if body is not None:
        folder = tmp_path / "tests" / "ops"
        folder.mkdir(parents=True)
        (folder / "test_some_gpu.py").write_text(f"import pytest\n{body}")
    found = gpu.tested(1.0 if body and "sleep" in body else 60.0, ENVIRONMENT)
    assert (found.case, found.mode, found.status) == (" ".join(gpu.GPU_TESTS), "tests", status)
    assert found.reason.startswith(reason)
    capsys.readouterr()


def test_rows_of_a_rehearsal_stay_apart_from_those_of_gpus(gpu, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"gpu\.csv is for rows of GPUs"):
        gpu.main(["--device", "cpu", "--csv", str(gpu.CSV)])
    with pytest.raises(ArgumentError, match=r"gpu_tiles\.csv is for rows of GPUs"):
        gpu.main(["--device", "cpu", "--tune", "--csv", str(gpu.TILES)])
    path = tmp_path / "rows.csv"
    write(beside(CASES[0], 2.0, environment=replace(ENVIRONMENT, device="cuda")), path)
    with pytest.raises(ArgumentError, match="the rows that are there have device 'cuda', and this is 'cpu'"):
        gpu.main(["--device", "cpu", "--csv", str(path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="torch sees no GPU"):
        gpu.main([])


def test_an_interrupt_keeps_what_was_done(gpu, tmp_path, monkeypatch, capsys):
    def work(job):
        if job.name == "copy":
            return [row(Case((2, 8)), "copy", case="copy", mode="copy", tensor_bytes=1 << 24)], True
        raise KeyboardInterrupt

    apart = Inline(work)
    monkeypatch.setattr(gpu, "Apart", lambda _: apart)
    path = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--device", "cpu", "--no-tests", "--csv", str(path)])
    assert [each.mode for each in read(path)] == ["copy"]
    assert apart.ended
    assert f"{path}: 1 rows" in capsys.readouterr().out


def test_the_networks_have_the_norms_that_the_cases_have():
    module = script("gpu_networks")
    for name, known in ((RESNET, "resnet50"), (DENSENET, "densenet121")):
        with torch.device("meta"):
            network, images = module.network(name, 1, 224, "meta", False)
        seen = []
        for layer in network.modules():
            if is_batch_norm(layer):
                layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(tuple(given[0].shape[1:])))
        network.network(images)
        norms = networks.NETWORKS[known][1]()
        assert Counter(seen) == Counter((norm.channels, *norm.spatial) for norm in norms)


@pytest.mark.slow
def test_a_network_is_measured_with_what_trains_it():
    jobs = script("gpu_jobs")
    job = jobs.Job(RESNET, ("eager",), 2, ENVIRONMENT, 60.0, 10.0)
    rows, usable = jobs.work(job)
    assert usable
    assert [(each.mode, each.contender) for each in rows if each.status == "timed"] == [
        *(("model", name) for name in ("eager", "fuse", "lean")),
        *(("model inference", name) for name in ("eager", "fold")),
    ]
    assert {(each.case, each.shape, each.format, each.dtype) for each in rows} == {
        (RESNET, "4x3x64x64", "channels-last", "bfloat16")
    }
    assert all(("model", name) in job.rows for name in ("eager", "fuse", "lean"))


def test_a_tile_is_tried_in_its_place_and_the_table_is_as_it_was(monkeypatch):
    module = script("gpu_tiles")
    tiles = module.tiles
    before = tiles.TILES
    found = module.candidates(["normalize"], 2)
    names = [candidate.name for candidate in found]
    values, warps = before["normalize"][2].values, before["normalize"][2].warps
    assert f"normalize={2 * values}x{warps}" in names
    assert f"normalize={values}x{4 if warps != 4 else 8}" in names
    assert f"normalize={values}x{warps}" not in names
    assert any(name.startswith("_PROGRAMS=") for name in names)
    assert len(set(names)) == len(names)
    assert module.candidates([], 2) == []
    described = ((32, 64, 56, 56), (200704, 3136, 56, 1), torch.bfloat16)
    cuts = {module.passes.plan(*described).cut("normalize")}
    for candidate in found:
        contender = candidate.build(CASES[0])
        with contender.around():
            cuts.add(module.passes.plan(*described).cut("normalize"))
            changed = {name for name in candidate.changes if getattr(tiles, name) == candidate.changes[name]}
            assert changed == set(candidate.changes)
            if "TILES" in changed:
                assert {kernel for kernel in before if tiles.TILES[kernel] != before[kernel]} == {"normalize"}
        assert tiles.TILES is before
    assert len(cuts) > 4  # what follows from the table follows from each candidate's


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "1"], "no quantiles"),
        (["--seconds", "nan"], "no time"),
        (["--seconds", "-5"], "no time"),
        (["--cases", "nosuch"], "nosuch"),
        (["--peers", "nosuch"], "nosuch"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_runs(gpu, words, message, tmp_path):
    path = tmp_path / "rows.csv"
    with pytest.raises(ArgumentError, match=message):
        gpu.main(["--device", "cpu", "--csv", str(path), *words])
    assert not path.exists()


def test_the_tiles_that_are_looked_up_are_found(monkeypatch):
    module = script("gpu_tiles")

    class Asks:
        def build(self, case, device):
            self.results = lambda inputs: module.tiles.TILES["normalize"][4]
            return self

    monkeypatch.setattr(module, "OURS", Asks())
    assert module.looked_up(CASES[0], "cpu") == ["normalize"]


def test_a_sweep_has_a_row_a_candidate_and_says_which_is_better(gpu, monkeypatch, tmp_path, capsys):
    module = script("gpu_tiles")
    monkeypatch.setattr(module, "looked_up", lambda case, device: ["normalize"])
    found = module.sweep(CASES[0], 2, ENVIRONMENT)
    names = [candidate.name for candidate in module.candidates(["normalize"], 4)]
    assert [each.contender for each in found] == ["batchnorm", "eager", *names]
    assert {each.status for each in found} == {"timed"}
    table = gpu.Table(tmp_path / "tiles.csv")
    better = replace(found[2], ratio=0.5, ratio_low=0.4, ratio_high=0.6)
    table.take([*found[:2], better])
    gpu.summary_of_tiles(table, [])
    said = capsys.readouterr().out
    assert f"{CASES[0].name}: {names[0]} takes 0.500 of the time" in said
    assert f"{names[0]}, float32: 0.500 of the time, the mean of 1 cases" in said


def test_a_rehearsal_from_beginning_to_end(tmp_path):
    path = tmp_path / "rows.csv"
    words = ["--device", "cpu", "--cases", "2x8,float32,norm", "--cases", "64x16,float32,norm", "--rounds", "2"]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *words, "--no-tests", "--no-models", "--csv", str(path)]
    done = subprocess.run(
        [*command, "--peers", "no-cudnn,attorch,flag_gems"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = read(path)
    assert [(each.case, each.contender, each.status) for each in rows] == [
        ("copy", "copy", "timed"),
        *(
            (case.name, name, "timed" if name in ("batchnorm", "eager") else "unavailable")
            for case in sorted(CASES, key=lambda case: all_cases().index(case))
            for name in ("batchnorm", "eager", "no-cudnn", "attorch", "flag_gems")
        ),
    ]
    assert {(each.environment.device, each.environment.device_name) for each in rows} == {("cpu", "")}
    assert "A rehearsal on a processor: no number of it is about a GPU." in done.stdout
    assert "norm (+ add) + act, by eager: median: not measured (target: at least 2.00×; 0 cases)" in done.stdout

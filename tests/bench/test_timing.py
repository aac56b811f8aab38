import gc
import mmap
import sys
import time

import pytest

from batchnorm.bench.cases import Case
from batchnorm.bench.faults import Usage, allocator, fault_seconds, fault_share, fresh_pages, usage
from batchnorm.bench.limit import fits, least_bytes
from batchnorm.bench.timing import Ratio, interleave, quantiles, ratio, repetitions
from batchnorm.bench.watch import HostWatch


def test_contenders_take_turns_and_the_first_rounds_do_not_count():
    order = []
    now = [0.0]
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0}

    def contender(name):
        def run():
            order.append(name)
            now[0] += seconds[name] + (100 if len(order) <= 7 else 0)

        return run

    repeat = {"b": 2}
    samples = interleave(
        {name: contender(name) for name in seconds}, 3, repeat=repeat, warm_up=2, watch=HostWatch(lambda: now[0])
    )
    assert order == ["a", "b", "b", "c"] * 5
    assert [samples[name].seconds for name in seconds] == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert [samples[name].calls for name in seconds] == [3, 6, 3]


def test_the_collector_rests_while_it_is_timed_and_wakes_again_whatever_happens():
    def run():
        assert not gc.isenabled()
        raise KeyboardInterrupt

    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        interleave({"a": run}, 1)
    assert gc.isenabled()


def test_quantiles_are_those_of_the_sample():
    found = quantiles([float(value) for value in range(101)])
    assert (found.low, found.median, found.high) == (20.0, 50.0, 80.0)


def test_a_ratio_of_medians_has_an_interval_that_disturbances_of_whole_rounds_do_not_widen():
    base = [1.0 + 0.01 * (place % 7) for place in range(30)]
    disturbed = [value * (10 if place % 3 == 0 else 1) for place, value in enumerate(base)]
    found = ratio([2 * value for value in disturbed], disturbed)
    assert found == Ratio(2.0, 2.0, 2.0)
    noisy = ratio([2 * base[-place] for place in range(30)], base)
    assert noisy.low < noisy.estimate < noisy.high
    assert noisy.low == pytest.approx(2, abs=0.1)
    assert ratio(disturbed, base) == ratio(disturbed, base)


def test_what_is_short_is_repeated(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(seconds):
        now[0] += seconds

    assert repetitions(lambda: run(10e-6)) in (20, 21)
    calls = []
    assert repetitions(lambda: (calls.append(0), run(1.0))) == 1
    assert len(calls) == 1  # a step of seconds is not run again to learn that


L2 = 2 << 20


@pytest.mark.parametrize(
    ("case", "tensors"),
    [
        # A channel of 401 kB fits: x read once in each pass.
        (Case((32, 64, 56, 56), "relu"), 2 + 3),
        # Channels side by side, 26 MB: both passes read twice.
        (Case((32, 64, 56, 56), "relu", format="channels-last"), 3 + 5),
        (Case((65536, 128), "relu"), 3 + 5),
        # 3.2 MB: x fits into the caches of two cores, x and dy together do not.
        (Case((32, 256, 14, 14), "relu", format="channels-last", dtype="bfloat16"), 2 + 5),
        (Case((32, 64, 14, 14), "relu", format="channels-last"), 2 + 3),
        # The channel of x fits (1.6 MB), that of x and dy together does not.
        (Case((32, 32, 112, 112), "relu6"), 2 + 5),
        (Case((32, 64, 56, 56), "relu", residual=True), 3 + 4),
        (Case((32, 64, 56, 56), training=False), 2),
        (Case((32, 64, 56, 56), "relu", residual=True, training=False), 3),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_the_least_bytes(case, tensors):
    assert least_bytes(case, L2, threads=2) == tensors * case.bytes


def test_what_fits_depends_on_cache_and_cores():
    case = Case((32, 256, 14, 14), format="channels-last")
    assert not fits(case, 1, L2, threads=1)
    assert fits(case, 1, L2, threads=4)
    assert fits(Case((32, 256, 14, 14)), 1, L2, threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_the_meter_counts_every_fresh_page():
    pages = 1000
    fresh = fresh_pages(pages * mmap.PAGESIZE)
    before = usage().faults
    for page in range(pages):
        fresh[page * mmap.PAGESIZE] = 1
    first = usage().faults
    for page in range(pages):
        fresh[page * mmap.PAGESIZE] = 2
    again = usage().faults
    assert first - before >= pages
    assert again - first < pages / 10


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_faults_are_those_of_the_contender_that_has_them():
    def touch():
        pages = fresh_pages(500 * mmap.PAGESIZE)
        for page in range(500):
            pages[page * mmap.PAGESIZE] = 1

    samples = interleave({"fresh": touch, "none": lambda: None}, 4, repeat={"fresh": 2})
    assert samples["fresh"].spent.faults / samples["fresh"].calls >= 500
    assert samples["none"].spent.faults < 500
    assert samples["fresh"].spent.program + samples["fresh"].spent.kernel > 0


def test_the_share_of_page_faults_is_the_kernels_time_where_there_were_any():
    assert fault_share(Usage(100, 3.0, 1.0)) == 0.75
    assert fault_share(Usage(0, 3.0, 1.0)) == 0.0
    assert fault_share(Usage(100, 0.01, 0.01)) is None


def test_a_fault_costs_something():
    assert 0 <= fault_seconds(8 << 20) < 1e-3


def test_what_the_environment_says_of_memory_holds_no_path(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert allocator() == ""
    monkeypatch.setenv("LD_PRELOAD", "/some/where/libtcmalloc_minimal.so.4:/else/libother.so")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    assert allocator() == "libtcmalloc_minimal.so.4 libother.so THP_MEM_ALLOC_ENABLE=1"

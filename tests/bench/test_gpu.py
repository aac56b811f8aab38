"""What concerns GPUs, without one: fakes take the place of ``torch.cuda``."""

import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from batchnorm.bench import environment as environments
from batchnorm.bench import gpu, race, run
from batchnorm.bench.cases import Case
from batchnorm.bench.environment import Environment, refuse_a_mixture
from batchnorm.bench.gpu_summary import DENSENET, RESNET, bandwidth, gpu_findings
from batchnorm.bench.inputs import Inputs
from batchnorm.bench.page import page
from batchnorm.bench.peers import GPU_PEERS, chosen
from batchnorm.bench.row import read, with_times, write
from batchnorm.bench.summary import findings
from batchnorm.bench.timing import Samples, interleave, repetitions
from batchnorm.bench.watch import EventWatch, HostWatch, watch_of
from batchnorm.cli.app import app
from batchnorm.errors import ArgumentError
from bench.helpers import ENVIRONMENT, beside, row


class Cuda:
    """A GPU on which time passes as it is told, and that remembers what it was asked."""

    def __init__(self):
        self.now = 0.0  # seconds of the GPU
        self.asked = []
        self.allocated = self.most = 100
        self.Event = lambda enable_timing: Event(self)

    def synchronize(self):
        self.asked.append("wait")

    def memory_allocated(self):
        return self.allocated

    def reset_peak_memory_stats(self):
        self.most = self.allocated

    def max_memory_allocated(self):
        return self.most

    def current_device(self):
        return 0

    def get_device_properties(self, index):
        assert index == 0
        return SimpleNamespace(name="A GPU", major=9, minor=0, multi_processor_count=132, L2_cache_size=60 << 20)


class Event:
    def __init__(self, cuda):
        self.cuda, self.at, self.waited = cuda, None, False

    def record(self):
        self.cuda.asked.append("event")
        self.at = self.cuda.now

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, other):
        assert other.waited
        return 1e3 * (other.at - self.at)  # milliseconds, as torch gives them


def test_a_gpu_is_timed_by_events_around_all_calls_of_a_sample():
    cuda = Cuda()

    def run():
        cuda.asked.append("run")
        cuda.now += 0.25

    samples = interleave({"a": run}, 3, repeat={"a": 2}, warm_up=0, watch=EventWatch(cuda))
    assert samples["a"].seconds == [0.25] * 3
    assert cuda.asked == ["wait", "event", "run", "run", "event"] * 3
    # The processor only enqueues: its own time is nothing like the GPU's.
    assert len(samples["a"].host_seconds) == 3
    assert max(samples["a"].host_seconds) < 0.1


def test_what_is_short_on_a_gpu_is_repeated_until_the_wait_does_not_matter():
    cuda = Cuda()

    def run():
        cuda.now += 50e-6

    assert repetitions(run, EventWatch(cuda)) == pytest.approx(EventWatch.shortest / 50e-6, abs=1)


def test_each_device_has_its_clock(monkeypatch):
    assert isinstance(watch_of("cpu"), HostWatch)
    monkeypatch.setattr(torch.cuda, "Event", Cuda().Event)
    assert isinstance(watch_of("cuda"), EventWatch)


def test_the_context_of_a_contender_is_entered_before_its_clock_starts():
    order = []
    clock = HostWatch(lambda: order.append("clock") or 0.0)

    class Around:
        def __enter__(self):
            order.append("in")

        def __exit__(self, *_):
            order.append("out")

    interleave({"a": lambda: order.append("run")}, 1, warm_up=0, watch=clock, around={"a": Around})
    assert order == ["in", "clock", "run", "clock", "out"]


def test_a_row_of_a_gpu_says_which_and_with_what(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: "/bin/nvidia-smi")
    done = subprocess.CompletedProcess([], 0, stdout="580.1\n580.1\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: done)
    facts = gpu.facts(Cuda())
    assert facts["device_name"] == "A GPU (9.0, 132 multiprocessors)"
    assert facts["driver"] == "580.1"
    monkeypatch.setattr(environments, "facts", lambda: facts)
    described = Environment.measured("cuda")
    assert (described.device, described.l2_bytes, described.caches) == ("cuda", 60 << 20, 1)
    assert described.triton
    assert described.fault_nanoseconds == 0.0
    on_cpu = Environment.now(0.0)
    assert (on_cpu.device, on_cpu.device_name, on_cpu.triton) == ("cpu", "", "")
    with pytest.raises(ArgumentError, match="the rows that are there have device 'cpu', and this is 'cuda'"):
        refuse_a_mixture([on_cpu], described)


@pytest.mark.parametrize("trouble", ["no tool", "fails"])
def test_a_driver_that_does_not_say_is_no_trouble(trouble, monkeypatch):
    def fails(*_, **__):
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(gpu.shutil, "which", lambda name: None if trouble == "no tool" else "/bin/nvidia-smi")
    monkeypatch.setattr(gpu.subprocess, "run", fails)
    assert gpu.driver() == ""


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    gpu.check("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="torch sees no GPU"):
        gpu.check("cuda")
    with pytest.raises(ArgumentError, match="no device is named tpu"):
        gpu.check("tpu")


def test_the_memory_of_a_step_is_what_it_takes_above_what_is_there():
    cuda = Cuda()
    cuda.most = 1000  # of something before

    def step():
        cuda.most = max(cuda.most, cuda.allocated + 30)

    assert gpu.peak_bytes(step, cuda) == 30
    assert cuda.asked == ["wait", "wait"]


def test_kernels_are_counted_and_copies_and_operators_are_not():
    def event(name, device):
        return SimpleNamespace(name=name, device_type=getattr(torch._C._autograd.DeviceType, device))

    names = ["moments", "Memcpy DtoD (Device -> Device)", "Memset (Device)", "normalize"]
    events = [*(event(name, "CUDA") for name in names), event("aten::batch_norm", "CPU")]
    assert gpu.count_kernels(events) == 2


def test_where_the_profiler_sees_no_kernel_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert gpu.launches(lambda: torch.zeros(3).add_(1)) is None


class Slow(Cuda):
    """A GPU whose time is that of the processor."""

    @property
    def now(self):
        return time.perf_counter()

    @now.setter
    def now(self, _):
        pass


@pytest.fixture
def gpu_of_fakes(monkeypatch):
    """All that a GPU is asked for, by tensors that stay where they are."""
    cuda = Slow()
    to = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self if device == "cuda" else to(self, device))
    monkeypatch.setattr(Inputs, "to", lambda self, device: self)
    for room in (run, race):
        monkeypatch.setattr(room, "watch_of", lambda device: EventWatch(cuda))
        monkeypatch.setattr(room, "peak_bytes", lambda step: gpu.peak_bytes(step, cuda))
    monkeypatch.setattr(run, "launches", lambda step: 7.0)
    return cuda


@pytest.mark.parametrize("kind", ["tiny", "resnet50"])
def test_a_case_on_a_gpu_has_what_only_a_gpu_has(kind, gpu_of_fakes):
    case = Case((8, 6, 5, 5), "relu", residual=True, occurs=((kind, 1),))
    rows = run.measure(case, chosen(["no-cudnn", "attorch"], GPU_PEERS), 2, ON_GPU)
    ours, eager, no_cudnn, attorch = rows
    assert [each.status for each in rows] == ["timed"] * 3 + ["unavailable"], [each.reason for each in rows]
    assert attorch.reason == "attorch is not installed"
    assert (ours.backend, eager.backend, no_cudnn.backend) == ("cpu", "NativeBatchNorm", "NativeBatchNorm")
    for each in (ours, eager, no_cudnn):
        assert each.peak_bytes == 0
        assert each.launches == (7.0 if kind == "tiny" else None)
        assert each.host_microseconds > 0
        assert each.faults is None
        assert each.repetitions > 1
        # One L2 holds everything, whatever the number of threads.
        assert each.least_bytes == 7 * case.bytes
    assert "wait" in gpu_of_fakes.asked


def test_a_contender_of_a_model_that_fails_while_it_is_timed_says_why(gpu_of_fakes):
    def fails():
        raise torch.OutOfMemoryError("no more\n…")

    raced = race.Race("net", "model", "fuse", ON_GPU)
    for name, what in (("eager", lambda: None), ("fuse", lambda: None), ("lean", fails)):
        raced.enter(name, lambda what=what: what)
    eager, fuse, lean = raced.timed(2)
    assert (eager.status, fuse.status, eager.peak_bytes) == ("timed", "timed", 0)
    assert (lean.status, lean.reason) == ("unavailable", "OutOfMemoryError: no more")


ON_GPU = replace(ENVIRONMENT, device="cuda", device_name="A GPU", cuda="13.0", l2_bytes=60 << 20)


def test_a_time_on_a_gpu_has_no_page_faults_but_the_time_to_enqueue():
    case = Case((32, 64, 56, 56), "relu")
    samples = Samples([1e-3, 3e-3], calls=2, host_seconds=[1e-4, 3e-4])
    found = with_times(row(case, "eager", environment=ON_GPU), samples, None, 1)
    assert (found.faults, found.fault_share, found.host_microseconds) == (None, None, pytest.approx(200.0))
    found = with_times(row(case, "eager"), samples, None, 1)
    assert (found.faults, found.host_microseconds) == (0.0, None)


def test_rows_of_gpus_come_back_from_the_file(tmp_path):
    rows = [row(Case((2, 8)), "eager", environment=ON_GPU, peak_bytes=7, launches=2.5, host_microseconds=3.0)]
    write(rows, tmp_path / "rows.csv")
    assert read(tmp_path / "rows.csv") == rows


def of_model(network, contender, **values):
    return row(Case((2, 8)), contender, case=network, mode="model", environment=ON_GPU, **values)


def some_rows():
    rows = []
    for size, ratio in ((112, 1.0), (56, 2.0), (28, 4.0)):
        shape = (32, 96, size, size)
        rows += beside(Case(shape, "relu"), ratio, times_limit=1 + ratio, environment=ON_GPU)
        rows += beside(Case(shape, "relu"), ratio, contender="compile", environment=ON_GPU)[1:]
        rows += beside(Case(shape), ratio / 2, environment=ON_GPU)
        rows += beside(Case(shape, "relu", training=False), 2 * ratio, environment=ON_GPU)
    rows += [
        of_model(RESNET, "eager", kept_bytes=1000, ratio=1.3),
        of_model(RESNET, "compile", ratio=0.9),
        of_model(RESNET, "lean", kept_bytes=550, ratio=1.02),
        of_model(DENSENET, "eager", kept_bytes=1000),
        of_model(DENSENET, "lean", kept_bytes=600, ratio=1.2),
    ]
    # None of these is about a GPU's times.
    on_cpu = [*beside(Case((64, 16), "relu"), 100.0), row(Case((2, 8)), "batchnorm", mode="tests", status="passed")]
    return rows + on_cpu


def test_the_findings_of_a_gpu_are_computed_from_its_rows():
    found = findings(some_rows())
    values = {finding.name: (finding.value, finding.cases, finding.met) for finding in found}
    assert values == {
        "norm (+ add) + act, by eager: median": (2.0, 3, True),
        "norm (+ add) + act, by torch.compile: median": (2.0, 3, True),
        "the same, share slower beyond noise": (0.0, 3, True),
        "norm alone, by eager: median": (1.0, 3, False),
        "evaluation, by eager: median": (4.0, 3, True),
        # A norm alone at half of eager's speed; those at eager's own are not slower beyond noise.
        "any case, share slower than eager beyond noise": (pytest.approx(1 / 9), 9, False),
        # 154 and 39 MB: twice either is more than 60 MiB; 10 MB are not.
        "time by the limit, training, x and y beyond the L2: median": (2.5, 2, False),
        "ResNet-50 AMP channels-last: eager ÷ fuse": (1.3, 1, True),
        "ResNet-50 AMP channels-last: torch.compile ÷ fuse": (0.9, 1, False),
        "ResNet-50: bytes kept with lean ÷ eager's": (0.55, 1, True),
        "DenseNet-121: bytes kept with lean ÷ eager's": (0.6, 1, False),
        "ResNet-50: time with lean ÷ without": (1.02, 1, True),
        "DenseNet-121: time with lean ÷ without": (1.2, 1, False),
    }


def test_rows_of_a_processor_tell_nothing_of_a_gpu():
    assert all(finding.value is None for finding in gpu_findings(beside(Case((32, 64, 56, 56), "relu"), 2.0)))


def test_the_bandwidth_is_that_of_the_fastest_copy():
    copies = [
        row(Case((2, 8)), "copy", mode="copy", tensor_bytes=1 << 30, microseconds=time) for time in (600.0, 500.0)
    ]
    assert bandwidth(copies) == pytest.approx(2 * (1 << 30) / 500e-6)
    assert bandwidth(beside(Case((2, 8)), 2.0)) is None


def test_the_page_of_a_gpu_names_it():
    text = page([each for each in some_rows() if each.environment.device == "cuda" and each.mode != "model"])
    assert "A GPU, 60 MiB of L2" in text
    assert "cuda 13.0" in text
    assert "timed by events" in text
    assert "ns each, small pages" not in text


def test_the_command_measures_where_it_is_told(monkeypatch):
    asked = []

    def measure_all(cases, peers, rounds, device):
        asked.append(([peer.name for peer in peers], device))
        return iter([(cases[0], beside(cases[0], 2.0, environment=ON_GPU))])

    monkeypatch.setattr(run, "measure_all", measure_all)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = ["bench", "--cases", "2x8,norm,float32", "--device", "cuda"]
    done = CliRunner().invoke(app, [*words, "--peers", "no-cudnn"])
    assert done.exit_code == 0, done.output
    assert asked == [(["eager", "no-cudnn"], "cuda")]
    assert "by torch.compile" not in done.stdout
    assert "any case, share slower than eager beyond noise" in done.stdout
    assert "no peer is named jax" in CliRunner().invoke(app, [*words, "--peers", "jax"]).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda"], "batchnorm bench: torch sees no GPU on this machine."),
        (["--device", "tpu"], "no device is named tpu"),
        (["--model", "x:y", "--device", "cuda"], "--model is measured where its parameters are; leave out --device"),
    ],
)
def test_a_device_that_cannot_be_is_refused_before_anything_runs(words, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "measure_all", None)
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == 2
    assert message in done.stderr

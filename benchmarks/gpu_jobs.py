"""What ``gpu.py`` beside this does, job by job; each is worked off in a process of its own."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from gpu_networks import NETWORKS, network
from gpu_tiles import sweep

from batchnorm.bench.cases import Case, select
from batchnorm.bench.contenders import BATCHNORM, COMPILE, EAGER, FUSE, LEAN
from batchnorm.bench.copying import measure_copy
from batchnorm.bench.environment import Environment
from batchnorm.bench.model import Model, measure_model
from batchnorm.bench.peers import GPU_PEERS, chosen
from batchnorm.bench.plan import in_order
from batchnorm.bench.row import COPY, MODEL, UNAVAILABLE, Row
from batchnorm.bench.run import measure
from batchnorm.bench.step import Step

__all__ = ["SCALES", "Job", "blank", "jobs", "lost", "work"]

MODEL_ROUNDS = 10
EXAMPLE = 4  # images that a network is rewritten for, and judged on


@dataclass(frozen=True)
class Scale:
    """How large things are: on a GPU, and where it is rehearsed."""

    copied: int
    cases: tuple[str, ...]
    launched: tuple[str, ...]
    batch: int
    image: int
    small: bool


SCALES = {
    "cuda": Scale(
        1 << 30, ("all",), ("2x8,float32", "8x512x7x7,float32,channels-last"), batch=128, image=224, small=False
    ),
    "cpu": Scale(16 << 20, ("64x16x8x8",), ("2x8,float32",), batch=4, image=64, small=True),
}


@dataclass(frozen=True)
class Job:
    """What the other process does next, and how long it may take.

    Attributes:
        what: ``copy``, a case, or a network's name.
        peers: Who is measured beside us.
        rounds: Samples a contender.
        environment: What it runs on.
        seconds: How long it may take.
        guess: How long it will probably take, while no other of its kind has told.
        tune: Whether tiles are swept.
    """

    what: str | Case
    peers: tuple[str, ...]
    rounds: int
    environment: Environment
    seconds: float
    guess: float
    tune: bool = False

    @property
    def name(self) -> str:
        """As rows name it."""
        return self.what.name if isinstance(self.what, Case) else self.what

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Mode and contender of the rows that it must give."""
        if self.what == COPY:
            return [(COPY, COPY)]
        if isinstance(self.what, Case):
            return [(self.what.mode, name) for name in (BATCHNORM, *self.peers)]
        return [(MODEL, name) for name in (EAGER, FUSE, LEAN, *self.peers[1:])]


def work(job: Job) -> tuple[list[Row], bool]:
    """The rows of a job, and whether the GPU can still be used; runs in a process of its own."""
    device = job.environment.device
    peers = chosen(job.peers, GPU_PEERS)
    if job.what == COPY:
        rows = [measure_copy(SCALES[device].copied, job.rounds, job.environment)]
    elif isinstance(job.what, Case) and job.tune:
        rows = sweep(job.what, job.rounds, job.environment)
    elif isinstance(job.what, Case):
        rows = measure(job.what, peers, job.rounds, job.environment)
    else:
        scale = SCALES[device]
        # As a training loop sets it; the convolutions of all contenders are the same.
        torch.backends.cudnn.benchmark = True
        module, images = network(job.name, scale.batch, scale.image, device, scale.small)
        model = Model(job.name, Step(module, images), images[:EXAMPLE])
        about = {"shape": "x".join(map(str, images.shape)), "format": "channels-last", "dtype": "bfloat16"}
        rows = [replace(row, **about) for row in measure_model(model, peers, job.rounds)]
    if device == "cpu":
        return rows, True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return rows, False
    return rows, True


def jobs(options: argparse.Namespace, environment: Environment) -> Iterator[Job]:
    """All there is to do, the most telling first."""
    scale = SCALES[environment.device]
    if options.tune:
        for wave in in_order(select(options.cases or scale.cases)):
            for case in wave:
                yield Job(case, (EAGER,), options.rounds, environment, 300.0, 60.0, tune=True)
        return
    peers = tuple(peer.name for peer in chosen(options.peers or ["all"], GPU_PEERS))

    def of_case(case: Case) -> Job:
        return Job(case, peers, options.rounds, environment, 120.0, 10.0)

    def of_models(beside: tuple[str, ...], guess: float) -> Iterator[Job]:
        for name in NETWORKS if options.models else ():
            yield Job(name, beside, min(MODEL_ROUNDS, options.rounds), environment, 300.0, guess)

    yield Job(COPY, (EAGER,), options.rounds, environment, 60.0, 10.0)
    first = () if options.cases else select(scale.launched)
    yield from map(of_case, first)
    waves = in_order(case for case in select(options.cases or scale.cases) if case not in first)
    yield from map(of_case, waves[0] if waves else ())
    yield from of_models((EAGER,), 40.0)
    for place, wave in enumerate(waves[1:]):
        if place == 2 and COMPILE in peers:
            # Compiling a whole network can take minutes: late, and what was measured without it stays.
            yield from of_models((EAGER, COMPILE), 120.0)
        yield from map(of_case, wave)


def blank(case: str, mode: str, contender: str, environment: Environment, **values: str) -> Row:
    """A row without numbers."""
    return Row(case, "", "", "", "", mode, "", False, contender, UNAVAILABLE, environment, **values)


def lost(job: Job, reason: str) -> list[Row]:
    """The rows of a job that gave none."""
    return [blank(job.name, mode, contender, job.environment, reason=reason) for mode, contender in job.rows]

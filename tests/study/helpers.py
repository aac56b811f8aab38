"""What the study's tests share: running a claim here, without processes."""

import math
from collections.abc import Sequence

import torch

from batchnorm.study import Source
from batchnorm.study.claim import Experiment, Result

DIGITS = Source("digits")


def run_here(claim: Experiment, seeds: Sequence[int] = range(3), data: Source | None = DIGITS) -> list[Result]:
    """Runs a whole plan in this process, with one thread as a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [Result(run, claim.execute(run, lambda done, note: None)) for run in claim.plan(seeds, data)]
    finally:
        torch.set_num_threads(threads)


def wave(seed: int) -> float:
    """A number near 0 that differs by seed: the noise of made-up results."""
    return math.sin(1.0 + 7.0 * seed)


def baseline_of(guessing: float, images: int = 1000) -> dict[str, float]:
    """What a run keeps of its data, of made-up data."""
    return {"guessing": guessing, "validation images": images, "test images": images}

"""What a study ran on, as far as a reader needs it to judge or repeat the numbers."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec

import numpy
import torch

from .._version import __version__
from ..machine import processor
from .claim import TIERS
from .data.images import Images

__all__ = ["Environment", "counted"]


def counted(number: int, what: str) -> str:
    """Gives a number of things in words.

    >>> counted(1, "seed"), counted(1641, "run")
    ('1 seed', '1,641 runs')
    """
    return f"{number:,} {what}{'s' * (number != 1)}"


@dataclass(frozen=True)
class Environment:
    """Versions, processor, date, seeds and time of one study."""

    versions: dict[str, str]
    processor: str
    workers: int
    date: str
    seeds: list[int]
    data: str
    seconds: float
    runs: int = 0
    kept: int = 0
    control: bool = False
    tier: str = TIERS[0]
    model: str | None = None
    nodes: int = 1
    ray: str = ""
    samples: int | None = None
    image_size: list[int] | None = None
    fingerprint: str | None = None

    @classmethod
    def now(
        cls,
        *,
        seeds: list[int],
        data: str,
        workers: int,
        seconds: float,
        runs: int = 0,
        kept: int = 0,
        control: bool = False,
        tier: str = TIERS[0],
        model: str | None = None,
        nodes: int = 1,
        ray: str = "",
        images: Images | None = None,
        samples: int | None = None,
    ) -> Environment:
        """Describes this process and machine.

        Args:
            seeds: The study's seeds.
            data: Its images, in words.
            workers: Its processes.
            seconds: How long this start of it took.
            runs: Its runs.
            kept: How many of them were kept from an earlier start.
            control: Whether the effect was taken away from every claim.
            tier: As which tier the claims were run.
            model: The user's network that they were put to; None for the study's own.
            nodes: Machines that the processes were on.
            ray: The version of Ray that started them; empty where this process did.
            images: The images themselves; None where no claim used any.
            samples: How many of them a seed may use at most; None where that is all.
        """
        versions = {"batchnorm": __version__, "python": platform.python_version(), "torch": torch.__version__}
        versions["numpy"] = numpy.__version__
        tools = {"scipy": "scipy", "scikit-learn": "sklearn", "scikit-image": "skimage", "mlxtend": "mlxtend"}
        tools |= {"pillow": "PIL", "plotly": "plotly"}
        versions |= {name: version(name) for name, module in tools.items() if find_spec(module) is not None}
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        return cls(
            versions,
            processor(),
            workers,
            date,
            seeds,
            data,
            seconds,
            runs,
            kept,
            control,
            tier,
            model,
            nodes,
            ray,
            # As in what a run depends on: more than there are is all of them.
            samples=None if images is None else min(samples or len(images.y), len(images.y)),
            image_size=None if images is None else [int(side) for side in images.x.shape[2:]],
            fingerprint=None if images is None else images.fingerprint,
        )

    def rows(self) -> list[tuple[str, str]]:
        """Pairs of a name and its value, for people."""
        started = f", on {counted(self.nodes, 'node')} by Ray {self.ray}" if self.ray else ""
        kept = f", {self.kept} of {counted(self.runs, 'run')} kept" if self.kept else ""
        workers = f"{self.workers:,} worker process{'es' * (self.workers != 1)}"
        return [
            ("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
            ("processor", f"{self.processor} ({workers}, one thread each{started})"),
            *([] if self.model is None else [("network", self.model)]),
            ("data", self.data),
            ("seeds", ", ".join(map(str, self.seeds))),
            ("date", self.date),
            ("wall time", f"{self.seconds:.0f} s{kept}"),
        ]

    def as_json(self) -> dict[str, object]:
        """The same for machines."""
        return asdict(self)

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

__all__ = ["Environment"]


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
        """
        versions = {"batchnorm": __version__, "python": platform.python_version(), "torch": torch.__version__}
        versions["numpy"] = numpy.__version__
        tools = {"scipy": "scipy", "scikit-learn": "sklearn", "scikit-image": "skimage", "mlxtend": "mlxtend"}
        tools |= {"pillow": "PIL", "plotly": "plotly"}
        versions |= {name: version(name) for name, module in tools.items() if find_spec(module) is not None}
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        return cls(
            versions, processor(), workers, date, seeds, data, seconds, runs, kept, control, tier, model, nodes, ray
        )

    def rows(self) -> list[tuple[str, str]]:
        """Pairs of a name and its value, for people."""
        started = f", on {self.nodes} node{'s' if self.nodes > 1 else ''} by Ray {self.ray}" if self.ray else ""
        return [
            ("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
            ("processor", f"{self.processor} ({self.workers} worker processes, one thread each{started})"),
            *([] if self.model is None else [("network", self.model)]),
            ("data", self.data),
            ("seeds", ", ".join(map(str, self.seeds))),
            ("date", self.date),
            ("wall time", f"{self.seconds:.0f} s" + (f", {self.kept} of {self.runs} runs kept" if self.kept else "")),
        ]

    def as_json(self) -> dict[str, object]:
        """The same for machines."""
        return asdict(self)

"""What ``monitor`` costs: ``benchmarks/monitor.csv``, and the tables of ``docs/monitor.md``.

``python benchmarks/monitor.py`` measures on one thread, in three minutes; ``--draw`` only writes the tables anew,
``--quick`` tries it and writes nothing. A step is forward, backward and SGD; records go to TensorBoard's
``SummaryWriter``. Ratios are of medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import result_tables as tables
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import batchnorm
from batchnorm.bench.timing import Ratio, interleave, quantiles, ratio

HERE = Path(__file__).parent
CSV = HERE / "monitor.csv"
PAGE = HERE.parent / "docs" / "monitor.md"
TABLES = ("monitor", "run")
EVERY = 100
ROUNDS, RUNS, RUN_STEPS = 25, 8, 200
NEVER = 10**9
ADDED = "what the monitor adds"


def _resnet(depths: list[int], kind: str, widths: list[int]) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification  # noqa: PLC0415 - the page is made without

    return ResNetForImageClassification(ResNetConfig(depths=depths, layer_type=kind, hidden_sizes=widths))


def _mobilenet(multiplier: float) -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification  # noqa: PLC0415

    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=multiplier))


#: By name: the network, samples and size of the images.
CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ResNet-18, 16 images of 64²": (lambda: _resnet([2, 2, 2, 2], "basic", [64, 128, 256, 512]), 16, 64),
    "ResNet-50, 8 images of 64²": (lambda: _resnet([3, 4, 6, 3], "bottleneck", [256, 512, 1024, 2048]), 8, 64),
    "MobileNetV2, 16 images of 64²": (lambda: _mobilenet(1.0), 16, 64),
    "MobileNetV2 at a quarter of its width, 8 images of 32²": (lambda: _mobilenet(0.25), 8, 32),
}
SMALLEST = list(CASES)[-1]


class Training:
    """A network, and a step of its training."""

    def __init__(self, case: str) -> None:
        build, samples, size = CASES[case]
        torch.manual_seed(0)
        self.model = build().train()
        self.x: Tensor = torch.randn(samples, 3, size, size)
        self.y = torch.randint(2, (samples,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3)

    def step(self) -> None:
        """Forward, backward, SGD."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x).logits, self.y).backward()
        self.optimizer.step()


def steps(case: str, rounds: int) -> list[dict[str, Any]]:
    """A step that is observed, and one that is not, beside one without a monitor."""
    plain, waiting, observed = (Training(case) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        never = batchnorm.monitor(waiting.model, writer, every=NEVER)
        never.step = 1
        # Each call writes what the one before has seen.
        always = batchnorm.monitor(observed.model, writer, every=1)
        taken = interleave({"plain": plain.step, "waiting": waiting.step, "observed": observed.step}, rounds)
        never.close()
        always.close()
    seconds = {name: each.seconds for name, each in taken.items()}
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in plain.model.modules())
    step = quantiles(seconds["plain"]).median
    one, other = ratio(seconds["observed"], seconds["plain"]), ratio(seconds["waiting"], seconds["plain"])
    spread = Ratio(*(overhead(each, step) for each in (one.estimate, one.low, one.high)))
    cells = {
        "norms": (norms, f"{norms}"),
        "step": (1e3 * step, f"{1e3 * step:.0f} ms"),
        "observed": (one.estimate, _interval(one)),
        "not observed": (other.estimate, _interval(other)),
        f"overhead at every={EVERY}": (spread.estimate, f"{_interval(spread)} %"),
    }
    return [tables.row("monitor", case, tool, *cell) for tool, cell in cells.items()]


def overhead(observed: float, step: float) -> float:
    """In percent of a step of so many seconds: one observed step in a hundred, and the hook in all the others."""
    return 100 * ((observed - 1) / EVERY + hook() * (EVERY - 1) / EVERY / step)


class Idle(nn.Module):
    """Does nothing, and has a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Gives x."""
        return x


_HOOK: list[float] = []


def hook() -> float:
    """Seconds that a monitor adds to a step that it does not observe; measured once."""
    if not _HOOK:
        x, plain, waiting = torch.zeros(()), Idle(), Idle()
        with batchnorm.monitor(waiting, print, every=NEVER) as handle:
            handle.step = 1
            repeat = dict.fromkeys(("plain", "waiting"), 2000)
            taken = interleave({"plain": lambda: plain(x), "waiting": lambda: waiting(x)}, 25, repeat=repeat)
        medians = {name: quantiles(each.seconds).median for name, each in taken.items()}
        _HOOK.append(medians["waiting"] - medians["plain"])
    return _HOOK[0]


def runs(case: str, rounds: int, length: int) -> list[dict[str, Any]]:
    """Whole runs with a monitor and without, in turn."""
    plain, watched = Training(case), Training(case)

    def without() -> None:
        for _ in range(length):
            plain.step()

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:

        def within() -> None:
            with batchnorm.monitor(watched.model, writer, every=EVERY):
                for _ in range(length):
                    watched.step()

        taken = interleave({"without": without, "within": within}, rounds, warm_up=1)
    found = ratio(taken["within"].seconds, taken["without"].seconds)
    more = Ratio(*(100 * (each - 1) for each in (found.estimate, found.low, found.high)))
    return [tables.row("run", f"{case}: a run of {length} steps", ADDED, more.estimate, f"{_interval(more)} %")]


def _interval(found: Ratio) -> str:
    return f"{found.estimate:.2f} [{found.low:.2f} {found.high:.2f}]"


def measure(quick: bool) -> list[dict[str, Any]]:
    """All rows."""
    rows = []
    for case in [SMALLEST] if quick else CASES:
        print(case, file=sys.stderr)
        rows += steps(case, 3 if quick else ROUNDS)
    rows += [tables.row("run", "a step that is not observed", ADDED, hook(), f"{1e6 * hook():.1f} µs")]
    return rows + (runs(SMALLEST, 2, 3) if quick else runs(SMALLEST, RUNS, RUN_STEPS))


def main() -> None:
    """Measure, and write both files."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--draw", action="store_true")
    arguments.add_argument("--quick", action="store_true")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    if chosen.quick:
        for row in measure(quick=True):
            print(row["case"], row["tool"], row["text"], sep="; ")
        return
    if not chosen.draw:
        tables.write(CSV, measure(quick=False))
    rows = tables.read(CSV)
    PAGE.write_text(tables.page(PAGE.read_text(encoding="utf-8"), rows, TABLES), encoding="utf-8")
    for name in TABLES:
        print(tables.table(rows, name), end="\n\n")


if __name__ == "__main__":
    main()

"""What a diagnosis costs beside the passes that it is made of.

``python benchmarks/doctor.py`` writes ``benchmarks/doctor.csv`` and the table of times in ``docs/trust.md``. It needs
transformers and MONAI.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import result_tables as tables
import torch
from networks import NETWORKS, Network
from torch import Tensor, nn

import batchnorm
from batchnorm.doctor.registry import registered
from batchnorm.doctor.rule import Need

HERE = Path(__file__).parent
CSV = HERE / "doctor.csv"
PAGE = HERE.parent / "docs" / "trust.md"
CHOSEN = ("ResNet-50 (transformers)", "DenseNet-121 (monai)")
BATCHES, SAMPLES = 4, 8


def loss(output: Any, target: Tensor) -> Tensor:
    """Of classes."""
    return nn.functional.cross_entropy(getattr(output, "logits", output).float(), target)


def bare(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Every batch in both modes, and one backward pass."""
    for number, (input, target) in enumerate(batches):
        with torch.set_grad_enabled(number == 0):
            value = loss(model.train()(input), target)
        if number == 0:
            value.backward()
    with torch.no_grad():
        for input, target in batches:
            loss(model.eval()(input), target)
    model.zero_grad()


def times(name: str, network: Network, size: int, rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds in which each comes once, the first of which does not count."""
    torch.manual_seed(0)
    model = network.module(size)
    classes = torch.randint(0, 2, (BATCHES, SAMPLES))
    batches = [(network.inputs(SAMPLES, size), target) for target in classes]
    without = [rule.code for rule in registered().values() if Need.GRAPH not in rule.needs | rule.uses]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tools: dict[str, Callable[[], object]] = {
        "the passes alone": lambda: bare(model, batches),
        "all rules": lambda: batchnorm.diagnose(model, batches=batches, loss=loss, optimizer=optimizer),
        "rules without the graph": lambda: batchnorm.diagnose(
            model, batches=batches, loss=loss, optimizer=optimizer, select=without
        ),
    }
    taken: dict[str, list[float]] = {tool: [] for tool in tools}
    for turn in range(rounds + 1):
        for tool, work in tools.items():
            start = time.perf_counter()
            work()
            if turn:
                taken[tool].append(time.perf_counter() - start)
        print(name, "round", turn, file=sys.stderr)
    seconds = {tool: statistics.median(each) for tool, each in taken.items()}
    base = seconds["the passes alone"]
    case = f"{name}, {BATCHES} batches of {SAMPLES}x3x{size}x{size}, {network.dtype}"
    return [
        tables.row("time", case, tool, value, f"{value:.1f} s" + ("" if value == base else f", {value / base:.2f}×"))
        for tool, value in seconds.items()
    ]


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rows = [row for name in CHOSEN for row in times(name, NETWORKS[name], given.size, given.rounds)]
    tables.write(CSV, rows)
    found = tables.read(CSV)
    PAGE.write_text(tables.page(PAGE.read_text(encoding="utf-8"), found, ["time"]), encoding="utf-8")
    print(tables.table(found, "time"))


if __name__ == "__main__":
    main()

"""What ``fuse``, ``lean`` and ``fold`` do for the networks of others: ``benchmarks/models.csv`` and ``docs/models.md``.

``python benchmarks/models.py`` measures what the file does not have yet, writes both after every network, and goes on
where it was when it is started again. ``--networks`` chooses some, ``--fresh`` measures them again, ``--draw`` only
writes the document; ``--batch`` and ``--size`` make it quick, for trying. The networks are those of ``networks.py``.

Each is rewritten for, and judged on, a few samples (``--example``), and timed on a whole batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from networks import NETWORKS, Network

from batchnorm.bench.contenders import EAGER, FOLD, FUSE, LEAN
from batchnorm.bench.environment import Environment, refuse_a_mixture
from batchnorm.bench.model import Model, measure_model
from batchnorm.bench.peers import chosen
from batchnorm.bench.row import INFERENCE, MODEL, Row, merged, read, write
from batchnorm.bench.step import Step
from batchnorm.bench.summary import Finding, wrong
from batchnorm.errors import ArgumentError

CSV = Path(__file__).with_suffix(".csv")
DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
ROUNDS = 6
EXAMPLE = 4

RESNET, MOBILENET, DENSENET = list(NETWORKS)[:3]


def measure(name: str, network: Network, batch: int, size: int, example: int, rounds: int) -> list[Row]:
    """The rows of one network."""
    torch.manual_seed(0)
    module, inputs = network.module(size), network.inputs(batch, size)
    model = Model(name, Step(module, inputs), inputs[:example])
    about = {"shape": "x".join(map(str, inputs.shape)), "format": network.format, "dtype": network.dtype}
    return [replace(row, **about) for row in measure_model(model, chosen([]), rounds)]


# --- what the rows say ---------------------------------------------------------------------------------------

Rows = dict[tuple[str, str], Row]


def by_network(rows: Sequence[Row]) -> dict[str, Rows]:
    """The rows of each network by mode and contender."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.mode, row.contender] = row
    return found


def findings(rows: Sequence[Row]) -> list[Finding]:
    """The numbers beside the project's targets."""
    found = by_network(rows)

    def speedup(name: str) -> float | None:
        row = found.get(name, {}).get((MODEL, FUSE))
        return None if row is None else row.speedup

    def lean(name: str) -> tuple[float | None, float | None]:
        of = found.get(name, {})
        row = of.get((MODEL, LEAN))
        return (None, None) if row is None else (share_of_eager(row, of), row.ratio)

    def finding(words: str, value: float | None, target: float, most: bool = False) -> Finding:
        return Finding(words, value, target, int(value is not None), most)

    return [
        finding(f"{RESNET}, bfloat16 autocast: eager ÷ fuse", speedup(RESNET), 1.25),
        finding(f"{MOBILENET}: eager ÷ fuse", speedup(MOBILENET), 1.25),
        finding(f"{RESNET}: bytes kept with lean ÷ eager's", lean(RESNET)[0], 0.6, most=True),
        finding(f"{DENSENET}: bytes kept with lean ÷ eager's", lean(DENSENET)[0], 0.56, most=True),
        finding(f"{RESNET}: time with lean ÷ without", lean(RESNET)[1], 1.05, most=True),
        finding(f"{DENSENET}: time with lean ÷ without", lean(DENSENET)[1], 1.05, most=True),
    ]


def share_of_eager(row: Row, of: Rows) -> float | None:
    """The bytes that a contender keeps, by those that the model as given keeps."""
    eager = of.get((row.mode, EAGER))
    return (
        None if eager is None or not eager.kept_bytes or row.kept_bytes is None else row.kept_bytes / eager.kept_bytes
    )


def page(rows: Sequence[Row]) -> str:
    """The document: targets, what became of the norms, times and bytes, reasons."""
    lines = [
        "# The networks of others, rewritten",
        "",
        "Written by `python benchmarks/models.py`; every number is in `benchmarks/models.csv`.",
        "",
    ]
    if not rows:
        return "\n".join([*lines, "Nothing is measured yet.", ""])
    return "\n".join([*lines, *_introduction(rows), *_tables(by_network(rows)), *_reasons(by_network(rows)), ""])


def _introduction(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "Each network is taken as its library builds it, with random weights (CREPE's are trained), and rewritten by",
        "one call: `fuse(model, example)` for training, `fold(model, example)` for inference; `lean` is the fused",
        "model's step with `with lean():` around its forward pass. A training step is forward, loss and backward.",
        "Results are compared first, as [bench.md](bench.md) says, on a few samples. Times are medians of interleaved",
        "rounds, ratios have 95% intervals, and a ratio above 1 means that ours is faster than eager torch.",
        "",
    )
    on = rows[-1].environment
    yield f"torch {on.torch}, {on.threads} threads, {on.processor}, {on.instruction_set}, {on.date}."
    yield from ("", "## Beside the targets", "", "| what | measured | target | |", "|---|---|---|---|")
    for finding in findings(rows):
        name, value, target, _ = finding.cells
        yield f"| {name} | {value} | {target} | {({True: 'met', False: 'missed'}).get(finding.met, '')} |"


def _tables(found: dict[str, Rows]) -> Iterator[str]:
    yield from ("", "## Norms", "")
    yield from (
        "*Replaced* norms are this library's and computed alone; *kept* ones are as they were. Errors are the largest",
        "relative difference of an output, gradient or buffer (`fold`: output) from the model as given, in float64 and",
        "in its own dtype; random weights and few samples make the roundings of some networks grow.",
        "",
        "| network | input | fuse: fused / replaced / kept | errors | fold: folded / kept | errors |",
        "|---|---|---|---|---|---|",
    )
    for name, of in found.items():
        fuse, fold, eager = of.get((MODEL, FUSE)), of.get((INFERENCE, FOLD)), next(iter(of.values()))
        setting = f"{eager.shape}, {eager.format}, {eager.dtype}{' autocast' * (eager.dtype != 'float32')}"
        fused = _counts(fuse, "norms_fused", "norms_replaced", "norms_kept")
        folded = _counts(fold, "norms_folded", "norms_kept")
        yield f"| {name} | {setting} | {fused} | {_errors(fuse)} | {folded} | {_errors(fold)} |"
    yield from ("", "## Time and memory", "")
    yield from (
        "| network | eager, a step | eager ÷ fuse | eager ÷ lean | lean ÷ fuse | bytes kept: eager | fuse | lean | "
        "inference, eager | eager ÷ fold |",
        "|---|---|---|---|---|---|---|---|---|---|",
    )
    for name, of in found.items():
        eager, fuse, lean = (of.get((MODEL, who)) for who in (EAGER, FUSE, LEAN))
        cells = [_milliseconds(eager), _speedup(fuse), _speedup(lean), _ratio(lean), _kept(eager)]
        cells += [_share(fuse, of), _share(lean, of)]
        cells += [_milliseconds(of.get((INFERENCE, EAGER))), _speedup(of.get((INFERENCE, FOLD)))]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _reasons(found: dict[str, Rows]) -> Iterator[str]:
    yield from ("", "## What became of each norm, and why", "")
    for name, of in found.items():
        for (_, contender), row in of.items():
            told = [each for each in row.norms.split(" | ") if each]
            if row.reason:
                told.append(f"not timed: {row.reason}")
            if told:
                yield f"- {name}, `{contender}`: {'; '.join(told)}."


def _counts(row: Row | None, *names: str) -> str:
    counts = [None if row is None else getattr(row, name) for name in names]
    return "–" if None in counts else " / ".join(map(str, counts))


def _errors(row: Row | None) -> str:
    found = [] if row is None else [row.max_error_float64, row.max_error]
    return ", ".join(f"{error:.0e}" for error in found if error is not None) or "–"


def _milliseconds(row: Row | None) -> str:
    return "–" if row is None or row.microseconds is None else f"{row.microseconds / 1000:.4g} ms"


def _speedup(row: Row | None) -> str:
    return (
        "–"
        if row is None or row.speedup is None
        else f"{row.speedup:.2f} [{row.speedup_low:.2f} {row.speedup_high:.2f}]"
    )


def _ratio(row: Row | None) -> str:
    return "–" if row is None or row.ratio is None else f"{row.ratio:.2f} [{row.ratio_low:.2f} {row.ratio_high:.2f}]"


def _kept(row: Row | None) -> str:
    return "–" if row is None or row.kept_bytes is None else f"{row.kept_bytes / 1e6:.4g} MB"


def _share(row: Row | None, of: Rows) -> str:
    share = None if row is None else share_of_eager(row, of)
    return "–" if share is None else f"{share:.3f}"


def written(rows: Sequence[Row], csv: Path) -> list[Row]:
    """Writes the file, and the document from it, which rounds; gives the rows as the file has them."""
    write(rows, csv)
    rows = read(csv)
    document_of(csv).write_text(page(rows), encoding="utf-8")
    return rows


def document_of(csv: Path) -> Path:
    """Where the document of a file of rows is."""
    return DOCUMENT if csv == CSV else csv.with_suffix(".md")


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes; exit code 1 where a result of ours breaks the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", metavar="WORD", default="", help="those whose names have it in them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch", type=int, help="samples a step (default: the network's own)")
    parser.add_argument("--size", type=int, help="of each spatial dimension (default: the network's own)")
    parser.add_argument("--example", type=int, default=EXAMPLE, help="samples to rewrite for, and to judge on")
    parser.add_argument("--fresh", action="store_true", help="measure the chosen networks again")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--csv", type=Path, default=CSV)
    options = parser.parse_args(arguments)

    rows = read(options.csv) if options.csv.exists() else []
    there = {row.case for row in rows}
    names = [name for name in NETWORKS if options.networks.lower() in name.lower()]
    if not names:
        raise ArgumentError(f"no network has {options.networks!r} in its name.", f"use one of {', '.join(NETWORKS)}.")
    waiting = [] if options.draw else [name for name in names if options.fresh or name not in there]
    if waiting:
        refuse_a_mixture((row.environment for row in rows), Environment.now(0.0))
    started = time.perf_counter()
    for number, name in enumerate(waiting, start=1):
        network = NETWORKS[name]
        batch, size = options.batch or network.batch, options.size or network.size
        found = measure(name, network, batch, size, min(options.example, batch), options.rounds)
        rows = sorted(merged(rows, found), key=lambda row: list(NETWORKS).index(row.case))
        rows = written(rows, options.csv)
        told = (f"{row.contender} {row.status if row.speedup is None else f'{row.speedup:.2f}'}" for row in found)
        print(f"[{number}/{len(waiting)}, {time.perf_counter() - started:.0f} s] {name}: {', '.join(told)}", flush=True)
    rows = written(rows, options.csv)
    for finding in findings(rows):
        print(": ".join(filter(None, finding.cells[:2])), f"(target: {finding.cells[2]})")
    print(f"{options.csv}: {len(rows)} rows; written: {document_of(options.csv)}")
    return 1 if wrong(rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ArgumentError as error:
        sys.exit(f"benchmarks/models.py: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "benchmarks/models.py: interrupted; finished networks are kept, and the same command goes on from there."
        )

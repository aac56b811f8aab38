"""The rows behind the README's picture: every case of ``batchnorm bench``, beside eager torch, torch.compile and JAX.

``python benchmarks/cpu.py`` measures what ``benchmarks/cpu.csv`` does not have yet, writes that file after every case,
and draws ``docs/figures/cpu.svg`` from it. Stopped, it goes on where it was; ``--cases`` splits a long run;
``--fresh`` measures the chosen cases again, as is right after a change of the kernels; ``--draw`` only draws.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from batchnorm.bench.cases import all_cases, select
from batchnorm.bench.contenders import BATCHNORM
from batchnorm.bench.environment import Environment, refuse_a_mixture
from batchnorm.bench.peers import PEERS, chosen
from batchnorm.bench.row import merged, read, write
from batchnorm.bench.run import ROUNDS, measure_all
from batchnorm.bench.summary import findings, wrong
from batchnorm.errors import ArgumentError

CSV = Path(__file__).with_suffix(".csv")
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "cpu.py"


def draw(csv: Path) -> Path:
    """Draws the picture from the file alone."""
    spec = importlib.util.spec_from_file_location("figure_cpu", FIGURE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = FIGURE.with_suffix(".svg") if csv == CSV else csv.with_suffix(".svg")
    path.write_text(module.drawn(read(csv)), encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes, draws; exit code 1 where a result of ours breaks the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", action="append", metavar="WORDS", help="as of batchnorm bench (default: usual)")
    parser.add_argument("--peers", action="append", metavar="NAMES", help=f"default: all of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--fresh", action="store_true", help="measure the chosen cases again")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--csv", type=Path, default=CSV)
    options = parser.parse_args(arguments)

    rows = read(options.csv) if options.csv.exists() else []
    if not options.draw:
        peers = chosen(options.peers or ["all"])
        contenders = {BATCHNORM, *(peer.name for peer in peers)}
        refuse_a_mixture((row.environment for row in rows), Environment.now(0.0))
        there: dict[str, set[str]] = {}
        for row in rows:
            there.setdefault(row.case, set()).add(row.contender)
        cases = [
            case for case in select(options.cases or []) if options.fresh or contenders - there.get(case.name, set())
        ]
        place = {case.name: number for number, case in enumerate(all_cases())}
        started = time.perf_counter()
        for number, (case, found) in enumerate(measure_all(cases, peers, options.rounds), start=1):
            rows = sorted(merged(rows, found), key=lambda row: place[row.case])
            write(rows, options.csv)
            ratios = (f"{row.contender} {row.status if row.ratio is None else f'{row.ratio:.2f}'}" for row in found[1:])
            done = f"[{number}/{len(cases)}, {time.perf_counter() - started:.0f} s]"
            print(f"{done} {case.name}: {found[0].status}; {', '.join(ratios)}", flush=True)
    for finding in findings(rows):
        print(
            ": ".join(filter(None, finding.cells[:2])),
            f"(target: {finding.cells[2] or 'none'}; {finding.cells[3]} cases)",
        )
    if rows:
        print(f"{options.csv}: {len(rows)} rows; drawn: {draw(options.csv)}")
    return 1 if wrong(rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ArgumentError as error:
        sys.exit(f"benchmarks/cpu.py: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks/cpu.py: interrupted; finished cases are kept, and the same command goes on from there.")

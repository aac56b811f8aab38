"""Rows of results as a CSV file, and as tables in a page: what the scripts beside this share.

A row has a ``table``, a ``case`` (its line), a ``tool`` (its column), a ``value`` and the ``text`` that the page shows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from batchnorm.machine import processor

__all__ = ["page", "read", "row", "table", "write"]

FIELDS = ("table", "case", "tool", "value", "text", "threads", "processor", "torch", "date")


def row(table: str, case: str, tool: str, value: float, text: str) -> dict[str, Any]:
    """One result, and what it was measured on."""
    where = {"threads": torch.get_num_threads(), "processor": processor(), "torch": torch.__version__}
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return {"table": table, "case": case, "tool": tool, "value": f"{value:.3g}", "text": text, **where, "date": date}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All rows, in place of what the file had."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """The rows on disk."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[Mapping[str, str]], name: str) -> str:
    """One table: a line a case, a column a tool."""
    chosen = [each for each in rows if each["table"] == name]
    tools = list(dict.fromkeys(each["tool"] for each in chosen))
    lines = [f"| | {' | '.join(tools)} |", "|---" * (len(tools) + 1) + "|"]
    for case in dict.fromkeys(each["case"] for each in chosen):
        cells = {each["tool"]: each["text"] for each in chosen if each["case"] == case}
        lines.append(f"| {case} | {' | '.join(cells.get(tool, '') for tool in tools)} |")
    return "\n".join(lines)


def page(text: str, rows: Sequence[Mapping[str, str]], names: Iterable[str]) -> str:
    """The page with these tables between their marks, ``<!-- table NAME -->`` and ``<!-- end -->``."""
    for name in names:
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, after = text.split(begin)
        text = before + begin + table(rows, name) + "\n" + end + after.split(end, 1)[1]
    return text

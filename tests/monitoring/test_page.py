"""The tables of docs/monitor.md are those of the committed rows, and those rows keep to what was promised."""

from __future__ import annotations

from surgery.models import script

tables, benchmark = script("result_tables"), script("monitor")


def test_the_page_has_the_rows():
    text = benchmark.PAGE.read_text(encoding="utf-8")
    assert tables.page(text, tables.read(benchmark.CSV), benchmark.TABLES) == text


def test_at_most_two_percent_of_a_step():
    rows = [row for row in tables.read(benchmark.CSV) if row["tool"].startswith("overhead")]
    assert {row["case"] for row in rows} == set(benchmark.CASES)
    assert all(float(row["value"]) <= 2 for row in rows)


def test_every_cell_can_be_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "CASES", {"tiny": (lambda: benchmark._mobilenet(0.1), 2, 32)})
    rows = benchmark.steps("tiny", 1) + benchmark.runs("tiny", 1, 2)
    assert len({row["tool"] for row in rows}) == 6

"""The tables of docs/recalibrate.md are those of the committed rows, and what they say of this library is so."""

from __future__ import annotations

import pytest
import torch

from batchnorm import recalibrate
from surgery.models import script

tables, benchmark = script("result_tables"), script("recalibrate")

# Its own test starts two processes: test_recalibrate_ranks.py.
HERE = [name for name in benchmark.FAILURES if "ranks" not in name]


def test_the_page_has_the_rows():
    text = benchmark.PAGE.read_text(encoding="utf-8")
    assert tables.page(text, tables.read(benchmark.CSV), benchmark.TABLES) == text


@pytest.mark.parametrize("case", HERE)
def test_no_failure_is_ours(case):
    assert not benchmark.FAILURES[case](recalibrate)


@pytest.mark.parametrize("case", HERE)
def test_each_failure_can_be_seen(case):
    """torch's tool has them all, so the checks do find them."""
    assert benchmark.FAILURES[case](benchmark.update_bn)


@pytest.mark.parametrize("case", benchmark.ACCURACY)
def test_as_accurate_as_the_table_says(case):
    mean, var = benchmark.errors(benchmark.ACCURACY[case], recalibrate)
    resolution = torch.finfo(torch.float32).eps
    assert mean <= resolution
    assert var <= resolution

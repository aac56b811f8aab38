"""The tables of what layers cost are those of the committed rows."""

import pytest

from surgery.models import script

tables, layers = script("result_tables"), script("layers")


@pytest.mark.parametrize("page", layers.PAGES, ids=lambda path: path.name)
def test_a_page_has_the_rows(page):
    text = page.read_text(encoding="utf-8")
    assert tables.page(text, tables.read(layers.CSV), layers.PAGES[page]) == text

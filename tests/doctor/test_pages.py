import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from batchnorm.doctor.registry import registered

FOLDER = Path(__file__).parents[2] / "docs" / "rules"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rules_pages", FOLDER / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = script().pages()


def test_there_is_a_page_a_rule_and_the_table_and_nothing_else():
    assert {path.name for path in FOLDER.glob("*.md")} == {"README.md", *(f"{code}.md" for code in registered())}


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_what_the_rules_file_says(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name], "run `python docs/rules/pages.py`"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[name]):
        target = link.strip()  # which may begin a line of its own
        assert target.startswith("https://") or (FOLDER / target).exists(), link


def test_examples_are_fenced():
    fenced = script().fenced
    text = "Words.\n\n    >>> 1 + 1\n    2\n    >>> if x:\n    ...     y\n\nWords.\n\n    plain\n\n    >>> end"
    assert fenced(text) == (
        "Words.\n\n```pycon\n>>> 1 + 1\n2\n>>> if x:\n...     y\n```\n\nWords.\n\n    plain\n\n```pycon\n>>> end\n```\n"
    )
    assert all(page.count("```") % 2 == 0 and "\n    >>> " not in page for page in PAGES.values())


def test_the_table_has_a_row_a_rule():
    rows = [line for line in PAGES["README.md"].splitlines() if line.startswith("| [BN")]
    assert len(rows) == len(registered())
    # Pipes inside of a cell would make another one.
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)
    assert all(cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)[1:-1])

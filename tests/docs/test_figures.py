import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
PICTURES = sorted(FIGURES.glob("*.svg"))


def test_there_are_pictures():
    assert PICTURES


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_the_committed_picture_is_what_its_script_draws(picture):
    script = picture.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"figure_{picture.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert picture.read_text(encoding="utf-8") == module.picture(), f"run `python docs/figures/{script.name}`"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_well_formed_and_says_in_words_what_it_shows(picture):
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    assert root.findtext("svg:title", namespaces=namespace)
    assert root.findtext("svg:desc", namespaces=namespace)

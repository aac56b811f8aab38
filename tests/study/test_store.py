import json
import math
import os
from pathlib import Path

import pytest

from batchnorm.files import write_whole
from batchnorm.study import Result, Run
from batchnorm.study.store import Store, normal, remove_leftovers

WANTED = {"experiment": "toy", "seed": 0, "settings": "Toy(rate=0.1)"}
RUN = Run("toy", "left", 0, None)
VALUES = {"a": 0.1, "b": 3, "c": True, "d": "é", "e": [1.0, math.inf, -math.inf, 1e-300], "f": math.nan}


def test_a_result_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(WANTED, RUN) is None
    store.put(WANTED, Result(RUN, VALUES, 1.5))
    found = store.get(dict(WANTED), RUN)
    assert found is not None
    assert repr(found) == repr(Result(RUN, VALUES, 1.5)) == repr(normal(Result(RUN, VALUES, 1.5)))
    (file,) = tmp_path.rglob("*.json")
    assert json.loads(file.read_text("utf-8"))["ingredients"] == WANTED  # a person can read what it is


@pytest.mark.parametrize("name", WANTED)
def test_another_ingredient_is_another_result(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    store.put(WANTED, Result(RUN, VALUES))
    assert store.get({**WANTED, name: "other"}, RUN) is None
    assert store.get({**WANTED, "new": 1}, RUN) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"ingredients": 1}', '{"values": {}, "seconds": 1}'])
def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    store.put(WANTED, Result(RUN, VALUES))
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    assert store.get(WANTED, RUN) is None
    store.put(WANTED, Result(RUN, VALUES))
    assert store.get(WANTED, RUN) is not None


def test_a_file_of_another_result_under_this_name_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(WANTED, Result(RUN, VALUES))
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text("utf-8").replace("rate=0.1", "rate=0.2"), "utf-8")
    assert store.get(WANTED, RUN) is None


def test_a_value_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="complex"):
        normal(Result(RUN, {"a": 1j}))  # type: ignore[dict-item]


def test_a_write_that_fails_leaves_the_former_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_whole(target, "one")
    assert target.stat().st_mode & 0o044 == 0o044  # others may read it, as the folder's owner allows

    def interrupted(self: Path, other: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, "two")
    assert target.read_text() == "one"
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_write_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, young, page = (tmp_path / name for name in (".a.json.x1.part", ".b.json.x2.part", "index.html"))
    for path in (old, young, page):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(page, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, page]

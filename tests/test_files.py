import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from batchnorm.files import whole, write_whole


def by_whole(path: Path, text: str) -> None:
    with whole(path) as aside:
        aside.write_text(text)


both = pytest.mark.parametrize("write", [write_whole, by_whole])


@both
def test_names_may_be_as_long_as_the_system_allows(tmp_path, write):
    path = tmp_path / ("n" * 251 + ".txt")
    write(path, "report")
    assert path.read_text() == "report"
    assert list(tmp_path.iterdir()) == [path]


@both
def test_of_a_link_the_file_is_written(tmp_path, write):
    (tmp_path / "there").mkdir()
    link, file = tmp_path / "link.txt", tmp_path / "there" / "real.txt"
    link.symlink_to(file)
    for text in ("first", "second"):  # it leads nowhere, and to a file
        write(link, text)
        assert link.is_symlink()
        assert file.read_text() == text
    assert list(file.parent.iterdir()) == [file]


@both
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_stays_one_and_gets_the_text(tmp_path, write):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write(pipe, "report")
    assert pipe.is_fifo()
    reader.join(10)
    assert read == ["report"]


@both
def test_a_folder_is_refused_before_anything_is_done(tmp_path, write):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write(tmp_path, "report")
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_into_is_not_replaced(tmp_path):
    script = (
        "from pathlib import Path; from batchnorm.files import write_whole\n"
        f"print('before'); write_whole(Path({str(tmp_path / 'log')!r}), 'report\\n'); print('after')"
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", script], stdout=log, check=True, timeout=120)
    assert (tmp_path / "log").read_text() == "before\nreport\nafter\n"


def test_a_name_that_no_encoding_has(tmp_path):
    write_whole(tmp_path / "page.txt", "layer \udc80 层")
    assert (tmp_path / "page.txt").read_text(encoding="utf-8") == "layer \\udc80 层"

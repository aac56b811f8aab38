import os

import pytest

from batchnorm.bench.apart import Apart, Lost
from bench.jobs import work

LONG = 60.0  # seconds: the start of a process imports torch


def test_what_raises_dies_or_hangs_is_lost_and_the_next_job_is_done():
    apart = Apart(work)
    try:
        first, process = apart("first", LONG)
        assert first == "first"
        assert process != os.getpid()
        with pytest.raises(Lost, match=r"^ValueError: it cannot$"):
            apart("raises", LONG)
        assert apart("second", LONG) == ("second", process)
        with pytest.raises(Lost, match=r"^no result within 0 s$"):
            apart("hangs", 0.2)
        again, other = apart("third", LONG)
        assert again == "third"
        assert other != process
        with pytest.raises(Lost, match=r"^its process died \(exit code 3\)$"):
            apart("dies", LONG)
        assert apart.process is None
    finally:
        apart.end()

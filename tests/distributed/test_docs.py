"""The script in docs/sync.md, as it is written there, on two ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "sync.md"


@pytest.mark.slow
def test_the_script_of_the_page_runs_and_ranks_agree(tmp_path: Path) -> None:
    block = re.search(r"```python\n(# train\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    script = tmp_path / "train.py"
    script.write_text(block[1])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    means = dict(re.findall(r"rank (\d): mean (-?\d+\.\d{6})", done.stdout))
    assert set(means) == {"0", "1"}, done.stdout
    assert means["0"] == means["1"]

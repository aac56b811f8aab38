"""``torchrun`` once for a number of ranks, whichever test process asks first, and what became of each check."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

SCRIPT = Path(__file__).with_name("ranks.py")
SECONDS = 150


def _run(ranks: int, names: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*command, str(SCRIPT), str(folder), *names],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            output.write(f"\nNot done after {SECONDS} seconds.\n")
        finally:
            # torchrun starts its ranks in sessions of their own, and ends them on SIGTERM.
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def results(ranks: int, names: list[str], shared: Path) -> dict[str, str]:
    """For each check the failures of the ranks, empty where there are none. ``shared``: by all test processes."""
    folder = shared / f"torchrun-{ranks}"
    with FileLock(shared / f"torchrun-{ranks}.lock"):
        if not folder.exists():
            folder.mkdir()
            _run(ranks, names, folder)
    found: dict[str, str] = {}
    output = (folder / "output.txt").read_text()
    files = [folder / f"{rank}.json" for rank in range(ranks)]
    every = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    for name in names:
        failures = [
            f"rank {rank}: {one[name]['failure']}" for rank, one in enumerate(every) if one.get(name, {}).get("failure")
        ]
        missing = [str(rank) for rank, one in enumerate(every) if name not in one]
        if missing:
            before = [other for other in names if any(one.get(other, {}).get("failure") for one in every)]
            failures.append(f"not run on rank {', '.join(missing)}, after {before or 'all'}:\n{output[-3000:]}")
        found[name] = "\n".join(failures)
    return found


def shared_folder(base: Path) -> Path:
    """Of all processes of a test run: pytest-xdist gives each a folder in one."""
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

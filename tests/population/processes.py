"""A script on several processes at once, and what each of them found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock

import batchnorm
from distributed.launch import shared_folder

SECONDS = 150


def found_by_ranks(script: ModuleType, size: int, base: Path) -> list[dict[str, Any]]:
    """Runs ``script RANK SIZE FOLDER`` for each rank, which leaves ``FOLDER/RANK.pt``; once in a run of tests."""
    name = Path(str(script.__file__)).stem
    folder = shared_folder(base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            _run(script, size, folder)
            (folder / "done").touch()
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _run(script: ModuleType, size: int, folder: Path) -> None:
    source = str(Path(batchnorm.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script.__file__), str(rank), str(size), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()

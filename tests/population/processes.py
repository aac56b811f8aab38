"""A script on several processes at once, and what each of them found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import batchnorm

SECONDS = 150


def found_by_ranks(script: ModuleType, size: int, folder: Path) -> list[dict[str, Any]]:
    """Runs ``script RANK SIZE FOLDER`` for each rank, which leaves ``FOLDER/RANK.pt``."""
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
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]

"""``SyncBatchNorm`` on one GPU: a group of one rank over nccl, and two ranks that share it over gloo.

The same checks run on the CPU, and those of one rank also by the Triton kernels, in Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from batchnorm.ops import synced
from nn.every_layer import world_of_one
from nn.sync_checks import WITH_ONE_RANK, WITH_SEVERAL_RANKS

SECONDS = 180
Check = Callable[[str], None]

gpu = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"))
devices = pytest.mark.parametrize("device", ["cpu", gpu])
checks = pytest.mark.parametrize("check", WITH_ONE_RANK, ids=lambda check: check.__name__)


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[None]:
    device = request.getfixturevalue("device")
    if device == "cuda" and dist.is_nccl_available():
        with world_of_one("nccl", torch.device("cuda", torch.cuda.current_device())):
            yield
    else:
        with world_of_one("gloo"):
            yield


@devices
@checks
def test_one_rank(check: Check, device: str, group: None) -> None:
    check(device)


@checks
@pytest.mark.parametrize("device", ["cpu"])
def test_one_rank_by_triton(check: Check, device: str, group: None) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from batchnorm.ops.triton import kernels
    from ops.triton_interpreter import is_interpreted
    from ops.triton_serving import serving

    if not is_interpreted:
        pytest.skip("Triton compiles here, and kernels for the CPU are its interpreter's alone")
    with serving(), patch.object(synced, "rank_kernels", lambda input: kernels):
        check(device)


@devices
def test_two_ranks(device: str, tmp_path: Path) -> None:
    """On a GPU they share it, which nccl refuses: gloo copies by way of the host."""
    script = Path(__file__).with_name("sync_ranks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, str(rank), "2", device],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert output.count("passed") == len(WITH_SEVERAL_RANKS)

"""One of two ranks: ``losing.py RANK FOLDER WAY``. The second is lost; the first writes what it got instead."""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import batchnorm


def main(rank: int, folder: Path, way: str) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=20)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    layer = batchnorm.SyncBatchNorm(3)
    x = torch.randn(4, 3, requires_grad=True)
    layer(x).sum().backward()  # both are there
    dist.barrier()
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2), dist.group.WORLD)
    before = [buffer.clone() for buffer in layer.buffers()]
    if rank == 1 and way == "dies":
        os._exit(1)
    if rank == 1 and way == "stops":
        time.sleep(8)
        os._exit(1)
    output = None
    try:
        output = layer(x)
        if rank == 1:  # dies between the two passes
            os._exit(1)
        output.sum().backward()
        what = "a result"
    except RuntimeError as error:
        what = f"an error, {error}"
    moved = not all(torch.equal(one, other) for one, other in zip(before, layer.buffers(), strict=True))
    (folder / "found.txt").write_text(f"{'moved' if moved else 'unmoved'}: {what}")
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

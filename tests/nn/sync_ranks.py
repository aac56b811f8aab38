"""One of several processes: ``sync_ranks.py FOLDER RANK SIZE DEVICE`` runs the checks over gloo."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from nn.sync_checks import WITH_SEVERAL_RANKS


def main(folder: str, rank: int, size: int, device: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60))
    for check in WITH_SEVERAL_RANKS:
        torch.manual_seed(0)
        check(device)
        print(f"{check.__name__} passed", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

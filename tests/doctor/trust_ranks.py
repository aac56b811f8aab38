"""One of the processes of ``trust.measure()``: ``python trust_ranks.py RANK SIZE FOLDER``."""

from __future__ import annotations

import sys
import warnings
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

if __name__ == "__main__":
    # In place of this folder, in which torch_audit is another.
    sys.path[0] = str(Path(__file__).parents[1])

from doctor.plant import Plant, plants
from doctor.torch_audit import audit


def looked(plant: Plant) -> dict[str, Any]:
    """What its rule and torch-audit say of a case, as plain data."""
    findings = plant.case().diagnose(select=[plant.rule]).findings
    return {
        "findings": [(finding.layer, finding.severity) for finding in findings],
        "remarks": [astuple(remark) for remark in audit(plant.case())],
    }


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save({str(plant): looked(plant) for plant in plants(ranks=size)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

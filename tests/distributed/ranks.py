"""What ``torchrun`` runs on each rank: the checks named, and a file of what became of each."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from distributed.checks import CHECKS, before_the_group


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    before_the_group()
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=40))
    results: dict[str, dict[str, object]] = {}
    for name in names:
        torch.manual_seed(dist.get_rank())
        start, failure = time.perf_counter(), ""
        try:
            CHECKS[name]()
        except BaseException:  # what pytest.raises raises is no Exception
            failure = traceback.format_exc()
        results[name] = {"failure": failure, "seconds": time.perf_counter() - start}
        # Before the next collective, which may be the last that this rank hears of.
        Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(results))
        failed = torch.tensor(bool(failure), dtype=torch.int32)
        dist.all_reduce(failed)
        if failed:
            break  # after a failure in the midst of a collective, the ranks are not where the others think
    # Without the interpreter's end, in which gloo aborts where a group is still alive somewhere.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

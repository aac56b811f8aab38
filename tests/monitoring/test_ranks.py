"""Under DistributedDataParallel, compiled or not: who writes, and that nobody trains otherwise or waits for long."""

from __future__ import annotations

import pytest
import torch

from monitoring import monitored_ranks
from population.processes import found_by_ranks


@pytest.mark.slow
def test_two_processes(tmp_path_factory):
    found = found_by_ranks(monitored_ranks, 2, tmp_path_factory.getbasetemp())
    for compiled in (False, True):
        for rank, each in enumerate(found):
            without, _ = each[f"{(compiled, None)}"]
            for all_ranks in (False, True):
                parameters, records = each[f"{(compiled, all_ranks)}"]
                for one, other in zip(parameters, without, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
                assert records == ([["1", "3"]] * 2 if all_ranks or rank == 0 else [])

"""One thread of arithmetic a test process (`make test` starts one process a core), and the same numbers every time."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)

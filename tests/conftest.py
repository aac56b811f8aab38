"""One thread of arithmetic a test process (`make test` starts one process a core), and the same numbers every time.

Where there is no GPU, Triton interprets its kernels. It looks for that wish when it is imported, which others do too.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)

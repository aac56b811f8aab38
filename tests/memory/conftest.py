import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What waits for Python's garbage collector counts as leaked."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 8, 6, 5, requires_grad=True)

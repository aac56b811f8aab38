"""Under ``torch.set_default_device("cuda")`` too, everything is made where it belongs.

The default device is the meta device here, on which no value survives, and the model's is the CPU. So the checks that a
GPU is to pass (``test_gpu.py``) run on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nn.every_layer import world_of_one
from on_device import CHECKS

# They make tensors themselves where the default is.
OWN = ("every_layer", "lean")


@pytest.fixture(autouse=True, scope="module")
def _group() -> Iterator[None]:
    with world_of_one("gloo"):
        yield


@pytest.mark.parametrize("name", CHECKS)
def test_on_the_cpu(name: str) -> None:
    with torch.device("cpu" if name in OWN else "meta"):
        CHECKS[name]("cpu")

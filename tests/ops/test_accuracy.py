"""Design rule 2 on adversarial inputs: never more than twice torch's own error (the table: benchmarks/accuracy.py)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from batchnorm.ops import cpu


def _load() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "accuracy.py"
    spec = importlib.util.spec_from_file_location("accuracy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module  # a dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


accuracy = _load()


def check(name: str, dtype: torch.dtype) -> None:
    rows = accuracy.measure(name, dtype, draws=3)
    assert {row.kernel for row in rows} == set(accuracy.KERNELS) - (
        {"eager"} if name in accuracy.BEYOND_EAGER else set()
    )
    broken = [row for row in rows if not row.holds]
    assert not broken, "\n".join(map(str, broken))


@pytest.mark.parametrize("name", list(accuracy.CASES))
def test_float32(name: str) -> None:
    check(name, torch.float32)


@pytest.mark.parametrize("name", accuracy.DOUBLE)
def test_float64(name: str) -> None:
    check(name, torch.float64)


def test_the_compiled_kernels_are_measured_where_they_are() -> None:
    assert list(accuracy.KERNELS) == [*(["cpu"] if cpu.available else []), "native", "eager"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", accuracy.HALF)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    check(name, dtype)

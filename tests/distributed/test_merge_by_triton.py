"""What ranks pack and merge by the Triton kernels, in Triton's interpreter, against the plain operations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from batchnorm.ops import ranks

pytest.importorskip("triton", reason="Triton is not installed")

from batchnorm.ops.triton import compute
from ops.triton_interpreter import is_interpreted, mended

if not is_interpreted:
    pytest.skip("Triton compiles here: test_sync_gpu.py has these kernels", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def _interpreted() -> Iterator[None]:
    with mended():
        yield


def _same(found: torch.Tensor, wanted: torch.Tensor, rtol: float) -> None:
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=rtol, atol=0, equal_nan=True)


# Channels of one program and of several; a rank alone, one that is empty, and one whose mask leaves nothing.
@pytest.mark.parametrize(("size", "channels"), [(1, 1), (2, 5), (3, 200), (9, 3)])
def test_as_plain_operations(size: int, channels: int) -> None:
    parts = []
    for rank in range(size):
        x = torch.randn(0 if rank == 1 else 3, channels, 4, dtype=torch.float64) + 1e6 * rank
        mask = torch.rand(len(x), 4) < (0.6 if rank % 4 else -1.0) if rank % 2 == 0 and rank else None
        parts.append(ranks.pack_moments(x, mask))
        _same(compute.pack_moments(x, mask), parts[-1], rtol=1e-12)
    for dtype, rtol in ((torch.float64, 1e-13), (torch.float32, 1e-7)):
        gathered = torch.stack(parts)
        for found, wanted in zip(compute.merge_parts(gathered, dtype), ranks.merge_parts(gathered, dtype), strict=True):
            _same(found, wanted, rtol)


def test_nothing_on_any_rank() -> None:
    empty, count, mean, var = compute.merge_parts(torch.zeros(3, 2 + 2 * 4, dtype=torch.float64), torch.float32)
    assert (int(empty), int(count), mean.tolist(), var.tolist()) == (1, 0, [0.0] * 4, [0.0] * 4)


def test_all_padding_is_not_nothing() -> None:
    part = ranks.pack_moments(torch.randn(2, 3, 4), torch.zeros(2, 4, dtype=torch.bool))
    empty, count, *_ = compute.merge_parts(part.unsqueeze(0), torch.float32)
    assert (int(empty), int(count)) == (0, 0)


def test_what_is_not_finite_reaches_its_channel_alone() -> None:
    x = torch.randn(4, 3, 2)
    x[0, 1, 0] = torch.inf
    parts = torch.stack([ranks.pack_moments(x, None), ranks.pack_moments(torch.randn(4, 3, 2), None)])
    _, _, mean, var = compute.merge_parts(parts, torch.float32)
    assert mean.isfinite().tolist() == var.isfinite().tolist() == [True, False, True]


def test_no_channels() -> None:
    x = torch.randn(4, 0, 2)
    part = compute.pack_moments(x, None)
    assert [tuple(each.shape) for each in compute.merge_parts(part.unsqueeze(0), torch.float32)] == [(), (), (0,), (0,)]

"""Where the Triton kernels look for a value: divisions by multiplication, and offsets near 2³¹ and beyond."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from batchnorm.ops.triton import addresses
from batchnorm.ops.triton.layout import divisor, walk
from ops.triton_interpreter import is_interpreted, mended

if not is_interpreted:
    pytest.skip("Triton compiles here: test_triton_gpu.py has tensors of more than 2³¹ values", allow_module_level=True)

spaces = st.integers(1, 2**31 - 1) | st.integers(1, 5000)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(space=spaces, p=st.integers(0, 2**31 - 1), near=st.integers(-2, 2))
@example(space=2**31 - 1, p=2**31 - 1, near=0)
@example(space=1, p=2**31 - 1, near=0)
def test_a_division_is_a_multiplication(space: int, p: int, near: int) -> None:
    """Of any position, and of those beside a multiple."""
    magic, shift = divisor(space)
    assert -(2**31) <= magic < 2**31
    for position in {p, min(max(p // space * space + near, 0), 2**31 - 1)}:
        found = (((position * (magic % 2**32)) >> 32) + position) >> shift
        assert found == position // space


@triton.jit
def offset_of(
    found, begin, c, samples, channels, space, magic, shift, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """Of 16 positions and one channel."""
    C, S, M = addresses.extent(samples, channels, space, UNIT, ROWS, WIDE)
    p = addresses.positions(tl.load(begin).to(M.dtype), 16, 1, False)
    at = addresses.offsets(p, tl.load(c).to(M.dtype), C, S, magic, shift, UNIT, ROWS, WIDE)
    tl.store(found + tl.arange(0, 16), at.to(tl.int64))


# Shape; below and beyond 2³¹ values, and one that is wide for what lies past its end.
LARGE = [
    (7, 3, 1000, 1000),
    (1, 2, 2**30 - 2**23),
    (2**14, 64, 45, 45),
    (2**26, 31),
    (2**26, 32),
    (2**27, 16),
    (5, 2, 2**30 + 1),
    (2**16 + 1, 64, 32, 32),
    (2, 2**30, 3),
]


@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_offsets_of_large_tensors(shape: tuple[int, ...], rows: bool) -> None:
    """The strides of such a tensor say where its values are; no memory is needed. And nothing comes around."""
    form = torch.empty(shape, device="meta")
    if rows:
        form = form.movedim(1, -1).contiguous().movedim(-1, 1)
    here = walk(form.shape, form.stride())
    assert here.wide == (form.numel() >= 2**31 - 2**24)
    assert here.rows == (rows or len(shape) == 2)
    samples, channels = shape[:2]
    space = here.positions // samples
    step = 1 if len(shape) == 2 else form.stride()[-1]
    found = torch.empty(16, dtype=torch.int64)
    with mended(overflows=True):
        for begin in {0, max(space - 8, 0), here.positions // 2, max(here.positions - 16, 0)}:
            for c in (0, channels - 1):
                there = torch.tensor([begin]), torch.tensor([c])
                offset_of[(1,)](found, *there, *here.extent, UNIT=here.unit, ROWS=here.rows, WIDE=here.wide)
                p = torch.arange(begin, begin + 16)
                wanted = p // space * form.stride()[0] + p % space * step + c * form.stride()[1]
                assert torch.equal(found, wanted), (begin, c)

"""The Triton kernels as its compiler makes them, for GPUs that need not be there: what compiles, and to what.

The code is read, not run: what it computes is tested in the interpreter and, where there is one, on a GPU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from batchnorm.activation import ACTIVATIONS
from batchnorm.ops.triton import tiles

ROOT = Path(__file__).parents[2]
SPLIT, WHOLE = (32, 64, 56, 56), (4, 64, 14, 14)
# Registers and threads of one processor of every GPU here, and what fills it when two programs are resident.
REGISTERS = 65536
STREAMS = {"partial_moments": 1, "normalize": 1, "partial_sums": 2, "input_gradient": 2}
# Fused multiply-adds that are spelled out: one for each z, the same wherever it is computed, and these besides, a place
# (of dx) and a channel (of the root in float32).
FUSED = {"normalize": 0, "partial_sums": 0, "input_gradient": 2}
PLACES, ROOT_FUSED = tiles._PLACES, 2
# A number or two are put aside before a loop and fetched after it. What does not fit takes many times as much.
FEW_BYTES = 16


def tools() -> bool:
    spec = find_spec("triton")
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else None
    return folder is not None and all((folder / name).exists() for name in ("ptxas", "cuobjdump"))


pytestmark = pytest.mark.skipif(not tools(), reason="no Triton, or one without NVIDIA's assembler")

Launch = dict[str, Any]


def compiled(cases: list[dict[str, Any]], folder: Path, targets: Sequence[str] = ("sm_90",)) -> list[list[Launch]]:
    """The launches of each case for each target, compiled in a process in which Triton does not interpret."""
    script = str(ROOT / "benchmarks" / "gpu_programs.py")
    jobs = json.dumps([{"target": target, "case": case} for target in targets for case in cases])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], input=jobs, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[list[Launch]] = json.loads(done.stdout)
    return found


def values(launch: Launch, warp: int = 32) -> int:
    """What a thread has of one tensor at one step."""
    sizes = launch["constants"]
    return sizes["BLOCK"] * sizes["CHANNELS"] * sizes.get("PLACES", 1) // (warp * launch["warps"])


def check(launch: Launch, case: dict[str, Any], warp: int = 32) -> None:
    """What holds for every launch on every GPU."""
    where = f"{launch['kernel']} of {case}: {launch}"
    # Who comes first differs from run to run, and with it the last digit of what is added atomically.
    assert launch["atomics"] == 0, where
    assert launch["spilled"] <= FEW_BYTES, where
    if case["dtype"] != "float64":
        assert launch["doubles"] == 0, where
    if launch["kernel"] in STREAMS:
        check_widths(launch, case, warp)


def check_widths(launch: Launch, case: dict[str, Any], warp: int) -> None:
    """Whatever lies side by side is loaded and stored at once, as far as a thread has it, by 16 bytes at most."""
    where = f"{launch['kernel']} of {case}: {launch}"
    streams = STREAMS[launch["kernel"]]
    if case.get("residual", False):
        smooth = ACTIVATIONS[case.get("activation", "relu")].derivative is not None
        needed = smooth and case["activation"] != "identity"
        streams += launch["kernel"] == "normalize" or (launch["pass"] == "backward" and needed)
    itemsize = getattr(torch, case["dtype"]).itemsize
    has = values(launch, warp)
    width = min(16, launch["constants"]["UNIT"] * itemsize, has // launch["constants"]["PLACES"] * itemsize)
    loaded, stored = (
        sum(int(bytes) * count for bytes, count in launch[kind].items() if int(bytes) == width)
        for kind in ("loads", "stores")
    )
    assert loaded >= has * itemsize * streams, where
    if launch["kernel"] in ("normalize", "input_gradient"):
        assert stored >= has * itemsize, where


def check_nvidia(launch: Launch, case: dict[str, Any]) -> None:
    check(launch, case)
    resident = REGISTERS // (launch["registers"] * 32 * launch["warps"])
    assert resident >= (2 if launch["kernel"] in STREAMS else 1), f"{launch['kernel']} of {case}: {launch}"


def uses_bits(case: dict[str, Any]) -> bool:
    return case.get("residual", False) and ACTIVATIONS[case.get("activation", "relu")].is_on is not None


def names(launches: list[Launch], pass_: str) -> list[str]:
    return [launch["kernel"] for launch in launches if launch["pass"] == pass_]


def test_every_layout_and_dtype(tmp_path: Path) -> None:
    """And what each pass launches: three times and twice where channels are split, else once and the buffers."""
    cases: list[dict[str, Any]] = [
        {"shape": SPLIT, "dtype": dtype, "layout": layout, "residual": dtype == "float32"}
        for dtype, layout in (("bfloat16", "planes"), ("bfloat16", "rows"), ("float32", "planes"), ("float32", "rows"))
    ]
    cases += [
        {"shape": (65536, 256), "dtype": "float16", "layout": "rows"},
        {"shape": (32, 32, 28, 28), "dtype": "float64"},
    ]
    cases = [{**case, "passes": ("train", "backward")} for case in cases]
    split = ["partial_moments", "finish_moments", "normalize"]
    for case, launches in zip(cases, compiled(cases, tmp_path), strict=True):
        for launch in launches:
            check_nvidia(launch, case)
            if launch["kernel"] in FUSED:
                where_z = 0 if uses_bits(case) and launch["pass"] == "backward" else 1
                in_root = 0 if case["dtype"] == "float64" else ROOT_FUSED
                assert launch["fused"] == in_root + PLACES * (where_z + FUSED[launch["kernel"]]), launch
        assert names(launches, "train") == split
        assert names(launches, "backward") == ["partial_sums", "finish_sums", "input_gradient"]


def largest(itemsize: int) -> int:
    return min(tiles.TILES[kernel][itemsize].values for kernel in ("whole_forward", "whole_backward"))


@pytest.mark.slow
def test_what_stays_on_the_chip(tmp_path: Path) -> None:
    """Channels that just fit into the table's largest tiles, with all that there is to keep, spill nothing either."""
    cases: list[dict[str, Any]] = [
        {"shape": shape, "dtype": dtype, "layout": layout, "activation": activation, "residual": True}
        for dtype, layout, activation, shape in (
            ("bfloat16", "planes", "relu", WHOLE),
            ("float32", "rows", "gelu", WHOLE),
            ("bfloat16", "planes", "silu", (largest(2) // 256, 32, 16, 16)),
            ("bfloat16", "rows", "silu", (largest(2) // 16 // 64, 64, 8, 8)),
            ("float32", "planes", "silu", (largest(4) // 256, 32, 16, 16)),
            ("float64", "planes", "silu", (largest(8) // 256, 32, 16, 16)),
        )
    ]
    cases = [{**case, "passes": ("train", "backward")} for case in cases]
    for case, launches in zip(cases, compiled(cases, tmp_path), strict=True):
        for launch in launches:
            check_nvidia(launch, case)
        assert names(launches, "train") == ["whole_forward", "move_running"]
        assert names(launches, "backward") == ["whole_backward"]


@pytest.mark.slow
def test_single_values_need_no_other_thread(tmp_path: Path) -> None:
    """Where each value is computed by itself none goes through shared memory, whatever comes with it.

    But where bits of planes are written and a thread has four values side by side, as of float32: two make a byte.
    """
    passes = ("normalize", "grad_input")
    # Without buffers: the one program that moves them sums over channels.
    train = {"shape": SPLIT, "dtype": "bfloat16", "residual": True, "buffers": False, "passes": ("train",)}
    cases: list[dict[str, Any]] = [
        {"shape": (128, 64, 14, 14), "dtype": "bfloat16", "activation": "identity", "mask": True, "passes": passes},
        {"shape": SPLIT, "dtype": "bfloat16", "residual": True, "mask": True, "passes": ("grad_input",)},
        {"shape": SPLIT, "dtype": "bfloat16", "layout": "rows", "residual": True, "passes": ("grad_input",)},
        {"shape": SPLIT, "dtype": "float32", "layout": "rows", "mask": True, "passes": ("normalize",)},
        {**train, "layout": "planes"},
        {**train, "layout": "rows"},
    ]
    for case, launches in zip(cases, compiled(cases, tmp_path), strict=True):
        for launch in launches:
            check_nvidia(launch, case)
            if launch["kernel"] in ("normalize", "input_gradient"):
                assert launch["shared"] == launch["barriers"] == 0, launch


@pytest.mark.slow
def test_every_activation(tmp_path: Path) -> None:
    """On small inputs, which compile quickly; dtypes and layouts by turns."""
    cases: list[dict[str, Any]] = [
        {
            "shape": (4, 16, 7, 7),
            "dtype": ("bfloat16", "float32", "float16")[turn % 3],
            "layout": ("planes", "rows")[turn % 2],
            "activation": activation,
            "passes": ("train", "backward"),
        }
        for turn, activation in enumerate(ACTIVATIONS)
    ]
    for case, launches in zip(cases, compiled(cases, tmp_path), strict=True):
        assert [launch["constants"].get("ACT") for launch in launches] == [case["activation"], None, case["activation"]]
        for launch in launches:
            check_nvidia(launch, case)


def test_offsets_in_64_bits(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"shape": SPLIT, "dtype": "bfloat16", "layout": layout, "wide": True, "passes": ("train", "grad_input")}
        for layout in ("planes", "rows")
    ]
    for case, launches in zip(cases, compiled(cases, tmp_path), strict=True):
        for launch in launches:
            assert launch["constants"].get("WIDE", True)
            check_nvidia(launch, case)


@pytest.mark.parametrize("targets", [("gfx942",), pytest.param(("sm_75", "sm_80", "gfx90a"), marks=pytest.mark.slow)])
def test_other_gpus(targets: tuple[str, ...], tmp_path: Path) -> None:
    """From the oldest that Triton compiles for on; AMD's have warps of 64."""
    passes = ("train", "backward")
    cases: list[dict[str, Any]] = [
        {"shape": SPLIT, "dtype": "bfloat16", "residual": True, "passes": passes},
        {"shape": (4, 16, 7, 7), "dtype": "float32", "layout": "rows", "activation": "silu", "passes": passes},
    ]
    found = iter(compiled(cases, tmp_path, targets))
    for target in targets:
        for case in cases:
            launches = next(found)
            assert len(launches) in (3, 6)
            for launch in launches:
                check(launch, case, 64 if target.startswith("gfx") else 32)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["planes", "rows"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_all_of_it(dtype: str, layout: str, tmp_path: Path) -> None:
    """Every activation with and without residual and mask, split and whole."""
    cases: list[dict[str, Any]] = [
        {"shape": shape, "dtype": dtype, "layout": layout, "activation": activation, "residual": more, "mask": more}
        for shape in (SPLIT, WHOLE)
        for activation in ACTIVATIONS
        for more in (False, True)
    ]
    for case, launches in zip(cases, compiled(cases, tmp_path), strict=True):
        for launch in launches:
            check_nvidia(launch, case)

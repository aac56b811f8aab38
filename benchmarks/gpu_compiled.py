"""What the compiler makes of the GPU kernels: ``benchmarks/gpu_compiled.csv``.

``python benchmarks/gpu_compiled.py`` needs Triton and no GPU. Nothing here is a time: these are the registers,
instructions and accesses to memory in the code that Triton and NVIDIA's assembler make, counted, for the tiles of the
table in ``ops/triton/tiles.py``. ``share`` puts instructions beside bytes: the time in which an H200 could issue the
ones, divided by that in which its memory could move the others, both by the data sheet. Far below 1 memory is the
limit, above 1 it is not.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_programs import Case, launches

CSV = Path(__file__).with_name("gpu_compiled.csv")
# The data sheet of an H200 SXM: processors, what each issues a cycle, cycles a second at its highest; bytes a second.
ISSUED = 132 * 4 * 32 * 1.98e9
MOVED = 4.8e12
# One processor of compute capability 9.0.
REGISTERS, THREADS, SHARED, PROGRAMS = 65536, 2048, 227 * 1024, 32
SPLIT, TABULAR = (64, 64, 56, 56), (65536, 256)
LARGEST = {"bfloat16": (32, 64, 16, 16), "float32": (32, 64, 16, 16), "float64": (16, 64, 16, 16)}
LARGEST_ROWS = {"bfloat16": (8, 64, 8, 8), "float32": (16, 64, 8, 8), "float64": (16, 64, 8, 8)}
_COUNTED = ("warps", "registers", "spilled", "shared", "barriers", "atomics", "doubles")
TRAINING, ALL = ("train", "backward"), ("train", "backward", "normalize")


def cases() -> Iterator[tuple[str, Case]]:
    """Targets, and what is compiled for them."""
    for layout in ("planes", "rows"):
        for dtype in ("bfloat16", "float32", "float64"):
            yield "sm_90", Case(SPLIT, dtype, layout, buffers=False, passes=ALL)
            yield "sm_90", Case(SPLIT, dtype, layout, residual=True, buffers=False, passes=TRAINING)
            largest = (LARGEST if layout == "planes" else LARGEST_ROWS)[dtype]
            for activation in ("relu", "silu"):
                case = Case(largest, dtype, layout, activation, residual=True, buffers=False, passes=TRAINING)
                yield "sm_90", case
        for activation in ("identity", "silu", "gelu", "gelu_tanh", "hardswish", "elu"):
            yield "sm_90", Case(SPLIT, "bfloat16", layout, activation, buffers=False, passes=("normalize", "backward"))
        yield "sm_90", Case(SPLIT, "bfloat16", layout, mask=True, buffers=False, passes=TRAINING)
    yield "sm_90", Case((64, 64, 49, 49), "bfloat16", buffers=False, passes=TRAINING)
    yield "sm_90", Case(TABULAR, "float32", "rows", buffers=False, passes=TRAINING)
    yield "sm_90", Case(SPLIT, "bfloat16", wide=True, buffers=False, passes=TRAINING)
    for target in ("sm_75", "sm_80", "gfx90a", "gfx942"):
        for layout in ("planes", "rows"):
            yield target, Case(SPLIT, "bfloat16", layout, residual=True, buffers=False, passes=TRAINING)


def resident(launch: dict[str, Any]) -> int:
    """How many programs one processor holds at once."""
    warps = launch["warps"]
    registers = -(-launch["registers"] // 8) * 8 * 32 * warps
    shared = SHARED // (launch["shared"] + 1024)  # each takes a kilobyte more
    return min(REGISTERS // registers, THREADS // (32 * warps), shared, PROGRAMS)


def executed(launch: dict[str, Any]) -> tuple[int, int]:
    """Instructions that a thread executes, in a loop for each step, and the values of one tensor that it has."""
    sizes = launch["constants"]
    steps = launch["steps"] if launch["loop"] else 1
    values = sizes["BLOCK"] * sizes["CHANNELS"] * sizes.get("PLACES", 1) // (32 * launch["warps"])
    return launch["instructions"] + launch["loop"] * (steps - 1), values * steps


def bytes_a_value(case: Case, kernel: str, pass_: str) -> float:
    """What memory moves, each tensor once, for a value."""
    item = torch.empty((), dtype=getattr(torch, case.dtype)).element_size()
    kept = case.tensors["bits"] is not None
    smooth = case.activation not in ("identity", "relu")
    bits = 0.125 if kept else 0.0
    if kernel == "partial_moments":
        return item
    if kernel in ("normalize", "whole_forward"):
        return item * (2 + case.residual) + (bits if pass_ == "train" else 0.0)
    read = item * (2 + (case.residual and smooth)) + bits
    written = 0 if kernel == "partial_sums" else item * (1 + case.residual)
    return read + written


def row(target: str, case: Case, launch: dict[str, Any]) -> dict[str, Any]:
    """One launch as a row; what is not known of it is left empty."""
    sizes = launch["constants"]
    found = {
        "target": target,
        "triton": triton.__version__,
        "dtype": case.dtype,
        "layout": case.layout,
        "shape": "x".join(map(str, case.shape)),
        "activation": case.activation,
        "with": " ".join(word for word in ("residual", "mask", "wide") if getattr(case, word)),
        "pass": launch["pass"],
        "kernel": launch["kernel"],
        "programs": launch["programs"],
        "lanes": sizes.get("BLOCK", ""),
        "channels": sizes["CHANNELS"],
        "places": sizes.get("PLACES", 1),
        "steps": launch["steps"],
        **{
            name: launch[name] for name in ("warps", "registers", "spilled", "shared", "barriers", "atomics", "doubles")
        },
        **{name: " ".join(f"{count}x{width}" for width, count in launch[name].items()) for name in ("loads", "stores")},
    }
    if target == "sm_90":
        found["resident"] = resident(launch)
        if "BLOCK" in sizes:
            instructions, values = executed(launch)
            bytes = bytes_a_value(case, launch["kernel"], launch["pass"])
            found |= {"values": values, "instructions": round(instructions / values, 1), "bytes": bytes}
            found["share"] = round(instructions / values / ISSUED / (bytes / MOVED), 2)
    return found


def main() -> None:
    """Writes the table."""
    rows = []
    for number, (target, case) in enumerate(cases()):
        print(f"{number} {target} {case.dtype} {case.layout} {case.activation}", file=sys.stderr)
        rows += [row(target, case, launch) for launch in launches(case, target, loops=target == "sm_90")]
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in rows for name in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()

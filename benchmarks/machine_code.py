"""What stands in the code that Triton's compiler made: registers, spills, accesses to memory, instructions a value.

Read from PTX, from the machine code of NVIDIA's GPUs (Triton brings NVIDIA's disassembler) and from AMD's assembly.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton

__all__ = ["of_amd", "of_nvidia", "sass"]

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_PTX_ACCESS = re.compile(r"\b(ld|st)\.global[.\w]*?(?:\.v(\d))?\.b(\d+)\b")
_SASS_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_AMD_WIDTH = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12}
_AMD_WIDTH["dwordx4"] = 16
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_(\w+)")


def of_nvidia(ptx: str, cubin: bytes, *, loops: bool = False) -> dict[str, Any]:
    """What one kernel for an NVIDIA GPU uses.

    Args:
        ptx: The code as Triton left it.
        cubin: The binary that ``ptxas`` made of it.
        loops: Whether to disassemble it too, and count what a turn of its longest loop takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(file))
        listing = _tool("nvdisasm", "-c", str(file)) if loops else ""
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    found = {
        "registers": registers,
        "spilled": stack + local,  # bytes a thread
        "loads": _widths(_PTX_ACCESS, ptx, "ld"),
        "stores": _widths(_PTX_ACCESS, ptx, "st"),
        "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)),
        "barriers": len(re.findall(r"\b(?:bar|barrier)\.\w*sync", ptx)),
        "shuffles": ptx.count("shfl.sync"),
        "shared_accesses": len(re.findall(r"\b(?:ld|st)\.shared", ptx)),
        "doubles": len(re.findall(r"\.f64\b", ptx)) - len(re.findall(r"\.reg \.f64", ptx)),
    }
    if loops:
        found |= sass(listing)
    return found


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def _widths(pattern: re.Pattern[str], ptx: str, which: str) -> dict[str, int]:
    """How many accesses there are of each width in bytes."""
    found = Counter(int(lanes or 1) * int(bits) // 8 for kind, lanes, bits in pattern.findall(ptx) if kind == which)
    return {str(width): found[width] for width in sorted(found)}


def sass(listing: str) -> dict[str, Any]:
    """Instructions in a listing of ``nvdisasm -c``: of all, and of the longest of the innermost loops with a load."""
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := _SASS_INSTRUCTION.match(line):
            code.append((instruction[2], instruction[3]))
    # Behind the last way out lie branches that are hardly ever taken, such as a division's, and what fills the page.
    code = code[: 1 + max(place for place, (name, _) in enumerate(code) if name == "EXIT")]
    loops = []
    for place, (name, rest) in enumerate(code):
        target = re.search(r"`\((\.L_x_\d+)\)", rest)
        if name.startswith("BRA") and target and labels.get(target[1], place) < place:
            loops.append((labels[target[1]], place + 1))
    inner = [loop for loop in loops if not any(_holds(loop, other) for other in loops)]
    loading = [loop for loop in inner if any(name.startswith("LDG") for name, _ in code[slice(*loop)])]
    begin, end = max(loading, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    names = [name for name, _ in code]
    return {
        "instructions": len(names),
        "loop": end - begin,
        "loop_loaded": sum(_sass_bytes(name) for name, _ in code[begin:end] if name.startswith("LDG")),
        "loop_names": dict(Counter(name.split(".")[0] for name, _ in code[begin:end]).most_common()),
        "names": dict(Counter(name.split(".")[0] for name in names).most_common()),
    }


def _holds(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    return loop != other and loop[0] <= other[0] and other[1] <= loop[1]


def _sass_bytes(name: str) -> int:
    parts = name.split(".")
    return 16 if "128" in parts else 8 if "64" in parts else 2 if "U16" in parts else 1 if "U8" in parts else 4


def of_amd(assembly: str) -> dict[str, Any]:
    """What one kernel for an AMD GPU uses; ``registers`` are those of vectors."""
    numbers = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", assembly)}
    accesses: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for kind, what in _AMD_ACCESS.findall(assembly):
        accesses[kind][_AMD_WIDTH[what.removesuffix("_d16_hi").removesuffix("_d16")]] += 1
    return {
        "registers": numbers["vgpr_count"],
        "spilled": 4 * (numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"]),
        **{f"{kind}s": {str(width): found[width] for width in sorted(found)} for kind, found in accesses.items()},
        "atomics": len(re.findall(r"\b(?:global|buffer|flat|ds)_(?:atomic|add|pk_add)", assembly)),
        "barriers": len(re.findall(r"\bs_barrier\b", assembly)),
        "doubles": len(re.findall(r"^\s+v_\w*f64", assembly, re.MULTILINE)),
    }

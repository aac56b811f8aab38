"""The machine that this runs on: its processor's model and the size of its caches."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["cache_bytes", "processor"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHES = {2: 1 << 20, 3: 32 << 20}  # where the system does not say
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def processor() -> str:
    """The processor's model, in words."""
    # platform.processor() is empty or just "x86_64" on most Linux systems.
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cache_bytes(level: int) -> int:
    """Bytes of one cache of a level: of a core's own L2, or of an L3 that cores share.

    Where the system does not say, a usual size: 1 MiB of L2, 32 MiB of L3.

    Args:
        level: 2 or 3.
    """
    for index in sorted(_CACHES.glob("index*")):
        if _read(index / "level") == str(level):
            size = _read(index / "size")
            digits, unit = size.rstrip("KMG"), _UNITS.get(size[-1:], 1)
            if digits.isdigit():
                return int(digits) * unit
    return _USUAL_CACHES[level]


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""

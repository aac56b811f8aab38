"""The machine that this runs on: its processor's model and the size of its cache."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["l2_bytes", "processor"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_L2 = 1 << 20  # where the system does not say
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


def l2_bytes() -> int:
    """Bytes of a core's own L2 cache; 1 MiB where the system does not say."""
    for index in sorted(_CACHES.glob("index*")):
        if _read(index / "level") == "2":
            size = _read(index / "size")
            digits, unit = size.rstrip("KMG"), _UNITS.get(size[-1:], 1)
            if digits.isdigit():
                return int(digits) * unit
    return _USUAL_L2


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""

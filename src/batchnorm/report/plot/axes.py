"""What the kinds of charts share: numbers that JSON can carry, axes, and positions along them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..number import power, spoken

__all__ = ["LEFT", "Axis", "Drawing", "fit", "numbers"]

#: What plotly.js draws: plain values that JSON can carry.
Drawing: TypeAlias = dict[str, Any]

LEFT = 46  # pixels for the vertical axis' numbers; plotly takes more where they are longer


def numbers(values: Iterable[float]) -> list[float | None]:
    """Gives plain floats; JSON has no NaN, and plotly draws null as the gap that is meant."""
    return [float(value) if math.isfinite(value) else None for value in values]


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers, linear or logarithmic.

    Args:
        low: Its lowest number.
        high: Its highest number.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where plotly wants it in annotations and ranges: its logarithm on a logarithmic axis. Held inside."""
        inside = self.hold(value)
        return math.log10(inside) if self.log else inside

    def hold(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(max(value, self.low), self.high)

    def share(self, value: float) -> float:
        """How far along the axis it is, from 0 to 1."""
        low, high = self.at(self.low), self.at(self.high)
        return (self.at(value) - low) / (high - low)

    def layout(self, ticks: Sequence[float] | None = None) -> Drawing:
        """Gives the axis as plotly describes it, with its range stated: plotly would make room for labels."""
        axis: Drawing = {"zeroline": False, "fixedrange": True, "range": [self.at(self.low), self.at(self.high)]}
        # Numbers are never turned; where there is no room for all of them, the page's script leaves some out.
        axis |= {"tickangle": 0, "exponentformat": "power", "minexponent": 4, "separatethousands": True}
        if self.log:
            axis["type"] = "log"
            ticks = self._decades() if ticks is None else ticks
        if ticks is not None:
            axis |= {"tickvals": list(ticks), "ticktext": _written(ticks)}
        return axis

    def _decades(self) -> list[float]:
        """Powers of ten, about eight at most; over two decades or less twice and five times those as well."""
        low, high = self.at(self.low), self.at(self.high)
        every = max(1, math.ceil((high - low) / 8))
        steps = (1, 2, 5) if high - low <= 2 else (1,)
        powers = range(math.floor(low / every) * every, math.ceil(high) + 1, every)
        ticks = [tick for power in powers for step in steps if self.low <= (tick := step * 10.0**power) <= self.high]
        return ticks if len(ticks) > 2 else self._round()

    def _round(self) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten, at most seven, for an axis that is too short for powers."""
        ten = 10.0 ** math.floor(math.log10(self.high - self.low) - 1)
        step = next(step for step in (ten, 2 * ten, 5 * ten, 10 * ten, 20 * ten) if (self.high - self.low) / step < 7)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _written(ticks: Sequence[float]) -> list[str]:
    """Plain numbers, or powers of ten where one of them would be long."""
    if all(tick == 0 or 1e-3 <= abs(tick) < 1e5 for tick in ticks):
        return [spoken(tick, 6) for tick in ticks]
    return [_power(tick) if tick else "0" for tick in ticks]


def _power(tick: float) -> str:
    digits, exponent = f"{tick:e}".split("e")
    return power(f"{float(digits):g}", f"10<sup>{int(exponent)}</sup>".replace("-", "−"))


def fit(values: Iterable[float], log: bool, *, margin: float = 0.05, base: float | None = None) -> Axis:
    """Gives the axis that shows all values that it can: finite ones, and above 0 on a logarithmic axis.

    Args:
        values: What is to be seen.
        log: Whether the axis is logarithmic.
        margin: Room left on each side, as a share of the values' span.
        base: A value that is shown as well, and beyond which no room is left.
    """
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if base is not None and not log:
        finite.append(base)
    if not finite:
        return Axis(1.0, 10.0, True) if log else Axis(0.0, 1.0)
    low, high = min(finite), max(finite)
    if log:
        room = max(margin * math.log10(high / low), 0.04)
        return Axis(low / 10**room, high * 10**room, True)
    room = margin * (high - low) or 0.05 * abs(high) or 0.5
    return Axis(low if low == base else low - room, high if high == base else high + room)

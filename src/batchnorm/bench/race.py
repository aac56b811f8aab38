"""The contenders of a user's model in one mode: who takes part, why others do not, and their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ..errors import BatchNormError, DifferentResultError
from .contenders import EAGER
from .environment import Environment
from .gpu import peak_bytes
from .peers import Unavailable
from .row import UNAVAILABLE, WRONG, Row, with_times
from .timing import interleave, repetitions
from .watch import Watch, watch_of

__all__ = ["Race", "Run", "Wrong"]

Run: TypeAlias = Callable[[], object]


class Wrong(Exception):  # noqa: N818 - no fault of the program
    """By how much a contender's results break the tolerance."""


@dataclass
class Race:
    """The contenders of one mode.

    Attributes:
        target: What names the model.
        mode: The mode.
        ours: The contender that ratios are by.
        environment: What it runs on.
        rows: By contender.
        runs: What is timed, of those that can be.
    """

    target: str
    mode: str
    ours: str
    environment: Environment
    rows: dict[str, Row] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)

    def enter(self, name: str, make: Callable[[], Run]) -> None:
        """Adds a contender; what it raises becomes the reason why it is not timed.

        Args:
            name: Of the contender.
            make: Gives what is timed. It may :meth:`note` what its row says.
        """
        self.rows[name] = Row(
            case=self.target,
            networks="",
            shape="",
            format="",
            dtype="",
            mode=self.mode,
            activation="",
            residual=False,
            contender=name,
            status=UNAVAILABLE,
            environment=self.environment,
        )
        try:
            self.runs[name] = make()
        except (Wrong, DifferentResultError) as error:
            self.note(name, status=WRONG, reason=str(error))
        except Exception as error:  # a compiler or a user's code raises what it likes
            self.note(name, reason=_said(error))

    def note(self, name: str, **values: Any) -> None:
        """Adds to a contender's row."""
        self.rows[name] = replace(self.rows[name], **values)

    def _tried(self, name: str, run: Run, watch: Watch) -> int | None:
        """How often to repeat a contender; None where it raises, as for want of memory."""
        try:
            if self.environment.device == "cuda":
                self.note(name, peak_bytes=peak_bytes(run))
            return repetitions(run, watch)
        except Exception as error:
            self.note(name, reason=_said(error))
            return None

    def timed(self, rounds: int) -> list[Row]:
        """Times all of them in turn, and gives the rows."""
        watch = watch_of(self.environment.device)
        repeat: dict[str, int] = {}
        for name, run in self.runs.items():
            times = self._tried(name, run, watch)
            if times is not None:
                repeat[name] = times
        runs = {name: self.runs[name] for name in repeat}
        samples = interleave(runs, rounds, repeat=repeat, watch=watch)
        ours, eager = samples.get(self.ours), samples.get(EAGER)
        for name, found in samples.items():
            self.rows[name] = with_times(self.rows[name], found, ours, repeat[name], eager)
        return list(self.rows.values())


def _said(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, BatchNormError | Unavailable) else f"{type(error).__name__}: {first}"

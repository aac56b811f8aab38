"""The contenders of a user's model in one mode: who takes part, why others do not, and their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ..errors import BatchNormError, DifferentResultError
from .contenders import EAGER
from .environment import Environment
from .peers import Unavailable
from .row import UNAVAILABLE, WRONG, Row, with_times
from .timing import interleave, repetitions

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
            first = (str(error).strip().splitlines() or [""])[0]
            own = isinstance(error, BatchNormError | Unavailable)
            self.note(name, reason=first if own else f"{type(error).__name__}: {first}")

    def note(self, name: str, **values: Any) -> None:
        """Adds to a contender's row."""
        self.rows[name] = replace(self.rows[name], **values)

    def timed(self, rounds: int) -> list[Row]:
        """Times all of them in turn, and gives the rows."""
        repeat = {name: repetitions(run) for name, run in self.runs.items()}
        samples = interleave(self.runs, rounds, repeat=repeat)
        ours, eager = samples.get(self.ours), samples.get(EAGER)
        for name, found in samples.items():
            self.rows[name] = with_times(self.rows[name], found, ours, repeat[name], eager)
        return list(self.rows.values())

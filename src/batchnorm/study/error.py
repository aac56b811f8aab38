"""The one error that a study raises."""

from __future__ import annotations

from ..errors import BatchNormError

__all__ = ["StudyError"]


class StudyError(BatchNormError, RuntimeError):
    """The study could not run: an unknown claim, data that do not fit, a run that failed."""

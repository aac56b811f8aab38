"""The study: what batch normalization does, measured on data, claim by claim, with a verdict that can fail."""

from .claim import Claim, Conclusion, Effect, Result, Run, Verdict
from .data import Source
from .engine import Outcome, Plan, Progress, run_study
from .error import StudyError
from .registry import registered, select

__all__ = [
    "Claim",
    "Conclusion",
    "Effect",
    "Outcome",
    "Plan",
    "Progress",
    "Result",
    "Run",
    "Source",
    "StudyError",
    "Verdict",
    "registered",
    "run_study",
    "select",
]

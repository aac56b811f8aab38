"""The study: what batch normalization does, measured on data, claim by claim, with a verdict that can fail."""

from .claim import Claim, Conclusion, Effect, Result, Run, StudyError, Verdict
from .engine import Outcome, Progress, run_study
from .registry import registered, select

__all__ = [
    "Claim",
    "Conclusion",
    "Effect",
    "Outcome",
    "Progress",
    "Result",
    "Run",
    "StudyError",
    "Verdict",
    "registered",
    "run_study",
    "select",
]

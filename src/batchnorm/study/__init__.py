"""The study: what batch normalization does, measured on data, claim by claim, with a verdict that can fail."""

from .claim import Claim, Conclusion, Effect, Result, Run, SubjectClaim, Topic, Verdict
from .data import Source
from .engine import Outcome, Plan, Progress, run_study
from .error import StudyError
from .registry import registered, select
from .subjects import Dense, Own, Stack, Subject

__all__ = [
    "Claim",
    "Conclusion",
    "Dense",
    "Effect",
    "Outcome",
    "Own",
    "Plan",
    "Progress",
    "Result",
    "Run",
    "Source",
    "Stack",
    "StudyError",
    "Subject",
    "SubjectClaim",
    "Topic",
    "Verdict",
    "registered",
    "run_study",
    "select",
]

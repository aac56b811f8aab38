"""Finds what is wrong with the batch norm in a model, shows it, and mends it."""

from .diagnose import diagnose
from .diagnosis import Diagnosis, FixError
from .finding import Finding, Fix, Measurement

__all__ = ["Diagnosis", "Finding", "Fix", "FixError", "Measurement", "diagnose"]

"""Says what to install when a command's packages are not there."""

from __future__ import annotations

import importlib.util

__all__ = ["missing_tools"]


def missing_tools(*modules: str) -> str:
    """Names the modules that are not installed and the command that mends it; empty when all are there."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return ""
    return f"batchnorm: this command needs {', '.join(missing)}. Mend: pip install 'batchnorm[tools]'"

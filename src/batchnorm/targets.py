"""``package.module:callable``: how a user names something of their own on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from .errors import BatchNormError

__all__ = ["TargetError", "also_from", "resolve"]


class TargetError(BatchNormError, ValueError):
    """What a target names is not there, or cannot be imported or called."""


def also_from(folder: Path) -> None:
    """Lets :func:`resolve` look in a folder as well, after the working directory and what is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def resolve(target: str) -> Any:
    """Imports what ``package.module:name`` names; the name may have dots.

    The working directory is searched first, as by ``python -m``.

    Args:
        target: Module and name with one colon between them.

    Raises:
        TargetError: If the module cannot be imported or has nothing of that name; the cause is attached.

    Example:
        >>> resolve("math:sqrt")(9.0)
        3.0
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise TargetError(f"{target} is not of the form package.module:callable.", "as in my_package.data:train_set")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            mend = f"start it in the folder that holds {module_name.split('.')[0]}, or install that package"
            raise TargetError(f"{target}: there is no module {error.name}.", mend) from error
        raise TargetError(f"{target}: {module_name} imports {error.name}, which is not installed.") from error
    except (Exception, SystemExit) as error:
        message = f"{target}: importing {module_name} raised {type(error).__name__}: {error}"
        raise TargetError(message) from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(sorted(own for own in vars(found) if not own.startswith("_"))[:12])
            there = f"it has {public}" if public else "it is empty"
            raise TargetError(f"{target}: {module_name} has no {name}.", there)
        found = getattr(found, part)
    return found

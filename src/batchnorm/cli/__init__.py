"""The command line, ``batchnorm``: one file a subcommand, wiring only."""

from __future__ import annotations

import io
import sys

from .tools import missing_tools

__all__ = ["main"]


def main() -> None:
    """Runs the command line, and names the mend where its own packages are missing."""
    message = missing_tools("typer", "rich")
    if message:
        print(message, file=sys.stderr)
        raise SystemExit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal's encoding lacks is told all the same
    try:
        from .app import app  # noqa: PLC0415 - typer may be missing, and importing us must not need it

        app()
    except KeyboardInterrupt:
        # Before a command has begun, while its packages are imported.
        raise SystemExit(130) from None

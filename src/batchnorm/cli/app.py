"""The typer application that the subcommands hang on."""

from __future__ import annotations

from typing import Annotated

import typer

from .._version import __version__
from .bench import bench
from .doctor import doctor
from .explain import explain
from .fold import fold
from .study import study

__all__ = ["app"]

# Plain help and plain errors: boxes cut lines away from a terminal, and a traceback is read as Python prints it.
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchnorm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Batch normalization for PyTorch, done completely."""


app.command()(study)
app.command()(bench)
app.command()(fold)
app.command()(doctor)
app.command()(explain)

"""``batchnorm doctor``: what is wrong with the batch norm in a model, shown and mended."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import redirect_stdout
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .told import Format, tell
from .tools import missing_tools

if TYPE_CHECKING:
    from ..doctor.configuration import Configuration

__all__ = ["doctor"]


class Severity(str, Enum):
    """How bad a finding is."""

    info = "info"
    warning = "warning"
    error = "error"


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="The model: package.module:callable, which returns a module or (module, batches); a module itself; or "
            "a checkpoint file (.pt, .pth, .ckpt, .bin, .tar, .safetensors), of which nothing is run.",
            show_default="target of pyproject.toml",
        ),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="What it is run on: package.module:callable, which returns or yields inputs, (input, target) pairs or "
            "dicts of keywords; or a loader, a list or a tensor itself.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Called as loss(output, target); a class is made without arguments."),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="Called with the model, it returns the optimizer; or an optimizer's class."
        ),
    ] = None,
    forward: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="Called as forward(model, batch), where the model takes batches otherwise."
        ),
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="TARGET", help="The model before its norms were converted, where they were.")
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="RULES", help="Only these: codes, their beginnings or names, with commas or repeated."),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="RULES", help="Not these.")] = None,
    max_batches: Annotated[
        int | None, typer.Option(min=1, help="So many batches are run in each mode at most.", show_default="8")
    ] = None,
    accumulation_steps: Annotated[
        int | None, typer.Option(min=1, help="Backward passes for each step of the optimizer.", show_default="1")
    ] = None,
    weights_from: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The framework that the weights were trained in: keras, tensorflow, flax, …"),
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="What is written.", show_default="by the suffix of --out, else text")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where it goes; the text is printed as well.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make the safe mends and save what comes of it: .pt, .pth or .safetensors."),
    ] = None,
    fail_on: Annotated[
        Severity | None, typer.Option(help="The exit code is 1 from such findings on.", show_default="warning")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with [tool.batchnorm.doctor].",
            show_default="the nearest pyproject.toml that has it",
        ),
    ] = None,
) -> None:
    """Look for what is wrong with the batch norm in a model, and mend what can be mended safely.

    The exit code is 0 where nothing is found that is as bad as --fail-on, 1 where something is, and 2 where the command
    could not run.
    """
    # Imported here: `batchnorm --help` should not wait for them.
    from ..doctor.configuration import Configuration, find, read  # noqa: PLC0415
    from ..errors import BatchNormError  # noqa: PLC0415
    from ..targets import also_from  # noqa: PLC0415
    from .examined import Examination  # noqa: PLC0415

    given = Configuration(
        target=target,
        batches=batches,
        loss=loss,
        optimizer=optimizer,
        forward=forward,
        before=before,
        select=_listed(select),
        ignore=_listed(ignore),
        fail_on=None if fail_on is None else fail_on.value,
        max_batches=max_batches,
        accumulation_steps=accumulation_steps,
        weights_from=weights_from,
    )
    chosen = _format(format, out)
    try:
        settings = given.over(find(Path.cwd()) if config is None else read(config))
        if out is not None:
            _check(out, settings, fix)
        if settings.path is not None:
            also_from(settings.path.absolute().parent)
        # What a model prints is no part of the report.
        with redirect_stdout(sys.stderr):
            examination = Examination(settings, fix)
            mended = [] if fix is None else examination.mend(fix)
        if examination.speaks:
            tell(examination, chosen, out, mended)
    except (BatchNormError, OSError) as error:
        _refuse(f"batchnorm doctor: {error}")
    except KeyboardInterrupt:
        typer.echo("batchnorm doctor: interrupted.", err=True)
        raise typer.Exit(130) from None
    except (Exception, SystemExit):  # of the user's code, or ours: the exit code 1 would say that something was found
        traceback.print_exc()
        _refuse("batchnorm doctor: it ended in the exception above.")
    if examination.diagnosis.at_least(settings.fail_on or "warning"):
        raise typer.Exit(1)


def _listed(words: list[str] | None) -> tuple[str, ...] | None:
    if words is None:
        return None
    return tuple(part.strip() for word in words for part in word.split(",") if part.strip())


_SUFFIXES = {".sarif": Format.sarif, ".sarif.json": Format.sarif, ".json": Format.json, ".html": Format.html}


def _format(format: Format | None, out: Path | None) -> Format:
    """The format that is asked for, or that the file's name has."""
    chosen = format
    if chosen is None and out is not None:
        chosen = next((kind for suffix, kind in _SUFFIXES.items() if out.name.lower().endswith(suffix)), None)
    if chosen is Format.html:
        if out is None:
            _refuse("batchnorm doctor: --format html is a page. Mend: say where it goes, --out FILE.")
        needed = missing_tools("plotly", "latex2mathml")
        if needed:
            _refuse(needed)
    return chosen or Format.text


def _check(out: Path, settings: Configuration, fix: Path | None) -> None:
    """Refuses to write a report where something else stands or will stand.

    Raises:
        ArgumentError: It is what is looked at, read or mended, or is called like a checkpoint, or is a folder.
    """
    from ..doctor.checkpoint import SUFFIXES  # noqa: PLC0415
    from ..errors import ArgumentError  # noqa: PLC0415

    mend = "name another file for the report: .txt, .json, .sarif or .html."
    others = {"TARGET": settings.target, "--fix": fix, "the configuration": settings.path}
    for what, other in others.items():
        if other is not None and os.path.realpath(other) == os.path.realpath(out):
            raise ArgumentError(f"--out {out} is {what}.", mend)
    if out.suffix.lower() in SUFFIXES:
        raise ArgumentError(f"--out {out} is called like a checkpoint, and a report is none.", mend)
    if out.is_dir():
        raise ArgumentError(f"--out {out} is a folder.", mend)


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)

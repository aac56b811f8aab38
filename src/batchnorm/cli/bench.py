"""``batchnorm bench``: what a user gains, on their own machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .tools import missing_tools

if TYPE_CHECKING:
    from ..bench.row import Row

__all__ = ["bench"]


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORDS",
            help="Cases to measure: words that must all match, with commas between them, such as "
            "resnet50,float32,channels-last; all for everything. Given several times, all that one of them names.",
            show_default="usual",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Measure your own model instead, as given, fused, lean and folded: package.module:callable, which "
            "returns (module, inputs) or (module, inputs, loss).",
        ),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Measured beside eager torch: compile, jax, all; on a GPU no-cudnn, compile, attorch, flag_gems, all.",
            show_default="eager",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help="Where cases are measured: cpu or cuda. A model is measured where it is."),
    ] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="Samples a contender; fewer than 20 say little.")] = 20,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A .csv file for the rows, or a folder for them and a page with plots."),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases and leave.")] = False,
) -> None:
    """Measure the layers beside torch's, correct first: time, bytes kept, page faults.

    The exit code is 1 where a result of this library breaks the tolerance: it is not timed then.
    """
    folder = None if out is None or out.suffix else out
    needed = missing_tools("plotly", "latex2mathml") if folder is not None else ""
    if needed:
        _refuse(needed)
    from ..bench.cases import select  # noqa: PLC0415
    from ..bench.gpu import check as check_device  # noqa: PLC0415
    from ..bench.model import measure_model, prepare  # noqa: PLC0415
    from ..bench.output import check  # noqa: PLC0415
    from ..bench.peers import GPU_PEERS, PEERS, chosen  # noqa: PLC0415
    from ..bench.run import measure_all  # noqa: PLC0415
    from ..bench.summary import wrong  # noqa: PLC0415
    from ..errors import BatchNormError  # noqa: PLC0415
    from .model_timings import showing_model  # noqa: PLC0415
    from .timings import show_cases, showing  # noqa: PLC0415

    rows: list[Row] = []
    interrupted = False
    try:
        _check_options(model, cases, device, list_cases)
        mine = None if model is None else prepare(model)
        where = device if mine is None else mine.device
        check_device(where)
        wanted, beside = select(cases or []), chosen(peers or [], GPU_PEERS if where == "cuda" else PEERS)
        if list_cases:
            show_cases(wanted)
            return
        if out is not None:
            check(out)
        if mine is None:
            measured = (found for _, found in measure_all(wanted, beside, rounds, device))
            showing_all: AbstractContextManager[Callable[[Sequence[Row]], None]] = showing(
                [case.name for case in wanted], [peer.name for peer in beside]
            )
        else:
            measured = (measure_model(each, beside, rounds) for each in (mine,))
            showing_all = showing_model(mine.target)
        try:
            with showing_all as show:
                for found in measured:
                    rows += found
                    show(found)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            _keep(rows, out)
    except (BatchNormError, OSError) as error:
        _refuse(f"batchnorm bench: {error}")
    if interrupted:
        typer.echo("batchnorm bench: interrupted; what was measured until then stands above.", err=True)
        raise typer.Exit(130)
    if wrong(rows):
        raise typer.Exit(1)


def _check_options(model: str | None, cases: list[str] | None, device: str, list_cases: bool) -> None:
    if model is not None and (cases or list_cases):
        _refuse("batchnorm bench: --model measures one training step; leave out --cases and --list.")
    if model is not None and device != "cpu":
        _refuse("batchnorm bench: --model is measured where its parameters are; leave out --device.")


def _keep(rows: list[Row], out: Path | None) -> None:
    """Summary and file of what was measured, whatever ended it: rows cost minutes."""
    from ..bench.output import write  # noqa: PLC0415
    from .timings import show_summary  # noqa: PLC0415

    if rows:
        show_summary(rows)
    if rows and out is not None:
        print(f"written: {write(rows, out)}", flush=True)


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)

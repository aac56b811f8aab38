"""``batchnorm study``: what batch norm does, measured, with a verdict a claim."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .tools import missing_tools

__all__ = ["study"]


def study(
    claims: Annotated[
        list[str] | None, typer.Argument(metavar="[CLAIM]...", help="Claims to run; all of them by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the page and the results.")] = Path("study"),
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds a claim; with fewer than 5 every verdict is inconclusive.")
    ] = 5,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one an available core.")] = None,
    list_claims: Annotated[bool, typer.Option("--list", help="List the claims and leave.")] = False,
) -> None:
    """Run the claims on real data and leave one page with a verdict for each."""
    needed = missing_tools("scipy", "plotly")
    if needed:
        _refuse(needed)
    # Imported here: `batchnorm --help` should not wait for them.
    from ..study import StudyError, run_study, select  # noqa: PLC0415
    from ..study.data import default, describe  # noqa: PLC0415
    from ..study.engine import available_cores  # noqa: PLC0415
    from ..study.environment import Environment  # noqa: PLC0415
    from ..study.output import write  # noqa: PLC0415
    from .progress import show_list, show_plan, show_verdicts, showing  # noqa: PLC0415

    try:
        chosen = select(claims or [])
        if list_claims:
            show_list(chosen)
            return
        data = default()
        numbers = list(range(seeds))
        processes = workers or available_cores()
        show_plan(chosen, numbers, describe(data), processes)
        # Made before anything is trained: a folder that cannot be written must not cost a study.
        out.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with showing() as listen:
            outcomes = run_study(chosen, numbers, data, workers=processes, listen=listen)
        environment = Environment.now(
            seeds=numbers, data=describe(data), workers=processes, seconds=time.perf_counter() - started
        )
        page = write(outcomes, environment, out)
    except (StudyError, OSError) as error:
        _refuse(f"batchnorm study: {error}")
    except KeyboardInterrupt:
        typer.echo("batchnorm study: interrupted; nothing was written.", err=True)
        raise typer.Exit(130) from None
    show_verdicts(outcomes, page, environment.seconds)


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)

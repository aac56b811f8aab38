"""``batchnorm study``: what batch norm does, measured, with a verdict a claim."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .tools import missing_tools

if TYPE_CHECKING:
    from ..study import Claim, Source

__all__ = ["study"]


class Tier(str, Enum):
    """How much a study costs; each holds the claims of those before it."""

    quick = "quick"
    standard = "standard"
    full = "full"


def study(
    claims: Annotated[
        list[str] | None, typer.Argument(metavar="CLAIM", help="Claims to run; those of the tier by default.")
    ] = None,
    tier: Annotated[Tier, typer.Option(help="Which claims run where none is named.")] = Tier.quick,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the page, the results and the finished runs, which are not run again.",
            show_default="study; study-control with --control",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds a claim; with fewer than 5 every verdict is inconclusive.")
    ] = 5,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Images to run on: a folder with one folder of images a class, an .npz with x and y, IDX files or "
            "their folder, package.module:callable, mnist-5k or digits.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=4, help="Side in pixels to which the images of an image folder are resized.", show_default="32"
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=10, help="A seed uses at most so many images, the same share of every class.")
    ] = 5000,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one an available core.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run everything again, whatever is kept.")] = False,
    control: Annotated[
        bool,
        typer.Option("--control", help="Take the effect away from each claim: now none should be reproduced."),
    ] = False,
    list_claims: Annotated[bool, typer.Option("--list", help="List the claims and leave.")] = False,
) -> None:
    """Run claims about batch norm on real data and leave one page with a verdict for each.

    Stopped in the middle, the same command goes on from there.
    """
    needed = missing_tools("scipy", "plotly", "latex2mathml")
    if needed:
        _refuse(needed)
    # Imported here: `batchnorm --help` should not wait for them.
    from ..study import StudyError, registered, select  # noqa: PLC0415
    from ..study.data import load  # noqa: PLC0415
    from ..study.engine import conclude, prepare  # noqa: PLC0415
    from ..study.environment import Environment  # noqa: PLC0415
    from ..study.explanation import Explanation  # noqa: PLC0415
    from ..study.export import write  # noqa: PLC0415
    from ..study.processes import available_cores  # noqa: PLC0415
    from ..study.store import Store, remove_leftovers  # noqa: PLC0415
    from .progress import show_list, show_plan, show_verdicts, showing  # noqa: PLC0415

    folder = out or Path("study-control" if control else "study")
    plan = None
    try:
        if list_claims:
            show_list(select(claims) if claims else list(registered().values()))
            return
        chosen = select(claims or [], tier.value)
        if control:
            chosen = [claim.without_effect() for claim in chosen]
        source = _source(data, image_size, samples, chosen)
        numbers = list(range(seeds))
        processes = workers or available_cores()
        # The layer is explained where the whole study runs, not beside single claims.
        explanation = None if claims or control else Explanation()
        # Made before anything is trained: a folder that cannot be written must not cost a study.
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        store = Store(folder / "runs")
        experiments = [*chosen, explanation] if explanation else chosen
        plan = prepare(experiments, numbers, source, store=store, reuse=not fresh)
        uses_images = any(experiment.smallest for experiment in plan.experiments)
        described = load(source).description if uses_images else "none: no claim here uses images"
        show_plan(plan, described, processes)
        started = time.perf_counter()
        with showing() as listen:
            results = plan.execute(workers=processes, listen=listen)
        environment = Environment.now(
            seeds=numbers,
            data=described,
            workers=processes,
            seconds=time.perf_counter() - started,
            runs=len(plan.runs),
            kept=len(plan.kept),
            control=control,
        )
        outcomes = conclude(chosen, results, numbers)
        others = results[explanation.id] if explanation else []
        told = explanation.tell(others) if explanation else None
        page = write(outcomes, environment, folder, explanation=told, others=others)
    except (StudyError, OSError) as error:
        _refuse(f"batchnorm study: {error}")
    except KeyboardInterrupt:
        kept = f" Finished runs are kept in {folder / 'runs'}: the same command goes on from there." if plan else ""
        typer.echo(f"batchnorm study: interrupted.{kept}", err=True)
        raise typer.Exit(130) from None
    show_verdicts(outcomes, page, environment)


def _source(data: str | None, image_size: int | None, samples: int, claims: Sequence[Claim]) -> Source:
    """The images that the options name; an option that could have no effect is refused."""
    from ..study import Source, StudyError  # noqa: PLC0415
    from ..study.data import default  # noqa: PLC0415

    if data is not None and not any(claim.smallest for claim in claims):
        raise StudyError(f"--data: none of these claims uses images: {', '.join(claim.id for claim in claims)}.")
    if image_size is None:
        return Source(data or default().spec, samples=samples)
    if data is None or not Path(data).expanduser().is_dir():
        raise StudyError("--image-size: only the images of an image folder are resized.", "leave it out")
    return Source(data, image_size, samples)


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)

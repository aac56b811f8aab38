"""``batchnorm study``: what batch norm does, measured, with a verdict a claim."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .tools import missing_tools

__all__ = ["study"]


class Tier(str, Enum):
    """How much a study costs; each holds the claims of those before it."""

    quick = "quick"
    standard = "standard"
    full = "full"


class Picture(str, Enum):
    """The kinds of files that charts are written as."""

    svg = "svg"
    png = "png"


def study(
    claims: Annotated[
        list[str] | None, typer.Argument(metavar="CLAIM", help="Claims to run; those of the tier by default.")
    ] = None,
    tier: Annotated[
        Tier | None,
        typer.Option(
            help="Which claims run where none is named, and how much of one that is larger in a dearer tier.",
            show_default="quick; standard with --model",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the page, the results and the finished runs, which are not run again.",
            show_default="study; study-control with --control, study-compare with --compare",
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
    model: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="A network of yours with batch norm, package.module:callable; runs the claims about networks.",
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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster: auto, host:port or ray://host:port; local starts one on this machine.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run everything again, whatever is kept.")] = False,
    control: Annotated[
        bool,
        typer.Option("--control", help="Take the effect away from each claim: now none should be reproduced."),
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Run nothing: compare two finished studies, folders or results.json files."),
    ] = None,
    export: Annotated[
        Picture | None, typer.Option(help="Write every chart as a file of this kind too, into pictures/ of the folder.")
    ] = None,
    list_claims: Annotated[bool, typer.Option("--list", help="List the claims and leave.")] = False,
) -> None:
    """Run claims about batch norm on real data and leave one page with a verdict for each.

    Stopped in the middle, the same command goes on from there.
    """
    needed = missing_tools("scipy", "plotly", "latex2mathml", "PIL", *(["matplotlib"] if export else []))
    if needed:
        _refuse(needed)
    # Imported here: `batchnorm --help` should not wait for them.
    from ..study import Own, StudyError, select  # noqa: PLC0415
    from .compared import show_comparison  # noqa: PLC0415
    from .progress import show_list, show_verdicts  # noqa: PLC0415
    from .studying import Wishes, carry_out  # noqa: PLC0415

    folder = out or Path("study-compare" if compare else "study-control" if control else "study")
    subject = None if model is None else Own(model)
    size = tier or (Tier.quick if subject is None else Tier.standard)
    try:
        if compare is not None:
            runs = {"--data": data, "--model": model, "--ray": ray, "--export": export, "--control": control}
            given = [*(claims or []), *(name for name, value in runs.items() if value)]
            if given:
                raise StudyError(
                    "--compare runs nothing and takes all of both studies.", f"leave out {' '.join(given)}"
                )
            show_comparison(*compare, folder)
            return
        if subject is not None:
            subject.fingerprint(0)  # what is no network is the target's fault, and not a claim's
        if list_claims:
            show_list(select(claims or [], (tier or Tier.full).value, subject))
            return
        wishes = Wishes(
            claims=claims or [],
            tier=size.value,
            folder=folder,
            seeds=list(range(seeds)),
            data=data,
            image_size=image_size,
            samples=samples,
            subject=subject,
            workers=workers,
            ray=ray,
            fresh=fresh,
            control=control,
            export=export.value if export else None,
        )
        done = carry_out(wishes)
    except (StudyError, OSError) as error:
        _refuse(f"batchnorm study: {error}")
    except KeyboardInterrupt:
        kept = ""
        if (folder / "runs").exists():
            kept = f" Finished runs are kept in {folder / 'runs'}: the same command goes on from there."
        typer.echo(f"batchnorm study: interrupted.{kept}", err=True)
        raise typer.Exit(130) from None
    show_verdicts(done.outcomes, done.page, done.environment, done.pictures)


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)

"""A study as the command line asks for it, from the images to the files that it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..study import Claim, Outcome, Own, Source, StudyError, select
from ..study.data import default, load
from ..study.engine import conclude, prepare
from ..study.environment import Environment
from ..study.explanation import Explanation
from ..study.processes import available_cores
from ..study.results.export import write
from ..study.results.pictures import write_pictures
from ..study.store import Store, remove_leftovers
from ..study.task import Crew
from .progress import show_crew, show_left_out, show_plan, showing

__all__ = ["Done", "Wishes", "carry_out"]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What was asked for, by the names of the options."""

    claims: Sequence[str]
    tier: str
    folder: Path
    seeds: list[int]
    data: str | None
    image_size: int | None
    samples: int
    subject: Own | None
    workers: int | None
    ray: str | None
    fresh: bool
    control: bool
    export: str | None


@dataclass(frozen=True)
class Done:
    """What came of it."""

    outcomes: Sequence[Outcome]
    page: Path
    environment: Environment
    pictures: Sequence[Path]


def carry_out(wishes: Wishes) -> Done:
    """Runs what is not kept, concludes, and writes the page and the files beside it.

    Raises:
        StudyError: If it cannot be done as asked.
        OSError: If the folder cannot be written.
    """
    folder = wishes.folder
    chosen = select(wishes.claims, wishes.tier, wishes.subject)
    if wishes.control:
        chosen = [claim.without_effect() for claim in chosen]
    source = _source(wishes, chosen)
    # The layer is explained where the whole study runs, not beside single claims.
    explanation = None if wishes.claims or wishes.control or wishes.subject else Explanation()
    # Made before anything is trained: a folder that cannot be written must not cost a study.
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    experiments = [*chosen, explanation] if explanation else chosen
    # Of claims that nobody named, those that a network cannot be put to must not cost the others.
    options = {"left_out": show_left_out} if wishes.subject and not wishes.claims else {}
    store = Store(folder / "runs")
    plan = prepare(experiments, wishes.seeds, source, store=store, reuse=not wishes.fresh, **options)
    chosen = [claim for claim in chosen if claim in plan.experiments]
    uses_images = any(experiment.smallest for experiment in plan.experiments)
    described = load(source).description if uses_images else "none: no claim here uses images"
    crew = Crew(wishes.workers or available_cores())
    show_plan(plan, described, crew.workers if wishes.ray is None else None)

    def met(those: Crew) -> None:
        nonlocal crew
        crew = those
        show_crew(crew)

    started = time.perf_counter()
    with showing() as listen:
        results = plan.execute(workers=wishes.workers, ray=wishes.ray, listen=listen, met=met)
    environment = Environment.now(
        seeds=wishes.seeds,
        data=described,
        workers=crew.workers,
        seconds=time.perf_counter() - started,
        runs=len(plan.runs),
        kept=len(plan.kept),
        control=wishes.control,
        tier=wishes.tier,
        model=None if wishes.subject is None else wishes.subject.target,
        nodes=crew.nodes,
        ray=crew.ray,
        images=load(source) if uses_images else None,
        samples=source.samples,
    )
    outcomes = conclude(chosen, results, wishes.seeds)
    others = results[explanation.id] if explanation else []
    told = explanation.tell(others) if explanation else None
    page = write(outcomes, environment, folder, explanation=told, others=others)
    return Done(outcomes, page, environment, write_pictures(outcomes, folder, wishes.export))


def _source(wishes: Wishes, claims: Sequence[Claim]) -> Source:
    """The images that the options name; an option that could have no effect is refused."""
    data, size = wishes.data, wishes.image_size
    if data is not None and not any(claim.smallest for claim in claims):
        raise StudyError(f"--data: none of these claims uses images: {', '.join(claim.id for claim in claims)}.")
    if size is None:
        return Source(data or default().spec, samples=wishes.samples)
    if data is None or not Path(data).expanduser().is_dir():
        raise StudyError("--image-size: only the images of an image folder are resized.", "leave it out")
    return Source(data, size, wishes.samples)

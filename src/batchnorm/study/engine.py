"""From claims to verdicts: plans the runs, takes those that are kept, has the others done, and concludes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import BatchNormError
from . import cluster, processes
from .claim import Claim, Conclusion, Experiment, Result, Run, SubjectClaim, Verdict
from .data import Source, load
from .data.split import parts, split
from .error import StudyError
from .fingerprint import Ingredients, ingredients
from .store import Store
from .task import Crew, Task

__all__ = ["MINIMUM_SEEDS", "Outcome", "Plan", "Progress", "conclude", "prepare", "run_study"]

# With 3, Student's t is 4.3, and nearly everything is inconclusive: by rule, then, everything is below 5.
MINIMUM_SEEDS = 5


@dataclass(frozen=True)
class Progress:
    """Where one run is.

    Args:
        run: Which run.
        state: "running" while it reports, "finished" once.
        fraction: Share of its work that is done.
        note: A word from the run, such as its step and accuracy.
        finished: Runs that are done, of all claims, those that were kept included.
        total: Runs there are.
        seconds: How long a finished run took.
    """

    run: Run
    state: Literal["running", "finished"]
    fraction: float
    note: str
    finished: int
    total: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """A claim with the results of its runs and what they say."""

    claim: Claim
    results: Sequence[Result]
    conclusion: Conclusion

    @property
    def effect(self) -> tuple[str, str]:
        """The effect that decided and what it is an effect of, in words."""
        if self.conclusion.short is not None:
            return self.conclusion.short
        effects = self.conclusion.effects
        return (str(effects[0]), effects[0].name) if effects else ("none", self.conclusion.reason)


@dataclass(frozen=True)
class Plan:
    """All runs of a study, in order, those that are kept from before, and where to keep the others.

    Args:
        experiments: What is run.
        seeds: The seeds.
        runs: All runs, with what each result depends on.
        kept: Results from before, by the number of the run.
        store: Where finished runs are kept; None keeps none.
    """

    experiments: Sequence[Experiment]
    seeds: Sequence[int]
    runs: Sequence[tuple[Experiment, Run, Ingredients]]
    kept: Mapping[int, Result]
    store: Store | None

    def counts(self, experiment: Experiment) -> tuple[int, int]:
        """Runs of an experiment, and how many of them are kept."""
        own = [number for number, (owner, _, _) in enumerate(self.runs) if owner is experiment]
        return len(own), sum(number in self.kept for number in own)

    def seconds_left(self, experiment: Experiment) -> float:
        """Core-seconds that its runs that are not kept will take, by its budget."""
        runs, kept = self.counts(experiment)
        return experiment.budget * len(self.seeds) / MINIMUM_SEEDS * (runs - kept) / max(runs, 1)

    def execute(
        self,
        *,
        workers: int | None = None,
        ray: str | None = None,
        listen: Callable[[Progress], None] = lambda progress: None,
        met: Callable[[Crew], None] = lambda crew: None,
    ) -> dict[str, list[Result]]:
        """Does what is not kept, keeps each run as soon as it is finished, and gives all results by experiment.

        Args:
            workers: Processes; by default one an available core, of a cluster one a core of each node.
            ray: The address of a Ray cluster that does the runs, ``"local"`` for one of this machine alone; None for
                processes of this one.
            listen: Called in this process as runs go on.
            met: Called once, where there is anything to do, with who does it.

        Raises:
            StudyError: If a run fails: the message names claim, arm and seed, and the cause is attached. If there is
                no such cluster, or none of its nodes would give the numbers that this machine gives.
        """
        results = dict(self.kept)
        # Long runs first: a long one that starts last would leave the other cores idle.
        share = {id(owner): owner.budget / max(self.counts(owner)[0], 1) for owner in self.experiments}
        left = [number for number in range(len(self.runs)) if number not in results]
        left.sort(key=lambda number: -share[id(self.runs[number][0])])
        total = len(self.runs)

        def running(place: int, fraction: float, note: str) -> None:
            listen(Progress(self.runs[left[place]][1], "running", fraction, note, len(results), total))

        def finished(place: int, result: Result) -> None:
            results[left[place]] = result
            listen(Progress(result.run, "finished", 1.0, "", len(results), total, result.seconds))

        if left:
            tasks = [Task(*self.runs[number], self.store) for number in left]
            if ray is not None:
                cluster.perform_all(tasks, ray, workers, finished=finished, running=running, met=met)
            else:
                crew = Crew(min(workers or processes.available_cores(), len(left)))
                met(crew)
                processes.perform_all(tasks, crew.workers, finished=finished, running=running)
        by_id: dict[str, list[Result]] = {experiment.id: [] for experiment in self.experiments}
        for number in range(total):
            by_id[self.runs[number][1].claim].append(results[number])
        return by_id


def _raise(error: StudyError) -> None:
    raise error


def prepare(
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    data: Source,
    *,
    store: Store | None = None,
    reuse: bool = True,
    left_out: Callable[[StudyError], None] = _raise,
) -> Plan:
    """Plans a study, and checks the data and the networks before anything is trained.

    Args:
        experiments: What to run.
        seeds: The seeds; the interval of every effect is over them.
        data: The images, for experiments that use images.
        store: Where finished runs are kept, and taken from where nothing that they depend on has changed.
        reuse: False takes none from there.
        left_out: Called with the reason for each claim that cannot be put to its network, which the plan then is
            without. It raises that; and where no claim is left the first reason is raised in any case.

    Raises:
        StudyError: If the images cannot be loaded, or are too few for a batch of an experiment; if a network cannot be
            built, does not take the images, or has no arms that a claim needs.
    """
    if any(experiment.smallest for experiment in experiments):
        _check_images(experiments, seeds, data)
    refusals = {experiment.id: _refusal(experiment, seeds[0], data) for experiment in experiments}
    refused = [error for error in refusals.values() if error is not None]
    experiments = [experiment for experiment in experiments if refusals[experiment.id] is None]
    for error in refused:
        left_out(error)
    if refused and not experiments:
        raise refused[0]
    runs: list[tuple[Experiment, Run, Ingredients]] = []
    for experiment in experiments:
        planned = experiment.plan(seeds, data if experiment.smallest else None)
        runs += [(experiment, run, ingredients(experiment, run)) for run in planned]
    kept = {}
    if store is not None and reuse:
        for number, (_, run, wanted) in enumerate(runs):
            result = store.get(wanted, run)
            if result is not None:
                kept[number] = result
    return Plan(experiments, seeds, runs, kept, store)


def _check_images(experiments: Sequence[Experiment], seeds: Sequence[int], data: Source) -> None:
    images, training = load(data), 0
    for seed in seeds:
        pixels = images.x[parts(images.y, seed, data.samples)[0]]
        if pixels.min() == pixels.max():
            raise StudyError(
                f"{data}: with seed {seed} every pixel of the training part is {pixels.min():g}.",
                "give images that differ, or use more of them (--samples)",
            )
        training = len(pixels)
    for experiment in experiments:
        if experiment.smallest > training:
            raise StudyError(
                f"{experiment.id} needs batches of {experiment.smallest} images; of the {len(images.y)} images of "
                f"{data} {training} are for training.",
                "give more images, or name the claims that need fewer",
            )


def _refusal(experiment: Experiment, seed: int, data: Source) -> StudyError | None:
    """Why a claim cannot be put to its network; None where it can, or has none."""
    if not isinstance(experiment, SubjectClaim):
        return None
    parts = split(data, seed)
    try:
        experiment.check(parts)
    except BatchNormError as error:
        return StudyError(f"{experiment.id}: {error.problem}", error.mend)
    except Exception as error:
        # A network of the user's may fail in any way, and must do so before others are trained.
        return StudyError(
            f"{experiment.id}: the network ({experiment.subject.description}) cannot be used for it: "
            f"{type(error).__name__}: {error}"
        )
    return None


def conclude(claims: Sequence[Claim], results: Mapping[str, Sequence[Result]], seeds: Sequence[int]) -> list[Outcome]:
    """Gives each claim's verdict; with fewer than five seeds every verdict is inconclusive."""
    outcomes = []
    for claim in claims:
        try:
            conclusion = claim.conclude(results[claim.id])
        except Exception as error:
            # Numbers that no rule foresaw, on data of any kind: the other claims must not lose their page for it.
            reason = f"The results could not be judged: {type(error).__name__}: {error}"
            conclusion = Conclusion(Verdict.INCONCLUSIVE, reason, [])
        if len(seeds) < MINIMUM_SEEDS:
            reason = f"With {len(seeds)} of at least {MINIMUM_SEEDS} seeds nothing is concluded. {conclusion.reason}"
            conclusion = replace(conclusion, verdict=Verdict.INCONCLUSIVE, reason=reason)
        outcomes.append(Outcome(claim, results[claim.id], conclusion))
    return outcomes


def run_study(
    claims: Sequence[Claim],
    seeds: Sequence[int],
    data: Source,
    *,
    store: Store | None = None,
    workers: int | None = None,
    listen: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Runs every run of every claim and concludes each claim: :func:`prepare`, ``execute`` and :func:`conclude`."""
    results = prepare(claims, seeds, data, store=store).execute(workers=workers, listen=listen)
    return conclude(claims, results, seeds)

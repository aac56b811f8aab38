from dataclasses import replace

import pytest

from batchnorm.study import Result, Run, Verdict
from batchnorm.study.claims.population_variance import PopulationVariance
from study.helpers import DIGITS, run_here, wave

SMALL = PopulationVariance(batch_sizes=(2, 8, 32), steps=30)


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL)
    conclusion = SMALL.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED
    again = SMALL.execute(results[0].run, lambda done, note: None)
    assert again == dict(results[0].values)


@pytest.mark.parametrize("order", ["identical", "random"])
def test_with_nothing_between_the_batches_it_is_not_reproduced(order: str) -> None:
    # Identical batches have one mean; shuffled ones differ by chance only, which m/(m − 1) makes up for.
    removed = replace(SMALL, orders=(order,), batch_sizes=(32,))
    assert removed.conclude(run_here(removed)).verdict is Verdict.NOT_REPRODUCED


def test_identical_batches_leave_only_the_bessel_factor() -> None:
    removed = replace(SMALL, orders=("identical",))
    for result in run_here(removed, seeds=[0]):
        for place, batch in enumerate(removed.batch_sizes):
            error = result.numbers("fully connected 1/algorithm_2/mean")[place]
            assert error == pytest.approx(batch / (batch - 1) - 1, rel=1e-9)


def _conclude(algorithm: float, noise: float, total: float) -> Verdict:
    claim = PopulationVariance(batch_sizes=(32,), orders=("sorted",))
    results = []
    for seed in range(5):
        error = algorithm + noise * wave(seed)
        values: dict[str, float | list[float]] = {}
        for layer in ("convolution 1", "fully connected 1"):
            values[f"{layer}/channels"] = 8
            values[f"{layer}/algorithm_2/mean"] = [error]
            values[f"{layer}/algorithm_2/largest"] = [abs(error)]
            values[f"{layer}/total_variance/mean"] = [total]
            values[f"{layer}/total_variance/largest"] = [abs(total)]
        results.append(Result(Run("population-variance", "sorted", seed, DIGITS), values))
    return claim.conclude(results).verdict


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(-0.2, 0.01, 1e-15) is Verdict.REPRODUCED
    assert _conclude(0.0, 0.001, 1e-15) is Verdict.NOT_REPRODUCED
    assert _conclude(-0.2, 0.01, 0.3) is Verdict.NOT_REPRODUCED  # the remedy is no better
    assert _conclude(-0.02, 0.05, 1e-15) is Verdict.INCONCLUSIVE  # too noisy
    assert _conclude(-0.2, 0.01, 1e-4) is Verdict.INCONCLUSIVE  # better, but not exact

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from batchnorm.study import Conclusion, Result, Run, Source, Verdict
from batchnorm.study.claims.population_variance import PopulationVariance, _errors
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


def test_a_channel_that_does_not_vary_has_no_error() -> None:
    values = np.random.default_rng(0).standard_normal((8, 3, 2))
    values[:, 1] = 5.0
    assert all(len(errors) == 2 for errors in _errors(values, 4).values())
    assert all(len(errors) == 0 for errors in _errors(values * 0, 4).values())
    assert all(len(errors) == 0 for errors in _errors(values * math.nan, 4).values())


def _two_colours() -> tuple[np.ndarray, np.ndarray]:
    """Small images of three channels and a hundred classes, of which all but a few are black."""
    images, labels = np.zeros((1000, 3, 4, 4)), np.arange(1000) % 100
    images[:8] = np.random.default_rng(0).standard_normal((8, 3, 4, 4))
    return images, labels


def test_mostly_black_images_of_many_classes_give_numbers() -> None:
    # By seed the few that are not black are in the training part or not; a verdict comes out either way.
    results = run_here(SMALL, data=Source(f"{__name__}:_two_colours"))
    for result in results:
        assert all(np.isfinite(value).all() for value in result.values.values())
    assert SMALL.conclude(results).verdict in Verdict


def _results(algorithm: float, noise: float, total: float, channels: Mapping[str, float] = {}) -> list[Result]:
    results = []
    for seed in range(5):
        error = algorithm + noise * wave(seed)
        values: dict[str, float | list[float]] = {}
        for layer in ("convolution 1", "fully connected 1"):
            values[f"{layer}/channels"] = [channels.get(layer, 8.0) if seed == 2 else 8.0]
            values[f"{layer}/algorithm_2/mean"] = [error]
            values[f"{layer}/algorithm_2/largest"] = [abs(error)]
            values[f"{layer}/total_variance/mean"] = [total]
            values[f"{layer}/total_variance/largest"] = [abs(total)]
        results.append(Result(Run("population-variance", "sorted", seed, DIGITS), values))
    return results


def _conclude(
    algorithm: float, noise: float = 0.01, total: float = 1e-15, channels: Mapping[str, float] = {}
) -> Conclusion:
    claim = PopulationVariance(batch_sizes=(2, 32), orders=("sorted",))
    results = _results(algorithm, noise, total, channels)
    for result in results:  # the same at both batch sizes
        result.values.update({name: value * 2 for name, value in result.values.items()})
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(-0.2).verdict is Verdict.REPRODUCED
    assert _conclude(0.0, 0.001).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(-0.2, total=0.3).verdict is Verdict.NOT_REPRODUCED  # the remedy is no better
    assert _conclude(-0.02, 0.05).verdict is Verdict.INCONCLUSIVE  # too noisy
    assert _conclude(-0.2, total=1e-4).verdict is Verdict.INCONCLUSIVE  # better, but not exact


def test_the_effect_that_decided_comes_first() -> None:
    assert _conclude(-0.2).effects[0].name.startswith("Algorithm 2: relative error")
    assert _conclude(0.0).effects[0].name.startswith("Algorithm 2: relative error")
    assert _conclude(-0.2, total=0.3).effects[0].name.startswith("Law of total variance: largest relative error")
    assert _conclude(-0.2, total=1e-4).effects[0].name.startswith("Law of total variance: largest relative error")
    assert _conclude(-0.2, total=1e-4).findings[0].endswith("should be rounding.")


def test_layers_without_variance_are_left_out_and_a_network_without_any_leaves_it_open() -> None:
    part = _conclude(-0.2, channels={"convolution 1": 0.0})
    assert part.verdict is Verdict.REPRODUCED
    assert not any("convolution only" in effect.name for effect in part.effects)
    assert "in the convolutions" not in part.reason
    nothing = _conclude(-0.2, channels={"convolution 1": 0.0, "fully connected 1": 0.0})
    assert nothing.verdict is Verdict.INCONCLUSIVE
    assert "With seed 2 no channel has any variance" in nothing.reason

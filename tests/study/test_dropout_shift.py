from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d, BatchNorm2d
from batchnorm.study import Conclusion, Result, Run, Verdict
from batchnorm.study.claims.dropout_shift import DropoutShift, learned_variance
from batchnorm.study.learning import SHARE
from batchnorm.study.networks import PLACEMENTS, convolutional, fully_connected, with_dropout
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = DropoutShift(
    exact_rates=(0.25, 0.5),
    means=(0.0, 2.0),
    batches=(80, 256, 32),
    layers=((8, 1), (8, 2)),
    arms=(("before norm", 0.5),),
    steps=60,
    share=0.1,
)


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL, range(5))
    conclusion = SMALL.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED
    for result in results[:2]:
        state = torch.random.get_rng_state()
        torch.rand(3)  # what was drawn before does not matter
        assert SMALL.execute(result.run, lambda done, note: None) == dict(result.values)
        torch.random.set_rng_state(state)


def test_a_run_leaves_the_global_generator_as_it_was() -> None:
    before = torch.random.get_rng_state()
    SMALL.execute(Run("dropout-shift", "before norm 0.5", 3, DIGITS), lambda done, note: None)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_dropout_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    results = run_here(removed)
    conclusion = removed.conclude(results)
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    network, plain = results[1], results[2]
    assert dict(network.values) == dict(plain.values)  # without dropout the arms are one network
    # The verdict does not hang on the formula alone: the factor between the networks says no by itself.
    assert conclusion.effects[0].interval.high < removed.margin


@pytest.mark.parametrize(("rate", "mean"), [(0.3, 0.0), (0.5, 3.0), (0.8, -1.0)])
def test_the_formula_is_the_variance_of_a_value_that_is_dropped_or_kept(rate: float, mean: float) -> None:
    # Exactly, from the two-point distribution mean ± 1, which has variance 1.
    keep = 1 - rate
    points = [(0.0, rate), ((mean + 1) / keep, keep / 2), ((mean - 1) / keep, keep / 2)]
    first = sum(value * share for value, share in points)
    second = sum(value * value * share for value, share in points)
    assert first == pytest.approx(mean)
    assert learned_variance(rate, mean) == pytest.approx(second - first * first)


def test_dropout_stands_where_its_placement_says() -> None:
    kinds = {placement: [type(layer) for layer in with_dropout(_network(), placement, 0.5)] for placement in PLACEMENTS}
    norm = [index for index, kind in enumerate(kinds["before norm"]) if kind is BatchNorm2d]
    assert [kinds["before norm"][index - 1] for index in norm] == [nn.Dropout] * 2
    norm = [index for index, kind in enumerate(kinds["after norm"]) if kind is BatchNorm2d]
    assert [kinds["after norm"][index + 1] for index in norm] == [nn.Dropout] * 2
    active = [index for index, kind in enumerate(kinds["after activation"]) if kind is nn.ReLU]
    assert [kinds["after activation"][index + 1] for index in active] == [nn.Dropout] * 2
    assert kinds["before last"].count(nn.Dropout) == 1
    assert kinds["before last"][-2:] == [nn.Dropout, nn.Linear]
    dense = with_dropout(fully_connected((4, 3, 2), activation="relu", norm="before", seed=0), "before norm", 0.5)
    assert [type(layer) for layer in dense][2:4] == [nn.Dropout, BatchNorm1d]
    with pytest.raises(ValueError, match="placement is one of"):
        with_dropout(_network(), "before", 0.5)


def _network() -> nn.Sequential:
    return convolutional(((4, 1), (6, 2)), activation="relu", norm="before", channels=1, classes=3, seed=0)


def _concluded(
    *,
    gaussian: float = 1.0,
    shift: float = 2.0,
    noise: float = 0.0,
    gaussian_noise: float = 0.0,
    learned: float = 0.9,
    guessing: float = 0.1,
    diverged: str = "",
    wrong: tuple[float, float] | None = None,
) -> Conclusion:
    """Made-up results: the learned variance as a share of the formula's, and the shift; without dropout it is 1.

    With ``wrong`` only the Gaussian values of that rate and mean are off.
    """
    claim = replace(SMALL, arms=(("before norm", 0.5),), share=SHARE)
    results = []
    for run in claim.plan(range(5), DIGITS):
        values: dict[str, float | list[float]] = {}
        if run.arm == "exact":
            for rate in claim.exact_rates:
                for mean in claim.means:
                    own = gaussian if wrong in (None, (rate, mean)) else 1.0
                    share = own + gaussian_noise * wave(run.seed)
                    values[f"rate {rate:g}, mean {mean:g}"] = share * learned_variance(rate, mean)
        else:
            own = 1.0 if run.arm == "no dropout" else shift + noise * wave(run.seed)
            values = {"by layer": [own, own], "shift": own, "first layer over formula": 1.0}
            values |= {"validation": learned, "test": 0.8, "test anew": 0.9, "diverged": run.arm == diverged}
            values |= baseline_of(guessing)
        results.append(Result(run, values))
    return claim.conclude(results)


def _conclude(
    *, gaussian: float = 1.0, shift: float = 2.0, noise: float = 0.0, gaussian_noise: float = 0.0, learned: float = 0.9
) -> Verdict:
    return _concluded(
        gaussian=gaussian, shift=shift, noise=noise, gaussian_noise=gaussian_noise, learned=learned
    ).verdict


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude() is Verdict.REPRODUCED
    assert _conclude(shift=1.0, noise=0.02) is Verdict.NOT_REPRODUCED
    assert _conclude(gaussian=0.5) is Verdict.NOT_REPRODUCED
    assert _conclude(shift=1.2, noise=0.3) is Verdict.INCONCLUSIVE  # the network is too noisy
    assert _conclude(gaussian_noise=0.05) is Verdict.INCONCLUSIVE  # the Gaussian values are
    assert _conclude(learned=0.1) is Verdict.INCONCLUSIVE  # nothing was learned


def test_networks_that_guess_or_diverge_say_nothing() -> None:
    noise = _concluded(learned=0.97, guessing=0.97)
    assert noise.verdict is Verdict.INCONCLUSIVE
    assert "stayed at 97.0% validation accuracy, where guessing gives 97.0%" in noise.reason
    assert _concluded(learned=0.46).verdict is Verdict.REPRODUCED  # of ten classes: less than half, and learnt
    for arm in ("no dropout", "before norm 0.5"):
        broken = _concluded(diverged=arm)
        assert broken.verdict is Verdict.INCONCLUSIVE
        assert f"stopped being finite ({arm})" in broken.reason


def test_the_effect_that_decides_comes_first() -> None:
    assert _concluded().effects[0].name.startswith("Shift of the network")
    # The formula is refuted by one pair, which is not of the rate whose values are always shown.
    refuted = _concluded(gaussian=0.9, wrong=(0.25, 2.0))
    assert refuted.verdict is Verdict.NOT_REPRODUCED
    assert "Gaussian values, rate 0.25, mean 2 " in refuted.effects[0].name
    # Too noisy Gaussian values leave it open; a network without a shift refutes it, though they agree.
    assert "Gaussian values" in _concluded(gaussian_noise=0.05).effects[0].name
    assert _concluded(shift=1.0, noise=0.01, gaussian_noise=0.05).effects[0].name.startswith("Shift of the network")
    names = [effect.name for effect in _concluded(gaussian=0.5).effects]
    assert len(names) == len(set(names))


def test_findings_are_measured() -> None:
    found = _concluded().findings
    assert "new ones change the accuracy by +10.0 points" in found[0]
    assert "Deeper layers" in found[1]
    assert "Without dropout the shift is 1.000" in found[2]
    assert "Deeper layers" not in _concluded(shift=1.0).findings[1]

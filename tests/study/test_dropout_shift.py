from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from batchnorm import BatchNormAct2d
from batchnorm.report.chart import Curves, Intervals, Panels
from batchnorm.study import Conclusion, Result, Run, Verdict
from batchnorm.study.apparatus.dropout import PLACEMENTS, places, with_dropout
from batchnorm.study.apparatus.population import met
from batchnorm.study.apparatus.shift import learned_variance
from batchnorm.study.claims.dropout_shift import CLAIM, DropoutShift
from batchnorm.study.data import split
from batchnorm.study.error import StudyError
from batchnorm.study.learning import SHARE
from batchnorm.study.subjects import Own, Stack
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = DropoutShift(
    exact_rates=(0.25, 0.5),
    means=(0.0, 2.0),
    batches=(80, 256, 16),
    subject=Stack(((8, 1), (8, 2))),
    arms=(("before norm", 0.5),),
    steps=50,
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


class Residual(nn.Module):
    """A network as users write them: no stack, activations as modules and as functions, dropout of its own."""

    def __init__(self, *, functions: bool = False) -> None:
        super().__init__()
        self.head, self.unused = nn.Linear(4, 10), nn.Linear(4, 4)
        self.stem, self.branch = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second, self.first = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.active = nn.ReLU(inplace=True)
        self.functions = functions
        self.own = nn.Dropout(0.1)

    def forward(self, images: Tensor) -> Tensor:
        act = torch.relu if self.functions else self.active
        hidden = act(self.first(self.stem(images)))
        hidden = act(hidden + self.own(self.second(self.branch(hidden))))
        pooled = hidden.mean((2, 3))
        return pooled @ self.head.weight.T + self.head.bias if self.functions else self.head(pooled)


def _functional() -> nn.Module:
    return Residual(functions=True)


IMAGES = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)


def test_dropout_finds_its_places_in_any_network() -> None:
    model = Residual()
    found = places(model, IMAGES)
    assert found["before norm"] == found["after norm"] == [model.first, model.second]  # as they are called
    assert found["after activation"] == [model.active]
    assert found["before last"] == [model.head]
    assert model.training
    nothing = places(_functional(), IMAGES)
    assert [len(nothing[placement]) for placement in PLACEMENTS] == [2, 2, 0, 0]
    # Nothing can stand between a norm and an activation of its own: after both is after the activation.
    norm = BatchNormAct2d(4, activation="relu")
    fused = places(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Softmax(1)), IMAGES)
    assert [fused[placement] for placement in PLACEMENTS] == [[norm], [], [norm], []]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_dropout_stands_where_its_placement_says_and_only_in_training(placement: str) -> None:
    model = Residual().eval()
    plain = model(IMAGES)
    assert with_dropout(model, placement, 0.5, IMAGES)
    assert torch.equal(model(IMAGES), plain)
    seen: dict[str, list[Tensor]] = {}

    def watch(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        # Copies, as the activation changes its input; and the first call of each alone.
        seen.setdefault(names[module], [given[0].clone(), output.clone()])

    names = {model.first: "first", model.active: "active", model.head: "head"}
    for module in names:
        module.register_forward_hook(watch)
    model.train()
    torch.manual_seed(0)
    model(IMAGES)
    zeros = {
        "before norm": seen["first"][0],
        "after norm": seen["first"][1],
        "after activation": seen["active"][1],
        "before last": seen["head"][0],
    }
    dropped = {place: float((values == 0).double().mean()) for place, values in zeros.items()}
    assert dropped[placement] > 0.2
    assert (dropped["before norm"] > 0.2) == (placement == "before norm")
    with pytest.raises(ValueError, match="placement is one of"):
        with_dropout(model, "before", 0.5, IMAGES)


def test_what_norms_meet_is_of_all_calls_and_all_images() -> None:
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm, nn.Dropout(0.5), norm, nn.BatchNorm2d(1, track_running_stats=False))
    images = torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert norm.running_mean is not None
    norm.running_mean.fill_(0.5)
    [(found, moments)] = met(model.train(), images)
    assert found is norm
    assert model.training
    model.eval()
    both = torch.cat([images, model[0](images)]).detach()
    assert moments.count == 56
    assert float(moments.mean[0]) == pytest.approx(float(both.mean()))
    assert float(moments.variance[0]) == pytest.approx(float(both.var(correction=0)))


class Named(nn.Module):
    """Its norm and its last layer get their input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.active, self.head = nn.BatchNorm2d(1), nn.ReLU(), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(input=self.active(input=self.norm(input=images)).flatten(1))


def _named() -> nn.Module:
    return Named()


def test_modules_that_get_their_input_by_keyword_are_as_any_other() -> None:
    model = Named()
    [(norm, moments)] = met(model, IMAGES)
    assert norm is model.norm
    assert float(moments.mean[0]) == pytest.approx(float(IMAGES.mean()), abs=1e-6)
    for placement in ("before norm", "before last"):
        dropped = Named()
        seen: list[Tensor] = []
        assert with_dropout(dropped, placement, 0.5, IMAGES)
        place = dropped.norm if placement == "before norm" else dropped.active
        place.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        plain = dropped.eval()(IMAGES)
        assert not torch.equal(dropped.train()(IMAGES), plain)
        assert len(seen) == 2
    own = replace(SMALL, subject=Own(f"{__name__}:_named"), steps=2)
    own.check(split(DIGITS, 0))
    assert "Deeper layers" not in own.conclude(run_here(own, seeds=range(2))).findings[2]


class Paired(nn.BatchNorm2d):
    """Gives its input along with its output."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(input), input


def test_a_norm_that_gives_more_than_its_values_has_dropout_after_these() -> None:
    norm = Paired(1)
    assert with_dropout(norm, "after norm", 0.5, IMAGES)
    values, given = norm.train()(IMAGES)
    assert float((values == 0).double().mean()) > 0.2
    assert torch.equal(given, IMAGES)


def test_a_network_without_some_places_goes_without_these_arms() -> None:
    subject = Own(f"{__name__}:_functional")
    own = replace(SMALL, subject=subject, arms=(*SMALL.arms, ("after activation", 0.5)), steps=4)
    own.check(split(DIGITS, 0))
    results = run_here(own, seeds=range(2))
    assert dict(results[2].values) == {"absent": True}
    conclusion = own.conclude(results)
    assert "no place for dropout after activation" in conclusion.findings[-1]
    panels = conclusion.charts[1]
    assert isinstance(panels, Panels)
    assert isinstance(panels.charts[0], Curves)
    assert [series.label for series in panels.charts[0].series] == ["before norm"]
    with pytest.raises(StudyError, match="no batch norm with running statistics"):
        SMALL.on(Own(f"{__name__}:_forgetful")).check(split(DIGITS, 0))


def _forgetful() -> nn.Module:
    norm = nn.BatchNorm2d(1, track_running_stats=False)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(64, 10))


def test_dearer_tiers_have_every_placement_and_say_what_they_cost() -> None:
    assert CLAIM.at("quick") is CLAIM
    full = CLAIM.at("full")
    assert CLAIM.at("standard") == full
    assert {placement for placement, _ in full.arms} == set(PLACEMENTS)
    assert len(full.arms) == 12
    assert full.arms[0] == CLAIM.arms[0]  # which decides
    assert CLAIM.budget == CLAIM.about.budget
    assert full.budget == pytest.approx(CLAIM.budget * 13 / 4)


def test_after_a_norm_and_after_its_relu_dropout_is_the_same() -> None:
    both = replace(SMALL, arms=(*SMALL.arms, ("after norm", 0.5), ("after activation", 0.5)), steps=4)
    results = run_here(both, seeds=range(1))
    assert dict(results[2].values) == dict(results[3].values)
    assert "exactly the same numbers" in both.conclude(results).findings[-1]
    assert not any("exactly the same numbers" in finding for finding in _concluded().findings)


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
    layers: int = 2,
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
            values = {"by layer": [own] * layers, "shift": own, "first layer over formula": 1.0, "absent": False}
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
    assert "+0.0 and +0.0 before norm 0.5" in found[1]
    assert "Deeper layers" in found[2]
    assert "Without dropout the shift is 1.000" in found[3]
    assert "Deeper layers" not in _concluded(shift=1.0).findings[2]
    alone = _concluded(layers=1).findings[2]
    assert "Deeper layers" not in alone
    assert alone.startswith("In the only batch norm layer")
    gains = _concluded().charts[-1]
    assert isinstance(gains, Intervals)
    assert [row.label for row in gains.rows] == ["dropout before norm 0.5", "no dropout"]

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from batchnorm.study import Conclusion, Result, StudyError, Verdict
from batchnorm.study.apparatus.at_weights import AtWeights
from batchnorm.study.apparatus.gradient_shift import GradientShift, shift_of, stages
from batchnorm.study.claims.covariate_shift import CovariateShift
from batchnorm.study.subjects import Stack
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = CovariateShift(
    subject=Stack(((8, 2), (8, 1))),
    plain_rates=(0.1,),
    norm_rates=(0.3,),
    steps=22,
    every=11,
    measured=10,
    share=0.0,
)


def test_a_small_run_is_deterministic_and_a_lowered_shift_is_not_reproduced() -> None:
    results = run_here(SMALL, range(5))
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    for result in results:
        assert result.numbers("measured") == [1, 11, 21]
        assert len(result.numbers("relative by layer")) == 2  # the second convolution and the linear layer
        assert min(result.numbers("relative by layer")) > 1e-3
    assert len(SMALL.conclude(results).charts) == 3
    removed = SMALL.without_effect()
    lowered = [
        Result(result.run, removed.execute(result.run, lambda done, note: None))
        if result.run.arm.startswith("norm")
        else result
        for result in results
    ]
    conclusion = removed.conclude(lowered)
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert conclusion.effects[0].interval.estimate < 0.1


class _Twisted(nn.Module):
    """Registers its layers in another order than it calls them in, and shares a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.unused = nn.Linear(3, 3)
        self.first = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, input: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(input)))) * self.scale


def test_layers_count_in_the_order_in_which_they_are_called() -> None:
    model = _Twisted()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    order = stages(model, torch.randn(2, 4))
    assert order == [
        ["scale"],
        ["first.weight", "first.bias"],
        ["norm.weight", "norm.bias"],
        ["last.weight", "last.bias"],
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_are_not_trained_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].requires_grad_(False)
    images, labels = torch.randn(6, 4), torch.arange(6) % 2
    shift = GradientShift(model, 5)
    for step in (1, 2):
        shift.before(step, images, labels)
    assert [moved.layer for moved in shift.shifts[0]] == ["2.weight"]


def test_the_shift_is_the_definition_s() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    images, labels = torch.randn(6, 4, dtype=torch.double), torch.arange(6) % 2
    function = AtWeights(model, images, labels, seed=0)
    old = function.weights()
    new = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in old.items()}

    def gradient(weights: dict[str, Tensor], name: str) -> Tensor:
        model.load_state_dict(weights)
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        found = model.get_parameter(name).grad
        assert found is not None
        return found.clone()

    found = shift_of(function, stages(model, images), old, new)
    assert [moved.layer for moved in found] == ["2.weight", "4.weight"]
    for moved, earlier in zip(found, (("0.",), ("0.", "2.")), strict=True):
        mixed = {name: new[name] if name.startswith(earlier) else old[name] for name in old}
        own, after = gradient(old, moved.layer), gradient(mixed, moved.layer)
        assert moved.absolute == pytest.approx(float((own - after).norm()))
        assert moved.relative == pytest.approx(float((own - after).norm() / own.norm()))
        cosine = nn.functional.cosine_similarity(own.flatten(), after.flatten(), dim=0)
        assert moved.cosine == pytest.approx(float(cosine))


def test_it_measures_the_update_that_was_made_on_its_own_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    batches = [(torch.randn(6, 4), torch.arange(6) % 2) for _ in range(2)]
    whole, share = GradientShift(model, 5), GradientShift(model, 5, 0.5)
    old = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for shift in (whole, share):
        shift.before(1, *batches[0])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    for shift in (whole, share):
        shift.before(2, *batches[1])
        shift.before(3, *batches[1])
    new = {name: weight.detach() for name, weight in model.named_parameters()}
    function = AtWeights(model, *batches[0], seed=1)
    order = stages(model, batches[0][0])
    assert whole.steps == [1]
    assert whole.shifts == [shift_of(function, order, old, new)]
    half = {name: torch.lerp(old[name], new[name], 0.5) for name in old}
    assert share.shifts == [shift_of(function, order, old, half)]


def test_a_network_of_one_layer_is_refused() -> None:
    class One(Stack):
        def build(self, parts: object, seed: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    claim = replace(SMALL, subject=One(()))
    with pytest.raises(StudyError, match="no layer of the network"):
        run_here(claim, [0])


def _concluded(
    shift: float = 1.0,
    absolute: float = 1.0,
    noise: float = 0.0,
    best: float = 0.9,
    layers: tuple[float, ...] = (1, 1),
    *,
    diverged: bool = False,
) -> Conclusion:
    """Made-up results: the shift with batch norm as a share of that without."""
    claim = replace(SMALL, plain_rates=(0.1, 0.3), share=0.25)
    results = []
    for run in claim.plan(range(5), DIGITS):
        norm = run.arm.startswith("norm")
        jitter = math.exp(noise * wave(run.seed)) if norm else 1.0
        relative = [0.2 * (shift * layer if norm else 1.0) * jitter for layer in layers]
        values: dict[str, float | bool | list[float]] = {
            "relative by layer": relative,
            "relative by update": [0.2] * 3,
            "absolute by layer": [0.1 * (absolute if norm else 1.0) * jitter] * len(layers),
            "absolute by update": [0.1] * 3,
            "cosine by layer": [0.95] * len(layers),
            "measured": [1.0, 11.0, 21.0],
            "best": best - 0.1 * (run.arm == "plain 0.3"),
            "diverged": diverged and not norm,
        }
        if values["diverged"]:
            values |= {name: [] for name, value in values.items() if isinstance(value, list)}
        results.append(Result(run, values | baseline_of(0.1)))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED  # equal is not lower
    assert _concluded(shift=2.0).verdict is Verdict.REPRODUCED
    assert _concluded(shift=0.8).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(shift=0.9, noise=0.5).verdict is Verdict.INCONCLUSIVE
    nothing = _concluded(best=0.3)
    assert nothing.verdict is Verdict.INCONCLUSIVE
    assert "stayed at" in nothing.reason


def test_titles_claim_no_more_than_the_verdict() -> None:
    assert _concluded(shift=0.95).charts[0].title.endswith("by a tenth")
    assert _concluded(best=0.3).charts[0].title == "The shift of each layer, with and without batch norm"


def test_what_was_not_measured_has_no_ratio() -> None:
    nothing = _concluded(diverged=True)
    assert nothing.verdict is Verdict.INCONCLUSIVE
    assert nothing.reason.startswith("A network without, seed 0, stopped being finite at every rate.")
    assert "times" not in nothing.reason + " ".join(nothing.findings)
    assert not nothing.effects
    assert not nothing.charts


def test_the_proportion_decides_and_disagreement_is_said() -> None:
    apart = _concluded(shift=1.5, absolute=0.3)
    assert apart.verdict is Verdict.REPRODUCED
    assert "would be not reproduced for it" in apart.reason
    assert "would be reproduced, too" in _concluded().reason
    mixed = _concluded(layers=(0.5, 1.0, 2.0))
    assert "lower by less than a tenth, or not at all, in 2 of 3 layers, and lower by more in 1" in mixed.findings[1]
    assert any("both at rate 0.3" in effect.name for effect in mixed.effects)

import math
from dataclasses import replace

import pytest
import torch

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.residual import BRANCHES, PLAIN, SKIP_INIT, WITH_NORM, Block, fully_connected_residual
from batchnorm.study.claims.residual_identity import ResidualIdentity
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = ResidualIdentity(
    wide=128,
    images=128,
    width=24,
    depths=(24,),
    norm_rates=(0.1,),
    plain_rates=(1e-7,),
    skip_rates=(0.1,),
    steps=24,
    every=24,
    tolerance=0.2,
)


def test_a_small_run_is_reproduced_and_deterministic() -> None:
    results = run_here(SMALL, seeds=range(5))
    assert SMALL.execute(results[-1].run, lambda done, note: None) == dict(results[-1].values)
    conclusion = SMALL.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED, conclusion.reason
    assert len(conclusion.charts) == 3


def test_with_plain_branches_everywhere_it_is_not_reproduced() -> None:
    # The measured branches alone refute it; what is trained afterwards cannot mend that.
    removed = replace(SMALL.without_effect(), steps=2, every=2)
    assert removed.conclude(run_here(removed, seeds=range(5))).verdict is Verdict.NOT_REPRODUCED


def test_the_arms_share_their_weights_and_skip_init_starts_as_the_identity() -> None:
    models = {branch: fully_connected_residual(9, 5, 2, branch=branch, classes=3, seed=0) for branch in BRANCHES}
    weights = {
        branch: [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
        for branch, model in models.items()
    }
    for branch in (WITH_NORM, SKIP_INIT):
        assert all(torch.equal(a, b) for a, b in zip(weights[branch], weights[PLAIN], strict=True))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for branch, model in models.items():
        block = next(layer for layer in model if isinstance(layer, Block))
        first, second = (layer for layer in block.branch if isinstance(layer, torch.nn.Linear))
        assert torch.equal(block(x), x) is (branch == SKIP_INIT)
        if branch == PLAIN:
            expected = x + torch.relu(torch.relu(x) @ first.weight.T) @ second.weight.T
            torch.testing.assert_close(block(x), expected)
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in models[WITH_NORM].modules()) == 5


def _concluded(
    *,
    with_norm: float = -1.0,
    without: float = 0.0,
    norm: float = 0.9,
    skip: float = 0.9,
    plain: float = 0.15,
    noise: float = 0.01,
    diverged: bool = False,
    best: dict[str, float] | None = None,
) -> Conclusion:
    """Made-up results: the powers of ℓ, and accuracies, which are the same at each depth and rate."""
    claim = ResidualIdentity(depths=(16, 64), plain_rates=(1e-6, 1e-3), norm_rates=(0.1,), skip_rates=(0.1,))
    results = []
    for run in claim.plan(range(5), DIGITS):
        own = noise * wave(run.seed)
        if run.arm.startswith("initial"):
            power = (with_norm if run.arm.endswith(WITH_NORM) else without) + own
            values: dict[str, float | list[float]] = {"ratios": [float(block) ** power for block in range(1, 32)]}
        else:
            branch = run.arm.split(" ", 2)[2]
            accuracy = {WITH_NORM: norm, SKIP_INIT: skip, PLAIN: plain}[branch]
            test = 0.0 if diverged and branch == PLAIN else accuracy + own * (branch != PLAIN)
            values = {"best": (best or {}).get(branch, accuracy), "test": test, **baseline_of(0.1)}
        results.append(Result(run, values))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED
    assert _concluded(with_norm=-0.5).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(without=-0.5).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(with_norm=-1.5).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(norm=0.8, plain=0.85).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(skip=0.8, plain=0.85).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(noise=0.3).verdict is Verdict.INCONCLUSIVE


def test_networks_that_have_learnt_nothing_say_nothing() -> None:
    assert _concluded(norm=0.2, plain=0.1).verdict is Verdict.INCONCLUSIVE  # above, and not learnt
    assert _concluded(skip=0.2, plain=0.1).verdict is Verdict.INCONCLUSIVE
    # Above a plain network that has learnt, and yet not learnt by its own validation accuracy.
    assert _concluded(best={WITH_NORM: 0.2, PLAIN: 0.5}).verdict is Verdict.INCONCLUSIVE
    assert _concluded(norm=0.1, skip=0.1, plain=0.1).verdict is Verdict.INCONCLUSIVE


def test_the_effect_that_decides_comes_first_and_says_what_was_found() -> None:
    assert _concluded().effects[0].name.endswith("batch norm")
    refuted = _concluded(without=-0.5)
    assert refuted.effects[0].name.endswith("neither")
    assert refuted.effects[0].interval.estimate == pytest.approx(-0.5, abs=0.01)
    assert refuted.short is not None
    assert refuted.short[0] == "3 of 4 statements hold"
    assert "skip" not in _concluded(skip=0.8, plain=0.85).effects[0].name


def test_a_network_that_diverged_counts_as_guessing() -> None:
    effects = {effect.name: effect.interval.estimate for effect in _concluded(diverged=True, noise=0.0).effects}
    assert effects["Test accuracy at depth 64, each at its best rate: batch norm minus neither"] == pytest.approx(80)


def test_findings_tell_the_rates_that_are_usable() -> None:
    findings = _concluded().findings
    assert "neither: none of those tried" in findings[2]
    assert f"where 1/√31 is {1 / math.sqrt(31):.2f}" in findings[0]

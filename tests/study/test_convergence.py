from collections.abc import Callable

import pytest

from batchnorm.report.chart import Curves
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.convergence import Convergence
from batchnorm.study.statistics import Interval
from study.helpers import DIGITS, baseline_of, run_here

SMALL = Convergence(
    layers=((8, 2), (8, 1), (8, 1), (8, 1)),
    plain_rates=(1, 5),
    norm_rates=(1, 5),
    sigmoid_rates=(5,),
    adam_rates=(0.003,),
    steps=60,
    every=10,
    share=0.1,
)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    # The arms are the same networks: not one step apart where both chose the same rate.
    assert conclusion.effects[0].interval.estimate >= 1


def test_a_small_run_is_deterministic_and_says_what_it_chose() -> None:
    results = run_here(SMALL, seeds=range(2))
    again = SMALL.execute(results[0].run, lambda done, note: None)
    assert again == dict(results[0].values)
    conclusion = SMALL.conclude(results)
    assert len(conclusion.charts) == 4
    assert conclusion.headline is not None
    assert conclusion.findings[0].startswith("Rates chosen on the validation split")


def _conclude(norm: Callable[[int], list[float]], plain_best: float = 0.9, guessing: float = 0.1) -> Conclusion:
    """Made-up curves of ten looks: the plain net gets to its best at step 100, others as told."""
    claim = Convergence(steps=100)
    steps = [10.0 * (look + 1) for look in range(10)]
    results = []
    for run in claim.plan(range(5), DIGITS):
        if run.arm.startswith("norm ×"):
            curve = norm(run.seed)
        elif run.arm == "plain ×1":
            curve = [plain_best * (look + 1) / 10 for look in range(10)]
        else:
            curve = [0.1] * 10
        values = {"steps": steps, "validation": curve, "best": max(curve), "test": max(curve), "diverged": False}
        values |= baseline_of(guessing)
        results.append(Result(run, values))
    return claim.conclude(results)


def _reaching(look: int) -> list[float]:
    """Gets to 95% at a look, and stays below the target before."""
    return [0.5] * (look - 1) + [0.95] * (11 - look)


def test_conclude_reaches_every_verdict() -> None:
    faster = _conclude(lambda seed: _reaching(3 + seed % 2))
    assert faster.verdict is Verdict.REPRODUCED
    assert faster.effects[0].interval.estimate == pytest.approx(0.3366, abs=1e-3)
    assert _conclude(lambda seed: _reaching(10)).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(lambda seed: [0.5] * 10).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(lambda seed: _reaching(1 if seed == 0 else 10)).verdict is Verdict.INCONCLUSIVE


def test_a_seed_that_never_gets_there_cannot_help_to_reproduce() -> None:
    conclusion = _conclude(lambda seed: [0.5] * 10 if seed == 0 else _reaching(1))
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert "1 of 5 never got there: the ratio is a lower bound" in conclusion.effects[0].note


def test_a_plain_net_that_does_not_train_is_no_baseline() -> None:
    assert _conclude(lambda seed: _reaching(1), plain_best=0.2).verdict is Verdict.INCONCLUSIVE


def test_the_rate_is_chosen_by_validation_and_never_by_test() -> None:
    claim = Convergence(steps=20)
    results = []
    for run in claim.plan(range(2), DIGITS):
        best = {"plain ×1": 0.9, "plain ×2": 0.8}.get(run.arm, 0.1)
        test = 1.0 - best  # the worst on validation are the best on test
        values = {"steps": [10.0, 20.0], "validation": [0.0, best], "best": best, "test": test, "diverged": False}
        values |= baseline_of(0.1)
        results.append(Result(run, values))
    found = claim.conclude(results).findings[0]
    assert "plain ×1, ×1;" in found


def test_networks_that_guess_the_most_frequent_class_are_not_compared() -> None:
    # Both at 97% from the first look on, and so exactly as fast: where 97% are of one class, that is a guess.
    both = _conclude(lambda seed: [0.97] * 10, plain_best=0.97, guessing=0.97)
    assert both.verdict is Verdict.INCONCLUSIVE
    assert "stayed at 97.0% validation accuracy, where guessing gives 97.0%" in both.reason
    # But 46% of ten classes is learnt, though it is less than half.
    assert _conclude(lambda seed: [0.4] * 2 + [0.5] * 8, plain_best=0.46).verdict is Verdict.REPRODUCED


def test_one_limit_divides_reproduced_from_not_reproduced() -> None:
    claim = Convergence()
    plain = [Result(run, {"best": 0.9, **baseline_of(0.1)}) for run in claim.plan(range(5), DIGITS)[:5]]

    def verdict(low: float, high: float) -> Verdict:
        return claim._verdict(Interval((low * high) ** 0.5, low, high, 5), 5, plain)

    assert verdict(0.92, 0.98) is Verdict.NOT_REPRODUCED
    assert verdict(0.85, 0.98) is Verdict.INCONCLUSIVE
    assert verdict(0.8, 0.89) is Verdict.REPRODUCED
    assert claim.about.pass_rule.count("0.9. ") == 2
    assert "below 1" not in claim.about.pass_rule + claim.about.direction


def test_what_is_said_of_the_plain_nets_end_is_measured() -> None:
    late, early = _conclude(lambda seed: _reaching(3)), _early()
    assert (
        "at its best after 100 of 100 steps, by seed, and at 95% of that accuracy after 100. Its best comes so late"
        in (late.findings[1])
    )
    assert "at its best after 20 of 100 steps" in early.findings[1]
    assert "late" not in early.findings[1]


def _early() -> Conclusion:
    claim = Convergence(steps=100)
    results = []
    for run in claim.plan(range(5), DIGITS):
        curve = [0.5, *([0.8] * 9)]
        values = {"steps": [10.0 * (look + 1) for look in range(10)], "validation": curve, "best": 0.8, "test": 0.8}
        results.append(Result(run, {**values, "diverged": False, **baseline_of(0.1, 250)}))
    return claim.conclude(results)


def test_findings_and_axes_are_of_the_data_at_hand() -> None:
    found = _early()
    # √(0.8·0.2/250) = 0.0253
    assert (
        "At 80.0%, the mean of the tuned plain nets, the accuracy on one test split of 250 images has a standard "
        in (found.findings[3])
    )
    assert "2.53 points: in a single seed a difference below about 5.1 points" in found.findings[3]
    chart = found.charts[0]
    assert isinstance(chart, Curves)
    assert chart.y_range == (50, 100)


def test_the_title_names_the_rates_at_which_accuracy_comes_sooner() -> None:
    assert _titles(lambda rate: 3)[0] == "ReLU: with batch norm at ×1, ×5 and ×30 accuracy comes sooner"
    assert _titles(lambda rate: 3 if rate == "30" else 10)[0] == "ReLU: with batch norm at ×30 accuracy comes sooner"
    assert _titles(lambda rate: 10)[0] == "ReLU: accuracy during training"
    # Where one seed never gets there the ratio is a lower bound, and so is no proof of sooner.
    assert _titles(lambda rate: 1, missing=4)[0] == "ReLU: accuracy during training"


def _titles(look: Callable[[str], int], missing: int | None = None) -> list[str]:
    claim = Convergence(steps=100)
    results = []
    for run in claim.plan(range(5), DIGITS):
        curve = [0.09 * (step + 1) for step in range(10)]
        if run.arm.startswith("norm ×"):
            curve = [0.5] * 10 if run.seed == missing else _reaching(look(run.arm.removeprefix("norm ×")))
        values = {"steps": [10.0 * (step + 1) for step in range(10)], "validation": curve, "best": max(curve)}
        results.append(Result(run, {**values, "test": 0.9, "diverged": False, **baseline_of(0.1)}))
    return [chart.title for chart in claim.conclude(results).charts]


def test_the_setup_says_whom_the_rates_of_the_sigmoid_nets_favour() -> None:
    claim = Convergence()
    assert len(claim.norm_sigmoid_rates) < len(claim.sigmoid_rates)
    assert "trained at ×5 only, so that comparison favours the plain sigmoid net" in claim.about.setup

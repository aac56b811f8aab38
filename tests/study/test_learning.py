import math

import pytest
import torch

from batchnorm.report.chart import Series
from batchnorm.study import Result, Run
from batchnorm.study.data import Split
from batchnorm.study.learning import LEARNT, SHARE, baseline, guessing, learnt, shortfall, threshold
from batchnorm.study.percent import axis, difference_error, standard_error
from study.helpers import baseline_of


def test_guessing_is_the_share_of_the_most_frequent_class() -> None:
    assert guessing(torch.tensor([0, 2, 2, 1, 2, 0, 2, 2])) == 5 / 8


def test_a_run_keeps_the_guess_of_its_training_part_and_the_sizes_of_the_others() -> None:
    def part(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(labels), 1), torch.tensor(labels)

    kept = baseline(Split(part([0, 1, 1, 1]), part([0, 0, 0, 0, 1]), part([0, 1, 0])))
    assert kept == {"guessing": 0.75, "validation images": 5, "test images": 3}


def test_learning_begins_a_quarter_of_the_way_and_beyond_luck() -> None:
    assert threshold(0.1, 1000) == pytest.approx(0.325)  # the default data
    assert "from 32.5% on" in LEARNT
    assert threshold(0.5, 10_000) == pytest.approx(0.625)
    # On 36 images a guess at one half is easily right on 60%: three of its standard errors are a quarter.
    assert threshold(0.5, 36) == pytest.approx(0.75)
    assert threshold(0.97, 40) > 1


def _result(best: float, guess: float, images: int) -> Result:
    return Result(Run("x", "arm", 0, None), {"best": best, **baseline_of(guess, images)})


def test_a_network_has_learnt_relative_to_guessing() -> None:
    assert learnt(_result(0.46, 0.1, 1000))
    assert not learnt(_result(0.32, 0.1, 1000))
    assert not learnt(_result(0.97, 0.97, 100_000))
    assert learnt(_result(0.98, 0.97, 100_000))
    assert not learnt(_result(0.6, 0.5, 1000))
    assert learnt(_result(0.6, 0.5, 1000), share=0.1)
    assert not learnt(_result(1.0, 1.0, 1000))  # a single class: right, and nothing learnt
    assert not learnt(_result(1.0, 0.97, 40))


def test_the_shortfall_names_the_numbers() -> None:
    assert shortfall(_result(0.3, 0.1, 1000)) == (
        "30.0% validation accuracy, where guessing gives 10.0% and learning begins at 32.5%"
    )
    assert shortfall(_result(0.98, 0.97, 40), SHARE).endswith("40 validation images are too few to tell the two apart")


def test_the_noise_of_guessing_hardly_ever_counts_as_learning() -> None:
    # The best of ten independent looks at a guess on 30 images of two classes: with a quarter alone it would often.
    generator = torch.Generator().manual_seed(0)
    looks = (torch.rand(2000, 10, 30, generator=generator) < 0.5).double().mean(2).amax(1)
    passed = sum(look >= threshold(0.5, 30) for look in looks.tolist())
    assert passed / 2000 < 0.02
    assert float((looks >= 0.5 + 0.25 * 0.5).double().mean()) > 0.5


def test_the_standard_error_of_an_accuracy() -> None:
    assert standard_error(0.97, 1000) == pytest.approx(0.539, abs=1e-3)
    assert standard_error(1.0, 100) == pytest.approx(100 * math.sqrt(0.01 * 0.99 / 100))  # not 0


def test_the_difference_of_two_accuracies_is_never_less_exact_than_it_says() -> None:
    # Two networks that share no error, image by image: the bound is the standard deviation of the mean.
    first, second = torch.ones(200), torch.ones(200)
    first[:10], second[10:40] = 0, 0
    apart = first - second
    exact = 100 * float(apart.std(correction=0)) / math.sqrt(200)
    assert difference_error(0.95, 0.85, 200) == pytest.approx(exact, rel=1e-6)
    assert difference_error(1.0, 1.0, 100) > 0
    assert difference_error(0.05, 0.05, 100) < difference_error(0.5, 0.5, 100)


def test_the_axis_of_accuracies_begins_at_the_ten_below_the_lowest() -> None:
    def line(*y: float, low: list[float] | None = None) -> Series:
        return Series("", list(range(len(y))), list(y), 0, low, low)

    assert axis([line(83, 99), line(95, 97)]) == (80, 100)
    assert axis([line(83, 99, low=[47, 98])]) == (40, 100)
    assert axis([line(100, 100)]) == (90, 100)
    assert axis([line(math.nan, 55)]) == (50, 100)
    assert axis([line(0, 10)]) == (0, 100)

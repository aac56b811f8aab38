import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from batchnorm.report import Curves, Panels, render
from batchnorm.study import Result
from batchnorm.study.claim import Value
from batchnorm.study.data import Split
from batchnorm.study.explanation import Explanation
from batchnorm.study.explanation import measure as module
from study.helpers import run_here

SMALL = Explanation(layers=((8, 2), (16, 2), (32, 1)), steps=30, companions=6)


@pytest.fixture(scope="module")
def result() -> Result:
    return run_here(SMALL, seeds=[3, 4])[0]


def test_there_is_one_run_and_it_is_deterministic(result: Result) -> None:
    assert [run.seed for run in SMALL.plan([3, 4], result.run.data)] == [3]
    assert SMALL.execute(result.run, lambda done, note: None) == dict(result.values)


def test_every_value_is_finite(result: Result) -> None:
    for name, value in result.values.items():
        values: list[Any] = value if isinstance(value, list) else [value]
        assert all(math.isfinite(each) for each in values), name


def test_the_three_stages_are_what_the_layer_does(result: Result) -> None:
    assert result.number("largest error") < 1e-5
    assert result.number("standardised/mean") == pytest.approx(0, abs=1e-3)
    assert result.number("standardised/deviation") == pytest.approx(1, abs=1e-3)
    assert result.number("output/mean") == pytest.approx(result.number("beta"), abs=1e-3)
    assert result.number("output/deviation") == pytest.approx(abs(result.number("gamma")), abs=1e-3)


@pytest.mark.parametrize("name", ["input", "standardised", "output", "by batch"])
def test_a_histogram_has_the_moments_that_are_written_beside_it(result: Result, name: str) -> None:
    edges, density = np.array(result.numbers(f"{name}/edges")), np.array(result.numbers(f"{name}/density"))
    shares, middles = density * np.diff(edges), (edges[1:] + edges[:-1]) / 2
    width = edges[1] - edges[0]
    assert shares.sum() == pytest.approx(1)
    mean = float(shares @ middles)
    assert mean == pytest.approx(result.number(f"{name}/mean"), abs=width / 2)
    deviation = float(np.sqrt(shares @ (middles - mean) ** 2))
    assert deviation == pytest.approx(result.number(f"{name}/deviation"), abs=width / 2)


def test_the_running_statistics_follow_from_those_of_the_batches(result: Result) -> None:
    means, running = result.numbers("batch means"), 0.0
    assert len(means) == SMALL.steps
    for batch, shown in zip(means, result.numbers("running means"), strict=True):
        running = 0.9 * running + 0.1 * batch
        assert running == pytest.approx(shown, abs=1e-5)
    values = SMALL.batch_size * int(result.number("height")) * int(result.number("width"))
    variance = 1.0
    for batch, shown in zip(result.numbers("batch variances"), result.numbers("running variances"), strict=True):
        variance = 0.9 * variance + 0.1 * batch * values / (values - 1)
        assert variance == pytest.approx(shown, rel=1e-4)
    assert result.numbers("running variances")[-1] == result.number("running variance")


def test_companions_matter_in_training_mode_only(result: Result) -> None:
    assert len(set(result.numbers("evaluation"))) == 1
    assert len(set(result.numbers("small batch"))) == SMALL.companions
    value = (result.number("value") - result.number("running mean")) / math.sqrt(
        result.number("running variance") + 1e-5
    )
    expected = result.number("gamma") * value + result.number("beta")
    assert result.numbers("evaluation")[0] == pytest.approx(expected, abs=1e-5)


def test_the_section_can_be_drawn_and_says_which_channel(result: Result) -> None:
    section = SMALL.tell([result])
    assert section.anchor == "layer"
    text = " ".join(block for block in section.blocks if isinstance(block, str))
    assert f"channel {result.values['channel']} of 16 in the batch norm layer 2 of 3" in text
    assert "in evaluation mode over 0." in text
    assert "γ" in render("title", "lead", [section])


def test_titles_say_what_was_measured_and_no_more(result: Result) -> None:
    def titles(changed: dict[str, Value]) -> list[str]:
        section = SMALL.tell([replace(result, values={**result.values, **changed})])
        return [block.title for block in section.blocks if isinstance(block, Panels | Curves)]

    as_measured = titles({})
    assert "From step to step, the running statistics move less than those of the batches" in as_measured
    assert (
        "In training mode one image's output depends on its companions; in evaluation mode it does not" in as_measured
    )
    swapped = titles({"running means": result.values["batch means"]})
    assert "The statistics of each batch, and the running ones" in swapped
    alike = titles({"small batch": result.values["evaluation"]})
    assert "One image's output with different companions, in training mode and in evaluation mode" in alike


def test_numbers_are_written_for_people_and_words_are_explained(result: Result) -> None:
    text = " ".join(block for block in SMALL.tell([result]).blocks if isinstance(block, str))
    for words in ("ε = 10⁻⁵", "momentum = 0.1", "γ = 1 and β = 0", "what one filter of a convolution gives"):
        assert words in text
    assert not re.search(r"\de[-+]?\d|-\d", text)


def test_images_of_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours(source: object, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)

        def part(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.randn(count, 3, 9, 7, generator=generator), torch.arange(count) % 4

        return Split(part(120), part(40), part(40))

    monkeypatch.setattr(module, "split", colours)
    small = replace(SMALL, steps=4)
    found: dict[str, Value] = dict(run_here(small, seeds=[0])[0].values)
    assert (found["height"], found["width"]) == (3, 2)
    assert found["largest error"] < 1e-5

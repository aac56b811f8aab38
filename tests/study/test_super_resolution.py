import copy
import math
from dataclasses import replace

import pytest
import torch

from batchnorm import BatchNorm2d, diagnose
from batchnorm.report.chart import Panels, Pictures
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.enlarging import (
    Enlarger,
    by_own_statistics,
    enlarged,
    photographs,
    psnr,
    repeated,
    score,
)
from batchnorm.study.claims.super_resolution import CLAIM, SuperResolution, _beside, _helped
from batchnorm.study.data.pictures import PICTURES, pictures
from batchnorm.study.error import StudyError
from study.helpers import run_here, wave

SMALL = SuperResolution(
    names=("chelsea", "gravel"),
    out=1,
    most=60,
    channels=4,
    blocks=1,
    rates=(0.03, 0.01),
    straight_rates=(0.03,),
    search_steps=2,
    steps=12,
    batch_size=4,
    patch=12,
    shown=("chelsea", 4, 4, 8),
)


def test_a_small_run_is_deterministic_and_shows_what_it_made() -> None:
    results = run_here(SMALL, range(2), None)
    torch.rand(3)  # what was drawn before does not matter
    for place in (1, 3):
        assert SMALL.execute(results[place].run, lambda done, note: None) == dict(results[place].values)
    by_arm = {result.run.arm: result for result in results if result.run.seed == 0}
    assert len({result.number("validation") for result in by_arm.values()}) == 4
    # A norm keeps its input: three of them that of a convolution with 4 channels, for 4 patches of 6×6.
    for shape in ("skips", "straight"):
        more = by_arm[f"batch {shape}"].number("bytes") - by_arm[f"none {shape}"].number("bytes")
        assert more == pytest.approx(3 * 4 * 4 * 6 * 6 * 4, rel=0.1)
    conclusion = SMALL.conclude(results)
    shown, first, second = conclusion.charts
    assert isinstance(shown, Pictures)
    assert [len(row) for row in shown.rows] == [4, 4]
    assert {
        (len(image.pixels), len(image.pixels[0]), len(image.pixels[0][0])) for row in shown.rows for image in row
    } == {(8, 8, 3)}
    truth = pictures(60)["chelsea"][:, 4:12, 4:12].permute(1, 2, 0)
    torch.testing.assert_close(torch.tensor(shown.rows[1][0].pixels), truth, rtol=0, atol=0.5 / 255)
    assert isinstance(first, Panels)
    assert isinstance(second, Panels)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = replace(SMALL.without_effect(), rates=(0.03,), search_steps=1, steps=60)
    results = run_here(removed, range(2), None)
    for none, batch in zip(results[::2], results[1::2], strict=True):
        assert none.values["psnr"] == batch.values["psnr"]
        assert none.values["bytes"] == batch.values["bytes"]
    conclusion = removed.conclude(results)
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert [effect.interval.high for effect in conclusion.effects[:3]] == [0.0, 0.0, 0.0]


def test_each_photograph_is_left_out_once_and_never_learnt_from() -> None:
    out = [CLAIM._left_out(seed) for seed in range(5)]
    assert sorted(name for names in out for name in names) == sorted(PICTURES)
    assert CLAIM._left_out(5) == out[0]
    everything = pictures(60)
    parts = photographs(everything, out[0])
    assert set(parts.test) == set(out[0])
    assert len(parts.train) == len(parts.validation) == 8
    others = [image for name, image in everything.items() if name not in out[0]]
    for image, upper, lower in zip(others, parts.train, parts.validation, strict=True):
        assert torch.equal(torch.cat([upper, lower], 1), image)
        assert upper.shape[1] % 2 == lower.shape[1] % 2 == 0


def test_photographs_are_small_even_and_in_colour() -> None:
    for image in pictures(60).values():
        assert image.shape[0] == 3
        assert max(image.shape) <= 60
        assert image.shape[1] % 2 == image.shape[2] % 2 == 0
        assert 0 <= float(image.min()) < float(image.max()) <= 1
    grey, colour = pictures(60)["gravel"], pictures(60)["chelsea"]
    assert torch.equal(grey[0], grey[2])
    assert not torch.equal(colour[0], colour[2])


def test_without_scikit_image_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="scikit-image"):
        pictures(61)


def _network(*, norm: bool, skips: bool) -> Enlarger:
    return Enlarger(4, 2, norm=norm, skips=skips, mean=torch.tensor([0.5, 0.4, 0.3]), deviation=0.2, seed=3)


def test_arms_share_weights_and_differ_in_norms_and_skips() -> None:
    image = pictures(60)["chelsea"]
    networks = {(norm, skips): _network(norm=norm, skips=skips) for norm in (False, True) for skips in (False, True)}
    first = [weight for weight in networks[False, False].parameters() if weight.dim() == 4]
    for (norm, _), network in networks.items():
        weights = [weight for weight in network.parameters() if weight.dim() == 4]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, first, strict=True))
        assert sum(isinstance(module, BatchNorm2d) for module in network.modules()) == (5 if norm else 0)
        assert enlarged(network, image).shape == image.shape


def test_a_skip_lets_brightness_past_norms_that_take_it_away() -> None:
    image, changes = pictures(200)["chelsea"], []
    for skips in (False, True):
        network = _network(norm=True, skips=skips)
        before = copy.deepcopy(network.state_dict())
        dark, bright = (by_own_statistics(network, 0.3 * image + shift) for shift in (0.2, 0.4))
        # Beside the border, where there is black around the image, which no norm takes away.
        changes.append(float((bright - dark)[:, 20:-20, 20:-20].abs().mean()))
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert 3 * changes[0] < changes[1]
    own, usual = by_own_statistics(network, image), enlarged(network, image)
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean += 1
    assert torch.equal(by_own_statistics(network, image), own)
    assert not torch.equal(enlarged(network, image), usual)


def test_the_doctor_finds_these_norms() -> None:
    for skips, severity in ((False, "warning"), (True, "info")):
        found = diagnose(_network(norm=True, skips=skips), batches=torch.rand(4, 3, 8, 8), select=["BN023"]).findings
        assert {finding.severity for finding in found} == {severity}


def test_scores_are_what_they_say() -> None:
    image = pictures(60)["chelsea"].double()
    darker = 0.5 * image
    found = score(darker, image)
    assert found["contrast"] == pytest.approx(50)
    assert found["brightness"] == pytest.approx(255 * 0.5 * float(image.mean()))
    assert found["psnr"] == pytest.approx(-10 * math.log10(float((0.5 * image).square().mean())))
    assert score(image + 0.1, image)["colour"] == pytest.approx(0, abs=1e-9)
    redder = image + torch.tensor([0.03, 0.0, 0.0]).reshape(3, 1, 1)
    assert score(redder, image)["colour"] == pytest.approx(255 * 0.03 * 4 / 9)
    assert psnr(image, image + 0.1) == pytest.approx(20)
    assert repeated(image).shape == image.shape


def _concluded(
    skips: float = 0.3,
    straight: float = 1.0,
    *,
    noise: float = 0.02,
    kept: float = 0.6,
    validation: float = 26.0,
    finite: bool = True,
    seeds: int = 5,
) -> Conclusion:
    """Made-up results: what batch norm costs with and without skips, and the share of bytes that stay without it."""
    results = []
    for run in CLAIM.plan(range(seeds), None):
        norm, shape = run.arm.split()
        lost = 0.0 if norm == "none" else (skips if shape == "skips" else straight) + noise * wave(run.seed)
        values: dict[str, float | list[float]] = {"rate": 0.01, "finite": finite, "flat": 16.0, "repeated": 26.0}
        values |= {"bytes": 1000 * kept if norm == "none" else 1000, "validation": validation}
        values |= {"psnr": [28 - lost, 30 - lost], "contrast": [1.0, 2.0], "brightness": [1.0, 3.0]}
        values |= {"colour": [0.1, 0.2], "repeated psnr": [26.0, 27.0]}
        if run.seed == 0:
            part = [128.0] * 3 * CLAIM.shown[3] ** 2
            values |= {"part": part, "true part": part, "small part": part}
        results.append(Result(run, values))
    return CLAIM.conclude(results)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, Verdict.REPRODUCED),
        ({"skips": -0.3}, Verdict.NOT_REPRODUCED),  # batch norm helps
        ({"straight": 0.1}, Verdict.NOT_REPRODUCED),  # a skip shields nothing
        ({"kept": 1.0}, Verdict.NOT_REPRODUCED),
        ({"skips": 0.01, "noise": 0.1}, Verdict.INCONCLUSIVE),
        ({"validation": 20.9}, Verdict.INCONCLUSIVE),
        ({"finite": False}, Verdict.INCONCLUSIVE),
        ({"seeds": 1}, Verdict.INCONCLUSIVE),
    ],
)
def test_conclude_reaches_every_verdict(given: dict[str, float], verdict: Verdict) -> None:
    assert _concluded(**given).verdict is verdict  # type: ignore[arg-type]


def test_what_a_shield_is_made_of_and_what_networks_without_skips_are_worth() -> None:
    plain = " ".join(_concluded(noise=0.0).findings)
    assert "worse than repeating" not in plain
    assert "helped with skips" not in plain
    poor = " ".join(_concluded(-0.3, 4.0, noise=0.0).findings)
    assert "Without skips the network with batch norm is worse than repeating each pixel (29.00 dB" in poor
    assert "Of the 4.30 dB" in poor
    assert "0.30 are that it helped with skips" in poor
    assert _beside(24.8, 24.1, 27.6)[0].startswith("Without skips both networks are worse")
    # Where batch norm helps without skips too, only less, all of the difference is that.
    assert "Of the 0.10 dB" in _helped(-0.3, -0.2)[0]
    assert "0.10 are that" in _helped(-0.3, -0.2)[0]


def test_what_decides_comes_first_and_what_is_said_is_measured() -> None:
    found = _concluded(noise=0.0)
    assert found.effects[0].name.startswith("PSNR with skips")
    assert found.effects[0].interval.estimate == pytest.approx(0.3)
    assert found.effects[1].interval.estimate == pytest.approx(0.7)
    assert found.effects[2].interval.estimate == pytest.approx(40)
    assert "10 of 10 photographs" in found.findings[1]
    assert _concluded(straight=0.1).effects[0].name.startswith("What batch norm costs without skips")
    assert "learning begins at 21.00" in _concluded(validation=20.9).reason
    assert "stopped being finite" in _concluded(finite=False).reason

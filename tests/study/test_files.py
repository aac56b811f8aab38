"""The user's own data: each kind is read, and each fault is named before anything is trained."""

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from batchnorm.study import Source, StudyError
from batchnorm.study.data import load, split
from batchnorm.study.data.images import checked

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 255, (40, 10, 12), dtype=np.uint8)
Y = np.arange(40) % 4


def _idx(path: Path, values: np.ndarray) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _folder(path: Path, mode: str = "L", suffix: str = "png") -> Path:
    for number, label in enumerate(Y):
        (path / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[number]).convert(mode).save(path / f"class {label}" / f"{number}.{suffix}")
    return path


def colour() -> TensorDataset:
    return TensorDataset(torch.from_numpy(X)[:, None].expand(-1, 3, -1, -1), torch.from_numpy(Y))


def arrays() -> tuple[torch.Tensor, np.ndarray]:
    return torch.from_numpy(X), Y


def breaks() -> None:
    raise OSError("the disk is gone")


def ragged() -> list[tuple[np.ndarray, int]]:
    return [(X[0], 0), (X[1, :5], 1)]


def unpaired() -> list[np.ndarray]:
    return [X[0]]


def dicts() -> list[dict[str, object]]:
    return [{"image": X[0], "label": 0}]


def two_datasets() -> tuple[TensorDataset, TensorDataset]:
    return colour(), colour()


def half() -> tuple[torch.Tensor, list[int]]:
    return torch.from_numpy(X).to(torch.bfloat16), Y.tolist()


def leaves() -> None:
    raise SystemExit(0)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=X, y=np.array(["ape", "bee", "cat", "dog"])[Y])
    images = load(Source(str(tmp_path / "own.npz")))
    assert images.x.shape == (40, 1, 10, 12)
    np.testing.assert_array_equal(images.x[:, 0], X)
    np.testing.assert_array_equal(images.y, Y)
    assert images.description.endswith("own.npz (40 images, 10×12, 1 channel, 4 classes)")


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_idx_files_one_by_one_and_as_a_folder(tmp_path: Path, packed: str) -> None:
    _idx(tmp_path / f"train-images-idx3-ubyte{packed}", X[:30])
    _idx(tmp_path / f"train-labels-idx1-ubyte{packed}", Y[:30])
    _idx(tmp_path / f"t10k-images-idx3-ubyte{packed}", X[30:])
    _idx(tmp_path / f"t10k-labels-idx1-ubyte{packed}", Y[30:])
    one = load(Source(str(tmp_path / f"train-images-idx3-ubyte{packed}")))
    np.testing.assert_array_equal(one.x[:, 0], X[:30])
    np.testing.assert_array_equal(one.y, Y[:30])
    _idx(tmp_path / "train-images-idx3-ubyte.gz", X[:30])  # packed and unpacked side by side: one set
    both = load(Source(str(tmp_path)))
    assert both.x.shape == (40, 1, 10, 12)
    assert sorted(both.x.sum((1, 2, 3))) == sorted(X.sum((1, 2)))


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("RGB", "png"), ("P", "gif"), ("LA", "PNG"), ("1", "png")])
def test_a_folder_of_grey_images_has_one_channel_however_they_are_stored(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    images = load(Source(str(_folder(tmp_path, mode, suffix)), image_size=8))
    assert images.x.shape == (40, 1, 8, 8)
    assert np.bincount(images.y).tolist() == [10] * 4
    np.testing.assert_allclose(images.x.mean(), X.mean(), rtol=0.05)


@pytest.mark.parametrize("size", [4, 8])
def test_a_folder_of_colours_has_three_channels(tmp_path: Path, size: int) -> None:
    for number, label in enumerate(Y):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        flat = np.broadcast_to(np.array([number, 0, 255], np.uint8), (9, 9, 3))
        Image.fromarray(flat).save(tmp_path / str(label) / f"{number}.png")
    images = load(Source(str(tmp_path), image_size=size))
    assert images.x.shape == (40, 3, size, size)
    assert sorted(images.x[:, 0].mean((1, 2))) == list(range(40))
    assert (images.x[:, 2] == 255).all()


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tiff")])
def test_images_of_more_than_eight_bits_keep_their_values(tmp_path: Path, kind: type, suffix: str) -> None:
    for number, label in enumerate(Y):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray((X[number] * 16.0).astype(kind)).save(tmp_path / str(label) / f"{number}.{suffix}")
    images = load(Source(str(tmp_path), image_size=10))
    assert images.x.shape[1] == 1
    expected = 16 * np.sort(X[:, :, 1:11].sum((1, 2), dtype=np.float64))
    np.testing.assert_allclose(np.sort(images.x[:, 0].sum((1, 2), dtype=np.float64)), expected, rtol=1e-6)


def test_hidden_files_and_what_a_mac_adds_are_no_images(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    (folder / "class 0" / "._0.png").write_bytes(b"resource fork")
    (folder / "__MACOSX" / "class 0").mkdir(parents=True)
    (folder / "__MACOSX" / "class 0" / "._0.png").write_bytes(b"resource fork")
    (folder / ".git").mkdir()
    (folder / "README.md").touch()
    assert load(Source(str(folder))).x.shape[0] == 40


def test_a_folder_that_is_laid_out_otherwise_is_refused(tmp_path: Path) -> None:
    def fault(folder: Path) -> str:
        with pytest.raises(StudyError) as caught:
            load(Source(str(folder)))
        return str(caught.value)

    parts = tmp_path / "parts"
    _folder(parts / "train")
    _folder(parts / "val")
    assert re.search(r"its folders train, val look like parts, not classes\. Mend: name one of them", fault(parts))
    lacking = _folder(tmp_path / "lacking")
    (lacking / "empty").mkdir()
    (lacking / "phone").mkdir()
    (lacking / "phone" / "1.heic").touch()
    assert "no images in empty, phone; they hold .heic. Mend: remove those folders, or convert" in fault(lacking)
    loose = _folder(tmp_path / "loose")
    Image.fromarray(X[0]).save(loose / "preview.png")
    assert "1 images, such as preview.png, lie beside the folders" in fault(loose)
    mixed = _folder(tmp_path / "mixed")
    Image.fromarray(X[0].astype(np.uint16)).save(mixed / "class 0" / "wide.png")
    assert "1 of 41 images have more than 8 bits a pixel, the others 8" in fault(mixed)


def test_a_large_folder_is_read_in_part(tmp_path: Path) -> None:
    assert np.bincount(load(Source(str(_folder(tmp_path)), samples=24)).y).tolist() == [6] * 4


@pytest.mark.parametrize(("name", "channels"), [("colour", 3), ("arrays", 1), ("half", 1)])
def test_a_callable(name: str, channels: int) -> None:
    images = load(Source(f"{__name__}:{name}"))
    assert images.x.shape == (40, channels, 10, 12)
    assert split(Source(f"{__name__}:{name}"), 0).channels == channels


def test_the_fingerprint_is_that_of_pixels_and_labels_not_of_their_place(tmp_path: Path) -> None:
    prints = []
    for name, x, y in (("a", X, Y), ("b", X, Y), ("c", X, (Y + 1) % 4), ("d", X ^ 1, Y)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        prints.append(load(Source(str(tmp_path / f"{name}.npz"))).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_channels_may_come_last() -> None:
    last = RANDOM.random((20, 9, 7, 3))
    np.testing.assert_array_equal(checked(last, np.arange(20) % 2, "own").x, last.transpose(0, 3, 1, 2).astype("f4"))


FAULTS: dict[str, tuple[Any, Any, str]] = {
    "lengths": (X, Y[:-1], "own: 40 images in x, but 39 labels in y"),
    "one-hot": (X, np.eye(4)[Y], r"y must have shape \(N,\).*\(40, 4\).*argmax"),
    "a column": (X, Y[:, None], r"\(40, 1\)\. Mend: y\.ravel\(\)"),
    "beyond float32": (X * 1e300, Y, r"values up to 2\.54e\+302, too large for float32"),
    "flat": (X.reshape(40, -1), Y, r"x has shape \(40, 120\).*reshape"),
    "too small": (X[:, :2], Y, r"x has shape \(40, 1, 2, 12\).*at least 4 pixels"),
    "many channels": (np.zeros((40, 9, 8, 8)), Y, "1 to 4 channels"),
    "text": (X.astype(str), Y, "x has dtype <U"),
    "nan": (np.where(X > 250, np.nan, X), Y, "NaN or infinite"),
    "constant": (np.ones_like(X), Y, "every value of x is 1"),
    "one class": (X, Y * 0, "all 40 labels are 0.*at least two classes"),
    "few of a class": (X, np.r_[Y[:-3], 9, 9, 9], r"at least 5 images.*too few in 9 \(3\)"),
    "regression": (X, np.linspace(0, 1, 40), "numbers such as 0.0256.*which are no classes"),
    "nan labels": (X, np.full(40, np.nan), "which are no classes"),
    "many classes": (X, np.arange(40), r"too few in 0 \(1\), 1 \(1\), 2 \(1\), 3 \(1\), 4 \(1\) and 35 more"),
    "objects": (X, np.array([None] * 40), "y has dtype object"),
    "empty": (X[:0], Y[:0], "there are no images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault: str) -> None:
    x, y, message = FAULTS[fault]
    with pytest.raises(StudyError, match=message):
        checked(x, y, "own")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no module nowhere"),
        (f"{__name__}:nothing", "has no nothing"),
        (f"{__name__}:breaks", "calling it raised OSError: the disk is gone"),
        (f"{__name__}:ragged", r"image 1 has shape \(5, 12\), image 0 has \(10, 12\)"),
        (f"{__name__}:unpaired", r"item 0 is not an \(image, label\) pair"),
        (f"{__name__}:dicts", "item 0 is not an .* it is a dict"),
        (f"{__name__}:two_datasets", "it returned a tuple of TensorDataset, TensorDataset, not a dataset"),
        (f"{__name__}:leaves", "calling it raised SystemExit: 0"),
        ("math:sqrt", "calling it raised TypeError"),
        ("builtins:int", "it returned int, not a dataset"),
        ("builtins:list", "its dataset is empty"),
    ],
)
def test_a_callable_that_gives_no_images_is_named(name: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load(Source(name if ":" in name else f"{name}:callable"))


def test_files_that_are_missing_cut_or_of_another_kind_are_named(tmp_path: Path) -> None:
    def fault(name: str) -> str:
        with pytest.raises(StudyError) as caught:
            load(Source(str(tmp_path / name) if name else "imagenet"))
        return str(caught.value)

    assert re.search(r"there is no imagenet\. Mend: name a file, a folder.*mnist-5k, digits", fault(""))
    for path in ("/nonexistent:dir/x.npz", "C:\\data\\x.npz", "./no:thing"):
        with pytest.raises(StudyError, match="data: there is no"):
            load(Source(path))
    (tmp_path / "notes.txt").touch()
    assert "of no kind that the study reads" in fault("notes.txt")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert "cut.npz: cannot be read: BadZipFile" in fault("cut.npz")
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert "it holds one array, not an archive of arrays" in fault("one.npz")
    np.savez_compressed(tmp_path / "bits.npz", x=X, y=Y)
    packed = bytearray((tmp_path / "bits.npz").read_bytes())
    packed[200:260] = bytes(60)
    (tmp_path / "bits.npz").write_bytes(packed)
    assert "bits.npz: cannot be read" in fault("bits.npz")
    np.savez(tmp_path / "keras.npz", x_train=X)
    assert "it needs arrays x and y; it has x_train. Mend: np.savez(" in fault("keras.npz")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}]), y=Y)
    assert "cannot be read: ValueError" in fault("pickled.npz")  # a pickle could run anything
    (tmp_path / "empty").mkdir()
    assert "no images in folders of it. Folders: none" in fault("empty")
    _idx(tmp_path / "alone-images-idx3-ubyte", X)
    assert "no file of labels beside it" in fault("alone-images-idx3-ubyte")
    _idx(tmp_path / "alone-labels-idx1-ubyte", Y)
    content = (tmp_path / "alone-images-idx3-ubyte").read_bytes()
    (tmp_path / "alone-images-idx3-ubyte").write_bytes(content[:-1])
    assert "its header promises 4,800 bytes of values of shape (40, 10, 12); 4,799 follow" in fault(
        "alone-images-idx3-ubyte"
    )
    (tmp_path / "alone-images-idx3-ubyte").write_bytes(b"no such thing")
    assert "does not begin as an IDX file does" in fault("alone-images-idx3-ubyte")
    folder = _folder(tmp_path / "images")
    (folder / "class 0" / "broken.png").write_bytes(b"no image")
    assert re.search(r"broken\.png: cannot be read as an image", fault("images"))

"""Reads a user's own images: ``.npz``, IDX files, an image folder, or what a callable returns."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ...targets import TargetError, resolve
from ..error import StudyError

__all__ = ["from_callable", "from_path"]

Pair: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_GREY = {"1", "L"}
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def from_path(path: Path, image_size: int, samples: int) -> Pair:
    """Reads images and labels of a file or folder, whose kind it recognises.

    Raises:
        StudyError: If it is of none of these kinds, or cannot be read.
    """
    try:
        if path.is_dir():
            pairs = list(_idx_pairs(path))
            if pairs:
                parts = [(_idx(images), _idx(labels)) for images, labels in pairs]
                return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
            return _image_folder(path, image_size, samples)
        if path.suffix == ".npz":
            return _npz(path)
        if "idx" in path.name:
            return _idx_file(path)
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise StudyError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    raise StudyError(
        f"{path}: of no kind that the study reads.",
        "give an .npz file with x and y, an IDX file, a folder with one folder of images a class, or "
        "package.module:callable",
    )


def _npz(path: Path) -> Pair:
    with np.load(path, allow_pickle=False) as archive:
        if not {"x", "y"} <= set(archive.files):
            mend = "np.savez(path, x=images, y=labels)"
            raise StudyError(f"{path}: it needs arrays x and y; it has {', '.join(archive.files) or 'none'}.", mend)
        return archive["x"], archive["y"]


def _idx(path: Path) -> npt.NDArray[Any]:
    """Reads an IDX file: two zero bytes, the type, the number of dimensions, their sizes, then the values."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise StudyError(f"{path}: it does not begin as an IDX file does.")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    kind = np.dtype(_IDX_TYPES[content[2]])
    wanted = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(content) - start != wanted:
        message = (
            f"{path}: its header promises {wanted:,} bytes of values of shape {shape}; {len(content) - start:,} follow."
        )
        raise StudyError(message, "fetch the file again: it is cut or damaged")
    return np.frombuffer(content, kind, offset=start).reshape(shape)


def _labels_of(images: Path) -> Path | None:
    """The labels' file beside an images' file: train-images-idx3-ubyte has train-labels-idx1-ubyte."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate != images and candidate.is_file():
            return candidate
    return None


def _idx_pairs(folder: Path) -> Iterator[tuple[Path, Path]]:
    seen = set()
    for images in sorted(folder.iterdir()):
        stem = images.name.removesuffix(".gz")
        if "images" in stem and "idx" in stem and stem not in seen and images.is_file():
            seen.add(stem)  # the same file packed and unpacked counts once
            labels = _labels_of(images)
            if labels is None:
                raise StudyError(f"{images}: there is no file of labels beside it.", "put the two files side by side")
            yield images, labels


def _idx_file(path: Path) -> Pair:
    labels = _labels_of(path)
    if labels is None:
        mend = "name the images' file, as in train-images-idx3-ubyte, with train-labels-idx1-ubyte beside it"
        raise StudyError(f"{path}: there is no file of labels beside it.", mend)
    return _idx(path), _idx(labels)


def _image_folder(folder: Path, size: int, samples: int) -> Pair:
    """Reads one folder of images a class: cropped to a square about the centre and resized to ``size``.

    Of more than ``samples`` images a fixed draw is read, since decoding them all might take hours.
    """
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - a tool
    except ModuleNotFoundError:
        raise StudyError("an image folder needs Pillow, which is not installed.", "pip install pillow") from None

    classes = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    found = [(path, own.name) for own in classes for path in sorted(own.rglob("*")) if path.suffix.lower() in _SUFFIXES]
    if not found:
        raise StudyError(
            f"{folder}: no images in folders of it. Folders: {', '.join(own.name for own in classes[:8]) or 'none'}.",
            f"one folder a class, with {', '.join(sorted(_SUFFIXES))} files in it",
        )
    labels = np.array([label for _, label in found])
    if len(found) > samples:
        generator = np.random.default_rng(0)
        kept: list[int] = []
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            kept += members[: max(5, round(samples * len(members) / len(found)))].tolist()
        found, labels = [found[place] for place in kept], labels[kept]

    def read(path: Path) -> Image.Image:
        try:
            with Image.open(path) as opened:
                image: Image.Image = opened
                if image.mode == "F":
                    raise ValueError("its pixels are floating-point numbers")
                if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion to 8 would cut them off at 255
                    image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
                upright = ImageOps.exif_transpose(image).convert("L" if image.mode in _GREY else "RGB")
                return ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
        except Exception as error:
            raise StudyError(f"{path}: cannot be read as an image: {error}", "mend it or leave it out") from error

    images = [read(path) for path, _ in found]
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    return np.stack([np.asarray(image.convert(mode)) for image in images]), labels


def from_callable(target: str) -> Pair:
    """Calls ``package.module:callable``, which returns a dataset of (image, label) pairs, or both as two arrays.

    Raises:
        StudyError: If it cannot be imported or called, or returns something else.
    """
    try:
        returned = resolve(target)()
    except TargetError as error:
        raise StudyError(error.problem, error.mend) from error
    except Exception as error:
        raise StudyError(f"{target}: calling it raised {type(error).__name__}: {error}") from error
    if isinstance(returned, tuple | list) and len(returned) == 2 and all(hasattr(part, "ndim") for part in returned):
        x, y = returned
        return _array(x), _array(y)
    if not hasattr(returned, "__len__") or not hasattr(returned, "__getitem__"):
        raise StudyError(
            f"{target}: it returned {type(returned).__name__}, not a dataset.",
            "return a torch.utils.data.Dataset with a length, of (image, label) pairs, or the two arrays",
        )
    pairs = [_item(returned, number, target) for number in range(len(returned))]
    if not pairs:
        raise StudyError(f"{target}: its dataset is empty.")
    for number, (image, _) in enumerate(pairs):
        if image.shape != pairs[0][0].shape:
            raise StudyError(
                f"{target}: image {number} has shape {image.shape}, image 0 has {pairs[0][0].shape}.",
                "resize the images to one size",
            )
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def _item(dataset: Any, number: int, target: str) -> Pair:
    try:
        image, label = dataset[number]
        return _array(image), _array(label)
    except Exception as error:
        message = f"{target}: item {number} is not an (image, label) pair: {type(error).__name__}: {error}"
        raise StudyError(message) from error


def _array(value: Any) -> npt.NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

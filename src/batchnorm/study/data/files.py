"""Reads a user's own images from a path: an ``.npz`` file, IDX files or an image folder."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..error import StudyError
from .folder import image_folder

__all__ = ["from_path"]

Pair: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]

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
            return image_folder(path, image_size, samples)
        if path.suffix.lower() == ".npz":
            return _npz(path)
        if "idx" in path.name.lower():
            return _idx_file(path)
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise StudyError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    raise StudyError(
        f"{path}: of no kind that the study reads.",
        "give an .npz file with x and y, an IDX file, a folder with one folder of images a class, or "
        "package.module:callable",
    )


def _npz(path: Path) -> Pair:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise StudyError(f"{path}: it holds one array, not an archive of arrays.", "np.savez(path, x=images, y=labels)")
    with archive:
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

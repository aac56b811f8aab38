"""Images with labels, checked before anything is trained on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..error import StudyError
from .draw import SMALLEST_CLASS

__all__ = ["Images", "checked"]

_SMALLEST_SIDE = 4
_MOST_CHANNELS = 4


@dataclass(frozen=True)
class Images:
    """Images (N, C, height, width) in float32, labels (N) from 0 to K − 1, and what they are in words."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    description: str
    fingerprint: str

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.y.max()) + 1


def checked(x: Any, y: Any, name: str) -> Images:
    """Takes (N, H, W), (N, C, H, W) or (N, H, W, C) and labels of any kind; the labels become 0 to K − 1.

    Raises:
        StudyError: If they are not images of numbers with a label each, or a class has fewer than five.
    """
    images, labels = np.asarray(x), np.asarray(y)
    _check_labels(images, labels, name)
    images = _channels_first(images, name)
    if not np.isfinite(images).all():
        raise StudyError(f"{name}: x has NaN or infinite values.", "leave those images out")
    if images.min() == images.max():
        raise StudyError(f"{name}: every value of x is {images.min():g}.", "give images that differ")
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise StudyError(f"{name}: all {len(labels)} labels are {classes[0]}.", "give at least two classes")
    few = [f"{label} ({count})" for label, count in zip(classes, counts, strict=True) if count < SMALLEST_CLASS]
    if few:
        shown = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        raise StudyError(
            f"{name}: each class needs at least {SMALLEST_CLASS} images, to be split 60/20/20; too few in {shown}.",
            "add images or leave those classes out; numbers to be predicted (regression) are no classes",
        )
    numbers = numbers.reshape(-1).astype(np.int64)
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(numbers).data)
    size = "×".join(map(str, images.shape[2:]))
    kind = "1 channel" if images.shape[1] == 1 else f"{images.shape[1]} channels"
    description = f"{name} ({len(images):,} images, {size}, {kind}, {len(classes)} classes)"
    return Images(images, numbers, description, digest.hexdigest())


def _check_labels(images: npt.NDArray[Any], labels: npt.NDArray[Any], name: str) -> None:
    if labels.ndim != 1:
        mend = "give one label an image"
        if labels.ndim == 2:
            mend = "y.ravel()" if labels.shape[1] == 1 else "y.argmax(1) makes classes of one-hot rows"
        raise StudyError(f"{name}: y must have shape (N,), one label an image; it has {labels.shape}.", mend)
    if images.ndim == 0 or len(images) != len(labels):
        count = len(images) if images.ndim else 0
        raise StudyError(f"{name}: {count} images in x, but {len(labels)} labels in y.", "give one label an image")
    if len(labels) == 0:
        raise StudyError(f"{name}: there are no images.", "give at least five a class")
    if labels.dtype.kind == "f" and not (labels == np.floor(labels)).all():
        raise StudyError(
            f"{name}: y holds numbers such as {labels[labels != np.floor(labels)][0]:g}, which are no classes.",
            "give integers or names; the study classifies",
        )
    if labels.dtype.kind not in "iufbUS":
        raise StudyError(f"{name}: y has dtype {labels.dtype}.", "give integers or names")


def _channels_first(images: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    if images.dtype.kind not in "iufb":
        raise StudyError(f"{name}: x has dtype {images.dtype}.", "give numbers, all images of one size")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] > _MOST_CHANNELS >= images.shape[3]:
        images = np.moveaxis(images, 3, 1)
    if images.ndim != 4 or images.shape[1] > _MOST_CHANNELS or min(images.shape[2:]) < _SMALLEST_SIDE:
        raise StudyError(
            f"{name}: x has shape {images.shape}, which is not one of (N, H, W), (N, C, H, W) and (N, H, W, C) with "
            f"1 to {_MOST_CHANNELS} channels and sides of at least {_SMALLEST_SIDE} pixels.",
            "reshape x; flat images of 28×28 become x.reshape(-1, 28, 28)",
        )
    with np.errstate(over="ignore"):
        small = np.ascontiguousarray(images, dtype=np.float32)
    if not np.isfinite(small).all() and np.isfinite(images).all():
        raise StudyError(f"{name}: x has values up to {np.abs(images).max():.3g}, too large for float32.", "rescale x")
    return small

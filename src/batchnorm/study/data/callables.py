"""Takes images from ``package.module:callable``."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...targets import TargetError, resolve
from ..error import StudyError

__all__ = ["from_callable", "names_a_callable"]


def names_a_callable(spec: str) -> bool:
    """Whether a text has the form ``package.module:callable``, which no path with a folder or a drive has."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", spec) is not None


def from_callable(target: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Calls ``package.module:callable``, which returns a dataset of (image, label) pairs, or both as a tuple of arrays.

    Raises:
        StudyError: If it cannot be imported or called, or returns something else.
    """
    try:
        returned = resolve(target)()
    except TargetError as error:
        raise StudyError(error.problem, error.mend) from error
    except (Exception, SystemExit) as error:
        raise StudyError(f"{target}: calling it raised {type(error).__name__}: {error}") from error
    if isinstance(returned, tuple) and len(returned) == 2 and not _is_dataset(returned[0]):
        try:
            return _array(returned[0]), _array(returned[1])
        except Exception as error:
            raise StudyError(f"{target}: what it returned are not two arrays: {error}") from error
    if not _is_dataset(returned):
        raise StudyError(
            f"{target}: it returned {_kind(returned)}, not a dataset.",
            "return a torch.utils.data.Dataset with a length, of (image, label) pairs, or a tuple of two arrays",
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


def _is_dataset(value: Any) -> bool:
    # Arrays have a length and items too; a tuple is several things.
    has_items = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return has_items and not hasattr(value, "ndim") and not isinstance(value, tuple | str | dict)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return type(value).__name__


def _item(dataset: Any, number: int, target: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        item = dataset[number]
        if not isinstance(item, tuple | list):
            raise TypeError(f"it is a {type(item).__name__}")
        image, label = item
        return _array(image), _array(label)
    except Exception as error:
        message = f"{target}: item {number} is not an (image, label) pair: {type(error).__name__}: {error}"
        raise StudyError(message) from error


def _array(value: Any) -> npt.NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy knows no bfloat16.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)

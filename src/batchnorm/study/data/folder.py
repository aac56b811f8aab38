"""Reads an image folder: one folder of images a class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..error import StudyError
from .draw import drawn

__all__ = ["image_folder"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_PARTS = {"train", "training", "val", "valid", "validation", "test"}
# Modes of Pillow's whose values are not 8 bits wide: they are read as numbers, so that nothing is cut off.
_WIDE = ("I", "F")


def image_folder(folder: Path, size: int, samples: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Reads one folder of images a class: cropped to a square about the centre and resized to ``size``.

    Of more than ``samples`` images a fixed draw is read, since decoding them all might take hours. Files that
    begin with a dot, and what a Mac adds to archives, are none of the images.

    Raises:
        StudyError: If the folder is not laid out so, or an image cannot be read.
    """
    found, labels = _listed(folder)
    if len(found) > samples:
        kept = np.concatenate(list(drawn(labels, samples, np.random.default_rng(0))))
        found, labels = [found[place] for place in kept], labels[kept]
    images = [_read(path, size) for path in found]
    wide = sum(image.ndim == 2 for image in images)
    if 0 < wide < len(images):
        message = f"{folder}: {wide} of {len(images)} images have more than 8 bits a pixel, the others 8."
        raise StudyError(message, "save them all in one format")
    if not wide and all((image == image[..., :1]).all() for image in images):
        images = [image[..., 0] for image in images]
    stack = np.stack(images)
    return (stack if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)), labels


def _listed(folder: Path) -> tuple[list[Path], npt.NDArray[np.str_]]:
    """The images, and the folder that each is in."""
    entries = [entry for entry in sorted(folder.iterdir()) if not _hidden(Path(entry.name))]
    classes = [entry for entry in entries if entry.is_dir()]
    loose = [entry.name for entry in entries if entry.suffix.lower() in _SUFFIXES and entry.is_file()]
    inside = {own: [path for path in sorted(own.rglob("*")) if not _hidden(path.relative_to(own))] for own in classes}
    images = {own: [path for path in inside[own] if path.suffix.lower() in _SUFFIXES] for own in classes}
    kinds = ", ".join(sorted(_SUFFIXES))
    if not any(images.values()):
        names = ", ".join(own.name for own in classes[:8]) or "none"
        raise StudyError(
            f"{folder}: no images in folders of it. Folders: {names}.", f"one folder a class, with {kinds} files in it"
        )
    if {own.name.lower() for own in classes} <= _PARTS:
        raise StudyError(
            f"{folder}: its folders {', '.join(own.name for own in classes)} look like parts, not classes.",
            f"name one of them, as {classes[0]}: the study splits the images itself",
        )
    empty = [own.name for own in classes if not images[own]]
    if empty:
        others = Counter(path.suffix or path.name for own in classes if not images[own] for path in inside[own])
        held = f"; they hold {', '.join(others)}" if others else ""
        raise StudyError(
            f"{folder}: no images in {', '.join(empty)}{held}.",
            f"remove those folders, or convert what is in them to {kinds}",
        )
    if loose:
        message = f"{folder}: {len(loose)} images, such as {loose[0]}, lie beside the folders of the classes."
        raise StudyError(message, "move them into the folder of their class, or away")
    paths = [path for own in classes for path in images[own]]
    return paths, np.array([own.name for own in classes for _ in images[own]])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _read(path: Path, size: int) -> npt.NDArray[Any]:
    """One image: (size, size, 3) of 8 bits, or (size, size) in float32 where the file has more than 8."""
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - a tool
    except ModuleNotFoundError:
        raise StudyError("an image folder needs Pillow, which is not installed.", "pip install pillow") from None

    try:
        with Image.open(path) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(_WIDE):
                image = Image.fromarray(np.asarray(image).astype(np.float32))
            else:
                image = image.convert("RGB")
            return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    except Exception as error:
        raise StudyError(f"{path}: cannot be read as an image: {error}", "mend it or leave it out") from error

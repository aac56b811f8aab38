"""Natural photographs that come inside scikit-image, for the claim about images that are enlarged."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..error import StudyError

__all__ = ["PICTURES", "pictures"]

#: Files by the names of scikit-image's functions. Only those whose docstring there says CC0 or public domain, and of
#: these the photographs: no text, no outline, no micrograph, and not the one that is blurred on purpose.
PICTURES = {
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "astronaut": "astronaut.png",
    "camera": "camera.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "brick": "brick.png",
    "rocket": "rocket.jpg",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
}


@cache
def pictures(most: int) -> dict[str, Tensor]:
    """All of them by name: (3, height, width) from 0 to 1, float32, sides even and at most ``most``; not to be changed.

    Each is made smaller by averaging squares of pixels, which takes away noise and the traces of compression. Grey
    ones get three equal channels.

    Raises:
        StudyError: If scikit-image or Pillow is not installed, or a picture is not in it.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise StudyError(
            "the photographs are scikit-image's, which is not installed.", "pip install 'batchnorm[tools]'"
        )
    # The files, not scikit-image's functions: those would fetch what is not there.
    folder = Path(found.origin).parent / "data"
    return {name: _read(folder / file, most) for name, file in PICTURES.items()}


def _read(path: Path, most: int) -> Tensor:
    try:
        from PIL import Image  # noqa: PLC0415 - a tool

        with Image.open(path) as opened:
            values = np.asarray(opened.convert("RGB"), dtype=np.float32) / 255
    except (ImportError, OSError) as error:
        raise StudyError(
            f"{path.name} of scikit-image: cannot be read: {error}", "pip install scikit-image pillow"
        ) from error
    image = torch.from_numpy(values).permute(2, 0, 1)
    side = math.ceil(max(image.shape[1:]) / most)
    small = torch.nn.functional.avg_pool2d(image, side)
    height, width = (length - length % 2 for length in small.shape[1:])
    return small[:, :height, :width].contiguous()

"""Images on the page: PNG files written into it, all at one size, with pixels that stay sharp."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt

from .chart import Picture, Pictures
from .written import escape

__all__ = ["pictures", "pixels"]


def pictures(shown: Pictures) -> str:
    """Gives the markup of all rows; on a telephone a row goes on below itself.

    Raises:
        ModuleNotFoundError: If Pillow is not installed.
    """
    rows = "".join(f'<div class="images">{"".join(map(_picture, row))}</div>' for row in shown.rows)
    return f'<div class="rows">{rows}</div>'


def _picture(picture: Picture) -> str:
    high, wide, _ = pixels(picture).shape
    label = escape(picture.label)
    # The label is read from below the image; who hears the page is told its size as well, and the label once.
    return (
        f'<div class="image"><img src="data:image/png;base64,{_png(picture)}" width="{wide}" height="{high}" '
        f'alt="{label} ({wide} by {high} pixels)"><p aria-hidden="true">{label}</p></div>'
    )


def _png(picture: Picture) -> str:
    from PIL import Image  # noqa: PLC0415 - a tool: only a page with images needs it

    values = pixels(picture)
    file = io.BytesIO()
    Image.fromarray(values if values.shape[2] > 1 else values[:, :, 0]).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def pixels(picture: Picture) -> npt.NDArray[np.uint8]:
    """Gives its bytes, (height, width, 1 or 3); what is no number is black."""
    values = np.asarray(picture.pixels, dtype=np.float64)
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in values.shape:
        raise ValueError(f"{picture.label}: an image has rows of pixels with 1 or 3 values, not shape {values.shape}")
    whole: npt.NDArray[np.uint8] = np.rint(255 * np.clip(np.nan_to_num(values, nan=0.0), 0, 1)).astype(np.uint8)
    return whole

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from batchnorm.report import Picture, Section, render
from batchnorm.report.images import pixels
from report.samples import pictures


def test_images_are_written_into_the_page_pixel_by_pixel() -> None:
    shown = pictures("a name")
    text = render("t", "l", [Section("s", blocks=(shown,))])
    files = re.findall(
        r'<img src="data:image/png;base64,(.*?)" width="6" height="4" alt="a name \(6 by 4 pixels\)"', text
    )
    assert len(files) == 6
    for file, picture in zip(files, (image for row in shown.rows for image in row), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(file))) as image:
            found = np.asarray(image)
        expected = pixels(picture)
        np.testing.assert_array_equal(found, expected if found.ndim == 3 else expected[:, :, 0])
    assert "image-rendering: pixelated" in text
    # A page without charts needs no script that draws.
    assert "Plotly" not in text.replace("Plotly.react", "")


def test_what_is_outside_is_black_or_full() -> None:
    row = [[[-1.0], [0.0], [0.5], [1.0], [7.0], [math.nan], [math.inf]]]
    assert pixels(Picture("p", row))[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255]


@pytest.mark.parametrize("values", [[[[1.0, 2.0]]], [[1.0]], [], [[]]])
def test_what_is_no_image_is_refused(values: list) -> None:
    with pytest.raises(ValueError, match="an image has rows of pixels with 1 or 3 values"):
        pixels(Picture("p", values))

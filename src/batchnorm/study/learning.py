"""When a network counts as having learnt: better than always naming the most frequent class, by more than luck.

What networks that learnt nothing have in common says nothing about batch norm. A fixed accuracy would not tell them
apart: where 97% of the images are of one class, 97% is what a guess gives, and among a hundred classes 40% is much.
"""

from __future__ import annotations

import math

from torch import Tensor

from .claim import Result, Value
from .data import Split

__all__ = ["LEARNT", "SHARE", "baseline", "guessing", "learnt", "shortfall", "threshold"]

#: The share of the way from guessing to 100% that a network must come.
SHARE = 0.25

#: How many standard errors of guessing, on the images that are looked at, it must be above guessing: an accuracy is
#: the best of many looks and of several learning rates, so two would often be passed by luck.
_ERRORS = 3.0

#: The same in words, for the rules of claims.
LEARNT = (
    "A network has learnt if its validation accuracy comes a quarter of the way from guessing, which is to name the "
    "most frequent class of the training images always, to 100%, and lies at least three standard errors of such "
    "guessing above it; on the default data that is from 32.5% on."
)


def guessing(labels: Tensor) -> float:
    """Share of the most frequent class: what always naming it gets right."""
    return int(labels.bincount().max()) / len(labels)


def baseline(parts: Split) -> dict[str, Value]:
    """What a run keeps of its data, so that a conclusion can judge an accuracy and knows how exact it is."""
    return {
        "guessing": guessing(parts.train[1]),
        "validation images": len(parts.validation[1]),
        "test images": len(parts.test[1]),
    }


def threshold(guess: float, images: int, share: float = SHARE) -> float:
    """The accuracy from which on a network has learnt; above 1 where there are too few images to tell it at all."""
    luck = _ERRORS * math.sqrt(guess * (1 - guess) / images)
    return guess + max(share * (1 - guess), luck)


def learnt(result: Result, share: float = SHARE, name: str = "best") -> bool:
    """Whether the network of a run has learnt, by the validation accuracy of that name and the run's baseline."""
    found = result.number(name)
    # Of a single class everything is guessed right, and nothing is learnt.
    return found > result.number("guessing") and found >= _threshold(result, share)


def shortfall(result: Result, share: float = SHARE, name: str = "best") -> str:
    """The numbers of a network that has not learnt, as the end of a sentence."""
    needed, guess = _threshold(result, share), result.number("guessing")
    found = f"{100 * result.number(name):.1f}% validation accuracy, where guessing gives {100 * guess:.1f}%"
    if needed > 1:
        images = int(result.number("validation images"))
        return f"{found} and {images:,} validation images are too few to tell the two apart"
    return f"{found} and learning begins at {100 * needed:.1f}%"


def _threshold(result: Result, share: float) -> float:
    return threshold(result.number("guessing"), int(result.number("validation images")), share)

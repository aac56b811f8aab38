"""The frameworks that weights may come from, which ``diagnose`` can be told, and what their batch norms begin with."""

from __future__ import annotations

__all__ = ["EPS"]

#: What a batch norm's eps is where nobody says another.
EPS = {
    "torch": 1e-5,
    "keras": 1e-3,
    "tensorflow": 1e-3,
    "flax": 1e-5,
    "haiku": 1e-5,
    "caffe": 1e-5,
    "paddle": 1e-5,
    "chainer": 2e-5,
}

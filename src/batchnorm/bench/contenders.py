"""The names of the contenders, as rows and ``--peers`` have them, and what people call them."""

from __future__ import annotations

__all__ = ["BATCHNORM", "COMPILE", "EAGER", "FOLD", "FUSE", "JAX", "LEAN", "OURS", "spoken_name"]

BATCHNORM, EAGER, COMPILE, JAX = "batchnorm", "eager", "compile", "jax"
#: What this library makes of a user's model; the last of them for inference.
FUSE, LEAN, FOLD = "fuse", "lean", "fold"
OURS = (BATCHNORM, FUSE, LEAN, FOLD)

_SPOKEN = {EAGER: "eager torch", COMPILE: "torch.compile", JAX: "JAX"}


def spoken_name(contender: str) -> str:
    """What a sentence calls a contender.

    Example:
        >>> spoken_name(COMPILE), spoken_name(BATCHNORM)
        ('torch.compile', 'batchnorm')
    """
    return _SPOKEN.get(contender, contender)

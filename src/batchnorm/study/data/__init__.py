"""Data of a study: what comes inside installed packages, or the user's own. Nothing is downloaded.

``source.py`` says where images come from and loads them, ``bundled.py``, ``files.py``, ``folder.py`` and
``callables.py`` read them, ``images.py`` checks them, ``draw.py`` and ``split.py`` divide them, and ``tables.py`` has
small tables for the claims about features.
"""

from .source import Source, default, load
from .split import Split, split
from .tables import table

__all__ = ["Source", "Split", "default", "load", "split", "table"]

"""The page's scripts, kept as text like its style."""

from .charts import CHARTS
from .contents import FOLD, MENU
from .formulas import FORMULAS
from .ticks import TICKS

__all__ = ["FOLD", "SCRIPT"]

# The menu and the formulas come first: they are of use before a chart is drawn.
SCRIPT = MENU + FORMULAS + TICKS + CHARTS

"""``lean``: what follows a norm keeps no copy of the norm's output; it is computed again when backward asks for it.

A norm's input is kept for its own backward pass; its output, which whatever follows would keep as well, can be computed
from that. So ``torch.autograd.graph.saved_tensors_hooks`` puts a recipe in its place.
"""

from .context import Lean, lean
from .report import Report, Storages

__all__ = ["Lean", "Report", "Storages", "lean"]

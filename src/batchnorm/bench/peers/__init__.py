"""Who is measured: ours, and one file for each of the others."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ArgumentError
from ..contenders import EAGER
from .compiled import Compiled
from .eager import Eager
from .jax import Jax
from .ours import Ours
from .peer import Contender, Peer, Unavailable

__all__ = ["OURS", "PEERS", "Contender", "Peer", "Unavailable", "chosen"]

OURS: Peer = Ours()

#: By name. Eager torch is always measured: its own error is one side of the tolerance.
PEERS: dict[str, Peer] = {peer.name: peer for peer in (Eager(), Compiled(), Jax())}


def chosen(names: Sequence[str]) -> tuple[Peer, ...]:
    """The peers of these names, eager torch first.

    Args:
        names: Of :data:`PEERS`; commas may stand between them; ``"all"`` means all.

    Raises:
        ArgumentError: A name that no peer has.

    Example:
        >>> [peer.name for peer in chosen(["compile"])]
        ['eager', 'compile']
    """
    wanted = {word.strip() for name in names for word in name.split(",") if word.strip()}
    unknown = wanted - {"all", *PEERS}
    if unknown:
        raise ArgumentError(f"no peer is named {', '.join(sorted(unknown))}.", f"use {', '.join(PEERS)} or all.")
    return tuple(peer for name, peer in PEERS.items() if name == EAGER or name in wanted or "all" in wanted)

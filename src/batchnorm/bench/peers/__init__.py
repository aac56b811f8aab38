"""Who is measured: ours, and one file for each of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import ArgumentError
from ..contenders import EAGER
from .attorch import Attorch
from .compiled import Compiled
from .eager import Eager
from .flag_gems import FlagGems
from .jax import Jax
from .no_cudnn import NoCudnn
from .ours import Ours
from .peer import Contender, Peer, Unavailable

__all__ = ["GPU_PEERS", "OURS", "PEERS", "Contender", "Peer", "Unavailable", "chosen"]

OURS: Peer = Ours()

#: By name. Eager torch is always measured: its own error is one side of the tolerance.
PEERS: dict[str, Peer] = {peer.name: peer for peer in (Eager(), Compiled(), Jax())}
#: Those on a GPU.
GPU_PEERS: dict[str, Peer] = {peer.name: peer for peer in (Eager(), NoCudnn(), Compiled(), Attorch(), FlagGems())}


def chosen(names: Sequence[str], peers: Mapping[str, Peer] = PEERS) -> tuple[Peer, ...]:
    """The peers of these names, eager torch first.

    Args:
        names: Of ``peers``; commas may stand between them; ``"all"`` means all.
        peers: Who there is.

    Raises:
        ArgumentError: A name that no peer has.

    Example:
        >>> [peer.name for peer in chosen(["compile"])]
        ['eager', 'compile']
    """
    wanted = {word.strip() for name in names for word in name.split(",") if word.strip()}
    unknown = wanted - {"all", *peers}
    if unknown:
        raise ArgumentError(f"no peer is named {', '.join(sorted(unknown))}.", f"use {', '.join(peers)} or all.")
    return tuple(peer for name, peer in peers.items() if name == EAGER or name in wanted or "all" in wanted)

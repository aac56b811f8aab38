"""The processes to synchronise over, by name: what a layer keeps of a process group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ..errors import ArgumentError

if dist.is_available():
    from torch.distributed import distributed_c10d

__all__ = ["Group", "ranks_to_synchronize"]


class Group:
    """A process group by its name.

    Not the group itself: one that is alive when the interpreter ends has gloo abort the process (torch 2.13: "terminate
    called without an active exception"), and it can be neither copied nor pickled. A copy of this names the same group.
    Pickled it loses the name, which may be another group's where it is read, and keeps the ranks for the error message.

    Args:
        name: The group's name; None once it has been through a file or a pipe.
        size: How many processes it has; -1 where this one is not among them.
        members: Their ranks.
    """

    __slots__ = ("members", "name", "size")

    def __init__(self, name: str | None, size: int, members: tuple[int, ...]) -> None:
        self.name, self.size, self.members = name, size, members

    @classmethod
    def of(cls, process_group: dist.ProcessGroup) -> Group:
        """The group's name, size and ranks."""
        if not isinstance(process_group, dist.ProcessGroup | int):  # -100 stands for a group of others
            raise ArgumentError(
                f"process_group is a {type(process_group).__name__}.",
                "give what torch.distributed.new_group returns, or mesh.get_group() of a DeviceMesh.",
            )
        size = dist.get_world_size(process_group)
        if size < 0:
            return cls(None, size, ())
        return cls(process_group.group_name, size, tuple(dist.get_process_group_ranks(process_group)))

    def resolve(self) -> dist.ProcessGroup:
        """The group of that name."""
        c10d: Any = distributed_c10d
        group: dist.ProcessGroup = c10d._resolve_process_group(self.checked()[0])
        return group

    def checked(self) -> tuple[str, int]:
        """Name and size, where this process is in the group."""
        if self.size < 0:
            raise ArgumentError(
                "this rank is not in the process group that the layer synchronises over.",
                "give each rank the group it belongs to, or None for all ranks.",
            )
        if self.name is None:
            raise ArgumentError(
                f"the layer was saved with a process group of ranks {list(self.members)}, and groups cannot be saved.",
                "set layer.process_group to a group of this process, or to None for all ranks.",
            )
        return self.name, self.size

    def check_members(self) -> None:
        """Refuse a name that is no group's any more, or another's: names are given again."""
        c10d: Any = distributed_c10d
        try:
            members = tuple(dist.get_process_group_ranks(c10d._resolve_process_group(self.name)))
        except RuntimeError:
            members = ()
        if members != self.members:
            raise ArgumentError(
                f"the process group of ranks {list(self.members)} that the layer synchronises over was destroyed.",
                "set layer.process_group to a group of now, or to None for all ranks.",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Group, (None, self.size, self.members)

    def __repr__(self) -> str:
        return f"ranks {list(self.members)}"


def ranks_to_synchronize(process_group: dist.ProcessGroup | Group | None) -> tuple[str, int] | None:
    """Name and size of the group, for None the default one; None where there is nobody to synchronise with."""
    # Not dist.is_initialized(): a compiler takes its answer for a constant, and a layer that was compiled before
    # init_process_group would go on by itself.
    world: Any = distributed_c10d._world._default_pg if dist.is_available() else None
    if world is None:
        return None
    if process_group is None:
        size: int = world.size()
        return (world.group_name, size) if size > 1 else None
    group = process_group if isinstance(process_group, Group) else Group.of(process_group)
    name, size = group.checked()
    if not torch.compiler.is_compiling():
        group.check_members()
    return (name, size) if size > 1 else None

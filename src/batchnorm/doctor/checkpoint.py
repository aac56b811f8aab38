"""Checkpoint files: the tensors of norms are found wherever they lie in one, and put back in the same place."""

from __future__ import annotations

import importlib.util
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..files import whole

__all__ = ["SUFFIXES", "Checkpoint", "check_name", "load", "save"]

#: Of files that ``torch.load`` reads, and of those of safetensors.
_PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar")
_SAFE = ".safetensors"
SUFFIXES = (*_PICKLED, _SAFE)

# Of dictionaries and lists, what leads from the whole content to something in it.
_Keys: TypeAlias = tuple[Hashable, ...]
_Dictionary: TypeAlias = MutableMapping[Any, Any]


@dataclass
class Checkpoint:
    """What lies in a file.

    Attributes:
        state: The tensors by their names. Where norms lie in several dictionaries of the file, the keys that lead to
            each stand before the names there; else the names are as they are. What is replaced in it or taken away,
            :meth:`save` writes so; it takes no others.
        within: The keys that lead to each of these dictionaries.
    """

    state: dict[str, Tensor]
    within: tuple[_Keys, ...]
    _places: Mapping[str, tuple[_Dictionary, str]] = field(repr=False)
    _path: Path
    _content: Any = field(repr=False)
    _metadata: Mapping[str, str] | None = field(default=None, repr=False)

    def check(self, path: Path) -> None:
        """Refuses a file that :meth:`save` would not write.

        Raises:
            ArgumentError: It has another format, or is the one that was read.
        """
        check_name(path)
        if (path.suffix.lower() == _SAFE) != (self._path.suffix.lower() == _SAFE):
            raise ArgumentError(
                f"{path} would have another format than {self._path}, which may hold more than tensors.",
                f"name a file that ends in {self._path.suffix}.",
            )
        if path.exists() and path.samefile(self._path):
            raise ArgumentError(
                f"{path} is the checkpoint that was read.", "name another file, and move it afterwards."
            )

    def save(self, path: Path) -> None:
        """Writes all that was read, with the tensors of :attr:`state` in their places.

        Raises:
            ArgumentError: As :meth:`check`.
            OSError: The file cannot be written; what stood there is as it was.
        """
        self.check(path)
        for name, (inner, key) in self._places.items():
            if name in self.state:
                inner[key] = self.state[name]
            else:
                inner.pop(key, None)
        if path.suffix.lower() == _SAFE:
            save(self.state, path, metadata=self._metadata)
        else:
            with whole(path) as aside:
                torch.save(self._content, aside)


def check_name(path: Path) -> None:
    """Refuses a name that says no format.

    Raises:
        ArgumentError: It does not, is a folder, or needs a package that is not installed.
    """
    mend = f"name a file that ends in {', '.join(SUFFIXES)}."
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"{path}: nothing is known of {path.suffix or 'a name without a suffix'}.", mend)
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder.", mend)
    if path.suffix.lower() == _SAFE and importlib.util.find_spec("safetensors") is None:
        raise ArgumentError(f"{path} needs safetensors.", "pip install safetensors")


def save(state: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a ``state_dict``, whole or not at all.

    Raises:
        ArgumentError: As :func:`check_name`.
        OSError: It cannot be written.
    """
    check_name(path)
    with whole(path) as aside:
        if path.suffix.lower() == _SAFE:
            from safetensors.torch import save_file  # noqa: PLC0415 - only where it is asked for

            # That format has no two names for the same memory, which tied weights are.
            own = {name: each.detach().clone().contiguous() for name, each in state.items()}
            save_file(own, aside, dict(metadata) if metadata else {"format": "pt"})
        else:
            torch.save(state, aside)


def load(path: Path) -> Checkpoint:
    """Reads a file, on the CPU. Nothing in it is run: what is more than tensors and plain data is refused.

    Raises:
        ArgumentError: It is refused, is no checkpoint, or no norm's tensors lie in it.
        OSError: It cannot be read.
    """
    check_name(path)
    metadata = None
    if path.suffix.lower() == _SAFE:
        content, metadata = _safe(path)
    else:
        content = _pickled(path)
    found = list(_dictionaries(content)) if isinstance(content, Mapping | list | tuple) else []
    if not found:
        raise ArgumentError(
            f"{path}: no running_mean lies in it (looked at: {_described(content)}).",
            "give a file with the state_dict of a model that has batch norm.",
        )
    places = _named(found, path)
    state = {name: inner[key] for name, (inner, key) in places.items()}
    return Checkpoint(state, tuple(keys for keys, _ in found), places, path, content, metadata)


def _named(found: list[tuple[_Keys, _Dictionary]], path: Path) -> dict[str, tuple[_Dictionary, str]]:
    """Where each tensor lies, by a name that no other has: nor has its layer tensors of two dictionaries.

    Keys may have dots themselves: ``{"net": {"ema.1.running_var": …}, "net.ema": {"1.running_var": …}}``.
    """
    for prefix in (_dotted, _bracketed) if len(found) > 1 else (lambda keys: "",):
        names = [
            [(f"{prefix(keys)}{key}", inner, key) for key, each in inner.items() if _is_entry(key, each)]
            for keys, inner in found
        ]
        owners = Counter(layer for each in names for layer in {name.rpartition(".")[0] for name, _, _ in each})
        if not owners or max(owners.values()) == 1:
            return {name: (inner, key) for each in names for name, inner, key in each}
    twice = next(layer for layer, count in owners.items() if count > 1)
    raise ArgumentError(
        f"{path} has two dictionaries with tensors of {twice!r}.", "give them in files of their own, or rename one key."
    )


def _dotted(keys: _Keys) -> str:
    return "".join(f"{key}." for key in keys)


def _bracketed(keys: _Keys) -> str:
    return "".join(f"[{key!r}]" for key in keys) + ("." if keys else "")


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _safe(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str] | None]:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _pickled(path: Path) -> Any:
    # Opened here: torch.load gives errors of its own to files that are not there.
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols and TorchScript: what matters of it is raised as well
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            # torch's own words go on to how to load it all the same.
            name = re.search(r"GLOBAL (\S+)|class (\S+)", str(error))
            more = f": it asks for {name[1] or name[2]}" if name else ""
            raise ArgumentError(
                f"{path} holds more than tensors and plain data{more}. It was refused (weights_only=True), and nothing "
                "of it was run.",
                "save the tensors alone, torch.save(model.state_dict(), …), or name what builds the model: "
                "package.module:callable.",
            ) from error
        except RuntimeError as error:
            if "legacy .tar" in str(error):
                raise ArgumentError(
                    f"{path} is a tar archive, of which torch.load makes no safe checkpoint.",
                    "unpack it, or save the tensors alone: torch.save(model.state_dict(), …).",
                ) from error
            if "TorchScript" in str(error):
                raise ArgumentError(
                    f"{path} is a TorchScript archive, which holds code.", "give the state_dict of the model."
                ) from error
            raise _damaged(path, error) from error
        except Exception as error:  # of what is no checkpoint at all, the unpickler raises what it stumbles over
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ArgumentError:
    first = (str(error).strip().splitlines() or [""])[0]
    return ArgumentError(
        f"{path} is no checkpoint, or damaged: {type(error).__name__}: {first}".rstrip(": ") + ".",
        "save it again, or copy it again.",
    )


def _dictionaries(content: Any) -> Iterator[tuple[_Keys, _Dictionary]]:
    """Those that hold running means, with the keys that lead to them: each once, wherever it lies."""
    seen: set[int] = set()
    waiting: list[tuple[_Keys, Any]] = [((), content)]
    while waiting:
        keys, here = waiting.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        inside = list(here.items() if isinstance(here, Mapping) else enumerate(here))
        if isinstance(here, MutableMapping) and any(
            _is_entry(key, each) and key.split(".")[-1] == "running_mean" for key, each in inside
        ):
            yield keys, here
        waiting += [((*keys, key), each) for key, each in reversed(inside) if isinstance(each, Mapping | list | tuple)]


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = [str(key) for key in content]
    return (
        ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "an empty dict"
    )

"""What ``batchnorm doctor`` looks at: a model or a checkpoint, with all that belongs to it."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..doctor import Diagnosis, diagnose
from ..doctor.as_sarif import Place, place_of
from ..doctor.checkpoint import SUFFIXES, Checkpoint, check_name, load, save
from ..doctor.configuration import Configuration
from ..errors import ArgumentError
from ..targets import resolve
from .given import again_and_again, function, model_and, optimizer_of
from .mended import mend

__all__ = ["Examination"]

# What only a module can be run with.
_OF_MODULES = ("batches", "loss", "optimizer", "forward", "before")


class Examination:
    """Loads what the settings name, and diagnoses it.

    Args:
        settings: Of the command line and of the configuration.
        fix: The file that a mended model will go to: refused now where it could not be written then.

    Attributes:
        diagnosis: The findings; after :meth:`mend`, those that are left.
        place: The file that stands for the model.
        speaks: Whether this process tells what was found: of several, the first.

    Raises:
        BatchNormError: Something of it is not there, or cannot be diagnosed.
        OSError: The checkpoint cannot be read.
    """

    def __init__(self, settings: Configuration, fix: Path | None = None) -> None:
        if settings.target is None:
            raise ArgumentError(
                "no TARGET.", "name package.module:callable or a checkpoint file, or set target in pyproject.toml."
            )
        self._options: dict[str, Any] = {
            "select": settings.select,
            "ignore": settings.ignore,
            "per_layer_ignores": settings.per_layer_ignores,
            "accumulation_steps": settings.accumulation_steps or 1,
            "weights_from": settings.weights_from,
        }
        self._checkpoint: Checkpoint | None = None
        self._model: torch.nn.Module | None = None
        self.place: Place | None = None
        if _names_a_file(settings.target):
            self._load(settings, Path(settings.target), fix)
        else:
            if fix is not None:
                check_name(fix)
            self._import(settings, settings.target)
        self.diagnosis = self._diagnose()
        distributed = torch.distributed
        self.speaks = not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank())

    def _load(self, settings: Configuration, path: Path, fix: Path | None) -> None:
        unused = [name for name in _OF_MODULES if getattr(settings, name) is not None]
        if unused:
            raise ArgumentError(
                f"{path} holds tensors and no module, so there is nothing to do with --{', --'.join(unused)}.",
                "name what builds the model, package.module:callable, or leave these out.",
            )
        self._checkpoint = load(path)
        if fix is not None:
            self._checkpoint.check(fix)
        self.place = Place(path)

    def _import(self, settings: Configuration, target: str) -> None:
        self._model, others = model_and(target, "batches", programs=True)
        self.place = place_of(resolve(target))
        _join_ranks()
        batches = again_and_again(settings.batches) if settings.batches is not None else next(iter(others), None)
        # One batch of keywords is as good as a list of one.
        self._options["batches"] = [batches] if isinstance(batches, Mapping) else batches
        if settings.loss is not None:
            self._options["loss"] = function(settings.loss)
        if settings.forward is not None:
            self._options["forward"] = function(settings.forward)
        if settings.optimizer is not None:
            self._options["optimizer"] = optimizer_of(settings.optimizer, self._model)
        if settings.before is not None:
            self._options["before"] = model_and(settings.before, "batches")[0]
        if settings.max_batches is not None:
            self._options["max_batches"] = settings.max_batches

    def _diagnose(self) -> Diagnosis:
        subject = self._model if self._checkpoint is None else self._checkpoint.state
        assert subject is not None
        return diagnose(subject, **self._options)

    def _state(self) -> Mapping[str, Any]:
        if self._checkpoint is not None:
            return self._checkpoint.state
        assert self._model is not None
        return self._model.state_dict()

    def mend(self, path: Path) -> list[str]:
        """Makes the safe mends and saves what comes of it, if a file holds any of it.

        Returns:
            What was done, in lines.

        Raises:
            FixError: A mend failed; nothing is mended, and nothing written.
            ArgumentError: The file cannot have this format.
            OSError: It cannot be written.
        """
        once = isinstance(self._options.get("batches"), Iterator)
        again = None if once else self._diagnose
        done = mend(self.diagnosis, self._state, again, loaded=self._checkpoint is None)
        self.diagnosis = done.left
        if not done.saved:
            return [*done.lines, f"{path} is not written: nothing is mended that a file of tensors holds"]
        if self.speaks:
            if self._checkpoint is not None:
                self._checkpoint.save(path)
            else:
                save(self._state(), path)
        return [*done.lines, f"written: {path}"]


def _names_a_file(target: str) -> bool:
    path = Path(target)
    return path.is_file() or (path.suffix.lower() in SUFFIXES and ":" not in target)


def _join_ranks() -> None:
    """Under torchrun, the processes look together: unless the model's own code has begun that."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_torchelastic_launched() and not distributed.is_initialized():
        distributed.init_process_group("gloo")
        # Else its threads are there when the interpreter goes, and now and then the process ends in SIGABRT.
        atexit.register(_leave_ranks)


def _leave_ranks() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

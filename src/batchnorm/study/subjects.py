"""What claims about training are tried on: a network of the study, or the user's own."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..nn.frozen import Frozen
from ..targets import TargetError, resolve
from .arms import derive, norms
from .data import Split
from .error import StudyError
from .networks import convolutional, fully_connected

# Given to a network to see whether it takes them: a batch of several, so that it has a variance.
_IMAGES = 4

__all__ = ["Dense", "Own", "Stack", "Subject", "check"]


class Subject(ABC):
    """A network with batch norm that can be built again and again, from first weights that a seed decides.

    Subclasses are frozen dataclasses, so that they are part of a claim's settings.
    """

    @property
    @abstractmethod
    def description(self) -> str:
        """What it is, in a sentence."""

    @abstractmethod
    def build(self, parts: Split, seed: int) -> nn.Module:
        """A new one for images and classes as in ``parts``, in training mode; the same weights for the same seed."""


def _spoken(activation: str) -> str:
    return "ReLU" if activation == "relu" else activation


@dataclass(frozen=True)
class Stack(Subject):
    """A plain stack of 3×3 convolutions, each with batch norm before its activation, then an average and a layer.

    Args:
        layers: Channels and stride of each convolution.
        activation: As :func:`batchnorm.study.networks.convolutional` takes it.
    """

    layers: tuple[tuple[int, int], ...]
    activation: str = "relu"

    @property
    def description(self) -> str:
        """Depth, widths and strides."""
        widths = ", ".join(f"{width}{f' (stride {stride})' if stride > 1 else ''}" for width, stride in self.layers)
        return (
            f"{len(self.layers)} convolutions of 3×3 with {widths} channels, each with batch norm before its "
            f"{_spoken(self.activation)}, then the average over space and a linear layer"
        )

    def build(self, parts: Split, seed: int) -> nn.Module:
        """The stack, with He's initialisation for ReLU and Glorot's for others."""
        return convolutional(
            self.layers,
            activation=self.activation,
            norm="before",
            channels=parts.channels,
            classes=parts.classes,
            seed=seed,
        )


@dataclass(frozen=True)
class Dense(Subject):
    """Fully connected layers, all but the last with batch norm before their activation.

    Args:
        hidden: Units of the hidden layers.
        activation: As :func:`batchnorm.study.networks.fully_connected` takes it.
    """

    hidden: tuple[int, ...]
    activation: str = "relu"

    @property
    def description(self) -> str:
        """Units and activation."""
        layers = "hidden layer" if len(self.hidden) == 1 else "hidden layers"
        units = ", ".join(map(str, self.hidden))
        return f"{len(self.hidden)} {layers} of {units} units, each with batch norm and {_spoken(self.activation)}"

    def build(self, parts: Split, seed: int) -> nn.Module:
        """The layers, with He's initialisation for ReLU and Glorot's for others."""
        sizes = (parts.train[0][0].numel(), *self.hidden, parts.classes)
        return fully_connected(sizes, activation=self.activation, norm="before", seed=seed)


@dataclass(frozen=True)
class Own(Subject):
    """The user's own network, from a callable without arguments.

    Args:
        target: ``package.module:callable``; what it returns is a new ``torch.nn.Module`` at each call, whose weights
            torch's own random numbers decide.
    """

    target: str

    @property
    def description(self) -> str:
        """Its name on the command line."""
        return f"your own, {self.target}"

    def fingerprint(self, seed: int) -> str:
        """A hash of the network as a seed builds it: its layers, and all values that it begins with."""
        model = self._built(seed)
        digest = hashlib.sha256(repr(model).encode())
        for name, value in model.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def build(self, parts: Split, seed: int) -> nn.Module:
        """As :meth:`fingerprint` knows it; the parts do not matter: it fits them or is refused."""
        return self._built(seed)

    def _built(self, seed: int) -> nn.Module:
        """Calls the target with torch's random numbers seeded, which are afterwards as they were.

        Raises:
            StudyError: If it cannot be imported or called, returns no module, or one without batch norm.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                make = resolve(self.target)
                torch.manual_seed(seed)  # after the import, which may draw, and does so once only
                model = make()
            except TargetError as error:
                raise StudyError(error.problem, error.mend) from error
            except (Exception, SystemExit) as error:
                raise StudyError(f"{self.target}: calling it raised {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise StudyError(
                f"{self.target}: it returned {type(model).__name__}, not a torch.nn.Module.", "return the model itself"
            )
        if any(is_lazy(value) for value in model.state_dict(keep_vars=True).values()):
            raise StudyError(
                f"{self.target}: {type(model).__name__} has lazy layers, which have no sizes yet.",
                "build them with their sizes, or pass one batch through the network before returning it",
            )
        frozen = [path for path, norm in norms(model).items() if isinstance(norm, Frozen)]
        if frozen:
            raise StudyError(
                f"{self.target}: the norm {frozen[0]} is frozen, and the study is about norms that learn.",
                'batchnorm.unfreeze(model), or batchnorm.convert(model, "batch")',
            )
        if not norms(model):
            raise StudyError(
                f"{self.target}: {type(model).__name__} has no batch norm, so there is nothing to study.",
                "give a model with batch norm; the study derives from it one without",
            )
        return model.train()


def check(subject: Subject, parts: Split, arms: Sequence[str]) -> None:
    """Builds a network, derives the arms that a claim needs, and gives each some images, in both modes.

    Raises:
        StudyError: If one of these fails, the output is not one number a class, or the same seed builds different
            networks; it names what and the mend.
    """
    _check_repeated(subject, parts)
    for arm in arms:
        model = derive(subject.build(parts, 0), arm)
        for training in (True, False):
            _check_output(model.train(training), subject, parts, arm)


def _check_repeated(subject: Subject, parts: Split) -> None:
    """A run must find what another found, whatever ran before it in its process."""
    first, second = (subject.build(parts, 0).state_dict(keep_vars=True) for _ in range(2))
    if shared := [name for name, value in first.items() if value is second.get(name)]:
        raise StudyError(
            f"the network ({subject.description}) is not built anew at each call: {shared[0]} is one tensor in two of "
            "them.",
            "build the model inside the callable, or return copy.deepcopy(model)",
        )
    unlike = [name for name, value in first.items() if name not in second or not _same(value, second[name])]
    if unlike or len(first) != len(second):
        raise StudyError(
            f"the network ({subject.description}) is another at each call, after the same torch.manual_seed: "
            f"{(unlike or ['its layers'])[0]} differs.",
            "draw first weights by torch's own random numbers, which the study seeds, or seed others in the callable",
        )


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and bool((first == second).all())


def _check_output(model: nn.Module, subject: Subject, parts: Split, arm: str) -> None:
    images = parts.train[0][:_IMAGES]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model(images)
    except Exception as error:
        kinds = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
        mend = "give data that fit it (--data), or a callable whose network fits the data"
        raise StudyError(
            f"the network ({subject.description}), with {arm!r} for its norms, does not take images of shape "
            f"{tuple(images.shape)} and dtype float32: {type(error).__name__}: {error}",
            "return model.float()" if kinds else mend,
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < parts.classes:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        mode = "training" if model.training else "evaluation"
        raise StudyError(
            f"the network ({subject.description}) gives {given} in {mode} mode for {len(images)} images of "
            f"{parts.classes} classes.",
            f"its output must be a tensor of shape ({len(images)}, {parts.classes}), a number a class",
        )

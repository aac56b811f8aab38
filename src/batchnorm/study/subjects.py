"""What claims about training are tried on: a network of the study, or the user's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..targets import TargetError, resolve
from .arms import derive, norms
from .data import Split
from .error import StudyError
from .networks import convolutional, fully_connected

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

    def build(self, parts: Split, seed: int) -> nn.Module:
        """Calls the target with torch's random numbers seeded, which are afterwards as they were.

        Raises:
            StudyError: If it cannot be imported or called, returns no module, or one without batch norm.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = resolve(self.target)()
            except TargetError as error:
                raise StudyError(error.problem, error.mend) from error
            except (Exception, SystemExit) as error:
                raise StudyError(f"{self.target}: calling it raised {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise StudyError(
                f"{self.target}: it returned {type(model).__name__}, not a torch.nn.Module.", "return the model itself"
            )
        if not norms(model):
            raise StudyError(
                f"{self.target}: {type(model).__name__} has no batch norm, so there is nothing to study.",
                "give a model with batch norm; the study derives from it one without",
            )
        return model.train()


def check(subject: Subject, parts: Split, arms: Sequence[str]) -> None:
    """Builds a network, derives the arms that a claim needs, and gives each two images.

    Raises:
        StudyError: If one of these fails, or the output is not one number a class; it names what and the mend.
    """
    images = parts.train[0][:2]
    for arm in arms:
        model = derive(subject.build(parts, 0), arm)
        try:
            with torch.no_grad():
                output = model.eval()(images)
        except Exception as error:
            raise StudyError(
                f"the network ({subject.description}), with {arm!r} for its norms, does not take images of shape "
                f"{tuple(images.shape)}: {type(error).__name__}: {error}",
                "give data that fit it (--data), or a callable whose network fits the data",
            ) from error
        if not isinstance(output, torch.Tensor) or output.dim() != 2 or output.shape[1] < parts.classes:
            given = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise StudyError(
                f"the network ({subject.description}) gives {given} for two images of {parts.classes} classes.",
                f"its output must be a tensor of shape (2, {parts.classes}), a number a class",
            )

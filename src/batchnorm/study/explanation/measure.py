"""The run behind the explanation: one channel of a real batch in a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ... import BatchNorm2d
from ...report import Section
from ..claim import Experiment, Report, Result, Run, Value
from ..data import Source, split
from ..networks import convolutional
from ..training import Recipe, train
from .section import section

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation(Experiment):
    """Trains a small network with batch norm and records what one channel of its middle norm layer does.

    The layer is the middle one, and the channel the one whose running variance is the layer's median (the lower of
    the two in the middle): a typical channel by rule, not one that was picked for its looks.

    Args:
        layers: Channels and stride of the convolutions, each with batch norm before its ReLU.
        learning_rate: Of the training.
        steps: Updates.
        batch_size: Images a batch.
        small_batch: Images in the small batches that one image is put into.
        companions: How many different batches one image is put into.
        bins: Of each histogram.
    """

    layers: tuple[tuple[int, int], ...] = ((16, 2), (32, 2), (64, 1))
    learning_rate: float = 0.05
    steps: int = 300
    batch_size: int = 60
    small_batch: int = 4
    companions: int = 40
    bins: int = 40

    @property
    def id(self) -> str:
        """Its name among the results."""
        return "explanation"

    @property
    def budget(self) -> float:
        """Seconds of one core; it has one run."""
        return 6

    @property
    def smallest(self) -> int:
        """One batch."""
        return self.batch_size

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run, at the first seed: a picture of one layer needs no more."""
        return [Run(self.id, "batch norm", seeds[0], data)]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains the network, chooses the channel, and records it."""
        parts = split(run.source, run.seed)
        model = convolutional(
            self.layers,
            activation="relu",
            norm="before",
            channels=parts.channels,
            classes=parts.classes,
            seed=run.seed,
        )
        norms = [layer for layer in model if isinstance(layer, BatchNorm2d)]
        norm = norms[len(norms) // 2]
        history = _History()
        handle = norm.register_forward_hook(history)
        recipe = Recipe(self.learning_rate, steps=self.steps, batch_size=self.batch_size, every=self.steps)
        trained = train(model, parts, recipe, seed=run.seed, report=lambda done, note: report(0.8 * done, note))
        handle.remove()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        channel = int(norm.running_var.argsort(stable=True)[(norm.num_features - 1) // 2])
        images = parts.train[0]
        batch = _input_of(norm, model, images[: self.batch_size], training=True)  # the norms before it as in training
        values: dict[str, Value] = {
            "layer": norms.index(norm) + 1,
            "layers": len(norms),
            "channel": channel + 1,
            "channels": norm.num_features,
            "height": batch.shape[2],
            "width": batch.shape[3],
            "training images": len(images),
            "validation": trained.validation[-1],
            "momentum": float(norm.momentum or 0.0),
            "eps": norm.eps,
            "gamma": float(norm.weight[channel].detach()),
            "beta": float(norm.bias[channel].detach()),
            "running mean": float(norm.running_mean[channel]),
            "running variance": float(norm.running_var[channel]),
        }
        values |= self._stages(norm, batch, channel)
        values |= history.of(channel)
        report(0.9, "the same image in many batches")
        values |= self._companions(norm, _input_of(norm, model, images, training=False), channel, run.seed)
        return values

    def _stages(self, norm: BatchNorm2d, batch: Tensor, channel: int) -> dict[str, Value]:
        """The channel's values through the layer, in float64, and how far the layer itself is from them."""
        gamma, beta = float(norm.weight[channel].detach()), float(norm.bias[channel].detach())
        x = batch[:, channel].double().numpy()
        standardised = (x - x.mean()) / np.sqrt(x.var() + norm.eps)
        outputs = {}
        for training in (True, False):
            layer = deepcopy(norm).train(training)  # in training mode it moves its running statistics: let a copy's
            with torch.no_grad():
                outputs[training] = layer(batch)[:, channel].double().numpy()
        steps = {"input": x, "standardised": standardised, "output": gamma * standardised + beta}
        values: dict[str, Value] = {
            "largest error": float(np.abs(steps["output"] - outputs[True]).max()),
            "largest change at test": float(np.abs(outputs[False] - outputs[True]).max()),
        }
        for name, stage in steps.items():
            values |= _histogram(name, stage, np.linspace(stage.min(), stage.max(), self.bins + 1))
        both = np.concatenate([outputs[True].ravel(), outputs[False].ravel()])
        edges = np.linspace(both.min(), both.max(), self.bins + 1)
        values |= _histogram("by batch", outputs[True], edges) | _histogram("by running", outputs[False], edges)
        return values

    def _companions(self, norm: BatchNorm2d, inputs: Tensor, channel: int, seed: int) -> dict[str, Value]:
        """One value of the first image, at the centre, in batches with other images; only this layer is switched.

        The layers before it are in evaluation mode, so that what goes into this one is the same in every batch.
        """
        generator = torch.Generator().manual_seed(seed)
        row, column = inputs.shape[2] // 2, inputs.shape[3] // 2
        values: dict[str, Value] = {"position row": row + 1, "position column": column + 1}
        values["value"] = float(inputs[0, channel, row, column])
        for name, size, training in (
            ("large batch", self.batch_size, True),
            ("small batch", self.small_batch, True),
            ("evaluation", self.batch_size, False),
        ):
            outputs = []
            for _ in range(self.companions):
                others = 1 + torch.randperm(len(inputs) - 1, generator=generator)[: size - 1]
                layer = deepcopy(norm).train(training)
                with torch.no_grad():
                    whole = layer(torch.cat([inputs[:1], inputs[others]]))
                outputs.append(float(whole[0, channel, row, column]))
            values[name] = outputs
        return values

    def tell(self, results: Sequence[Result]) -> Section:
        """The section of the page, for a reader who has not met batch norm before."""
        return section(self, results[0])


class _History:
    """A forward hook: what the batch had, and where the running statistics stood after it, at each training step."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Called by torch after each forward pass of the layer; looks at the validation split are left out."""
        if norm.training and isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor):
            variance, mean = torch.var_mean(inputs[0].detach(), dim=(0, 2, 3), correction=0)
            self.seen.append((mean, variance, norm.running_mean.clone(), norm.running_var.clone()))

    def of(self, channel: int) -> dict[str, Value]:
        """The history of one channel."""
        names = ("batch means", "batch variances", "running means", "running variances")
        return {name: [float(step[place][channel]) for step in self.seen] for place, name in enumerate(names)}


@torch.no_grad()
def _input_of(norm: nn.Module, model: nn.Sequential, images: Tensor, *, training: bool) -> Tensor:
    """What a layer of the model gets for these images; the model is left as it was."""
    layers = list(model)
    before, hidden = layers[: layers.index(norm)], images
    for layer in deepcopy(nn.Sequential(*before)).train(training):
        hidden = layer(hidden)
    return hidden


def _histogram(name: str, values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> dict[str, Value]:
    density, _ = np.histogram(values, bins=edges, density=True)
    return {
        f"{name}/edges": edges.tolist(),
        f"{name}/density": density.tolist(),
        f"{name}/mean": float(values.mean()),
        f"{name}/deviation": float(values.std()),
    }

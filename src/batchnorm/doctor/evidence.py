"""What one look at a model has found out, for all rules: plain data, which says nothing about good or bad."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..surgery.graph import Call, Graph
from .histogram import Histogram

__all__ = [
    "Evidence",
    "Failure",
    "Gradient",
    "Independence",
    "Layer",
    "LayerRun",
    "Loader",
    "Mode",
    "NormCall",
    "Padding",
    "Ranks",
    "Run",
    "Settings",
]

Mode: TypeAlias = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Settings:
    """What a user knows and a model does not show.

    Attributes:
        accumulation_steps: Backward passes for each step of the optimizer.
        weights_from: The framework that the weights were trained in: ``"keras"``, ``"tensorflow"``, ``"flax"``, …
        before: The model as it was before its norms were converted.
        ignored: By patterns of layers' paths, the codes of rules that are ignored there.
    """

    accumulation_steps: int = 1
    weights_from: str | None = None
    before: torch.nn.Module | None = None
    ignored: Mapping[str, Collection[str]] = field(default_factory=dict)

    def ignores(self, path: str, *codes: str) -> bool:
        """Whether one of these rules is ignored at a layer."""
        there = [ignored for pattern, ignored in self.ignored.items() if fnmatchcase(path, pattern)]
        return any(code in each for each in there for code in codes)


@dataclass(frozen=True)
class Loader:
    """What a ``torch.utils.data.DataLoader`` says about its batches.

    Attributes:
        batch_size: Samples of a batch; None where a sampler of its own decides.
        samples: Of the data set; None where it does not say.
        drop_last: Whether the rest is left out.
        last: Samples of the last batch; None where they cannot be known.
        shuffled: Whether it draws the samples in another order each time, as loaders for training do.
    """

    batch_size: int | None
    samples: int | None
    drop_last: bool
    last: int | None
    shuffled: bool = True


@dataclass(frozen=True, eq=False)
class Padding:
    """Positions of (N, C, L) input that are padding: by the batch's mask, or by their looks.

    They look so at the end of a sample where its positions hold the same values.

    Attributes:
        share: Of all positions, those that are (a stretch of one position does not count).
        mean_shift: How far the mean moves if they are left out: the largest over channels, in standard deviations.
        variance_ratio: The variance with them over that without: the value farthest from 1.
        samples: How many samples have some.
        by_mask: Whether a mask that came with the batch says so.
    """

    share: float
    mean_shift: float
    variance_ratio: float
    samples: int = 0
    by_mask: bool = False


@dataclass(frozen=True, eq=False)
class NormCall:
    """One call of a norm.

    Attributes:
        batch: Of which batch, from 0.
        shape: Of the input.
        dtype: Of the input.
        values: For each channel, those that a mask excludes left out.
        mean: Of the input, (C,) float64 on the CPU; NaN where the input is not finite.
        var: Its biased variance, likewise.
        nonfinite: How many values of the input are not finite.
        by_batch: Whether it normalises by the batch's own statistics, not by the running ones.
        moved: Whether it changed its running buffers.
        recomputed: Whether it runs in the backward pass: activation checkpointing computes it again.
        masked: Whether a mask was given.
        same_input: Whether an earlier call of the layer in the same pass had the same tensor as input.
        padding: What looks like padding in its input; None where nothing does.
        domain: Of a layer with statistics for each of several domains, the one whose statistics it moved or used.
        differentiable: Whether its output can be differentiated: not under ``torch.no_grad``.
    """

    batch: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: int
    mean: Tensor
    var: Tensor
    nonfinite: int
    by_batch: bool
    moved: bool
    recomputed: bool
    masked: bool
    same_input: bool
    padding: Padding | None = None
    domain: str | None = None
    differentiable: bool = True


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One norm in all batches of one mode. Calls of recomputations are listed and enter nothing else.

    Attributes:
        calls: In order.
        count: Values of a channel that reached it, on all batches.
        mean: Of these, (C,) float64: merged, not averaged.
        var: Their biased variance, the variance between batches included.
        input: Histogram of a sample of the input's values.
        standardized: Of the same values less the mean and over the standard deviation that the layer normalised by.
        output: Of a sample of the output's values.
        output_mean: Of the output, (C,) float64, of the first batch.
        output_var: Likewise.
        activated: What the layer's own activation is given, with a residual, likewise sampled; None where it has none.
        output_high: The largest output of each channel, of all batches; None where outputs have another shape.
        output_far: Of each channel's outputs, the share beyond ±4, in the same sample as the histograms'; likewise.
    """

    calls: tuple[NormCall, ...]
    count: int
    mean: Tensor
    var: Tensor
    input: Histogram
    standardized: Histogram
    output: Histogram
    output_mean: Tensor | None = None
    output_var: Tensor | None = None
    activated: Histogram | None = None
    output_high: Tensor | None = None
    output_far: Tensor | None = None

    @property
    def first_step(self) -> tuple[NormCall, ...]:
        """Its calls with the first batch, recomputations left out."""
        return tuple(call for call in self.calls if call.batch == 0 and not call.recomputed)


@dataclass(frozen=True)
class Gradient:
    """What came back in the backward pass of the first batch in training mode: root mean squares of a value.

    Attributes:
        output: Of the gradient of the norm's output.
        input: Of the gradient of its input; None where that needs none.
        weight: Of gamma's gradient; None where it needs none.
        bias: Of beta's.
    """

    output: float | None = None
    input: float | None = None
    weight: float | None = None
    bias: float | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """A batch norm: as it was given, and what was seen of it.

    Attributes:
        path: In the model; of a checkpoint, what stands before ``.running_mean``.
        kind: The name of its class; empty where only tensors were given.
        module: The layer itself, for its class and settings; None where only tensors were given.
        tensors: Copies of ``weight``, ``bias``, ``running_mean``, ``running_var`` and ``num_batches_tracked`` in their
            own dtypes, on the CPU, those that are there.
        requires_grad: Whether ``weight`` and ``bias`` do, those that are there.
        eps: None where only tensors were given; and so are the following.
        momentum: None also for the cumulative average: ask for it where ``module`` is there.
        track_running_stats: As the layer says.
        training: Its flag as given.
        after_train: Its flag after ``model.train()``; None where no batches were run. So does ``after_eval``.
        after_eval: After ``model.eval()``.
        frozen: Why it is frozen, by :func:`batchnorm.freeze`, its class or ``momentum=0``; None where it is not. (Of a
            class with a ``forward`` of its own it shows where batches are run.)
        in_training: What it did in training mode; None where no batch reached it, or none was run.
        in_evaluation: In evaluation mode.
        gradient: None where there was no backward pass, or it did not reach the layer.
        without_dropout: The variance of its input, (C,) float64, over the same batches in training mode with dropout
            turned off; None where the graph has no dropout that feeds it.
    """

    path: str
    kind: str
    module: torch.nn.modules.batchnorm._NormBase | None
    tensors: Mapping[str, Tensor]
    requires_grad: Mapping[str, bool] = field(default_factory=dict)
    eps: float | None = None
    momentum: float | None = None
    track_running_stats: bool | None = None
    training: bool | None = None
    after_train: bool | None = None
    after_eval: bool | None = None
    frozen: str | None = None
    in_training: LayerRun | None = None
    in_evaluation: LayerRun | None = None
    gradient: Gradient | None = None
    without_dropout: Tensor | None = None

    @property
    def channels(self) -> int:
        """C."""
        return next(
            (t.numel() for name, t in self.tensors.items() if name != "num_batches_tracked"),
            0 if self.module is None else self.module.num_features,
        )

    @property
    def batches_tracked(self) -> int | None:
        """How many batches have moved the statistics, by the layer's own count; None where it has none."""
        seen = self.tensors.get("num_batches_tracked")
        return None if seen is None else int(seen)

    @property
    def has_statistics(self) -> bool:
        """Whether it has a running mean and variance."""
        return "running_mean" in self.tensors and "running_var" in self.tensors

    def values(self, name: str) -> np.ndarray[Any, Any] | None:
        """One of ``tensors``, as float64; None where it is not there."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.to(torch.float64).numpy()


@dataclass(frozen=True)
class Failure:
    """The model raised.

    Attributes:
        error: What.
        batch: On which batch.
        layer: The path of the norm whose call raised; None where it was something else.
        shape: Of the input of that call.
        backward: Whether it was in the backward pass.
    """

    error: Exception
    batch: int
    layer: str | None
    shape: tuple[int, ...] | None
    backward: bool = False


@dataclass(frozen=True)
class Run:
    """The batches in one mode.

    Attributes:
        mode: Which.
        samples: Of each batch that was run to its end; None where they cannot be counted.
        inputs: The shape of the first tensor of each batch.
        outputs: The shapes of the first batch's outputs, those that are tensors.
        order: The paths of the norms, by their first call.
        moved: The paths of norms whose running buffers are others after the forward passes than before.
        moved_in_backward: Of those that the backward pass moved once more.
        tracked: By how much ``num_batches_tracked`` of each layer grew in one step of training: the first batch,
            forward and backward.
        losses: Of each batch; empty where no ``loss`` was given and the output holds none.
        target: The shape and type of the first batch's target: of an (input, target) pair, or an entry with "label" or
            "target" in its name; None where there is none.
        masks: For each mask that comes with the batches (a dict's entry with "mask" in its name), the share of
            positions that it excludes.
        failure: What ended it; None where nothing did.
        without_backward: Why there was no backward pass, where one was wanted; empty where there was one.
    """

    mode: Mode
    samples: tuple[int | None, ...] = ()
    inputs: tuple[tuple[int, ...] | None, ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()
    order: tuple[str, ...] = ()
    moved: frozenset[str] = frozenset()
    moved_in_backward: frozenset[str] = frozenset()
    tracked: Mapping[str, int] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    target: tuple[tuple[int, ...], torch.dtype] | None = None
    masks: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    without_backward: str = ""


@dataclass(frozen=True)
class Independence:
    """In evaluation mode, the first sample's output among its batch, and among copies of itself.

    Attributes:
        difference: The largest, over the largest absolute value of the output (0 where it does not depend on others).
        layers: Paths of norms whose output for that sample differed, in the order of calls.
        samples: Of the batch.
    """

    difference: float
    layers: tuple[str, ...]
    samples: int


@dataclass(frozen=True)
class Ranks:
    """The same layers on other processes.

    Attributes:
        rank: This process' number.
        size: How many there are.
        mean_difference: By path, the largest difference between the running means of any rank and those of rank 0,
            in standard deviations of rank 0 (as the layer divides: with eps); infinite where one is not finite.
        variance_ratio: By path, of the running variances with eps: the value farthest from 1.
        counts: By path, ``num_batches_tracked`` of each rank.
        values: By path, the values of a channel in the first training call on each rank; 0 where there was none.
        samples: By path, the samples of that call.
    """

    rank: int
    size: int
    mean_difference: Mapping[str, float]
    variance_ratio: Mapping[str, float]
    counts: Mapping[str, tuple[int, ...]]
    values: Mapping[str, tuple[int, ...]]
    samples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that rules may look at.

    Attributes:
        model: The module, for its structure and settings; it must not be run or changed. None for a checkpoint.
        layers: Its batch norms, in the order in which they were called where batches were run, else that of the model.
        graph: What feeds what in training mode; None where it was not asked for or could not be traced.
        graph_failure: Why not.
        deployed: What feeds what in evaluation mode; None where the model was not given in that mode as a whole, or
            came with an optimizer or a loss, or does not trace whole.
        optimizer: As given; rules read ``param_groups``.
        loader: What the batches' loader says; None for other iterables.
        training: The batches in training mode; None where there were none.
        evaluation: The batches in evaluation mode.
        independence: None where no batch has two samples, or the outputs are no tensors of one row a sample.
        ranks: None in one process.
        settings: What the user said.
        unread: Paths where running statistics lie, or are used, that no rule looks at, and why.
        again: Whether the batches can be iterated once more: an iterator gives them once.
        ends: Whether it is known that they end: they have a length, or no more came than were run.
    """

    model: torch.nn.Module | None
    layers: Sequence[Layer]
    graph: Graph | None = None
    graph_failure: str = ""
    deployed: Graph | None = None
    optimizer: torch.optim.Optimizer | None = None
    loader: Loader | None = None
    training: Run | None = None
    evaluation: Run | None = None
    independence: Independence | None = None
    ranks: Ranks | None = None
    settings: Settings = field(default_factory=Settings)
    unread: Mapping[str, str] = field(default_factory=dict)
    again: bool = True
    ends: bool = True

    def layer(self, path: str) -> Layer | None:
        """The norm of that path."""
        return next((layer for layer in self.layers if layer.path == path), None)

    def calls_of(self, layer: Layer) -> list[Call]:
        """The layer's calls in the graph."""
        if self.graph is None or layer.module is None:
            return []
        return self.graph.calls_of(layer.module)

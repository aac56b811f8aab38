"""too-few-values: a norm in training mode has one sample, or fewer than 32 values a channel, to take statistics of.

## What it does

Counts, for each call in training mode, the samples and the values of a channel that a norm normalises by (a part of the
batch where that is cut into ghost batches, all ranks' together where they are synchronised), and works out the same for
the last batch of a `DataLoader`.

## Why it is bad

The mean of n values is off by 1/√n standard deviations, and so are the outputs: by 0.18 of 32 values, by 0.5 of 4.
Training goes by noise that evaluation does not have, and the running variance is an average of bad estimates. With one
value a channel nothing is left but beta, and torch raises. With one sample, however large, each is normalised by
itself: that is instance normalisation, and the running statistics, which evaluation uses, describe something else.

## Evidence

Values of a channel in the smallest call, and samples of a batch: those of the batches given, so of a hand-made batch it
says what holds for that one. One value, or an exception for it, is an error; fewer than 32 values, or a single sample,
a warning. Of a loader (with a `BatchSampler` of its own, too) that keeps its last batch, and that is less than half of
the others, the values there: an error where there is one, a warning below 32 or with one sample. It is an info for a
loader that does not shuffle, as those for evaluation do not, and for a model that was given in evaluation mode.

Left out are layers that are frozen (also by `eval()` while the rest trains, or by their class), and batch
renormalization, which corrects for small batches.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> data = torch.utils.data.TensorDataset(torch.randn(129, 4))
    >>> loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
    >>> for finding in batchnorm.diagnose(model, batches=loader, select=["BN003"]).findings:
    ...     print(finding)
    1: error BN003 too-few-values: training mode raises on input of shape (1, 8): one value a channel has no ...

## Use instead

    >>> loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    >>> batchnorm.diagnose(model, batches=loader, select=["BN003"]).findings
    ()

For batches that cannot be larger: `batchnorm.convert(model, "renorm")`, `convert(model, "sync")` over several ranks,
or, in fine-tuning, `batchnorm.freeze(model)`.

## Fix safety

No fix: which of these is right depends on the training.

## References

- [fastai/fastai#1352](https://github.com/fastai/fastai/issues/1352)
- [open-mmlab/mmsegmentation#272](https://github.com/open-mmlab/mmsegmentation/issues/272)
- [scverse/scvi-tools#2314](https://github.com/scverse/scvi-tools/issues/2314)
- Ioffe, "Batch Renormalization", [arXiv 1702.03275](https://arxiv.org/abs/1702.03275)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import TooFewValuesError
from ...nn.ghost import GhostNorm
from ...population.layers import tracked_norms
from ...surgery.kinds import find
from ..evidence import Evidence, Failure, Layer, Loader
from ..finding import Finding, Measurement, Severity
from ..rule import Need, Rule

#: Of fewer values, the mean is off by more than 0.18 standard deviations.
VALUES = 32
#: A last batch of less than this share of the others weighs more, sample for sample, than they.
LAST = 0.5

_RENORM = 'model = batchnorm.convert(model, "renorm")'


@dataclass(frozen=True)
class _Few:
    """The least that a layer normalises by: values of a channel, of so many samples, on so many ranks together."""

    layer: Layer
    values: int
    samples: int
    shape: tuple[int, ...]
    ranks: int


class TooFewValues(Rule):
    """See the file's docstring."""

    code = "BN003"
    name = "too-few-values"
    severity = "warning"
    needs = frozenset({Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer, and one for the loader's last batch."""
        assert evidence.training is not None
        assert evidence.model is not None
        deployed = evidence.optimizer is None and not any(module.training for module in evidence.model.modules())
        failure = evidence.training.failure
        failed = failure.layer if failure is not None and _for_few_values(failure) else None
        short = _short_last(evidence)
        if failure is not None and failed is not None:
            last = f" (the loader's last batch has {short.last} of {short.batch_size} samples)" if short else ""
            yield self.found(
                failed,
                f"training mode raises on input of shape {failure.shape}: one value a channel has no variance{last}.",
                {"values of a channel": Measurement(1, VALUES, "at least"), "in batch": Measurement(failure.batch)},
                _larger(short),
                severity="error",
            )
        moving = {path for path, _ in tracked_norms(evidence.model)}
        samples = evidence.training.samples
        # The batch that is the loader's rest has a finding of its own.
        rest = None
        if short is not None and failure is not None:
            rest = failure.batch
        elif short is not None and samples and samples[-1] == short.last:
            rest = len(samples) - 1
        least = [few for layer in evidence.layers if (few := _least(evidence, layer, moving, rest)) is not None]
        for few in least:
            if few.layer.path == failed or (few.values >= VALUES and few.samples > 1):
                continue
            severity: Severity = "error" if few.values <= 1 else "warning"
            yield self.found(
                few.layer,
                f"{_told(few)}, for input of shape {few.shape} in the batches given.",
                {
                    "values of a channel": Measurement(few.values, VALUES, "at least"),
                    "samples": Measurement(few.samples, 2, "at least"),
                },
                _RENORM if few.values > 1 else _larger(None),
                severity="info" if deployed and severity == "warning" else severity,
            )
        if short is not None and failed is None:
            yield from self._last(short, least, deployed)

    def _last(self, loader: Loader, least: list[_Few], deployed: bool) -> Iterator[Finding]:
        """The loader's last batch, which is perhaps not among those that were run."""
        assert loader.last is not None
        assert loader.batch_size is not None
        # Of the first batch, which has as many samples as all but the last.
        values = [
            (max(few.ranks * call.values * loader.last // loader.batch_size, 1), few.layer.path)
            for few in least
            if few.layer.in_training is not None
            for call in few.layer.in_training.first_step
            if call.by_batch
        ]
        few = [path for count, path in values if count < VALUES]
        alone = loader.last == 1 and any(each.ranks == 1 for each in least)
        if not values or not (few or alone):
            return
        count, path = min(values)
        severity: Severity = "error" if count == 1 else "warning"
        smallest = Measurement(count, VALUES, "at least")
        told = f"{count} value{'s' if count > 1 else ''} a channel at {path or 'the model itself'}"
        if few:
            told += f", and fewer than {VALUES} at {len(set(few))} norm{'s' if len(set(few)) > 1 else ''}"
        else:
            smallest = Measurement(count)
            told = f"each norm normalises it by itself, by {told} and no fewer elsewhere"
        yield self.found(
            "",
            f"the loader's last batch has {loader.last} of {loader.batch_size} samples: {told}.",
            {
                "samples of the last batch": Measurement(loader.last, LAST * loader.batch_size, "at least"),
                "values of a channel there": smallest,
            },
            _larger(loader),
            severity=severity if loader.shuffled and not deployed else "info",
        )


def _larger(loader: Loader | None) -> str:
    """The line by which no batch is too small: without the rest, where that is it, else larger throughout."""
    size = VALUES if loader is None else loader.batch_size
    line = f"loader = torch.utils.data.DataLoader(data, batch_size={size}, shuffle=True, drop_last=True)"
    return line if loader is not None else f"{line}  # or, in fine-tuning, batchnorm.freeze(model)"


def _told(few: _Few) -> str:
    if few.values >= VALUES:
        return f"it normalises 1 sample by itself in training, by {few.values} values a channel"
    return f"it normalises by {few.values} value{'s' if few.values > 1 else ''} a channel in training"


def _short_last(evidence: Evidence) -> Loader | None:
    """The loader, if its last batch is a rest."""
    loader = evidence.loader
    if loader is None or loader.last is None or loader.batch_size is None:
        return None
    return loader if loader.last < LAST * loader.batch_size else None


def _for_few_values(failure: Failure) -> bool:
    # torch's own is a ValueError, told apart from others by its words.
    return isinstance(failure.error, TooFewValuesError) or "more than 1 value per channel" in str(failure.error)


def _least(evidence: Evidence, layer: Layer, moving: set[str], rest: int | None) -> _Few | None:
    """The smallest of a layer's calls; None where it does not go by the batch, or corrects for its size."""
    if layer.in_training is None or layer.module is None:
        return None
    if layer.has_statistics and layer.path not in moving and layer.momentum != 0:
        return None  # frozen
    kind = find(layer.module)
    if kind is not None and kind.kind.name == "renorm":
        return None
    calls = [
        call
        for call in layer.in_training.calls
        if call.by_batch and not call.recomputed and call.values and call.batch != rest
    ]
    if not calls:
        return None
    call = min(calls, key=lambda call: (call.values, call.shape[0]))
    samples, values = call.shape[0], call.values
    if isinstance(layer.module, GhostNorm):
        parts = -(-samples // layer.module.ghost_size)
        samples, values = samples // parts, values * (samples // parts) // samples
    synchronised = kind is not None and kind.kind.name in ("sync", "torch-sync")
    ranks = evidence.ranks.size if synchronised and evidence.ranks is not None else 1
    if synchronised and evidence.ranks is not None:
        # Of the first call: that of a later one the other ranks have not told.
        values = max(values, sum(evidence.ranks.values.get(layer.path, ())))
        samples = max(samples, sum(evidence.ranks.samples.get(layer.path, ())))
    return _Few(layer, values, samples, call.shape, ranks)


RULE = TooFewValues()

"""inverted-momentum: the momentum is over 0.5, as if it were that of Keras or TensorFlow, or gives no average at all.

## What it does

Looks at the `momentum` of every norm that tracks statistics.

## Why it is bad

In torch `running = (1 − momentum)·running + momentum·batch`, so 0.1 keeps nine tenths of the past. Keras and TensorFlow
write the same average with the roles exchanged: their 0.99 is torch's 0.01. With 0.99 in torch the running statistics
are those of the last batch, and evaluation depends on which batch came last.

Outside of 0 to 1 it is no average: over 1 the past counts negatively, so that a variance can become negative, and below
0 or over 2 each batch makes what came before larger, without end.

## Evidence

The momentum, over 0.5; and how many batches weigh in the average, (2 − momentum) / momentum. A momentum of exactly 1 is
an info: it is what tools set that take the statistics of one batch on purpose. Below 0 or over 1 it is an error, told
with the factor 1 − momentum of the past. A momentum of 0 keeps the statistics as they are, and is not found.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, momentum=0.99))
    >>> diagnosis = batchnorm.diagnose(model, select=["BN011"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: warning BN011 inverted-momentum: momentum is 0.99: the running statistics are those of about 1 batch.

## Use instead

    >>> _ = diagnosis.fix()
    >>> round(model[1].momentum, 6)
    0.01

## Fix safety

Safe: 1 − momentum takes its place. Statistics, gamma and beta stay as they are; the next batches move the statistics
less. A momentum of 1, or outside of 0 to 1, is not mended: there 1 − momentum means nothing.

## References

- [eriklindernoren/PyTorch-YOLOv3#230](https://github.com/eriklindernoren/PyTorch-YOLOv3/issues/230)
- [cszn/KAIR#132](https://github.com/cszn/KAIR/issues/132)
- torch.nn.BatchNorm2d, the note on momentum
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement, Subject
from ..mends import quoted
from ..rule import Need, Rule

MOST = 0.5


class InvertedMomentum(Rule):
    """See the file's docstring."""

    code = "BN011"
    name = "inverted-momentum"
    severity = "warning"
    needs = frozenset({Need.MODEL})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        for layer in evidence.layers:
            momentum = layer.momentum
            if momentum is None or 0 <= momentum <= MOST or not layer.has_statistics:
                continue
            if not 0 <= momentum <= 1:
                yield self._outside(layer, momentum)
                continue
            batches = (2 - momentum) / momentum
            measured = {
                "momentum": Measurement(float(momentum), MOST),
                "batches that weigh": Measurement(batches, 3.0, "at least"),
            }
            one = momentum == 1
            yield self.found(
                layer,
                f"momentum is {momentum:g}: the running statistics are those of about {batches:.0f} batch.",
                measured,
                f"model.get_submodule({quoted(layer.path)}).momentum = {1 - momentum if not one else 0.1:g}",
                severity="info" if one else None,
                fix=None if one else Fix(f"sets momentum to {1 - momentum:g}", _inverted(layer)),
            )

    def _outside(self, layer: Layer, momentum: float) -> Finding:
        ends = "they grow without end" if abs(1 - momentum) > 1 else "a variance can become negative"
        return self.found(
            layer,
            f"momentum is {momentum:g}, outside of 0 to 1: each batch multiplies what the running statistics were by "
            f"{1 - momentum:g}, and {ends}.",
            {
                "momentum": Measurement(float(momentum), 0.0 if momentum < 0 else 1.0, _side(momentum)),
                "factor of the past": Measurement(float(1 - momentum)),
            },
            f"model.get_submodule({quoted(layer.path)}).momentum = 0.1  # and take the statistics anew",
            severity="error",
        )


def _side(momentum: float) -> Literal["at least", "at most"]:
    return "at least" if momentum < 0 else "at most"


def _inverted(layer: Layer) -> Callable[[Subject], None]:
    def apply(_: Subject) -> None:
        assert layer.module is not None
        assert layer.momentum is not None
        layer.module.momentum = 1 - layer.momentum

    return apply


RULE = InvertedMomentum()

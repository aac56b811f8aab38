"""eps-mismatch: eps is not that of the framework the weights come from, and a variance is small enough to show it.

## What it does

With `weights_from=`, compares the eps of every norm that has torch's default, 1e-5, with the default of that framework.
Another eps was chosen by somebody, and nothing is said of it.

## Why it is bad

Weights that are ported come with the eps that they were trained with, which no checkpoint holds. Where a running
variance is not much larger than eps, another eps scales the channel: the network still works, a little worse in every
layer, and the ported output never matches.

| framework | eps |
|---|---|
| torch, flax, haiku, caffe, paddle | 1e-5 |
| chainer | 2e-5 |
| keras, tensorflow | 1e-3, but 1.001e-5 in the ResNets and DenseNets of their applications |

## Evidence

eps, and by how much the scale of a channel changes with the framework's, √((variance + eps) / (variance + its eps)):
the largest over the channels whose gamma is not 0. An info from 1% on, a warning from 5% on. What comes from Keras may
have been built with another eps there than its default; the message says so.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> _ = model[1].running_var.fill_(0.01)
    >>> diagnosis = batchnorm.diagnose(model, select=["BN026"], weights_from="keras")
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: info BN026 eps-mismatch: eps is 1e-05, the default of keras is 0.001: a channel's scale is off by 4.61%, unless
    the network had an eps of its own there, as ResNet and DenseNet of its applications do (1.001e-5).

## Use instead

    >>> model[1].eps = 1e-3
    >>> batchnorm.diagnose(model, select=["BN026"], weights_from="keras").findings
    ()

## Fix safety

Safe, but none for weights from Keras and TensorFlow. The framework's eps takes its place, and nothing else changes. In
Keras some networks have an eps of their own, which only their code tells: the finding's line sets the default, and is
right for all others.

## References

- [gzuidhof/nn-transfer#3](https://github.com/gzuidhof/nn-transfer/issues/3)
- The defaults: tf.keras.layers.BatchNormalization (epsilon), flax.linen.BatchNorm (epsilon), haiku.BatchNorm (eps),
  BatchNormParameter in caffe.proto (eps), paddle.nn.BatchNorm2D (epsilon),
  chainer.links.BatchNormalization (eps)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement, Subject
from ..frameworks import EPS
from ..mends import quoted
from ..rule import Need, Rule

#: Changes of a channel's scale, from which on it is an info and a warning.
NOTABLE, HARMFUL = 0.01, 0.05
# A layer that has this one was given none.
_TORCH = 1e-5


class EpsMismatch(Rule):
    """See the file's docstring."""

    code = "BN026"
    name = "eps-mismatch"
    severity = "warning"
    needs = frozenset({Need.MODEL})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer.

        Raises:
            ArgumentError: A framework that is not known.
        """
        framework = evidence.settings.weights_from
        if framework is None:
            return
        eps = EPS[framework]
        # Their applications do not all go by the default.
        either = framework in {"keras", "tensorflow"}
        unless = ", unless the network had an eps of its own there, as ResNet and DenseNet of its applications do"
        for layer in evidence.layers:
            off = _off(layer, eps)
            if off is None or off <= NOTABLE:
                continue
            limit = HARMFUL if off > HARMFUL else NOTABLE
            yield self.found(
                layer,
                f"eps is {layer.eps:g}, the default of {framework} is {eps:g}: a channel's scale is off by {off:.2%}"
                f"{f'{unless} (1.001e-5)' if either else ''}.",
                {
                    "eps": Measurement(float(layer.eps or 0.0), eps, "equal to"),
                    "change of a channel's scale": Measurement(100 * off, 100 * limit, unit="%"),
                },
                f"model.get_submodule({quoted(layer.path)}).eps = {eps:g}",
                severity="warning" if limit == HARMFUL else "info",
                fix=None if either else Fix(f"sets eps to {eps:g}", _set(layer, eps)),
            )


def _off(layer: Layer, eps: float) -> float | None:
    """How much the scale of a channel changes, at most; None where there is no telling."""
    var, weight = layer.values("running_var"), layer.values("weight")
    if var is None or layer.eps is None:
        return None
    counts = np.isfinite(var) & (var >= 0)
    if weight is not None and len(weight) == len(var):
        counts &= weight != 0
    if layer.eps != _TORCH or layer.eps == eps or not counts.any():
        return None
    return float(np.abs(np.sqrt((var[counts] + layer.eps) / (var[counts] + eps)) - 1).max())


def _set(layer: Layer, eps: float) -> Callable[[Subject], None]:
    def apply(_: Subject) -> None:
        assert layer.module is not None
        layer.module.eps = eps

    return apply


RULE = EpsMismatch()

"""half-precision-buffers: running statistics, gamma or beta are in float16 or bfloat16.

## What it does

Looks at the dtype of the running mean and variance, gamma and beta of every norm.

## Why it is bad

A running statistic moves by `momentum` times what is new in a batch. In bfloat16, with 8 significant bits, a variance
does not move up where that is less than 0.2 to 0.4% of it: with a momentum of 0.1 it stops where it is within 2 to 4%
of the truth. A mean that is large beside its standard deviation stops earlier, and gamma at 1 does not take an
optimizer's steps of 0.001. float16 has 11 bits, and overflows at 65504.

## Evidence

The largest change of a batch's mean (in standard deviations) and of its variance (in parts of it) that rounding
swallows, half a unit in the last place over the momentum; the largest step of gamma and beta that it does; and the
largest share of 65504 that a float16 statistic takes. It is a warning where a layer trains and more than 1% is
swallowed, or a step of 0.001, or a tenth of float16's range is used. Else it is an info: statistics that no longer move
lose little by it.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)).bfloat16()
    >>> diagnosis = batchnorm.diagnose(model, select=["BN014"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: warning BN014 half-precision-buffers: running_mean, running_var, weight, bias are in bfloat16: a change of the
    variance by less than 3.91% is lost.

## Use instead

`torch.autocast`, which leaves parameters and buffers in float32; or float32 norms in a half-precision model: torch's
take half-precision input and give it back.

    >>> _ = diagnosis.fix()
    >>> model[1].running_var.dtype, model(torch.randn(4, 4, dtype=torch.bfloat16)).dtype
    (torch.float32, torch.bfloat16)

## Fix safety

Safe: the layer's tensors become float32 with the same values, the parameters stay the same objects, and the output
keeps the dtype of the input. An optimizer's state follows where `optimizer=` is given; where gradients show that the
model is being trained and no optimizer is given, nothing is mended. Neither are layers with a `forward` of their own,
nor processes of a group: `DistributedDataParallel` has buckets of the parameters' dtype. Of a checkpoint the tensors
are replaced.

## References

- [pytorch/pytorch#61924](https://github.com/pytorch/pytorch/issues/61924)
- [Lightning-AI/pytorch-lightning#18802](https://github.com/Lightning-AI/pytorch-lightning/issues/18802)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...surgery.kinds import find
from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement, Subject
from ..mends import quoted
from ..rule import Rule

_HALF = (torch.float16, torch.bfloat16)
_NAMES = ("running_mean", "running_var", "weight", "bias")
# Of a standard deviation, or of a variance: what a batch of some thousand values is off by anyway.
SWALLOWED = 0.01
# The default learning rate of Adam, whose steps are about as large.
STEP = 1e-3
RANGE = 0.1


class HalfPrecisionBuffers(Rule):
    """See the file's docstring."""

    code = "BN014"
    name = "half-precision-buffers"
    severity = "warning"

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        for layer in evidence.layers:
            halves = [name for name in _NAMES if name in layer.tensors and layer.tensors[name].dtype in _HALF]
            if not halves:
                continue
            measured = _measured(layer, halves)
            trains = bool(layer.training) and not layer.frozen
            bad = [name for name, each in measured.items() if each.threshold is not None and _over(each)]
            fix = _fix(evidence, layer, halves)
            dtype = str(layer.tensors[halves[0]].dtype).removeprefix("torch.")
            yield self.found(
                layer,
                f"{', '.join(halves)} are in {dtype}: {_consequence(layer, measured, bad if trains else [])}.",
                measured,
                _mend(evidence, layer, fix),
                severity="warning" if trains and bad else "info",
                fix=fix,
            )


def _over(measured: Measurement) -> bool:
    assert isinstance(measured.value, float)
    assert isinstance(measured.threshold, float)
    return measured.value > measured.threshold


_VARIANCE, _MEAN, _AFFINE, _RANGE = (
    "swallowed change of the variance",
    "swallowed change of the mean",
    "swallowed step of gamma and beta",
    "share of float16's range",
)


def _measured(layer: Layer, halves: list[str]) -> dict[str, Measurement]:
    """What rounding swallows, in the channel where it is most."""
    found: dict[str, Measurement] = {}
    momentum = layer.momentum or 0.1  # torch's default, where only tensors are there or all batches weigh the same
    var, mean = layer.tensors.get("running_var"), layer.tensors.get("running_mean")
    if var is not None and var.numel() and "running_var" in halves:
        found[_VARIANCE] = Measurement(float((_half_ulp(var) / var.double()).nan_to_num(0).max()) / momentum, SWALLOWED)
    if mean is not None and var is not None and mean.numel() and "running_mean" in halves:
        std = (var.double().clamp(min=0) + (layer.eps or 0.0)).sqrt()
        worst = float((_half_ulp(mean) / std).nan_to_num(0, posinf=0).max()) / momentum
        found[_MEAN] = Measurement(worst, SWALLOWED, unit="standard deviations")
    affine = [layer.tensors[name] for name in ("weight", "bias") if name in halves and layer.tensors[name].numel()]
    if affine:
        found[_AFFINE] = Measurement(max(float(_half_ulp(each).nan_to_num(0).max()) for each in affine), STEP)
    sixteen = [
        layer.tensors[name].double().abs().nan_to_num(0, posinf=0)
        for name in ("running_mean", "running_var")
        if name in halves and layer.tensors[name].dtype == torch.float16 and layer.tensors[name].numel()
    ]
    if sixteen:
        most = max(float(each.max()) for each in sixteen)
        found[_RANGE] = Measurement(most / torch.finfo(torch.float16).max, RANGE)
    return found


def _half_ulp(values: Tensor) -> Tensor:
    """The largest change that is rounded away: half the distance to the neighbour farther from 0, float64.

    At a power of two that is twice the distance to the one nearer to 0; elsewhere they are the same. The largest value
    has none, and is told by its distance to the one below.
    """
    magnitude = values.detach().abs()
    above = torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf))
    below = torch.nextafter(magnitude, torch.zeros_like(magnitude))
    return torch.where(above.isfinite(), above.double() - magnitude.double(), magnitude.double() - below.double()) / 2


def _consequence(layer: Layer, measured: dict[str, Measurement], bad: list[str]) -> str:
    swallowed = measured.get(_VARIANCE)
    if _RANGE in bad:
        return f"float16 ends at 65504, of which {measured[_RANGE].value:.0%} is used"
    if swallowed is not None and (not bad or _VARIANCE in bad):
        return f"a change of the variance by less than {swallowed.value:.2%} is lost"
    if _MEAN in bad:
        return f"a change of the mean by less than {measured[_MEAN].value:.3g} standard deviations is lost"
    if _AFFINE in measured:
        return f"a step of less than {measured[_AFFINE].value:.2g} is lost"
    return "what is below its last bit is lost"


def _mend(evidence: Evidence, layer: Layer, fix: Fix | None) -> str:
    if layer.module is None:
        return "state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}"
    converted = f"model.get_submodule({quoted(layer.path)}).float()"
    optimizer = evidence.optimizer
    parameters = list(layer.module.parameters())
    # Where no optimizer is given, gradients tell of one.
    trained = any(optimizer.state.get(each) if optimizer is not None else each.grad is not None for each in parameters)
    if not trained:
        return converted
    if fix is not None or optimizer is None:
        # Beside the layer, the optimizer's averages: else its next step rounds, or raises.
        return 'batchnorm.diagnose(model, optimizer=optimizer, select=["BN014"]).fix()'
    return (
        f"[state.update({{name: t.float() for name, t in state.items() if torch.is_tensor(t)}}) "
        f"for each in {converted}.parameters() if (state := optimizer.state.get(each))]"
    )


def _fix(evidence: Evidence, layer: Layer, halves: list[str]) -> Fix | None:
    description = "makes its statistics, gamma and beta float32"
    if layer.module is None:
        return Fix(description, _of_state(layer, halves))
    module, found = layer.module, find(layer.module)
    if found is None or type(module).forward is not found.base.forward or evidence.ranks is not None:
        return None
    if evidence.optimizer is None and any(each.grad is not None for each in module.parameters()):
        return None
    return Fix(description, _of_module(layer))


def _of_state(layer: Layer, halves: list[str]) -> Callable[[Subject], None]:
    def apply(subject: Subject) -> None:
        assert subject.state is not None
        prefix = f"{layer.path}." if layer.path else ""
        for name in halves:
            subject.state[prefix + name] = subject.state[prefix + name].float()

    return apply


def _of_module(layer: Layer) -> Callable[[Subject], None]:
    def apply(subject: Subject) -> None:
        assert layer.module is not None
        layer.module.float()
        if subject.optimizer is None:
            return
        for parameter in layer.module.parameters():
            state = subject.optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dtype in _HALF:
                    state[name] = value.float()

    return apply


RULE = HalfPrecisionBuffers()

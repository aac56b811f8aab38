"""Mends that several rules share."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Callable

import torch

from ..population.layers import tracked_norms
from ..population.recalibrate import recalibrate
from ..surgery.convert import convert_layer
from .evidence import Evidence, Layer
from .finding import Fix, Subject
from .keeping import Keeping
from .own_forward import is_frozen
from .reached import reached_by

__all__ = ["STATISTICS", "addressed", "conversion", "quoted", "recalibrating", "recalibration"]

#: The rules whose mend is to take statistics anew. Where one of them is ignored, a layer keeps what it has.
STATISTICS = ("BN001", "BN004", "BN010")

#: Where batches have no end. The mean of so many samples is off by 0.03 standard deviations of one.
ENOUGH = 1000


def recalibration(evidence: Evidence) -> Fix | None:
    """The statistics of the norms taken anew, over all batches; those of layers where that is ignored stay.

    None where no batches were given, or they cannot be run to their end once more, or a NaN is in them.
    """
    if evidence.training is None or evidence.model is None or not (evidence.again and evidence.ends):
        return None
    if any(call.nonfinite for layer in evidence.layers if layer.in_training for call in layer.in_training.calls):
        return None
    ignores = evidence.settings.ignores
    left = {layer.path for layer in evidence.layers if ignores(layer.path, *STATISTICS)}
    # recalibrate goes by their flags, which say nothing.
    own = {layer.path for layer in evidence.layers if is_frozen(layer)}

    def apply(subject: Subject) -> None:
        assert subject.model is not None
        assert subject.batches is not None
        beside = Keeping(None, also=_beside(subject))  # a discriminator that forward= calls
        kept = [(module, module.momentum) for path, module in subject.model.named_modules() if path in left | own]
        try:
            for layer, _ in kept:
                layer.momentum = 0.0  # which recalibrate leaves alone, and takes as it is
            for _, layer in tracked_norms(subject.model):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                _readable(layer.running_mean, 0.0)
                _readable(layer.running_var, 1.0)
            recalibrate(subject.model, subject.batches, forward=subject.forward)
        finally:
            for layer, momentum in kept:
                layer.momentum = momentum
            beside.restore()

    but = f", but of {len(left)} that are ignored" if left else ""
    words = f"takes the statistics of all norms{but} anew over all batches (batchnorm.recalibrate)"
    return Fix(words, apply, "recalibrate")


def _beside(subject: Subject) -> list[torch.nn.Module | torch.Tensor]:
    """What ``forward=`` holds and the model does not."""
    assert subject.model is not None
    own = {id(each) for each in (*subject.model.modules(), *subject.model.parameters())}
    found = [
        part
        for each in reached_by(subject.forward)
        for part in (each.modules() if isinstance(each, torch.nn.Module) else [each])
    ]
    return [each for each in found if id(each) not in own]


def recalibrating(evidence: Evidence, order: str = "") -> str:
    """The line that takes statistics anew, for such batches as were given."""
    options = "" if evidence.training is None or evidence.ends else f", max_samples={ENOUGH}"
    line = f"batchnorm.recalibrate(model, batches{options}{order})"
    own = [layer.path for layer in evidence.layers if is_frozen(layer)]
    notes = [] if evidence.again else ["with batches made anew: an iterator gives them once"]
    notes += [f"with momentum = 0 before at {', '.join(own)}: frozen by their class, not by their flag"] if own else []
    return f"{line}  # {'; '.join(notes)}" if notes else line


def quoted(path: str) -> str:
    r"""A path as Python's code has it: in double quotes, unless it has some itself.

    Example:
        >>> print(quoted("layer1.0"), quoted('"'), quoted("a" + chr(10)))
        "layer1.0" '"' "a\n"
    """
    return repr(path) if '"' in path else f'"{repr(path + chr(34))[1:-2]}"'


def addressed(mend: str, prefix: str) -> str:
    """A line of code for a model in a wrapper, whose paths are those of the module inside.

    Args:
        mend: The line; the module inside is its ``model``.
        prefix: Of the module inside, the path in the wrapper.

    Example:
        >>> addressed('model = convert(model, "sync")', "module")
        'model.module = convert(model.module, "sync")'
    """
    lines = tokenize.generate_tokens(io.StringIO(mend).readline)
    columns, before = [], ""
    for token in lines:
        if token.type == tokenize.NAME and token.string == "model" and before not in (".", "lambda"):
            columns.append(token.end[1])
        before = token.string
    for column in reversed(columns):
        mend = f"{mend[:column]}.{prefix}{mend[column:]}"
    return mend


def _readable(buffer: torch.Tensor, value: float) -> None:
    """What is not finite, or no variance, would reach the layers behind it in the first pass."""
    with torch.no_grad():
        bad = ~torch.isfinite(buffer) | ((buffer < 0) if value else torch.zeros_like(buffer, dtype=torch.bool))
        buffer.masked_fill_(bad, value)


def conversion(layer: Layer, to: str) -> Callable[[Subject], None]:
    """Makes a layer one of another kind, in place (:func:`batchnorm.convert`)."""

    def apply(_: Subject) -> None:
        assert layer.module is not None
        convert_layer(layer.module, to)

    return apply

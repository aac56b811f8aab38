"""What the page tells about the layer, from the run behind it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ...report import Formula, Section
from ...report.chart import Curves, Panels, Series
from ...report.number import spoken
from ..claim import Result

if TYPE_CHECKING:
    from .measure import Explanation

__all__ = ["section"]

_STAGES = ("input", "standardised", "output")
_TITLES = {
    "input": "1. What comes in: {values:,} values of one channel",
    "standardised": "2. Standardised: mean {mean}, standard deviation {deviation}",
    "output": "3. Scaled by γ = {gamma} and shifted by β = {beta}",
}


def section(settings: Explanation, result: Result) -> Section:
    """The section of the page, for a reader who has not met batch norm before."""
    place = (
        f"channel {result.values['channel']} of {result.values['channels']} in the batch norm layer "
        f"{result.values['layer']} of {result.values['layers']}"
    )
    shape = f"{result.values['height']}×{result.values['width']}"
    count = settings.batch_size * int(result.number("height")) * int(result.number("width"))
    inputs, momentum = _moments(result, "input"), result.number("momentum")
    # The output's histogram has the same data as the layer's own output in training mode, up to rounding.
    change = abs(result.number("by running/mean") - result.number("by batch/mean"))
    spread = {name: _spread(result.numbers(name)) for name in ("large batch", "small batch", "evaluation")}
    smaller = ", the more so the smaller the batch" if spread["small batch"] > spread["large batch"] else ""
    companions = (
        f"Over {settings.companions} batches its output ranges over {spoken(spread['large batch'], 2)} in batches of "
        f"{settings.batch_size} and over {spoken(spread['small batch'], 2)} in batches of {settings.small_batch}; in "
        f"evaluation mode over {spoken(spread['evaluation'], 2)}."
    )
    return Section(
        "What the layer does",
        "layer",
        blocks=(
            "Batch norm takes one channel of a network at a time: what one filter of a convolution gives at all "
            "positions of an image, or what one unit gives where there are no positions. It looks at all values that "
            "this channel has in the current batch, subtracts their mean and divides by their standard deviation. "
            "Then it multiplies by a number γ and adds a number β, which the network learns like its weights, so that "
            "any scale and place that is useful can come back. They start at γ = 1 and β = 0, which change nothing.",
            f"The pictures are measured, not drawn: a network of {len(settings.layers)} convolutions after "
            f"{settings.steps} training steps (validation accuracy {100 * result.number('validation'):.1f}%), "
            f"{place}. It is the middle layer, and the channel whose running variance is the layer's median. A "
            f"batch has {settings.batch_size} images of {shape} positions in this layer: {count:,} values in a "
            "channel.",
            Formula(
                r"\mu = \frac{1}{m} \sum_{i=1}^{m} x_i \qquad "
                r"\sigma^2 = \frac{1}{m} \sum_{i=1}^{m} (x_i - \mu)^2 \qquad "
                r"\hat{x}_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} \qquad "
                r"y_i = \gamma\,\hat{x}_i + \beta"
            ),
            f"Here x are the channel's m = {count:,} values in the batch, and y is what goes out. The small number "
            f"ε = {spoken(result.number('eps'))} keeps a channel without variance from being divided by 0.",
            _stages_figure(result, count),
            f"In: mean {spoken(inputs[0])}, standard deviation {spoken(inputs[1])}. The layer's own output differs "
            f"from these three steps by at most {spoken(result.number('largest error'), 1)}, which is rounding.",
            "A network in use may get one image alone, and its answer should not depend on what else is in the "
            "batch. So the layer keeps running statistics: with each training batch the running mean and the running "
            "variance move part of the way towards the batch's. That part is the layer's "
            f"momentum = {spoken(momentum)}. In evaluation mode they take the place of the batch's.",
            Formula(
                r"\text{running} \leftarrow (1 - \text{momentum}) \cdot \text{running} + "
                r"\text{momentum} \cdot \text{batch}"
            ),
            _history_figure(settings, result),
            f"At the end of this training the running mean is {spoken(result.number('running mean'))} and the "
            f"running variance {spoken(result.number('running variance'))}. On the same batch, evaluation mode moves "
            f"the mean of the output by {spoken(change, 2)} and a single value by at most "
            f"{spoken(result.number('largest change at test'), 2)}.",
            _modes_figure(result),
            "One image's value at one position (row "
            f"{result.values['position row']}, column {result.values['position column']}) goes into the layer "
            f"unchanged, {spoken(result.number('value'))}, in the company of other images each time. In training "
            f"mode the output depends on the company{smaller}. {companions}",
            _companions_figure(settings, result),
        ),
    )


def _stages_figure(result: Result, count: int) -> Panels:
    ends = [result.numbers(f"{name}/edges")[index] for name in _STAGES for index in (0, -1)]
    peaks = [max(result.numbers(f"{name}/density")) for name in _STAGES]
    # One height for all where that leaves the lowest readable; areas are 1 in any case.
    top = (0.0, 1.08 * max(peaks)) if max(peaks) < 4 * min(peaks) else None
    charts = []
    for name, color in zip(_STAGES, (0, 1, 3), strict=True):
        mean, deviation = _moments(result, name)
        peak = max(result.numbers(f"{name}/density"))
        charts.append(
            Curves(
                _TITLES[name].format(
                    values=count,
                    # To a thousandth: what is left of a mean after its subtraction is rounding.
                    mean=spoken(round(mean, 3)),
                    deviation=spoken(round(deviation, 3)),
                    gamma=spoken(result.number("gamma")),
                    beta=spoken(result.number("beta")),
                ),
                "value",
                "density",
                [
                    _bars("", result, name, color),
                    Series("mean", [mean, mean], [0.0, peak], 2, dash="dash"),
                    Series("", [mean - deviation, mean + deviation], [0.6 * peak] * 2, 5, markers=True),
                ],
                x_range=(min(ends), max(ends)),
                y_range=top,
            )
        )
    return Panels(
        "The shape of the values stays; their place and their width are set",
        charts,
        note="One channel in one training batch. Dashed: the mean. Bar: one standard deviation to either side.",
    )


def _history_figure(settings: Explanation, result: Result) -> Panels:
    steps = [float(step + 1) for step in range(settings.steps)]
    charts = [
        Curves(
            f"The {what} of each batch, and the running {what}",
            "training step",
            what,
            [
                Series("each batch", steps, result.numbers(f"batch {what}s"), 6, markers=True, line=False),
                Series("running", steps, result.numbers(f"running {what}s"), 1),
            ],
        )
        for what in ("mean", "variance")
    ]
    calmer = all(
        _step(result.numbers(f"running {what}s")) < _step(result.numbers(f"batch {what}s"))
        for what in ("mean", "variance")
    )
    return Panels(
        "From step to step, the running statistics move less than those of the batches"
        if calmer
        else "The statistics of each batch, and the running ones",
        charts,
        note="The same channel during training. The running variance begins at 1, the running mean at 0.",
    )


def _modes_figure(result: Result) -> Curves:
    return Curves(
        "The same batch, normalised by its own statistics and by the running ones",
        "output of the layer",
        "density",
        [_bars("by batch", result, "by batch", 3), _bars("by running", result, "by running", 1, fill=False)],
        note="Training mode uses the batch's mean and variance, evaluation mode the running ones.",
    )


def _companions_figure(settings: Explanation, result: Result) -> Curves:
    at = [float(place + 1) for place in range(settings.companions)]
    spread = {name: _spread(result.numbers(name)) for name in ("small batch", "large batch", "evaluation")}
    depends = spread["small batch"] > 0 and spread["large batch"] > 0 and spread["evaluation"] == 0
    return Curves(
        "In training mode one image's output depends on its companions; in evaluation mode it does not"
        if depends
        else "One image's output with different companions, in training mode and in evaluation mode",
        "batch that the image is put into (number)",
        "output for the same value",
        [
            Series(f"batch of {settings.small_batch}", at, result.numbers("small batch"), 2, markers=True, line=False),
            Series(f"batch of {settings.batch_size}", at, result.numbers("large batch"), 3, markers=True, line=False),
            Series("evaluation", at, result.numbers("evaluation"), 1),
        ],
        note="The other images of each batch are drawn anew from the training images.",
    )


def _moments(result: Result, name: str) -> tuple[float, float]:
    return result.number(f"{name}/mean"), result.number(f"{name}/deviation")


def _bars(label: str, result: Result, name: str, color: int, *, fill: bool = True) -> Series:
    # Each density holds from its edge to the next; the last edge only ends the last bar.
    density = [*result.numbers(f"{name}/density"), 0.0]
    return Series(label, result.numbers(f"{name}/edges"), density, color, shape="step", fill=fill)


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _step(values: Sequence[float]) -> float:
    """How far it moves from one step to the next, on average."""
    return sum(abs(after - before) for before, after in pairwise(values)) / max(1, len(values) - 1)

"""norm-in-super-resolution: a network that enlarges images has batch norm on their path.

## What it does

Looks for networks that take images (or volumes) of one, three or four channels and give images of as many channels
whose every side is 2 to 8 times as long, and for norms by batch statistics between the two. A norm has a skip around it
if the output still depends on the input without that norm's output.

## Why it is bad

What such a network has to keep is the range of its image: contrast and colours. A norm replaces it by that of the
batch, and at evaluation by that of the training data, which shows as artefacts where an image differs from these. EDSR
left its norms out and gained quality and 40% of memory; ESRGAN saw artefacts go with them, skips or not.

## Evidence

By how much the images are enlarged, how many norms are on the path, and whether a path leads around. A warning where
none does; an info where a skip carries the image past the norm. Frozen norms are a fixed scale and not found. Where a
target is known (of an (input, target) pair, or an entry with "label" or "target" in its name), it must be of
floating-point numbers and of the output's shape: other targets are no images.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.BatchNorm2d(12), torch.nn.ReLU(),
    ...     torch.nn.Conv2d(12, 12, 3, padding=1), torch.nn.PixelShuffle(2))
    >>> for finding in batchnorm.diagnose(model, batches=torch.rand(4, 3, 8, 8), select=["BN023"]).findings:
    ...     print(finding)
    1: warning BN023 norm-in-super-resolution: images that are enlarged 2 times pass it, and no skip leads around it.

## Use instead

No norm, as EDSR and ESRGAN do:

    >>> model.set_submodule("1", torch.nn.Identity())
    >>> batchnorm.diagnose(model, batches=torch.rand(4, 3, 8, 8), select=["BN023"]).findings
    ()

## Fix safety

No automatic fix: without its norms the network has to be trained anew.

## References

- Lim et al. 2017 (EDSR), [arXiv 1707.02921](https://arxiv.org/abs/1707.02921), section 3.1
- Wang et al. 2018 (ESRGAN), [arXiv 1809.00219](https://arxiv.org/abs/1809.00219), section 3.1
- [xinntao/ESRGAN#70](https://github.com/xinntao/ESRGAN/issues/70)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...surgery.graph import Graph, Value
from ..evidence import Evidence
from ..finding import Finding, Measurement
from ..mends import quoted
from ..rule import Need, Rule
from ..walk import by_batch, reached

#: Enlargements that are meant to keep the image; generators make larger ones, from what is no image.
LEAST, MOST = 2.0, 8.0
_CHANNELS = (1, 3, 4)


class NormInSuperResolution(Rule):
    """See the file's docstring."""

    code = "BN023"
    name = "norm-in-super-resolution"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.GRAPH, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a norm."""
        graph, run = evidence.graph, evidence.training
        # Of parts of a network nobody knows what lies between them.
        if graph is None or run is None or graph.uncertain:
            return
        for image, output, scale in _enlarged(graph):
            after = reached([image])
            if output not in after or not _is_target(run.target, output):
                continue
            norms = {}
            for layer in evidence.layers:
                calls = [call for call in evidence.calls_of(layer) if by_batch(call)]
                passed = [value for call in calls if after.intersection(call.inputs) for value in call.gives]
                if passed and not layer.frozen and output in reached(passed):
                    norms[layer] = output in reached([image], without=calls)
            for layer, skipped in norms.items():
                around = "a skip leads around it" if skipped else "no skip leads around it"
                yield self.found(
                    layer,
                    f"images that are enlarged {scale:g} times pass it, and {around}.",
                    {
                        "enlargement": Measurement(scale),
                        "norms on the path": Measurement(len(norms), 0),
                        "a path around this one": Measurement("yes" if skipped else "no"),
                    },
                    f"model.set_submodule({quoted(layer.path)}, torch.nn.Identity())  # and train anew",
                    severity="info" if skipped else "warning",
                )
            return


def _is_target(target: tuple[tuple[int, ...], torch.dtype] | None, output: Value) -> bool:
    """Whether an output may be meant to be what the target is, where one is known."""
    return target is None or (target[0] == output.shape and target[1].is_floating_point)


def _enlarged(graph: Graph) -> Iterator[tuple[Value, Value, float]]:
    """Images that the model takes, larger ones that it gives, and how much larger."""
    taken = dict.fromkeys(value for call in graph.calls for value in call.inputs if value.source is None)
    given = dict.fromkeys(value for call in graph.calls for value in call.gives if value.escapes)
    images, outputs = ([value for value in values if _is_image(value)] for values in (taken, given))
    for image in images:
        for output in outputs:
            same = output.shape[:2] == image.shape[:2] and len(output.shape) == len(image.shape)
            scales = [large / small for large, small in zip(output.shape[2:], image.shape[2:], strict=False)]
            if same and len(set(scales)) == 1 and LEAST <= scales[0] <= MOST:
                yield image, output, scales[0]


def _is_image(value: Value) -> bool:
    example = value.example
    if not isinstance(example, Tensor) or not example.is_floating_point() or example.dim() not in (4, 5):
        return False
    return example.shape[1] in _CHANNELS


RULE = NormInSuperResolution()

"""unfolded-inference: a deployed network still computes norms that could be part of the layers beside them.

## What it does

Of a model that is given in evaluation mode as a whole, without optimizer and loss, it finds out which norms
`batchnorm.fold` would make part of a convolution or a linear layer. Nothing is run or changed for it.

## Why it is bad

In evaluation a norm is a scale and a shift in each channel. A layer beside it can take both on, and gives the same
result without the time and memory for reading and writing the tensor once more.

It is an info: results are right as they are.

## Evidence

How many norms fold and how many do not (their inputs are read by something else, or an activation stands between).
`batchnorm.fold` also proves on an example that the outputs are the same, and may keep a norm after that.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    >>> images = torch.randn(2, 3, 8, 8)
    >>> for finding in batchnorm.diagnose(model, batches=images, select=["BN028"]).findings:
    ...     print(finding)
    (the model itself): info BN028 unfolded-inference: 1 of 1 norms could be part of the layer beside it:
    1, of 0 (Conv2d).

## Use instead

    >>> model = batchnorm.fold(model, images).model
    >>> batchnorm.diagnose(model, batches=images, select=["BN028"]).findings
    ()

## Fix safety

No automatic fix: the folded model is another one, of fewer parameters, that is not trained any more.

## References

- [torch.nn.utils.fuse_conv_bn_eval](https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.fuse_conv_bn_eval.html),
  for a pair of layers
- Jacob et al. 2017, [arXiv 1712.05877](https://arxiv.org/abs/1712.05877), section 3.2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...surgery.attempt import Attempt, Plan
from ..evidence import Evidence
from ..finding import Finding, Measurement
from ..rule import Need, Rule


class UnfoldedInference(Rule):
    """See the file's docstring."""

    code = "BN028"
    name = "unfolded-inference"
    severity = "info"
    needs = frozenset({Need.MODEL, Need.GRAPH, Need.DEPLOYMENT})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding for the model."""
        model, graph = evidence.model, evidence.deployed
        assert model is not None
        assert graph is not None
        if not evidence.layers:
            return
        counts = Counter(call.module for call in graph.calls if call.module is not None)
        # It folds in a copy. What it is run on is asked for only by the proof, which is left out.
        attempt = Attempt(Plan(model, graph, counts, None), {})
        if not attempt.changed:
            return
        first, norms = attempt.changed[0], len(attempt.outcomes)
        into = first.detail.removeprefix("into ")
        others = ", …" if len(attempt.changed) > 1 else ""
        yield self.found(
            "",
            f"{len(attempt.changed)} of {norms} norms could be part of the layer beside it: "
            f"{first.layer}, of {into}{others}.",
            {
                "norms that fold": Measurement(len(attempt.changed), 0),
                "norms that do not": Measurement(len(attempt.kept)),
            },
            "model = batchnorm.fold(model, example_inputs).model",
        )


RULE = UnfoldedInference()

"""sync-needs-gpu: torch's SyncBatchNorm stands in a process that runs on the CPU, where it raises in training.

## What it does

Looks for `torch.nn.SyncBatchNorm` in training mode with its tensors on the CPU, where it will not leave the CPU:
batches were given and a process group is there, or this machine has no accelerator.

## Why it is bad

In training mode, as soon as `torch.distributed` is initialised, torch's layer raises for input on the CPU, even with a
single process. A model that was converted for training on GPUs then cannot be debugged, tested or fine-tuned on the
CPU, and code that checks it there fails.

## Evidence

The device of its tensors. It is an error where a process group is there, a warning where none is yet. A model that is
still on the CPU on a machine with an accelerator is left in peace, for it may be moved yet.

## Example

    >>> import torch, batchnorm
    >>> from torch import distributed
    >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SyncBatchNorm(8))
    >>> diagnosis = batchnorm.diagnose(model, batches=[torch.randn(16, 4)], select=["BN007"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: error BN007 sync-needs-gpu: torch.nn.SyncBatchNorm is on the cpu, where it raises in training: a process group is
    there.

## Use instead

This library's layer synchronises over gloo on the CPU as over nccl on GPUs.

    >>> _ = diagnosis.fix()
    >>> isinstance(model[1], batchnorm.SyncBatchNorm)
    True
    >>> _ = model(torch.randn(16, 4))
    >>> distributed.destroy_process_group()

## Fix safety

Safe: the layer becomes `batchnorm.SyncBatchNorm` with the same parameters, statistics, settings and process group. It
computes the same.

## References

- [open-mmlab/mmagic#133](https://github.com/open-mmlab/mmagic/issues/133)
- [open-mmlab/mmsegmentation#2147](https://github.com/open-mmlab/mmsegmentation/issues/2147)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
import torch.distributed as dist

from ...surgery.kinds import find, refusal
from ..evidence import Evidence
from ..finding import Finding, Fix, Measurement
from ..mends import conversion
from ..rule import Need, Rule


class SyncNeedsGpu(Rule):
    """See the file's docstring."""

    code = "BN007"
    name = "sync-needs-gpu"
    severity = "error"
    needs = frozenset({Need.MODEL})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        grouped = dist.is_available() and dist.is_initialized()
        if grouped:
            stays = evidence.training is not None or not torch.accelerator.is_available()
            why = "a process group is there"
        else:
            stays = not torch.accelerator.is_available()
            why = "here is no accelerator, and it needs only a process group"
        if not stays:
            return
        for layer in evidence.layers:
            module = layer.module
            if not isinstance(module, torch.nn.SyncBatchNorm) or not layer.training:
                continue
            devices = {each.device.type for each in chain(module.parameters(), module.buffers())}
            if devices != {"cpu"}:
                continue
            fix = None
            if refusal(module, find(module)) is None:
                fix = Fix("makes it a batchnorm.SyncBatchNorm", conversion(layer, "sync"))
            yield self.found(
                layer,
                f"torch.nn.SyncBatchNorm is on the cpu, where it raises in training: {why}.",
                {
                    "device": Measurement("cpu", "an accelerator's", "equal to"),
                    "process group": Measurement("initialised" if grouped else "none yet"),
                },
                'model = batchnorm.convert(model, "sync")',
                severity="error" if grouped else "warning",
                fix=fix,
            )


RULE = SyncNeedsGpu()

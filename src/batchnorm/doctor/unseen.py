"""What normalises by running statistics and is no batch norm that rules know: it is named."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _NormBase

from ..nn._base import is_batch_norm
from ..surgery.graph import Graph, operator_name

__all__ = ["called_by_operator", "of_other_classes"]


def of_other_classes(model: torch.nn.Module) -> dict[str, str]:
    """The paths of other modules that have a running mean and a running variance, and why no rule looks at them.

    Example:
        >>> class Norm(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("running_mean", torch.zeros(2))
        ...         self.register_buffer("running_var", torch.ones(2))
        >>> list(of_other_classes(torch.nn.Sequential(torch.nn.BatchNorm1d(2), Norm())))
        ['1']
    """
    return {
        path: f"{type(module).__name__} has running statistics and is no batch norm of torch's, nor derives from one: "
        "batchnorm.diagnose(model.state_dict()) looks at its tensors"
        for path, module in model.named_modules()
        if not is_batch_norm(module) and not isinstance(module, _NormBase) and _has_statistics(module)
    }


def _has_statistics(module: torch.nn.Module) -> bool:
    own = {name for name, _ in (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False))}
    return {"running_mean", "running_var"} <= own


def called_by_operator(graph: Graph) -> dict[str, str]:
    """The paths of modules whose own code calls ``torch.nn.functional.batch_norm``, and that this is not looked at."""
    return {
        call.path: "its code calls torch.nn.functional.batch_norm itself"
        for call in graph.calls
        if (call.module is None or not is_batch_norm(call.module))
        and any(operator_name(target) == "aten.batch_norm" for target, _, _ in call.steps)
    }

"""exported-in-training: an exported or scripted graph holds norms in training mode.

## What it does

Reads the graphs of what `torch.export`, `torch.jit` and `torch.fx` have made (the model itself or parts of it, and the
`ExportedProgram` too), without running them. Norms that have no running statistics are meant to use the batch's.

## Why it is bad

Such a graph normalises each batch by its own statistics wherever it is deployed: outputs depend on what else is in the
batch, a batch of one sample fails or gives nonsense, and the running statistics move with every call. In a traced or
exported graph the mode is a constant: calling `eval()` afterwards raises, or changes nothing.

## Evidence

How many norms of the graph are in training mode. An error where the mode is a constant; a warning for scripted modules,
which still have the flag. A program that was exported in training mode to be trained as such (for quantization) is
found too: that holds until its mode is changed.

ONNX files are not read. `torch.onnx.export` of a program that is found here writes the same mistake.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> program = torch.export.export(model, (torch.randn(2, 3, 8, 8),))
    >>> for finding in batchnorm.diagnose(program, select=["BN021"]).findings:
    ...     print(finding)
    (the model itself): error BN021 exported-in-training: 1 of the 1 norms in this graph is in training mode for
    good: 1.

## Use instead

    >>> program = torch.export.export(model.eval(), (torch.randn(2, 3, 8, 8),))
    >>> batchnorm.diagnose(program, select=["BN021"]).findings
    ()

## Fix safety

No automatic fix: the model has to be exported anew. A scripted one is put into evaluation mode by `eval()`.

## References

- [pytorch/pytorch#75252](https://github.com/pytorch/pytorch/issues/75252)
- [microsoft/onnxruntime#26584](https://github.com/microsoft/onnxruntime/issues/26584)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx

from ...surgery.graph import operator_name
from ..evidence import Evidence
from ..finding import Finding, Measurement
from ..rule import Need, Rule

# Named in messages at most.
_SHOWN = 3
# Where the running mean and the flag stand among the arguments: both None where they are no arguments.
_OPERATORS = {
    **{f"aten.{name}": (3, 5) for name in ("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")},
    **{f"aten._native_batch_norm_legit{form}": (3, 5) for form in ("", "_functional")},
    "batch_norm": (1, 5),  # torch.nn.functional's, which torch.fx has in its graphs
}
_ALWAYS_TRAINING = {"aten._batch_norm_with_update", "aten._batch_norm_with_update_functional"}
_UPDATES = {"batchnorm.update_running", "batchnorm.train"}


@dataclass
class _Modes:
    """The norms of a graph, by path: those in training mode for good, by a flag, and all."""

    constant: dict[str, None] = field(default_factory=dict)
    by_flag: dict[str, None] = field(default_factory=dict)
    all: dict[str, None] = field(default_factory=dict)


class ExportedInTraining(Rule):
    """See the file's docstring."""

    code = "BN021"
    name = "exported-in-training"
    severity = "error"
    needs = frozenset({Need.MODEL})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a graph."""
        assert evidence.model is not None
        for path, graph in _graphs(evidence.model):
            modes = _of_script(graph) if isinstance(graph, torch.jit.ScriptModule) else _of_fx(graph)
            training = {**modes.constant, **modes.by_flag}
            if not training:
                continue
            names = ", ".join([each or "it" for each in training][:_SHOWN]) + (", …" if len(training) > _SHOWN else "")
            held = "for good" if modes.constant else "by its flag"
            verb = "is" if len(training) == 1 else "are"
            yield self.found(
                path,
                f"{len(training)} of the {len(modes.all)} norms in this graph {verb} in training mode {held}: {names}.",
                {
                    "norms in training mode": Measurement(len(training), 0),
                    "norms in the graph": Measurement(len(modes.all)),
                },
                "model.eval()  # and then export the model anew" if modes.constant else "model.eval()",
                severity="error" if modes.constant else "warning",
            )


def _graphs(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The outermost modules that are graphs."""
    inside: list[torch.nn.Module] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule) and module not in inside:
            inside += module.modules()
            yield path, module


# --- torch.export and torch.fx -------------------------------------------------------------------------------


def _of_fx(module: Any) -> _Modes:
    found = _Modes()
    for graph in [part.graph for part in module.modules() if isinstance(part, torch.fx.GraphModule)]:
        for node in graph.nodes:
            if node.op == "call_function":
                _add_node(found, node)
    return found


def _add_node(found: _Modes, node: torch.fx.Node) -> None:
    target = node.args[0] if "auto_functionalized" in str(node.target) else node.target
    name = operator_name(target)
    if name in _UPDATES or name in _ALWAYS_TRAINING:
        training = True
    elif name in _OPERATORS:
        mean, flag = (
            node.args[place] if len(node.args) > place else node.kwargs.get(word)
            for place, word in zip(_OPERATORS[name], ("running_mean", "training"), strict=True)
        )
        if mean is None:
            return  # it has no statistics of its own, and uses the batch's on purpose
        training = flag is True
    elif name == "aten._native_batch_norm_legit_no_training":
        training = False
    else:
        return
    path = _path(node)
    found.all.setdefault(path)
    if training:
        found.constant.setdefault(path)


def _path(node: torch.fx.Node) -> str:
    """Of the norm's module, by the name of its buffer or where export says that it stands."""
    for each in node.all_input_nodes:
        if each.op == "get_attr" and str(each.target).split(".")[-1] == "running_mean":
            return str(each.target).rpartition(".")[0]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else node.name


# --- torch.jit -----------------------------------------------------------------------------------------------


def _of_script(module: Any) -> _Modes:
    found = _Modes()
    try:
        graph = module.inlined_graph
    except RuntimeError:  # it has no forward
        return found
    modules = dict(module.named_modules())
    for node in graph.findAllNodes("aten::batch_norm"):
        inputs = list(node.inputs())
        path, flag = _buffer_of(inputs[3]), inputs[5]
        if path is None:
            continue
        found.all.setdefault(path)
        if flag.node().kind() != "prim::Constant":
            if modules[path].training:
                found.by_flag.setdefault(path)
        elif flag.toIValue():
            found.constant.setdefault(path)
    for node in graph.findAllNodes("aten::copy_"):
        # This library's layers, traced in training: what writes the running mean.
        path = _buffer_of(next(node.inputs()))
        if path is not None:
            found.all.setdefault(path)
            found.constant.setdefault(path)
    return found


def _buffer_of(value: Any) -> str | None:
    """The path of the module whose running mean a value is; None of any other."""
    names: list[str] = []
    node = value.node()
    while node.kind() == "prim::GetAttr":
        names.append(node.s("name"))
        node = next(node.inputs()).node()
    return ".".join(reversed(names[1:])) if names[:1] == ["running_mean"] else None


RULE = ExportedInTraining()

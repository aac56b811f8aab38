"""``torch.compile(fullgraph=True)``, ``torch.export`` and ONNX."""

import copy
import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.activation import ACTIVATIONS
from batchnorm.functional import batch_norm


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def step(layer: torch.nn.Module, compiled: bool, *extra: torch.Tensor, **named: torch.Tensor) -> dict[str, object]:
    layer = copy.deepcopy(layer)
    function = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    results: dict[str, object] = {}
    for i in range(2):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(i), requires_grad=True)
        output = function(x, *extra, **named)
        (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
        results |= {f"output {i}": output, f"gradient {i}": x.grad}
    results |= {f"gradient of {name}": p.grad for name, p in layer.named_parameters()}
    return results | dict(layer.named_buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_compiled_as_eager(name: str | None, momentum: float | None, training: bool) -> None:
    if name is None:
        layer: torch.nn.Module = batchnorm.BatchNorm2d(3, momentum=momentum)
        extra: tuple[torch.Tensor, ...] = ()
    else:
        layer = batchnorm.BatchNormAct2d(3, momentum=momentum, activation=name)
        extra = (torch.randn(4, 3, 5, 5),)
    layer.train(training)
    for mask in (None, torch.rand(4, 5, 5) < 0.7):
        named = {} if mask is None else {"mask": mask}
        torch.testing.assert_close(step(layer, True, *extra, **named), step(layer, False, *extra, **named))


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    layer = batchnorm.BatchNormAct2d(3)
    x = torch.randn(4, 3, 5, 5)
    for training in (True, False):
        layer.train(training)
        other = copy.deepcopy(layer)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), other(x))
        torch.testing.assert_close(dict(layer.named_buffers()), dict(other.named_buffers()))


def test_nonfinite_batches_are_skipped_when_compiled() -> None:
    layer = batchnorm.BatchNorm2d(3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, 5)
    x[0, 0, 0, 0] = float("nan")
    compiled(x)
    assert int(layer.num_batches_tracked) == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


def test_dynamic_shapes_compile_once() -> None:
    layer = batchnorm.BatchNormAct2d(3)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch in (4, 7, 9):
        x = torch.randn(batch, 3, 5, 5)
        torch.testing.assert_close(compiled(x), copy.deepcopy(layer)(x))
        if batch == 4:
            graphs = counter.frame_count
    assert counter.frame_count == graphs


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_checkpointing_and_compiling_updates_once(inside: bool, backend: str, momentum: float | None) -> None:
    layer, plain = (batchnorm.BatchNorm1d(3, momentum=momentum) for _ in range(2))
    x = torch.randn(8, 3, requires_grad=True)
    if inside:
        output = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=False).sin(), backend=backend)(x)
    else:
        output = checkpoint(torch.compile(layer, backend=backend), x, use_reentrant=False).sin()
    output.sum().backward()
    plain(x)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(plain.named_buffers()))


def test_transforms_inside_compile() -> None:
    """``compile(func.grad(...))`` is the combination that an operator alone does not survive."""
    x, weight = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def function(x: torch.Tensor) -> torch.Tensor:
        return batch_norm(x, None, None, weight, training=True, activation="silu")

    def scalar(x: torch.Tensor) -> torch.Tensor:
        return function(x).sin().sum()

    for transformed, argument in (
        (grad(scalar), x[0]),
        (vmap(function), x),
        (vmap(grad(scalar)), x),
        (lambda x: jvp(function, (x,), (x.cos(),))[1], x[0]),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, f=transformed: f(x), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(argument), transformed(argument))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_export(training: bool, strict: bool) -> None:
    layer = batchnorm.BatchNormAct2d(3).train(training)
    x = torch.randn(4, 3, 5, 5)
    dynamic = {"input": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(layer, (x,), strict=strict, dynamic_shapes=dynamic)
    exported = program.module()
    twin = copy.deepcopy(layer)
    for batch in (4, 6):
        y = torch.randn(batch, 3, 5, 5)
        torch.testing.assert_close(exported(y), twin(y))
    for name, buffer in exported.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    ours = {target for target in targets if target.startswith("batchnorm.")}
    # In evaluation a runtime without this library must be able to run the graph.
    assert ours == ({"batchnorm.forward.default", "batchnorm.update_running.default"} if training else set())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_onnx_has_standard_nodes(dynamo: bool, tmp_path: Path) -> None:
    def run(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[str]:
        file = io.BytesIO()
        torch.onnx.export(module.eval(), inputs, file, dynamo=dynamo, verbose=False)
        model = onnx.load_from_string(file.getvalue())
        onnx.checker.check_model(model)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        given = dict(zip(names, (t.numpy() for t in inputs), strict=True))
        np.testing.assert_allclose(session.run(None, given)[0], module(*inputs).detach().numpy(), rtol=1e-4, atol=1e-5)
        return [node.op_type for node in model.graph.node]

    def layer(name: str | None) -> torch.nn.Module:
        built = batchnorm.BatchNorm2d(3) if name is None else batchnorm.BatchNormAct2d(3, activation=name)
        for _ in range(3):
            built(torch.randn(8, 3, 4, 4) * 2 + 1)
        return built

    x = torch.randn(2, 3, 4, 4)
    assert run(layer(None), (x,)) == ["BatchNormalization"]
    assert run(layer("relu"), (x,)) == ["BatchNormalization", "Relu"]
    assert run(layer("relu"), (x, x.sin())) == ["BatchNormalization", "Add", "Relu"]
    for name in ACTIVATIONS:
        assert "BatchNormalization" in run(layer(name), (x,))


@pytest.mark.parametrize(
    "x", [torch.randn(1, 4), torch.randn(3, 5), torch.randn(3, 4, 2, 2)], ids=["one value", "channels", "dimensions"]
)
def test_errors_survive_compilation(x: torch.Tensor) -> None:
    layer = batchnorm.BatchNorm1d(4)
    with pytest.raises(batchnorm.errors.BatchNormError, match=r"\("):
        torch.compile(layer, backend="aot_eager")(x)

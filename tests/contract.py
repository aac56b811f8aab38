"""The contract that every norm layer keeps, as a list of checks: ``design.md``'s rules in executable form.

A new layer adds one line to ``LAYERS`` and passes every check in ``CHECKS`` (``test_contract.py`` runs the product).
A check takes a layer and loops over the dtypes, memory formats and modes that its rule speaks of. It runs where torch's
default device is: ``with torch.device("cuda"): check(layer)``.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import reference
from batchnorm.errors import BatchNormError
from tolerance import RESOLUTION, assert_three_way, double, error

CHANNELS = 5
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Backward = Callable[[np.ndarray], reference.Gradients]


# What training mode computes, and how it moves the running statistics, by the float64 reference. ``statistics`` are
# those before the pass; ``arguments`` are weight, bias, residual, mask, activation and eps.


def plain(x: np.ndarray, statistics: dict[str, Tensor], **arguments: Any) -> tuple[np.ndarray, Backward]:
    output, saved = reference.forward(x, **arguments)
    return output, lambda dy: reference.backward(dy, saved)


def evaluation(x: np.ndarray, statistics: dict[str, Tensor], **arguments: Any) -> tuple[np.ndarray, Backward]:
    mean, var = double(statistics["running_mean"]), double(statistics["running_var"])
    output, saved = reference.forward_evaluation(x, mean, var, **arguments)
    return output, lambda dy: reference.backward_evaluation(dy, saved)


def renormalized(x: np.ndarray, statistics: dict[str, Tensor], **arguments: Any) -> tuple[np.ndarray, Backward]:
    batch = reference.moments(x, arguments["mask"])
    mean, var = double(statistics["running_mean"]), double(statistics["running_var"])
    r, d = reference.renorm_corrections(batch, mean, var, r_max=1.5, d_max=0.5, eps=arguments["eps"])
    output, saved = reference.renorm_forward(x, r, d, **arguments)
    return output, lambda dy: reference.renorm_backward(dy, saved)


GHOST = 3  # of the batches of 8 that the checks take: parts of 3, 3 and 2


def of_ghost_batches(x: np.ndarray, statistics: dict[str, Tensor], **arguments: Any) -> tuple[np.ndarray, Backward]:
    output, saved = reference.ghost_forward(x, ghost_size=GHOST, **arguments)
    return output, lambda dy: reference.ghost_backward(dy, saved)


def moved_by_ghost_batches(
    mean: np.ndarray, var: np.ndarray, x: np.ndarray, mask: np.ndarray | None, momentum: float
) -> tuple[np.ndarray, np.ndarray]:
    least = 2 if x[0, 0].size == 1 else 1
    groups = reference.ghost_batches(len(x), GHOST, least)
    parts = [reference.moments(x[group], None if mask is None else mask[group]) for group in groups]
    return reference.ghost_update_running(mean, var, parts, momentum)


def moved_by_the_batch(
    mean: np.ndarray, var: np.ndarray, x: np.ndarray, mask: np.ndarray | None, momentum: float
) -> tuple[np.ndarray, np.ndarray]:
    return reference.update_running(mean, var, reference.moments(x, mask), momentum)


def moved_by_nothing(
    mean: np.ndarray, var: np.ndarray, x: np.ndarray, mask: np.ndarray | None, momentum: float
) -> tuple[np.ndarray, np.ndarray]:
    return mean, var


@dataclass(frozen=True)
class Layer:
    """A layer under contract: how to build it, what it takes, and what it computes.

    Attributes:
        build: ``(num_features, **arguments) -> module``.
        spatial: The spatial shape of the input that it is tried on.
        twin: torch's class with the same parameters and buffers.
        activation: What follows the norm, as a name of ``Activation``.
        residual: Whether ``forward`` takes a residual.
        reference: What training mode computes: output, and gradients for a gradient of the output.
        like_torch: Whether torch's twin computes the same in training; else the reference alone judges there.
        moves: The running statistics after a batch. Other than the default's, torch's twin judges none.
        trains: Whether training mode is another than evaluation. A layer that does not train is compared with a twin
            in evaluation mode.
        holders: Where the state_dict has statistics: prefixes of torch's names of them.
        needs_statistics: Whether ``track_running_stats=False`` raises.
        batches: How many batches the running statistics see in one of eight samples.
        vectors: How many vectors of C values the backward pass may keep that are not the layer's own.
    """

    name: str
    build: Callable[..., torch.nn.Module]
    spatial: tuple[int, ...]
    twin: type[torch.nn.Module]
    activation: str = "identity"
    residual: bool = False
    reference: Callable[..., tuple[np.ndarray, Backward]] = plain
    like_torch: bool = True
    moves: Callable[..., tuple[np.ndarray, np.ndarray]] = moved_by_the_batch
    trains: bool = True
    holders: tuple[str, ...] = ("",)
    needs_statistics: bool = False
    batches: int = 1
    vectors: int = 2

    def __str__(self) -> str:
        return self.name

    def is_judged_by_torch(self, training: bool) -> bool:
        return self.like_torch or not training

    def moves_as_torch(self) -> bool:
        return self.moves is moved_by_the_batch or not self.trains


T1, T2, T3 = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d


def _fused(build: Callable[..., torch.nn.Module], activation: str) -> Callable[..., torch.nn.Module]:
    return lambda *args, **arguments: build(*args, activation=activation, **arguments)


def _family(name: str, arguments: dict[str, Any] | None = None, **described: Any) -> list[Layer]:
    """The three classes of a family, in the shapes and with the activations that between them take every road."""

    def layer(dims: int, what: str, spatial: tuple[int, ...], activation: str = "identity") -> Layer:
        build = functools.partial(getattr(batchnorm, f"{name}{dims}d"), activation=activation, **(arguments or {}))
        return Layer(f"{name}{dims}d{what}", build, spatial, (T1, T2, T3)[dims - 1], activation, True, **described)

    return [
        layer(1, "-NC", ()),
        layer(2, "", (3, 4)),
        layer(2, "-relu", (3, 4), "relu"),
        layer(3, "-silu", (2, 3, 2), "silu"),
    ]


LAYERS = [
    Layer("BatchNorm1d-NC", batchnorm.BatchNorm1d, (), T1),
    Layer("BatchNorm1d-NCL", batchnorm.BatchNorm1d, (7,), T1),
    Layer("BatchNorm2d", batchnorm.BatchNorm2d, (3, 4), T2),
    Layer("BatchNorm3d", batchnorm.BatchNorm3d, (2, 3, 2), T3),
    Layer("FusingBatchNorm1d-NC", batchnorm.FusingBatchNorm1d, (), T1),
    Layer("FusingBatchNorm1d-NCL", batchnorm.FusingBatchNorm1d, (7,), T1),
    Layer("FusingBatchNorm2d", batchnorm.FusingBatchNorm2d, (3, 4), T2),
    Layer("FusingBatchNorm3d", batchnorm.FusingBatchNorm3d, (2, 3, 2), T3),
    Layer("BatchNormAct1d-NC-relu", _fused(batchnorm.BatchNormAct1d, "relu"), (), T1, "relu", True),
    Layer("BatchNormAct1d-NCL-tanh", _fused(batchnorm.BatchNormAct1d, "tanh"), (7,), T1, "tanh", True),
    Layer("BatchNormAct3d-elu", _fused(batchnorm.BatchNormAct3d, "elu"), (2, 3, 2), T3, "elu", True),
    *(
        Layer(f"BatchNormAct2d-{name}", _fused(batchnorm.BatchNormAct2d, name), (3, 4), T2, name, True)
        for name in batchnorm.activation.ACTIVATIONS
    ),
    Layer("SyncBatchNorm-alone", batchnorm.SyncBatchNorm, (3, 4), T2, "identity", True),
    Layer("SyncBatchNorm-alone-relu", _fused(batchnorm.SyncBatchNorm, "relu"), (3, 4), T2, "relu", True),
    *_family("FrozenBatchNorm", moves=moved_by_nothing, trains=False, needs_statistics=True),
    Layer(
        "BatchRenorm2d-without-correction",
        functools.partial(batchnorm.BatchRenorm2d, r_max=1.0, d_max=0.0, warmup=0),
        (3, 4),
        T2,
        residual=True,
        needs_statistics=True,
        vectors=6,
    ),
    *_family(
        "BatchRenorm",
        {"r_max": 1.5, "d_max": 0.5, "warmup": 0},
        reference=renormalized,
        like_torch=False,
        needs_statistics=True,
        vectors=6,
    ),
    *_family(
        "GhostBatchNorm",
        {"ghost_size": GHOST},
        reference=of_ghost_batches,
        like_torch=False,
        moves=moved_by_ghost_batches,
        batches=3,
        vectors=6,
    ),
    *_family("DomainBatchNorm", holders=("statistics.source.", "statistics.target."), needs_statistics=True),
]


# --- inputs --------------------------------------------------------------------------------------------------


def _contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def _channels_last(x: Tensor) -> Tensor:
    # For (N, C, L) and (N, C) too: the strides of (N, *spatial, C) storage.
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _sliced(x: Tensor) -> Tensor:
    wide = x.new_empty(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    wide[:, ::2] = x
    return wide[:, ::2]


def _swapped(x: Tensor) -> Tensor:
    # Where one of the two dimensions has size 1, strides that look contiguous and are not the usual ones.
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _one_image(x: Tensor) -> Tensor:
    # As images are read: (H, W, C) seen as (1, C, H, W), where the first stride is C.
    return _channels_last(x)[0].unsqueeze(0) if len(x) == 1 else x


FORMATS = {
    "contiguous": _contiguous,
    "channels-last": _channels_last,
    "transposed": _transposed,
    "swapped": _swapped,
    "sliced": _sliced,
}


@dataclass
class Case:
    """One input for a layer, its twin with the same parameters, and what to call them."""

    name: str
    ours: torch.nn.Module
    theirs: torch.nn.Module
    input: Tensor
    residual: Tensor | None
    mask: Tensor | None
    grad_output: Tensor

    def shape(self) -> tuple[int, ...]:
        return tuple(self.input.shape)


def make(
    layer: Layer,
    dtype: torch.dtype = torch.float32,
    format: str = "contiguous",
    training: bool = True,
    residual: bool = False,
    mask: bool = False,
    batch: int = 8,
    seed: int = 0,
    **arguments: Any,
) -> Case:
    generator = torch.Generator("cpu").manual_seed(seed)
    device = torch.get_default_device()
    shape = (batch, CHANNELS, *layer.spatial)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(device)

    half = dtype in (torch.bfloat16, torch.float16)
    parameters = torch.float32 if half else dtype
    ours = layer.build(CHANNELS, dtype=parameters, **arguments)
    theirs = layer.twin(CHANNELS, dtype=parameters, **{k: v for k, v in arguments.items() if k != "nonfinite"})
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(draw(CHANNELS))
        if ours.running_mean is not None:
            ours.running_mean.copy_(draw(CHANNELS))
            ours.running_var.copy_(draw(CHANNELS).abs() + 0.5)
    theirs.load_state_dict({**dict(ours.named_parameters()), **statistics_of(ours)})
    ours.train(training)
    theirs.train(training and layer.trains)
    to_format = FORMATS[format]
    return Case(
        f"{layer} {dtype} {format} {'training' if training else 'evaluation'}",
        ours,
        theirs,
        to_format((2 * draw(*shape) + 3).to(dtype)).requires_grad_(),
        to_format(draw(*shape).to(dtype)).requires_grad_() if residual else None,
        (torch.rand(batch, *layer.spatial, generator=generator, device="cpu") < 0.7).to(device) if mask else None,
        draw(*shape).to(dtype),
    )


def cases(layer: Layer, **arguments: Any) -> Iterator[Case]:
    for dtype in DTYPES:
        for format in FORMATS:
            for training in (True, False):
                yield make(layer, dtype, format, training, **arguments)


def call(case: Case, module: torch.nn.Module | None = None) -> Tensor:
    extra = {"residual": case.residual} if case.residual is not None else {}
    if case.mask is not None:
        extra["mask"] = case.mask
    return (case.ours if module is None else module)(case.input, **extra)


def torch_forward(layer: Layer, case: Case) -> Tensor:
    z = case.theirs(case.input)
    if case.residual is not None:
        z = z + case.residual
    return batchnorm.Activation(layer.activation)(z)


def gradients(case: Case, output: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    inputs = {"input": case.input, **dict(module.named_parameters())}
    if case.residual is not None:
        inputs["residual"] = case.residual
    found = torch.autograd.grad(output, list(inputs.values()), case.grad_output)
    return dict(zip(inputs, found, strict=True))


def reference_activation(name: str) -> reference.Activation:
    if name == "gelu_tanh":
        return reference.Activation("gelu", approximate="tanh")
    return reference.Activation(name)


def reference_run(layer: Layer, case: Case, statistics: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Output and gradients by the float64 reference; ``statistics``: the buffers before the forward pass."""
    arguments: dict[str, Any] = {
        "weight": None if case.ours.weight is None else double(case.ours.weight),
        "bias": None if case.ours.bias is None else double(case.ours.bias),
        "residual": None if case.residual is None else double(case.residual),
        "mask": None if case.mask is None else case.mask.cpu().numpy(),
        "activation": reference_activation(layer.activation),
        "eps": case.ours.eps,
    }
    run = layer.reference if case.ours.training else evaluation
    output, backward = run(double(case.input), statistics, **arguments)
    found = backward(double(case.grad_output))
    result = {"output": output, "input": found.x, "weight": found.weight, "bias": found.bias}
    if case.residual is not None:
        result["residual"] = found.residual
    return result


def statistics_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Those that the layer uses now, by torch's names, wherever they are kept."""
    found = {name: getattr(module, name) for name in STATISTICS}
    return {name: buffer.clone() for name, buffer in found.items() if buffer is not None}


def assert_statistics_as_torch(layer: Layer, case: Case, what: str = "", **tolerance: Any) -> None:
    if layer.moves_as_torch():
        for name, buffer in statistics_of(case.ours).items():
            wanted = case.theirs.get_buffer(name)
            assert buffer.dtype == wanted.dtype
            pair = (buffer, wanted)
            if wanted.is_cuda and wanted.is_floating_point():  # where torch's own kernels have NaN for some infinities
                pair = tuple(torch.where(tensor.isinf(), float("nan"), tensor) for tensor in pair)
            torch.testing.assert_close(*pair, **tolerance, msg=lambda m, n=name: f"{case.name}: {what} {n}: {m}")


def assert_by_reference(what: str, ours: Tensor, true: np.ndarray, roundings: int = 16) -> None:
    """Where torch computes something else: as many roundings of the largest value (three-way allows about half)."""
    limit = roundings * RESOLUTION[ours.dtype] * float(np.abs(true).max(initial=1.0))
    assert error(ours, true) <= limit, f"{what}: error {error(ours, true):.3g}, allowed {limit:.3g}"


def buffers(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same_buffers(module: torch.nn.Module, before: dict[str, Tensor], what: str) -> None:
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name]), f"{what}: {name} moved"


# --- the checks ----------------------------------------------------------------------------------------------


def check_drop_in_results(layer: Layer) -> None:
    """Rule 1 and 2: outputs, gradients and buffers as torch's, judged by the reference, in every format and mode."""
    for residual in (False, True) if layer.residual else (False,):
        for case in cases(layer, residual=residual):
            true = reference_run(layer, case, statistics_of(case.ours))
            ours, theirs = call(case), torch_forward(layer, case)
            our_gradients = gradients(case, ours, case.ours)
            their_gradients = gradients(case, theirs, case.theirs)
            pairs = {"output": (ours, theirs)}
            pairs |= {name: (gradient, their_gradients[name]) for name, gradient in our_gradients.items()}
            for name, (our, their) in pairs.items():
                what = f"{case.name}: {name if name == 'output' else f'gradient of {name}'}"
                if layer.is_judged_by_torch(case.ours.training):
                    assert_three_way(what, our, their, true[name])
                else:
                    assert (our.shape, our.dtype) == (their.shape, their.dtype)
                    assert_by_reference(what, our, true[name])
            assert_statistics_as_torch(layer, case)


def check_strides_are_kept(layer: Layer) -> None:
    """Output and gradient have the strides an elementwise operator of torch gives them."""
    for case in cases(layer):
        expected = torch.empty_like(case.input).stride()
        output = call(case)
        assert output.stride() == expected, f"{case.name}: output {output.stride()}, input {expected}"
        gradient = torch.autograd.grad(output, case.input, FORMATS["transposed"](case.grad_output))[0]
        assert gradient.stride() == expected, f"{case.name}: gradient {gradient.stride()}, input {expected}"


def check_gradients_in_any_layout(layer: Layer) -> None:
    """Input, residual and gradient each in its own layout, with dimensions of size 1, whose stride means nothing."""
    shapes = [(8, CHANNELS, *(1 if i == one else size for i, size in enumerate(layer.spatial))) for one in range(-1, 3)]
    if layer.spatial:
        shapes.append((1, CHANNELS, *layer.spatial))
    for shape in dict.fromkeys(shapes):
        for training in (True, False):
            case = make(layer, training=training)
            base = [torch.randn(shape) for _ in range(3)]
            found = []
            for formats in itertools.product((*FORMATS.values(), _one_image), repeat=2):
                x, dy, residual = (form(t) for form, t in zip((*formats, formats[0]), base, strict=True))
                x.requires_grad_()
                output = case.ours(x, residual) if layer.residual else case.ours(x)
                inputs = [x, case.ours.weight, case.ours.bias]
                found.append((output, *torch.autograd.grad(output, inputs, dy)))
                if not training:
                    continue
                case.ours.load_state_dict(make(layer).ours.state_dict())
            for other in found[1:]:
                for name, one, two in zip(("output", "input", "weight", "bias"), found[0], other, strict=True):
                    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def check_gradient_agrees_with_the_output(layer: Layer) -> None:
    """What the backward pass computes again is what the forward pass computed, on dead channels too."""
    if layer.activation not in ("relu", "relu6", "hardtanh"):
        return
    activation = batchnorm.Activation(layer.activation)
    for spread in (0.0, 1e-2):
        x = torch.randn(1, 64, *(1 for _ in layer.spatial)).expand(24, 64, *layer.spatial)
        x = (x + spread * torch.randn(x.shape)).contiguous()
        module = layer.build(64)
        output, dy = module(x), torch.randn_like(x)
        wanted = (dy * activation.is_on(output)).sum([d for d in range(x.dim()) if d != 1])
        found = torch.autograd.grad(output, module.bias, dy)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def check_masked_second_derivatives_are_finite(layer: Layer) -> None:
    """NaN in the padding reaches no derivative of any order."""
    for training in (True, False):
        case = make(layer, torch.float64, training=training, mask=True)
        with torch.no_grad():
            case.input[~case.mask.unsqueeze(1).expand(case.shape())] = float("nan")
        parameters = [case.input, case.ours.weight]
        first = torch.autograd.grad(call(case).pow(2).sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), parameters)
        assert all(torch.isfinite(gradient).all() for gradient in (*first, *second))


def check_state_dict(layer: Layer) -> None:
    """Rule 1: torch's keys, both ways; checkpoints from before num_batches_tracked load."""
    for arguments in ({}, {"affine": False}, {"track_running_stats": False}, {"bias": False}):
        if layer.needs_statistics and "track_running_stats" in arguments:
            with pytest.raises(BatchNormError, match="track_running_stats"):
                layer.build(CHANNELS, **arguments)
            continue
        ours = layer.build(CHANNELS, **arguments)
        try:
            theirs = layer.twin(CHANNELS, **arguments)
        except TypeError:
            continue  # torch before 2.11 has no bias=
        keys = list(theirs.state_dict())
        expected = [key for key in keys if key not in STATISTICS]
        expected += [holder + key for holder in layer.holders for key in keys if key in STATISTICS]
        assert list(ours.state_dict()) == expected
        with torch.no_grad():
            for value in theirs.state_dict().values():
                value.add_(3)
        ours.load_state_dict(theirs.state_dict())
        for holder in layer.holders:
            for key in keys:
                name = holder + key if key in STATISTICS else key
                assert torch.equal(ours.state_dict()[name], theirs.state_dict()[key]), name
        if layer.holders == ("",):
            theirs.load_state_dict(ours.state_dict())
    old = layer.twin(CHANNELS).state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    layer.build(CHANNELS).load_state_dict(old)


def check_copies(layer: Layer) -> None:
    """Rule 1: deepcopy, pickle and torch.save give the same layer back."""
    case = make(layer)
    call(case)
    before = buffers(case.ours)
    expected = call(case)
    file = io.BytesIO()
    case.ours.load_state_dict({**case.ours.state_dict(), **before})
    torch.save(case.ours, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(case.ours),
        pickle.loads(pickle.dumps(case.ours)),
        torch.load(file, weights_only=False),
    ):
        assert repr(twin) == repr(case.ours)
        assert_same_buffers(twin, before, "copy")
        assert torch.equal(call(case, twin), expected)


def check_factory_arguments(layer: Layer) -> None:
    """Rule 1: device=, dtype=, and the flags mean what they mean in torch."""
    module = layer.build(CHANNELS, device="meta", dtype=torch.float64)
    assert all(t.device.type == "meta" for t in (*module.parameters(), *module.buffers()))
    assert module.running_var.dtype == module.weight.dtype == torch.float64
    for arguments in ({"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.1}):
        if layer.needs_statistics and "track_running_stats" in arguments:
            continue
        for training in (True, False):
            case = make(layer, training=training, **arguments)
            for _ in range(3):
                before = statistics_of(case.ours)
                ours, theirs = call(case), torch_forward(layer, case)
            if layer.is_judged_by_torch(case.ours.training):
                torch.testing.assert_close(ours, theirs)
            else:
                assert_by_reference(f"{case.name}, {arguments}", ours, reference_run(layer, case, before)["output"])
            assert_statistics_as_torch(layer, case, str(arguments))


def check_errors(layer: Layer) -> None:
    """Rules 1 and 8: the kinds of error that torch raises, naming the layer, the shape and the mend; nothing moves."""
    case = make(layer)
    model = torch.nn.Sequential(OrderedDict(stem=torch.nn.Sequential(case.ours)))
    before = buffers(case.ours)
    wrong = {
        "dimensions": torch.randn(4, CHANNELS, *layer.spatial, 2, 2, 2),
        "channels": torch.randn(4, CHANNELS + 1, *layer.spatial),
        "integers": torch.ones(4, CHANNELS, *layer.spatial, dtype=torch.int64),
    }
    if layer.twin is T1 and layer.trains:
        wrong["one value"] = torch.randn(1, CHANNELS)
    for what, x in wrong.items():
        with pytest.raises((ValueError, RuntimeError)):
            case.theirs(x)
        with pytest.raises(BatchNormError) as raised:
            model(x)
        assert isinstance(raised.value, (ValueError, RuntimeError))
        assert raised.value.layer.startswith("stem.0 (")
        assert raised.value.mend
        assert what == "integers" or str(tuple(x.shape)) in str(raised.value)
        assert_same_buffers(case.ours, before, what)
    x = case.input.detach()
    for mask, kind in (
        (torch.ones(3, *layer.spatial, dtype=torch.bool), ValueError),
        (torch.ones(len(x), *layer.spatial), TypeError),
    ):
        with pytest.raises(kind):
            case.ours(x, mask=mask)
    if layer.residual:
        with pytest.raises(ValueError, match="residual"):
            case.ours(x, x[:1])
        with pytest.raises(TypeError, match="residual"):
            case.ours(x, x.double())
    assert_same_buffers(case.ours, before, "mask and residual")


def check_empty_batch(layer: Layer) -> None:
    """Rule 1: an empty batch counts, leaves the statistics alone, and has gradients of zero."""
    for training in (True, False):
        case = make(layer, training=training, batch=0)
        output, theirs = call(case), torch_forward(layer, case)
        assert output.shape == theirs.shape
        for name, buffer in statistics_of(case.ours).items():
            assert torch.equal(buffer, case.theirs.get_buffer(name)), name
        for name, gradient in gradients(case, output, case.ours).items():
            assert torch.equal(gradient, torch.zeros_like(gradient)), name


# Within one tensor, torch's vectorised loops give these another derivative at a NaN than its scalar ones, which say 1.
AMBIGUOUS_AT_NAN = ("relu6", "hardtanh", "hardswish", "elu")


def check_nonfinite(layer: Layer) -> None:
    """Rule 3: NaN and inf pass through outputs and gradients as in torch, and never into the buffers."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        for nonfinite in ("skip", "propagate"):
            case = make(layer, nonfinite=nonfinite)
            with torch.no_grad():
                case.input[0 if layer.batches == 1 else slice(0, None, GHOST), 1] = bad  # in each batch
            before = buffers(case.ours)
            with np.errstate(invalid="ignore"):
                true = reference_run(layer, case, statistics_of(case.ours))
            ours, theirs = call(case), torch_forward(layer, case)
            our_gradients = gradients(case, ours, case.ours)
            if layer.is_judged_by_torch(case.ours.training):
                torch.testing.assert_close(ours, theirs, equal_nan=True)
                for name, gradient in gradients(case, theirs, case.theirs).items():
                    if name == "bias" and layer.activation in AMBIGUOUS_AT_NAN:
                        gradient[1] = case.grad_output[:, 1].sum()
                    torch.testing.assert_close(our_gradients[name], gradient, equal_nan=True, msg=name)
            else:
                for name, found in {"output": ours, **our_gradients}.items():
                    np.testing.assert_allclose(double(found), true[name], rtol=1e-4, atol=1e-4, err_msg=name)
            if nonfinite == "skip":
                assert_same_buffers(case.ours, before, f"{bad}")
            else:
                assert_statistics_as_torch(layer, case, str(bad), equal_nan=True)
    # A finite variance that the buffer's dtype cannot hold would enter it as inf.
    case = make(layer, torch.float16)
    case.ours.half()
    before = buffers(case.ours)
    case.ours((case.input.detach() - 3) * 2000)
    assert_same_buffers(case.ours, before, "float16 buffers")


def check_mask(layer: Layer) -> None:
    """Padding enters no statistic, gets no gradient, comes out as 0; the rest is as if it were alone."""
    for training in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            for residual in (False, True) if layer.residual else (False,):
                case = make(layer, dtype, training=training, mask=True, residual=residual)
                before, buffers_before = statistics_of(case.ours), buffers(case.ours)
                padded = ~case.mask.unsqueeze(1).expand(case.shape())
                with torch.no_grad():
                    case.input[padded] = float("nan")
                    if case.residual is not None:
                        case.residual[padded] = float("inf")
                output = call(case)
                our_gradients = gradients(case, output, case.ours)
                assert (output[padded] == 0).all()
                assert (our_gradients["input"][padded] == 0).all()
                # The reference takes the same mask; what lies in the padding is none of its business.
                clean = make(layer, dtype, training=training, mask=True, residual=residual)
                true = reference_run(layer, clean, before)
                tolerance = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 4e-2}
                np.testing.assert_allclose(double(output), true["output"], **tolerance)
                for name, gradient in our_gradients.items():
                    np.testing.assert_allclose(double(gradient), true[name], err_msg=name, **tolerance)
                if not case.ours.training:
                    assert_same_buffers(case.ours, buffers_before, "evaluation")


def check_running_statistics(layer: Layer) -> None:
    """The buffers after three masked batches are those of the reference."""
    case = make(layer)
    mean, var = double(case.ours.running_mean), double(case.ours.running_var)
    for seed in range(3):
        step = make(layer, seed=seed, mask=True)
        case.ours(step.input, mask=step.mask)
        mean, var = layer.moves(mean, var, double(step.input), step.mask.cpu().numpy(), case.ours.momentum)
    np.testing.assert_allclose(double(case.ours.running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(double(case.ours.running_var), var, rtol=1e-5)
    if layer.spatial or layer.batches == 1:  # else the mask may leave a part without a variance, which counts not
        assert int(case.ours.num_batches_tracked) == (3 * layer.batches if layer.trains else 0)


def check_few_valid_positions(layer: Layer) -> None:
    """Rule 5: with one valid value the output is activation(bias); with none, nothing is written; neither moves."""
    case = make(layer)
    before = buffers(case.ours)
    activation = batchnorm.Activation(layer.activation)
    none = torch.zeros(len(case.input), *layer.spatial, dtype=torch.bool)
    assert (case.ours(case.input, mask=none) == 0).all()
    case.mask = none.clone()
    case.mask.view(-1)[0] = True
    true = reference_run(layer, case, statistics_of(case.ours))
    output = call(case)
    if layer.trains and layer.like_torch:
        first = output[0].flatten(1)[:, 0] if layer.spatial else output[0]
        torch.testing.assert_close(first, activation(case.ours.bias))
    np.testing.assert_allclose(double(output), true["output"], rtol=1e-5, atol=1e-5)
    found = gradients(case, output, case.ours)
    for name, gradient in found.items():
        np.testing.assert_allclose(double(gradient), true[name], rtol=1e-5, atol=1e-5, err_msg=name)
    if layer.trains:
        assert (found["input"] == 0).all()
    assert_same_buffers(case.ours, before, "fewer than two values")


def check_deterministic(layer: Layer) -> None:
    """Rule 4: bitwise the same from run to run."""
    for dtype in DTYPES:
        runs = []
        for _ in range(3):
            case = make(layer, dtype, residual=layer.residual)
            output = call(case)
            runs.append((output, *gradients(case, output, case.ours).values(), *case.ours.buffers()))
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True)), dtype


class NoSynchronization(TorchDispatchMode):
    """Fails on every operator that would make the host wait for the device."""

    WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__.split(".")[0] not in self.WAITS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def check_no_synchronization(layer: Layer) -> None:
    """Rule 5: no forward or backward reads a value from the device, cumulative averages and masks included."""
    for mask in (False, True):
        for momentum in (None, 0.1):
            for training in (True, False):
                case = make(layer, mask=mask, residual=layer.residual, momentum=momentum, training=training)
                with NoSynchronization():
                    call(case).backward(case.grad_output)


def check_kept_for_backward(layer: Layer) -> None:
    """The input, vectors, and with a residual one bit an element or the residual: nothing more, at any dtype."""
    activation = batchnorm.Activation(layer.activation)
    for residual in (False, True) if layer.residual else (False,):
        for dtype in DTYPES:
            for training in (True, False):
                case = make(layer, dtype, training=training, residual=residual, batch=16)
                sizes: dict[int, int] = {}

                def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                    output = call(case)
                own = {t.untyped_storage().data_ptr() for t in (*case.ours.parameters(), *case.ours.buffers())}
                assert output.untyped_storage().data_ptr() not in sizes
                kept = sum(size for pointer, size in sizes.items() if pointer not in own)
                x = case.input.untyped_storage().nbytes()
                vectors = layer.vectors * CHANNELS * 8 + 8  # mean, variance, …, and the count
                allowed = x + vectors
                if residual and activation.needs_bit:
                    values = case.input.numel() // CHANNELS
                    allowed += CHANNELS * ((values + 7) // 8)
                elif residual and activation.name != "identity":
                    allowed += x
                assert kept <= allowed, f"{case.name}, residual {residual}: {kept} bytes, allowed {allowed}"


def check_evaluation_gradient_survives_training(layer: Layer) -> None:
    """The gradient of an evaluation pass is that of what it computed, whatever moved the buffers since."""
    case, other = make(layer, training=False), make(layer, training=False)
    output, wanted = call(case), call(other)
    case.ours.train()
    call(case)
    found = gradients(case, output, case.ours)
    for name, gradient in gradients(other, wanted, other.ours).items():
        torch.testing.assert_close(found[name], gradient)


def check_checkpointing(layer: Layer) -> None:
    """The recomputation of activation checkpointing, reentrant or not, moves nothing a second time."""
    for reentrant in (True, False):
        for momentum in (0.1, None):
            plain, checkpointed = make(layer, momentum=momentum), make(layer, momentum=momentum)
            plain_gradients = gradients(plain, call(plain), plain.ours)
            output = checkpoint(checkpointed.ours, checkpointed.input, use_reentrant=reentrant)
            output.backward(checkpointed.grad_output)
            assert_same_buffers(checkpointed.ours, buffers(plain.ours), f"reentrant {reentrant}")
            assert torch.equal(checkpointed.input.grad, plain_gradients["input"])
            assert torch.equal(checkpointed.ours.weight.grad, plain_gradients["weight"])


def check_modes(layer: Layer) -> None:
    """A training-mode pass under no_grad moves the buffers as in torch; evaluation never does."""
    case = make(layer)
    with torch.no_grad():
        call(case)
        torch_forward(layer, case)
    assert_statistics_as_torch(layer, case)
    assert int(case.ours.num_batches_tracked) == layer.batches * layer.trains
    before = buffers(case.ours)
    case.ours.eval()
    with torch.inference_mode():
        call(case)
    assert_same_buffers(case.ours, before, "evaluation")


def check_autocast(layer: Layer) -> None:
    """Under autocast the output has the input's dtype, as torch's, and a residual of another dtype is converted."""
    case = make(layer)
    x = case.input.detach()
    with torch.autocast(x.device.type, torch.bfloat16):
        assert case.ours(x).dtype == torch.float32
        assert case.ours(x.bfloat16()).dtype == case.theirs(x.bfloat16()).dtype == torch.bfloat16
        if layer.residual:
            mixed = make(layer).ours(x.bfloat16(), x)
            torch.testing.assert_close(mixed, make(layer).ours(x.bfloat16(), x.bfloat16()))


def check_compiled_for_batches_of_two_sizes(layer: Layer) -> None:
    """In one graph without a break, of sizes that vary too: an epoch's last batch is smaller."""
    torch._dynamo.reset()
    eager, other = (make(layer, residual=layer.residual).ours for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    for batch in (8, 6):
        case = make(layer, residual=layer.residual, batch=batch)
        torch.testing.assert_close(call(case, compiled), call(case, eager))
        for name, buffer in eager.named_buffers():
            torch.testing.assert_close(other.get_buffer(name), buffer, msg=f"batch of {batch}: {name}")


def check_partial_gradients(layer: Layer) -> None:
    """Frozen parameters, an input without gradient and a loss that ignores the layer all work."""
    case = make(layer)
    case.ours.weight.requires_grad_(False)
    x = case.input.detach()
    case.ours(x).sum().backward()
    assert case.ours.weight.grad is None
    assert case.ours.bias.grad is not None
    case.ours.bias.requires_grad_(False)
    assert not case.ours(x).requires_grad
    assert case.ours(case.input).requires_grad


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_")]

"""What only batch renormalization does."""

import copy
import math
from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import reference
from batchnorm.errors import ArgumentError
from batchnorm.functional import batch_renorm, recomputed
from tolerance import double


def layer(seed: int = 0, **arguments: object) -> batchnorm.BatchRenorm2d:
    generator = torch.Generator().manual_seed(seed)
    norm = batchnorm.BatchRenorm2d(3, **{"r_max": 1.5, "d_max": 0.5, "warmup": 0, **arguments})
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_(generator=generator)
    return norm


def batch(seed: int = 0, size: int = 2) -> torch.Tensor:
    return 2 * torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) + 1


def test_training_computes_what_evaluation_does_where_nothing_is_clipped() -> None:
    norm = layer(r_max=math.inf, d_max=math.inf)
    x = batch()
    wanted = copy.deepcopy(norm).eval()(x)
    torch.testing.assert_close(norm(x), wanted)
    plain = batchnorm.BatchNorm2d(3)
    plain.load_state_dict(layer().state_dict())
    assert (plain(x) - wanted).abs().max() > 0.1
    torch.testing.assert_close(norm.running_mean, plain.running_mean)  # whose statistics it moves as


@pytest.mark.parametrize("bounds", [(1.01, 0.01), (3.0, 5.0)], ids=["clipped", "free"])
def test_several_steps_are_those_of_the_reference(bounds: tuple[float, float]) -> None:
    norm = layer(r_max=bounds[0], d_max=bounds[1]).double()
    mean, var = double(norm.running_mean.clone()), double(norm.running_var.clone())
    for step in range(4):
        x = batch(step).double()
        moments = reference.moments(double(x))
        r, d = reference.renorm_corrections(moments, mean, var, r_max=bounds[0], d_max=bounds[1])
        wanted, _ = reference.renorm_forward(double(x), r, d, double(norm.weight), double(norm.bias))
        np.testing.assert_allclose(double(norm(x)), wanted, rtol=1e-12, atol=1e-12)
        mean, var = reference.update_running(mean, var, moments, 0.1)
        clipped = ((r == bounds[0]) | (r == 1 / bounds[0])).all() and (np.abs(d) == bounds[1]).all()
        assert clipped == (bounds[1] < 1)


@pytest.mark.parametrize("absent", [(), ("bias",), ("weight", "bias")])
def test_gradients_of_what_there_is(absent: tuple[str, ...]) -> None:
    norm = layer(bias="bias" not in absent, affine="weight" not in absent) if not absent else None
    norm = norm or batchnorm.BatchRenorm2d(
        3, r_max=1.5, d_max=0.5, warmup=0, affine="weight" not in absent, bias="bias" not in absent
    )
    x = batch().requires_grad_()
    moments = reference.moments(double(x))
    mean, var = double(norm.running_mean.clone()), double(norm.running_var.clone())
    r, d = reference.renorm_corrections(moments, mean, var, r_max=1.5, d_max=0.5)
    given = [None if vector is None else double(vector) for vector in (norm.weight, norm.bias)]
    wanted, kept = reference.renorm_forward(double(x), r, d, *given)
    output, dy = norm(x), batch(1)
    np.testing.assert_allclose(double(output), wanted, rtol=1e-5, atol=1e-5)
    output.backward(dy)
    true = reference.renorm_backward(double(dy), kept)
    for name, tensor in {"x": x, **dict(norm.named_parameters())}.items():
        np.testing.assert_allclose(double(tensor.grad), getattr(true, name), rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_warmup_follows_the_count_of_batches() -> None:
    norm = layer(r_max=3.0, d_max=5.0, warmup=(10, 30, 20))
    for seen, wanted in ((0, (1, 0)), (10, (1, 0)), (15, (1.5, 2.5)), (20, (2, 5)), (30, (3, 5)), (99, (3, 5))):
        norm.num_batches_tracked.fill_(seen)
        assert tuple(map(float, norm.limits())) == wanted
    assert layer(warmup=7).warmup == (0, 7, 7)
    assert layer(warmup=0).limits() == (1.5, 0.5)
    sudden = layer(warmup=(5, 5, 5))
    for seen, wanted in ((4, (1, 0)), (5, (1.5, 0.5))):
        sudden.num_batches_tracked.fill_(seen)
        assert tuple(map(float, sudden.limits())) == wanted
    # As limits that were given: the layer hands on what its schedule says.
    norm.num_batches_tracked.fill_(15)
    x, given = batch(), layer(r_max=1.5, d_max=2.5)
    torch.testing.assert_close(norm(x), given(x))


def test_a_fresh_layer_is_plain_batch_norm_for_thousands_of_batches() -> None:
    norm, plain, x = batchnorm.BatchRenorm2d(3), batchnorm.BatchNorm2d(3), batch()
    torch.testing.assert_close(norm(x), plain(x))
    norm.num_batches_tracked.fill_(100_000)
    assert (norm(x) - plain(x)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"r_max": 0.5}, "r_max"),
        ({"r_max": math.nan}, "r_max"),
        ({"d_max": -1.0}, "d_max"),
        ({"warmup": -1}, "warmup"),
        ({"warmup": (10, 5, 20)}, "warmup"),
        ({"warmup": 5, "r_max": math.inf}, "warmup"),
        ({"track_running_stats": False}, "track_running_stats"),
    ],
)
def test_what_means_nothing_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        layer(**arguments)


def test_the_function_is_the_layer() -> None:
    norm, x = layer(), batch()
    mean, var, seen = norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()
    arguments = {"r_max": 1.5, "d_max": 0.5, "num_batches_tracked": seen, "activation": "relu"}
    output = batch_renorm(x, mean, var, norm.weight, norm.bias, True, **arguments)
    torch.testing.assert_close(output, torch.relu(norm(x)))
    torch.testing.assert_close([mean, var, seen], [norm.running_mean, norm.running_var, norm.num_batches_tracked])
    evaluated = batch_renorm(x, mean, var, norm.weight, norm.bias, **arguments)
    torch.testing.assert_close(evaluated, torch.relu(norm.eval()(x)))
    with pytest.raises(ArgumentError, match="running"):
        batch_renorm(x, None, None, training=True)
    with pytest.raises(ArgumentError, match="r_max"):
        batch_renorm(x, mean, var, training=True, r_max=0.0)


# --- checkpoints: the running statistics have moved when r and d are computed anew ----------------------------


def test_the_operator_of_graphs() -> None:
    vectors = [torch.rand(3) + 0.5 for _ in range(5)]
    torch.library.opcheck(torch.ops.batchnorm.as_computed_first, (*vectors[:3], 1e-5, *vectors[3:]))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("calls", [1, 4])
def test_recomputation_takes_the_first_pass_corrections(calls: int, reentrant: bool) -> None:
    """Several calls before one backward pass, each with the corrections of its own time."""
    plain, checkpointed = layer(activation="silu"), layer(activation="silu")
    inputs = [[batch(seed).requires_grad_() for seed in range(calls)] for _ in range(2)]
    outputs = [plain(x) for x in inputs[0]]
    again = [checkpoint(checkpointed, x, use_reentrant=reentrant) for x in inputs[1]]
    for output, other in zip(outputs, again, strict=True):
        assert torch.equal(output, other)
    sum((seed + 1) * output.sin().sum() for seed, output in enumerate(outputs)).backward()
    sum((seed + 1) * output.sin().sum() for seed, output in enumerate(again)).backward()
    for x, other in zip(*inputs, strict=True):
        assert torch.equal(x.grad, other.grad)
    torch.testing.assert_close(checkpointed.weight.grad, plain.weight.grad)
    assert torch.equal(checkpointed.running_mean, plain.running_mean)


def test_a_pass_in_a_backward_pass_that_was_never_made_before() -> None:
    """It is taken for no recomputation of another batch."""
    norm, found = layer(), []
    with torch.no_grad():
        norm(batch(1))  # remembered, since it could be a checkpoint's

    def hook(gradient: torch.Tensor) -> None:
        found.append((norm(batch(2)), copy.deepcopy(norm)(batch(2))))

    x = torch.ones(2, requires_grad=True)
    x.register_hook(hook)
    x.sum().backward()
    wanted = copy.deepcopy(norm)(batch(2))
    assert torch.equal(found[0][0], wanted)
    assert torch.equal(found[0][1], wanted)


def test_nothing_is_remembered_without_a_checkpoint() -> None:
    recomputed._passes.clear()
    norm, other = layer(), layer()
    norm(batch())
    assert not recomputed._passes
    for _ in range(300):
        checkpoint(norm, batch().requires_grad_(), use_reentrant=False)
    (passes,) = recomputed._passes.values()
    assert len(passes.kept) == 256
    del passes, norm
    checkpoint(other, batch().requires_grad_(), use_reentrant=False)
    assert len(recomputed._passes) == 1  # what belonged to the layer that is gone went with it


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("seeds", [range(40), [0, 0, 1, 0]], ids=["40 batches", "batches again"])
def test_recomputation_of_many_passes_and_of_equal_batches(reentrant: bool, seeds: Iterable[int]) -> None:
    """Beyond 16 passes, and for a batch that came twice, gradients were those of other r and d."""
    plain, checkpointed = layer(), layer()
    for _ in range(2):
        found = []
        for norm, run in ((plain, plain), (checkpointed, partial(checkpoint, checkpointed, use_reentrant=reentrant))):
            inputs = [batch(seed).requires_grad_() for seed in seeds]
            sum(run(x).sin().sum() for x in inputs).backward()
            found.append([*(x.grad for x in inputs), norm.weight.grad])
        torch.testing.assert_close(*found)


def test_recomputation_twice() -> None:
    plain, checkpointed = layer(), layer()
    inputs = [batch().requires_grad_() for _ in range(2)]
    for x, run in zip(inputs, (plain, partial(checkpoint, checkpointed, use_reentrant=False)), strict=True):
        loss = run(x).sin().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_recomputation_of_compiled_code(backend: str, inside: bool) -> None:
    """Inductor gave the memory of what was remembered to others: gradients off by 5."""
    torch._dynamo.reset()
    plain, checkpointed = layer(), layer()
    if inside:
        function = torch.compile(lambda x: checkpoint(checkpointed, x, use_reentrant=False).sin(), backend=backend)
    else:
        compiled = torch.compile(checkpointed, backend=backend)

        def function(x: torch.Tensor) -> torch.Tensor:
            return checkpoint(compiled, x, use_reentrant=False).sin()

    for seed in range(2):
        x, other = (batch(seed).requires_grad_() for _ in range(2))
        plain(x).sin().sum().backward()
        function(other).sum().backward()
        torch.testing.assert_close(other.grad, x.grad)
    torch.testing.assert_close(checkpointed.weight.grad, plain.weight.grad)
    torch.testing.assert_close(checkpointed.running_mean, plain.running_mean)


def test_recomputation_with_a_nan_in_one_channel() -> None:
    x, results = batch(), []
    x[0, 1, 0, 0] = math.nan
    for around in (lambda norm, x: norm(x), lambda norm, x: checkpoint(norm, x, use_reentrant=False)):
        norm, given = layer(r_max=9.0, d_max=9.0, nonfinite="propagate"), x.clone().requires_grad_()
        around(norm, given).sin().sum().backward()
        results.append(given.grad)
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    assert torch.isfinite(results[0][:, 0]).all()


# --- every road ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, (0, 4, 4)])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_compiled_as_eager(activation: str | None, warmup: object) -> None:
    torch._dynamo.reset()
    norm, other = (layer(activation=activation, warmup=warmup) for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        given = [batch(seed).requires_grad_() for _ in range(2)]
        outputs = [function(x, batch(9)) for function, x in zip((norm, compiled), given, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.backward(batch(7))
        torch.testing.assert_close(given[0].grad, given[1].grad)
    torch.testing.assert_close(norm.state_dict(), other.state_dict())
    torch.testing.assert_close(norm.weight.grad, other.weight.grad)


def test_transforms_hold_the_corrections_constant() -> None:
    norm, x, direction = layer(activation="tanh").double(), batch().double(), batch(1).double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (copy.deepcopy(norm)(x) * batch(2)).sum()

    given = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(given), given, create_graph=True)
    torch.testing.assert_close(grad(loss)(x), first.detach())
    torch.testing.assert_close(jvp(loss, (x,), (direction,))[1], (first * direction).sum().detach())
    (second,) = torch.autograd.grad((first * direction).sum(), given)
    torch.testing.assert_close(jvp(grad(loss), (x,), (direction,))[1], second)
    # r and d as numbers: the slope that is left, by finite differences.
    mean, var = (double(buffer) for buffer in (norm.running_mean, norm.running_var))
    r, d = reference.renorm_corrections(reference.moments(double(x)), mean, var, r_max=1.5, d_max=0.5)

    def held(step: float) -> float:
        moved = double(x + step * direction)
        y, _ = reference.renorm_forward(moved, r, d, double(norm.weight), double(norm.bias), activation="tanh")
        return float((y * double(batch(2))).sum())

    slope = (held(1e-5) - held(-1e-5)) / 2e-5
    np.testing.assert_allclose(float((first.detach() * direction).sum()), slope, rtol=1e-6)


def test_an_ensemble_under_vmap() -> None:
    models, x = [layer(seed) for seed in range(3)], batch()
    parameters, buffers = stack_module_state(models)
    buffers = {name: buffer.clone() for name, buffer in buffers.items()}

    def call(parameters: dict, buffers: dict, x: torch.Tensor) -> torch.Tensor:
        return functional_call(models[0], (parameters, buffers), (x,))

    found = vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(found, torch.stack([model(x) for model in models]))
    torch.testing.assert_close(buffers["running_mean"], torch.stack([model.running_mean for model in models]))


def test_lean_changes_no_gradient() -> None:
    gradients = []
    for lean in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(layer(activation="silu"), torch.nn.Conv2d(3, 2, 1))
        x = batch().requires_grad_()
        if lean:
            with batchnorm.lean():
                output = model(x)
        else:
            output = model(x)
        output.sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*gradients)


def test_a_layer_without_a_count_has_no_warmup() -> None:
    norm = layer(warmup=5)
    norm.num_batches_tracked = None
    with pytest.raises(ArgumentError, match="num_batches_tracked"):
        norm(batch())


def test_statistics_taken_elsewhere_still_correct_by_the_real_ones() -> None:
    """A sink (accumulate_statistics) is handed other buffers to move; r and d come from the layer's own."""

    class Sink:
        def buffers(self, input, mask, mean, var, seen):  # type: ignore[no-untyped-def]
            return torch.zeros_like(mean), torch.ones_like(var), torch.zeros_like(seen)

    norm, x = layer(), batch()
    wanted = copy.deepcopy(norm)(x)
    before = norm.running_mean.clone()
    norm._sink = Sink()
    assert torch.equal(norm(x), wanted)
    assert torch.equal(norm.running_mean, before)

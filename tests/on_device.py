"""What the library does beside its layers, on any device: each check raises where it does something else than on a CPU.

``test_gpu.py`` runs them on a GPU, and ``test_default_device.py`` on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.surgery.randomness import seeded
from nn.every_layer import CASES, CHANNELS, LAYERS, SHAPE, run, tensors

CHECKS: dict[str, Callable[[str], None]] = {}


def check(function: Callable[[str], None]) -> Callable[[str], None]:
    CHECKS[function.__name__] = function
    return function


def network() -> torch.nn.Sequential:
    """On the CPU."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, device="cpu"),
        batchnorm.BatchNorm2d(8, device="cpu"),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, device="cpu"),
        batchnorm.BatchNormAct2d(8, device="cpu"),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 10, device="cpu"),
        torch.nn.BatchNorm1d(10, device="cpu"),
    )
    for norm in (model[1], model[4], model[7]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def images(number: int = 32) -> Tensor:
    """On the CPU, where loaders have them."""
    return torch.randn(number, 3, 8, 8, device="cpu") * 2 + 1


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [(images(), torch.randint(10, (32,), device="cpu")) for _ in range(2)]


def same(found: Any, wanted: Any, **tolerance: float) -> None:
    """Up to roundings; ``found`` on any device."""
    tolerance = {"rtol": 1e-4, "atol": 1e-4, **tolerance}
    torch.testing.assert_close(found, wanted, check_device=False, **tolerance)


def same_state(found: torch.nn.Module, wanted: torch.nn.Module, device: str) -> None:
    """Statistics and weights, and all of them where they belong."""
    assert {each.device.type for each in found.state_dict().values()} == {device}
    same(dict(found.state_dict()), dict(wanted.state_dict()))


def on_both(device: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same network there and on the CPU."""
    model = network()
    return copy.deepcopy(model).to(device), model


# --- layers -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _without_waiting(device: str) -> Iterator[None]:
    """Within it, torch raises where the host waits for a GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@check
def every_layer(device: str) -> None:
    for name, masked, momentum in CASES:
        torch.manual_seed(0)
        layer = LAYERS[name].build(momentum=momentum, device="cpu")
        there, given = copy.deepcopy(layer).to(device), tensors(LAYERS[name], masked, "cpu")
        moved = {key: each.to(device) for key, each in given.items()}
        for mode in (True, False):
            run(there.train(mode), moved)  # compiles the kernels, which may wait
            wanted = (run(layer.train(mode), given), run(layer, given))[1]
            with _without_waiting(device):
                found = run(there, moved)
            assert {each.device.type for each in found.values()} == {device}
            same(found, wanted)


@check
def checkpoints(device: str) -> None:
    """The recomputation, which on a GPU another thread does, moves nothing and computes the same."""
    for reentrant in (False, True):
        model = torch.nn.Sequential(*(batchnorm.BatchRenorm2d(CHANNELS, warmup=0, device="cpu") for _ in range(2)))
        plain, x = copy.deepcopy(model), torch.randn(SHAPE, device="cpu", requires_grad=True)
        model, moved = model.to(device), x.detach().clone().to(device).requires_grad_()
        checkpoint(model, moved, use_reentrant=reentrant).pow(3).sum().backward()
        plain(x).pow(3).sum().backward()
        same(moved.grad, x.grad)
        same_state(model, plain, device)


@check
def standardize(device: str) -> None:
    data = images().double() + 1e6
    there, here = (batchnorm.Standardize(3, device=each).fit([data[:10], data[10:]]) for each in (device, "cpu"))
    x = data.to(device)
    same(there(x), here(data))
    same(there.inverse(there(x)), data)
    loaded = batchnorm.Standardize(3, device=device)
    loaded.load_state_dict(here.state_dict())
    same(loaded(x), here(data))


@check
def files_and_copies(device: str) -> None:
    model = network().to(device)
    x = images().to(device)
    model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = network()
    loaded.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded.to(device)):
        same(other(x), copy.deepcopy(model)(x), rtol=0, atol=1e-6)


@check
def domains(device: str) -> None:
    there, here = on_both(device)
    x = images()
    for model, given in ((there, x.to(device)), (here, x)):
        changed = batchnorm.convert(model, "domain", domains=("day", "night"), where=lambda path, norm: path != "7")
        with batchnorm.domain(changed, "night"):
            changed(given)
        model.night = changed
    same_state(there.night, here.night, device)


# --- surgery ----------------------------------------------------------------------------------------------------


@check
def fuse(device: str) -> None:
    there, _ = on_both(device)
    x = images().to(device)
    result = batchnorm.fuse(there, x)
    assert [outcome.action for outcome in result.changed] == ["fused", "replaced"]
    same(result.model(x), copy.deepcopy(there)(x))
    assert result.model[1].weight is there[1].weight


@check
def fold(device: str) -> None:
    there, here = on_both(device)
    x = images()
    result = batchnorm.fold(there, x.to(device))
    assert len(result.changed) == 3
    assert {each.device.type for each in result.model.parameters()} == {device}
    same(result.model(x.to(device)), here.eval()(x))


@check
def convert(device: str) -> None:
    there, _ = on_both(device)
    x = images().to(device)
    for kind in ("fused", "ghost", "renorm", "frozen", "domain", "sync"):
        changed = batchnorm.convert(there, kind)
        changed(x).sum().backward()
        back = batchnorm.convert(changed, "torch", where=lambda path, norm: path != "4")
        assert back[1].running_mean.device.type == device


@check
def random_numbers(device: str) -> None:
    """Of every device they go on where they were, and are the same within."""
    torch.rand(1, device=device)
    keep = copy.deepcopy(torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state())
    with seeded():
        first = torch.rand(3, device=device)
    with seeded():
        same(torch.rand(3, device=device), first, rtol=0, atol=0)
    assert torch.equal(keep, torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state())


# --- statistics -------------------------------------------------------------------------------------------------


@check
def recalibrate(device: str) -> None:
    batches = pairs()
    for order in ("one-pass", "layer-by-layer"):
        there, here = on_both(device)
        for model in (there, here):
            moved = batchnorm.recalibrate(model, batches, order=order)
            assert len(moved.layers) == 3
        same_state(there, here, device)


@check
def recalibrate_without_parameters(device: str) -> None:
    model = torch.nn.Sequential(batchnorm.BatchNorm2d(3, affine=False, device=device))
    batchnorm.recalibrate(model, pairs())
    assert bool(model[0].running_mean.abs().min() > 0)


@check
def adapt(device: str) -> None:
    batches = images()
    there, here = on_both(device)
    for model in (there, here):
        batchnorm.adapt(model, batches, prior=10)
    same_state(there, here, device)


@check
def freeze(device: str) -> None:
    there, here = on_both(device)
    before = copy.deepcopy(here)
    batchnorm.freeze(there)
    x = images()
    same(there.train()(x.to(device)), here.eval()(x))
    same_state(there, before, device)
    batchnorm.unfreeze(there)


@check
def accumulate_statistics(device: str) -> None:
    there, here = on_both(device)
    parts = images().split(8)
    for model in (there, here):
        with batchnorm.accumulate_statistics(model), _without_waiting(device if model is there else "cpu"):
            for part in parts:
                model(part.to(next(model.parameters()).device, non_blocking=True) if model is there else part)
    same_state(there, here, device)
    assert int(there[1].num_batches_tracked) == 1


# --- looking on -------------------------------------------------------------------------------------------------


@check
def diagnose(device: str) -> None:
    there, here = on_both(device)
    batches = pairs()
    found = []
    for model in (there, here):
        torch.manual_seed(0)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        numbers = torch.rand(3, device=device)
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        diagnosis = batchnorm.diagnose(
            model, batches=batches, loss=torch.nn.functional.cross_entropy, optimizer=optimizer
        )
        same(torch.rand(3, device=device), numbers, rtol=0, atol=0)
        same(dict(model.state_dict()), state, rtol=0, atol=0)
        found.append([(finding.rule, finding.layer) for finding in diagnosis.findings])
        diagnosis.fix()
    assert found[0] == found[1]
    assert found[0]
    same_state(there, here, device)


@check
def monitor(device: str) -> None:
    records: list[list[Any]] = []
    x = images()
    for model in on_both(device):
        seen: list[Any] = []
        with batchnorm.monitor(model, seen.append, every=2):
            for _ in range(3):
                model(x.to(next(model.parameters()).device)).pow(3).sum().backward()
        records.append(seen)
    for there, here in zip(*records, strict=True):
        assert there.step == here.step
        same({path: dict(values) for path, values in there.layers.items()}, dict(here.layers), rtol=1e-3)


# --- memory -----------------------------------------------------------------------------------------------------


def _kept(device: str, step: Callable[[], Tensor], lean: bool) -> tuple[int, Tensor]:
    """Bytes that the forward pass leaves, and its loss; by the device's own count where it has one."""
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    with batchnorm.lean(report=True) if lean else contextlib.nullcontext() as report:
        loss = step()
    if device == "cuda":
        return torch.cuda.memory_allocated() - before, loss
    if report is None:
        with batchnorm.lean(report=True) as other:
            step()
        return other.kept_bytes_without, loss
    return report.kept_bytes, loss


@check
def lean(device: str) -> None:
    torch.manual_seed(0)
    layers = [
        layer
        for _ in range(4)
        for layer in (torch.nn.Conv2d(8, 8, 3, padding=1), batchnorm.BatchNormAct2d(8, activation="silu"))
    ]
    model, x = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 8, 1)).to(device), torch.randn(8, 8, 32, 32).to(device)
    for autocast in (False, True):

        def step(autocast: bool = autocast) -> Tensor:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
                return model(x).float().square().mean()

        step().backward()  # whatever is there once is there
        results = []
        for lean in (False, True):
            model.zero_grad(set_to_none=False)
            kept, loss = _kept(device, step, lean)
            loss.backward()
            results.append((kept, [parameter.grad.clone() for parameter in model.parameters()]))
            del loss
        (whole, wanted), (kept, found) = results
        same(found, wanted, rtol=0, atol=1e-6)
        assert kept < 0.7 * whole, (autocast, kept, whole)


@check
def generators(device: str) -> None:
    """A diagnosis puts a generator of the model's own back too."""

    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = batchnorm.BatchNorm1d(4, device=device)
            self.draw = torch.Generator(device=device)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + torch.randn(x.shape, generator=self.draw, device=x.device))

    model = Noisy()
    state = model.draw.get_state()
    batchnorm.diagnose(model, batches=torch.randn(16, 4, device="cpu"))
    assert torch.equal(model.draw.get_state(), state)

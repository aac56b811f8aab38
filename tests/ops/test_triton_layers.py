"""Layers end to end on the Triton kernels, in Triton's interpreter: the contract, operators, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from contract import CHECKS, LAYERS, Layer
from ops import triton_layers
from ops.triton_interpreter import is_interpreted
from ops.triton_serving import serving

if not is_interpreted:
    pytest.skip("Triton compiles here: test_triton_gpu.py runs the contract there", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def _served() -> Iterator[None]:
    with serving():
        yield


# Each road, an activation of each kind, and each way of walking.
FEW = ("BatchNorm1d-NC", "BatchNormAct2d-relu", "BatchNormAct3d-elu")
# What no kernel has a part in; what takes long and is much the same for all layers; what does for all.
NOT_OF_KERNELS = ("check_state_dict", "check_copies", "check_factory_arguments", "check_errors")
LONG = ("check_kept_for_backward", "check_drop_in_results", "check_strides_are_kept", "check_deterministic")
LONG += ("check_gradient_agrees_with_the_output",)
LONGEST = ("check_gradients_in_any_layout",)


# What the others compute is what these do: by another activation, or by way of another class.
ALIKE = ("Fusing", "Domain", "FrozenBatchNorm3d", "BatchNormAct2d-")


def _cases() -> Iterator[Any]:
    for check in CHECKS:
        if check.__name__ in NOT_OF_KERNELS:
            continue
        few = ("BatchNormAct2d-relu",) if check.__name__ in LONG else FEW
        for layer in LAYERS:
            if layer.name in FEW or not layer.name.startswith(ALIKE):
                marks = () if layer.name in few and check.__name__ not in LONGEST else pytest.mark.slow
                yield pytest.param(check, layer, marks=marks, id=f"{check.__name__.removeprefix('check_')}-{layer}")


@pytest.mark.parametrize(("check", "layer"), list(_cases()))
def test_contract(check: Callable[[Layer], None], layer: Layer) -> None:
    check(layer)


@pytest.mark.parametrize("name", triton_layers.OPERATORS)
def test_operators_are_what_their_schemas_say(name: str) -> None:
    triton_layers.check_operator(name, "cpu")


@pytest.mark.parametrize("name", triton_layers.CHECKS)
def test_around_layers(name: str) -> None:
    triton_layers.CHECKS[name]("cpu")

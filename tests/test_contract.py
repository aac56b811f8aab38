"""Every layer keeps every rule."""

from collections.abc import Callable

import pytest

from contract import CHECKS, LAYERS, Layer


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(layer: Layer, check: Callable[[Layer], None]) -> None:
    check(layer)

"""The checks on three ranks, under ``torchrun``."""

import pytest

from distributed.checks import CHECKS, SLOW
from distributed.launch import results, shared_folder

pytestmark = pytest.mark.slow  # the same on two ranks is in `make test`

NAMES = [name for name in CHECKS if name not in SLOW]


@pytest.mark.parametrize("name", NAMES)
def test_on_three_ranks(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    failure = results(3, NAMES, shared_folder(tmp_path_factory.getbasetemp()))[name]
    assert not failure, failure

"""The checks on two ranks, under ``torchrun``."""

import pytest

from distributed.checks import CHECKS
from distributed.launch import results, shared_folder

NAMES = list(CHECKS)


@pytest.mark.parametrize("name", NAMES)
def test_on_two_ranks(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    failure = results(2, NAMES, shared_folder(tmp_path_factory.getbasetemp()))[name]
    assert not failure, failure

"""Random numbers in a fork, those of GPUs among them: by what torch is told, since there may be none."""

from __future__ import annotations

import pytest
import torch

from batchnorm.doctor.surroundings import Surroundings
from batchnorm.surgery.randomness import seeded


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Two of them that are in use; what becomes of their generators."""
    told: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["first", "second"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: told.append(list(states)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", told.append)
    return told


def test_generators_of_gpus_start_anew_and_go_on_where_they_were(gpus: list[object]) -> None:
    with seeded(7):
        assert gpus == [7]
    assert gpus == [7, ["first", "second"]]


def test_also_after_an_exception(gpus: list[object]) -> None:
    with pytest.raises(KeyboardInterrupt), seeded():
        raise KeyboardInterrupt
    assert gpus[-1] == ["first", "second"]


def test_a_diagnosis_puts_them_back(gpus: list[object]) -> None:
    Surroundings().restore()
    assert gpus == [["first", "second"]]


def test_gpus_that_nobody_uses_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would be remembered for them, and torch.random.fork_rng would start them."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("get_rng_state", "get_rng_state_all", "manual_seed_all", "_lazy_call", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, **named: pytest.fail("a GPU was asked for"))
    with seeded():
        torch.rand(1)
    Surroundings().restore()

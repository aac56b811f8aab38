"""``recalibrate`` and ``adapt`` on two processes: all data counts, and what fails on one fails on both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from batchnorm import adapt, recalibrate
from population import recalibrate_ranks
from population.processes import found_by_ranks
from population.recalibrate_tools import ORDERS

SIZE = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, by its rank: both are started once."""
    return found_by_ranks(recalibrate_ranks, SIZE, tmp_path_factory.getbasetemp())


def one_process(case, **arguments):
    model = recalibrate_ranks.model()
    data = [part for rank in range(SIZE) for part in recalibrate_ranks.batches(case, rank)]
    adapt(model, data, **arguments) if "prior" in arguments else recalibrate(model, data, **arguments)
    return model.state_dict()


def assert_as_it_was(each):
    assert all(torch.equal(each["after"][name], value) for name, value in each["before"].items())
    assert each["training"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", ["uneven", "empty"])
def test_as_in_one_process(found, case, order):
    alone = one_process(case, order=order)
    for each in found:
        after = each[f"{case}, {order}"]["after"]
        assert each[f"{case}, {order}"]["error"] == ""
        for name, value in alone.items():
            if order == "layer-by-layer" or name.startswith("0."):
                torch.testing.assert_close(after[name], value, rtol=1e-12, atol=1e-12)
            assert torch.equal(after[name], found[0][f"{case}, {order}"]["after"][name])


@pytest.mark.parametrize("order", ORDERS)
def test_no_batch_anywhere(found, order):
    for each in found:
        assert "batches is empty" in each[f"all empty, {order}"]["error"]
        assert_as_it_was(each[f"all empty, {order}"])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("at", [1, 2])
def test_an_exception_on_one_rank_is_one_on_all(found, order, at):
    zero, one = (each[f"fails {at}, {order}"] for each in found)
    assert one["error"] == "ValueError: the disk is full"
    assert zero["error"].startswith("RankError: rank 1 failed with ValueError: the disk is full.")
    assert zero["ranks"] == (1,)
    assert_as_it_was(zero)
    assert_as_it_was(one)


def test_adapt_weighs_by_all_samples(found):
    alone = one_process("uneven", prior=14)
    for name in ("0.running_mean", "0.running_var"):
        for each in found:
            torch.testing.assert_close(each["adapt"]["after"][name], alone[name], rtol=1e-12, atol=0)


def test_a_group_of_its_own(found):
    for rank, each in enumerate(found):
        data = recalibrate_ranks.data("uneven", rank)
        torch.testing.assert_close(each["alone"]["after"]["0.running_mean"], data.mean(0))


@pytest.mark.parametrize(
    ("case", "one", "zero"),
    [
        (
            "argument",
            "ArgumentError: max_samples is -1",
            "RankError: rank 1 failed with ArgumentError: max_samples is -1",
        ),
        ("short", "ArgumentError: batches ended after 3", "RankError: rank 1 failed with ArgumentError: batches ended"),
        ("others", "ArgumentError: the model of rank 1 is not", "ArgumentError: the model of rank 1 is not"),
    ],
)
def test_refused_on_all(found, case, one, zero):
    assert found[1][case]["error"].startswith(one)
    assert found[0][case]["error"].startswith(zero)
    for each in found:
        assert_as_it_was(each[case])


def test_inside_distributed_data_parallel(found):
    for each in found:
        assert each["wrapped"]["error"] == ""
        assert torch.equal(
            each["wrapped"]["after"]["0.running_var"], each["uneven, one-pass"]["after"]["0.running_var"]
        )


def test_accumulated_over_synchronised_micro_batches(found):
    values = torch.cat([recalibrate_ranks.data("uneven", rank) for rank in range(SIZE)])
    for each in found:
        after = each["accumulated"]["after"]
        assert each["accumulated"]["error"] == ""
        np.testing.assert_allclose(after["sync.running_mean"], values.mean(0), rtol=1e-12)
        np.testing.assert_allclose(after["sync.running_var"], values.var(0), rtol=1e-12)
        assert int(after["sync.num_batches_tracked"]) == 1

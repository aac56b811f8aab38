"""The doctor on two processes: what only they can show, and that none waits for another that has left."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from doctor import ranks_script
from doctor.plant import Plant, plants
from population.processes import found_by_ranks

SIZE = 2

several = pytest.mark.parametrize("plant", plants(ranks=SIZE), ids=str)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, by its rank: both are started once."""
    return found_by_ranks(ranks_script, SIZE, tmp_path_factory.getbasetemp())


@several
def test_it_is_found_on_every_rank_and_nothing_changes(found, plant: Plant):
    for each in found:
        grown = each["plants"][str(plant)]
        assert grown["skipped"] == {}
        assert {layer for layer, _, _ in grown["found"]} == set(plant.layers)
        assert all(message.endswith(".") for _, _, message in grown["found"])
        assert grown["unchanged"]


@several
def test_ranks_find_the_same(found, plant: Plant):
    one, other = (each["plants"][str(plant)] for each in found)
    assert one["found"] == other["found"]
    assert one["numbers"] == other["numbers"]


@pytest.mark.parametrize("plant", [plant for plant in plants(ranks=SIZE) if not plant.healthy], ids=str)
def test_a_fix_mends_it(found, plant: Plant):
    for each in found:
        grown = each["plants"][str(plant)]
        assert grown["mended"] == grown["fixable"]
        assert set(grown["left"]).isdisjoint(grown["fixable"])


def test_synchronizing_mends_what_can_be_mended(found):
    one, other = (each["plants"]["BN008-data_by_rank"] for each in found)
    assert one["fixable"] == ["1"]
    for name, value in one["after"].items():
        if "running" in name:
            assert torch.equal(value, other["after"][name])
    for name in ("one_rank_is_poisoned", "frozen_differently"):
        assert found[0]["plants"][f"BN008-{name}"]["fixable"] == []


def test_severities_go_by_the_size_of_the_difference(found):
    severities = {
        name: [severity for _, severity, _ in found[0]["plants"][f"BN008-{name}"]["found"]]
        for name in ("data_by_rank", "one_rank_lost_its_statistics", "one_rank_is_poisoned")
    }
    assert severities["one_rank_lost_its_statistics"] == ["error"]
    assert severities["one_rank_is_poisoned"] == ["error"]
    assert "error" in severities["data_by_rank"]


def test_ranks_compare_as_the_layers_divide(found):
    for rank, each in enumerate(found):
        compared = each["compared"]
        assert (compared["rank"], compared["size"]) == (rank, SIZE)
        # eps is 0.5: rank 0 divides by √(0.5 + 0.5) = 1.
        assert compared["mean_difference"] == {"0": pytest.approx(3.0), "1": 0.0}
        assert compared["variance_ratio"] == {"0": pytest.approx(2.5), "1": 1.0}
        assert compared["counts"] == {"0": (5, 6), "1": (0, 0)}
        assert compared["samples"] == {"0": (4, 5), "1": (4, 5)}
        assert compared["values"] == {"0": (4, 5), "1": (4, 5)}


def test_what_is_not_finite_is_infinitely_far(found):
    numbers = dict(found[0]["plants"]["BN008-one_rank_is_poisoned"]["numbers"])
    assert numbers["difference of the means"] == math.inf
    assert numbers["factor between the variances"] == 1.0


def test_a_model_that_raises_on_one_rank_raises_on_all(found):
    assert found[1]["the model raises on one"].startswith("ArgumentError: the model raises in training mode")
    assert found[0]["the model raises on one"].startswith(
        "RankError: rank 1 failed with ArgumentError: the model raises"
    )


def test_arguments_that_are_wrong_on_one_rank_raise_on_all(found):
    assert all("ArgumentError" in each["no model on one"] for each in found)
    assert found[1]["no batches on one"].startswith("ArgumentError: batches is empty")
    assert found[0]["no batches on one"].startswith("RankError: rank 1 failed with ArgumentError: batches is empty")
    assert all("rank 1 was given no batches" in each["no batches given on one"] for each in found)
    assert all(each["other models"].startswith("ArgumentError: the model of rank 1") for each in found)


def test_all_take_the_fewest_batches_of_any(found):
    assert [each["fewer batches on one"] for each in found] == [(4, 4), (5, 5)]


def test_a_rule_that_raises_on_one_rank_raises_on_all(found):
    assert found[1]["a rule raises on one"]["diagnosed"] == "ValueError: this rule is broken"
    assert found[0]["a rule raises on one"]["diagnosed"].startswith("RankError: rank 1 failed with ValueError")


def test_a_rank_without_a_finding_takes_part_in_mending(found):
    assert [each["found on one"]["fixed"] for each in found] == [0, 1]
    assert [each["found on one"]["mean"].tolist() for each in found] == [[0, 0], [1, 1]]
    assert [each["found on all"]["fixed"] for each in found] == [1, 1]
    assert [each["nothing found"]["fixed"] for each in found] == [0, 0]


@pytest.mark.parametrize(
    ("case", "own", "others"),
    [
        ("a mend raises on one", "FixError: this mend raised KeyError", "RankError: rank 1 failed with FixError"),
        (
            "a shared mend raises on one",
            "FixError: this mend raised KeyError",
            "RankError: rank 1 failed with FixError",
        ),
        ("a mend does not help on one", "FixError: mended, and found again", "RankError: rank 1 failed with FixError"),
        ("a shared mend on one", "FixError: the ranks need different", "FixError: the ranks need different"),
    ],
)
def test_a_mend_that_fails_on_one_rank_is_undone_on_all(found, case, own, others):
    for rank, error in enumerate((others, own)):
        assert found[rank][case]["error"].startswith(error)
        assert found[rank][case]["fixed"] is None
        assert found[rank][case]["mean"].tolist() == [0, 0]


def test_ranks_are_in_step_afterwards(found):
    assert all(each["in step"] for each in found)

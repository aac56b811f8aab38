"""``synchronize`` on three processes, and on two of them: against the reference, and what it refuses on all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchnorm import reference
from batchnorm.population import synchronize
from population import synchronize_ranks
from population.processes import found_by_ranks

SIZE = 3
NORMS = ("0", "1.0")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, by its rank: all of them are started once."""
    return found_by_ranks(synchronize_ranks, SIZE, tmp_path_factory.getbasetemp())


def ours(found: list[dict[str, Any]], case: str, key: str) -> Tensor:
    """A tensor after, the same bits on every rank."""
    values = [each[case]["after"][key] for each in found]
    for value in values[1:]:
        assert torch.equal(value, values[0])
    return values[0]


def assert_merged(found: list[dict[str, Any]], case: str, norm: str, weights: list[float]) -> None:
    means, variances = (
        np.stack([each[case]["before"][f"{norm}.{key}"].double().numpy() for each in found])
        for key in ("running_mean", "running_var")
    )
    mean, var = reference.law_of_total_variance(means, variances, weights)
    got_mean, got_var = (ours(found, case, f"{norm}.{key}") for key in ("running_mean", "running_var"))
    rtol = 1e-12 if got_mean.dtype == torch.float64 else 1e-7
    np.testing.assert_allclose(got_mean.double(), mean, rtol=rtol)
    np.testing.assert_allclose(got_var.double(), var, rtol=rtol)
    assert var.min() > 100 * variances.max()  # the spread between the means is what counts here


@pytest.mark.parametrize("norm", NORMS)
def test_ranks_weigh_the_same_and_the_count_is_the_largest(found, norm):
    assert_merged(found, "momentum", norm, [1, 1, 1])
    assert int(ours(found, "momentum", f"{norm}.num_batches_tracked")) == 9


def test_cumulative_averages_weigh_by_their_batches(found):
    assert_merged(found, "average", "0", synchronize_ranks.SEEN)
    assert_merged(found, "average", "1.0", [1, 1, 1])


def test_a_group_of_two_leaves_the_third_alone(found):
    assert_merged(found[:2], "two", "0", [1, 1])
    assert "not in process_group" in found[2]["two"]["error"]
    assert_unchanged(found[2]["two"])


def test_a_rank_without_batches_weighs_nothing(found):
    assert_merged(found, "idle", "0", [0, 1, 1])
    assert_merged(found, "idle average", "0", [0, 2, 9])


def test_twice_is_once(found):
    assert_unchanged(*(each["twice"] for each in found))


def test_no_batch_anywhere_leaves_all_as_it_was(found):
    assert_unchanged(*(each["no batch"] for each in found))


def test_other_models_raise_on_all_ranks(found):
    for each in found:
        assert each["others"]["error"].startswith("ArgumentError")
        assert_unchanged(each["others"])


def test_a_statistic_that_is_not_finite_raises_on_all_ranks(found):
    for each in found:
        assert "running_var of 1.0 (BatchNorm2d) on rank 1 is not finite" in each["not finite"]["error"]
        assert_unchanged(each["not finite"])


def test_a_rank_that_fails_raises_on_all_ranks(found):
    assert found[1]["failing"]["error"].startswith("ModifiedError")
    for rank in (0, 2):
        assert "rank 1 failed with ModifiedError" in found[rank]["failing"]["error"]
        assert_unchanged(found[rank]["failing"])


def test_frozen_layers_stay(found):
    assert_merged(found, "frozen", "1.0", [1, 1, 1])
    for each in found:
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(each["frozen"]["after"][f"0.{key}"], each["frozen"]["before"][f"0.{key}"])


@pytest.mark.parametrize("kind", synchronize_ranks.WRAPPERS)
def test_a_model_in_evaluation_mode_inside_a_wrapper_is_merged(found, kind):
    path = {"parallel": "module.", "averaged": "module.", "compiled": "_orig_mod.", "module": "0."}[kind]
    for norm in NORMS:
        assert_merged(found, kind, path + norm, [1, 1, 1])
    assert found[0][kind]["warned"] == ""


@pytest.mark.parametrize(("case", "mend"), [("all frozen", "unfreeze"), ("evaluating", "model.eval")])
def test_nothing_merged_is_said(found, case, mend):
    for each in found:
        assert "no statistics were merged: all of the model's are frozen" in each[case]["warned"]
        assert mend in each[case]["warned"]
        assert_unchanged(each[case])


def test_every_domain_is_merged(found):
    assert ours(found, "domains", "0.statistics.source.running_mean").tolist() == [1.0] * 3
    assert ours(found, "domains", "0.statistics.target.running_mean").tolist() == [11.0] * 3
    assert ours(found, "domains", "0.statistics.target.running_var").tolist() == pytest.approx([1 + 2 / 3] * 3)


def test_it_comes_out_as_the_statistics_of_all_data(found):
    everything = torch.cat([synchronize_ranks.data(rank) for rank in range(SIZE)]).double()
    assert torch.allclose(ours(found, "trained", "0.running_mean").double(), everything.mean(0), rtol=1e-5)
    assert torch.allclose(ours(found, "trained", "0.running_var").double(), everything.var(0), rtol=1e-3)


def test_a_model_without_norms_and_one_process_alone_are_no_work(found):
    assert all(each["without norms"]["error"] == "" for each in found)
    model = nn.Sequential(nn.BatchNorm1d(2))
    model(torch.randn(4, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    synchronize(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def assert_unchanged(*cases: dict[str, Any]) -> None:
    for case in cases:
        for key, before in case["before"].items():
            assert (
                torch.equal(
                    case["after"][key],
                    before,
                )
                or before.isnan().any()
            ), key

import math

import numpy as np
import pytest
import torch

from batchnorm import reference
from batchnorm.bench.cases import Case, select
from batchnorm.bench.gate import errors, judge, truth
from batchnorm.bench.inputs import draw
from batchnorm.bench.peers import OURS, PEERS
from batchnorm.bench.tolerance import allowed
from bench.helpers import Wrong

EAGER = PEERS["eager"]
SMALL = [
    Case((8, 6, 5, 5), "relu", residual=True),
    Case((8, 6, 5, 5), "relu6", format="channels-last"),
    Case((8, 6, 20), "silu", format="channels-last", dtype="bfloat16"),
    Case((64, 6), "relu", dtype="float16"),
    Case((4, 6, 3, 4, 5), residual=True),
    Case((8, 6, 5, 5)),
    Case((8, 6, 5, 5), "relu", residual=True, training=False),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("peer", [OURS, EAGER], ids=lambda peer: peer.name)
def test_who_is_right_passes(case, peer):
    inputs = draw(case)
    right = truth(case, inputs)
    torchs = errors(case, EAGER.build(case).results(inputs), right)
    verdict = judge(case, errors(case, peer.build(case).results(inputs), right), torchs, right)
    assert verdict.passed, verdict.reason
    assert verdict.reason == ""
    assert 0 < verdict.worst <= 1


RESULTS = ["output", "grad_input", "grad_residual", "grad_weight", "grad_bias", "running_mean", "running_var"]


@pytest.mark.parametrize("result", RESULTS)
def test_who_is_wrong_in_one_number_of_one_result_fails_and_it_is_named(result):
    case = SMALL[0]
    inputs = draw(case)
    right = truth(case, inputs)
    assert set(right.values) == set(RESULTS)
    torchs = errors(case, EAGER.build(case).results(inputs), right)
    verdict = judge(case, errors(case, Wrong(result).build(case).results(inputs), right), torchs, right)
    assert not verdict.passed
    assert verdict.worst > 1
    assert verdict.reason.startswith(f"{result}: error 0.00")


@pytest.mark.parametrize("bad", [None, torch.zeros(3), "nan"], ids=str)
def test_what_is_missing_misshapen_or_no_number_fails(bad):
    case = SMALL[0]
    inputs = draw(case)
    right = truth(case, inputs)
    results = OURS.build(case).results(inputs)
    torchs = errors(case, results, right)
    changed = dict(results)
    if bad is None:
        del changed["output"]
    else:
        changed["output"] = torch.full_like(results["output"], math.nan) if isinstance(bad, str) else bad
    verdict = judge(case, errors(case, changed, right), torchs, right)
    assert math.isinf(verdict.worst)
    assert not verdict.passed


def test_the_reference_by_chunks_is_the_reference(monkeypatch):
    monkeypatch.setattr("batchnorm.bench.gate._CHUNK", 2 * 8 * 25)
    case = SMALL[0]
    inputs = draw(case)
    right = truth(case, inputs).values
    arrays = [tensor.double().numpy() for tensor in (inputs.x, inputs.weight, inputs.bias)]
    residual = inputs.residual.double().numpy()
    output, saved = reference.forward(*arrays, residual=residual, activation="relu")
    gradients = reference.backward(inputs.dy.double().numpy(), saved)
    np.testing.assert_allclose(right["output"], output, rtol=1e-12)
    np.testing.assert_allclose(right["grad_input"], gradients.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(right["grad_residual"], gradients.residual, rtol=1e-12)
    np.testing.assert_allclose(right["grad_weight"], gradients.weight, rtol=1e-9)


def test_at_a_kink_no_gradient_decides_by_rounding():
    case = Case((512, 8), "relu")
    inputs = draw(case)
    # Every tenth z is the kink itself, give or take a rounding.
    mean, var = inputs.x.mean(0), inputs.x.var(0, unbiased=False)
    x_hat = (inputs.x - mean) / torch.sqrt(var + 1e-5)
    inputs.bias.copy_((-x_hat * inputs.weight)[10])
    before = inputs.dy.clone()
    right = truth(case, inputs)
    changed = (inputs.dy != before).nonzero()
    assert {int(place) for place, _ in changed} == {10}
    assert (inputs.dy[10] == 0).all()
    torchs = errors(case, EAGER.build(case).results(inputs), right)
    assert judge(case, errors(case, OURS.build(case).results(inputs), right), torchs, right).passed


def test_the_tolerance_is_twice_torchs_error_above_a_floor():
    assert allowed(1.0, torch.float32, 0.0) == 2.0
    assert allowed(0.0, torch.bfloat16, 2.0) == pytest.approx(8e-3)


def test_a_real_shape_passes():
    (case,) = select(["8x512x7x7,norm+add+act,float32,channels-last"])
    inputs = draw(case)
    right = truth(case, inputs)
    torchs = errors(case, EAGER.build(case).results(inputs), right)
    assert judge(case, errors(case, OURS.build(case).results(inputs), right), torchs, right).passed

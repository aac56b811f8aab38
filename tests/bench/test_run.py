import importlib.util
import shutil
from dataclasses import replace

import pytest
import torch

from batchnorm.bench.cases import Case
from batchnorm.bench.inputs import draw
from batchnorm.bench.kept import bytes_kept
from batchnorm.bench.peers import OURS, PEERS, Unavailable, chosen, compiled
from batchnorm.bench.run import measure, measure_all
from batchnorm.errors import ArgumentError
from bench.helpers import ENVIRONMENT, Absent, Wrong

CASE = Case((8, 6, 5, 5), "relu", residual=True, occurs=(("tiny", 1),))
EAGER = PEERS["eager"]


def test_a_case_gives_a_row_a_contender_with_every_number():
    ours, eager, absent = measure(CASE, [EAGER, Absent()], 3, ENVIRONMENT)
    assert (ours.contender, eager.contender, absent.contender) == ("batchnorm", "eager", "absent")
    assert (ours.status, eager.status) == ("timed", "timed")
    assert (absent.status, absent.reason, absent.microseconds) == ("unavailable", "it is not installed", None)
    for row in (ours, eager):
        assert row.case == CASE.name
        assert row.networks == "tiny:1"
        assert 0 < row.microseconds_20 <= row.microseconds <= row.microseconds_80
        assert row.rounds == 3
        assert row.repetitions >= 1
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.least_bytes == 7 * CASE.bytes
        assert row.times_limit == pytest.approx(row.microseconds / row.limit_microseconds)
        assert row.limit_microseconds == pytest.approx(row.copy_microseconds * 3.5)
        assert row.kept_bytes >= CASE.bytes
        assert row.faults >= 0
        assert 0 <= row.tolerance_share <= 1
    assert ours.ratio == 1
    assert eager.ratio == pytest.approx(eager.microseconds / ours.microseconds)
    assert ours.backend
    assert not eager.backend


def test_who_is_wrong_gets_no_time_and_the_others_no_ratio():
    ours, eager = measure(CASE, [EAGER], 2, ENVIRONMENT, ours=Wrong("grad_weight"))
    assert (ours.status, ours.microseconds, ours.times_limit) == ("wrong", None, None)
    assert ours.reason.startswith("grad_weight: error 0.001, allowed ")
    assert ours.tolerance_share > 1
    assert eager.status == "timed"
    assert (eager.ratio, eager.ratio_low) == (None, None)


def test_an_exception_of_ours_is_a_wrong_result_and_a_peers_is_its_absence():
    class Raises:
        name = "batchnorm"

        def build(self, case, device="cpu"):
            contender = OURS.build(case)
            contender.results = lambda inputs: 1 / 0
            return contender

    ours, _ = measure(CASE, [EAGER], 2, ENVIRONMENT, ours=Raises())
    assert (ours.status, ours.reason) == ("wrong", "ZeroDivisionError: division by zero")
    peer = Raises()
    peer.name = "peer"
    assert measure(CASE, [EAGER, peer], 2, ENVIRONMENT)[2].status == "unavailable"


def test_evaluation_is_timed_without_a_graph():
    case = replace(CASE, training=False)
    seen = []
    contender = OURS.build(case)
    forward = contender.module
    contender.module = lambda *given: seen.append(torch.is_grad_enabled()) or forward(*given)

    class Watched:
        name = "batchnorm"

        def build(self, case, device="cpu"):
            return contender

    ours, _ = measure(case, [EAGER], 2, ENVIRONMENT, ours=Watched())
    assert ours.status == "timed"
    assert not any(seen)
    assert (ours.mode, ours.kept_bytes, ours.least_bytes) == ("evaluation", 0, 3 * case.bytes)


def test_a_step_rotates_through_the_pool_and_leaves_no_gradient():
    contender = OURS.build(CASE)
    pool = [draw(CASE), draw(CASE).copy()]
    contender.load(pool)
    seen = []
    forward = contender.module
    contender.module = lambda *given: seen.append(given[0].data_ptr()) or forward(*given)
    for _ in range(4):
        contender.step()
    assert seen == [pool[1].x.data_ptr(), pool[0].x.data_ptr()] * 2
    assert all(tensor.grad is None for given, wanted, _ in contender.pool for tensor in (*given, *wanted))


def test_measuring_case_by_case_names_the_case():
    assert [case for case, _ in measure_all([CASE], [EAGER], 2)] == [CASE]


def test_bytes_kept_are_those_of_distinct_storages():
    x = torch.randn(10, 20, requires_grad=True)
    weight = torch.randn(20, 5, requires_grad=True)
    size = x.numel() * 4
    assert bytes_kept(lambda: x @ weight) == size + weight.numel() * 4
    assert bytes_kept(lambda: x @ weight, [weight]) == size
    assert bytes_kept(lambda: (x @ weight, (x.t()).t() @ weight), [weight]) == size
    assert bytes_kept(lambda: x + 1) == 0
    # A view keeps the whole storage alive.
    assert bytes_kept(x[:1].square) == size


def test_eager_keeps_its_input_and_the_activations_output_and_ours_one_bit_an_element_beside_the_input():
    case = Case((8, 16, 8, 8), "relu", residual=True)
    inputs = draw(case)
    vectors = 4 * 16 * 6
    eager = EAGER.build(case).kept(inputs)
    ours = OURS.build(case).kept(inputs)
    assert 2 * case.bytes <= eager <= 2 * case.bytes + vectors
    assert case.bytes * 33 / 32 <= ours <= case.bytes * 33 / 32 + vectors


def test_a_peer_says_why_it_does_not_take_part(monkeypatch):
    monkeypatch.setattr(compiled, "why_no_compiler", lambda: "no compiler here")
    with pytest.raises(Unavailable, match="no compiler here"):
        PEERS["compile"].build(CASE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="jax is not installed"):
        PEERS["jax"].build(CASE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(Unavailable, match="float32 and bfloat16 only"):
        PEERS["jax"].build(replace(CASE, dtype="float16"))


def test_a_missing_compiler_is_noticed(monkeypatch):
    compiled.why_no_compiler.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in compiled.why_no_compiler()
    compiled.why_no_compiler.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert compiled.why_no_compiler() == ""
    compiled.why_no_compiler.cache_clear()


def test_peers_are_chosen_by_name_eager_always():
    assert [peer.name for peer in chosen([])] == ["eager"]
    assert [peer.name for peer in chosen(["jax,compile"])] == ["eager", "compile", "jax"]
    assert [peer.name for peer in chosen(["all"])] == list(PEERS)
    with pytest.raises(ArgumentError, match=r"no peer is named apex. Mend: use eager, compile, jax or all"):
        chosen(["apex"])


@pytest.mark.slow
@pytest.mark.skipif(compiled.why_no_compiler() != "", reason=compiled.why_no_compiler())
def test_the_compiled_peer_is_right_and_timed():
    rows = measure(CASE, chosen(["compile"]), 2, ENVIRONMENT)
    assert rows[2].status == "timed", rows[2].reason
    assert rows[2].kept_bytes is not None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.parametrize("format", ["contiguous", "channels-last"])
@pytest.mark.parametrize("training", [True, False])
def test_jax_is_right_and_timed(format, training):
    rows = measure(replace(CASE, format=format, training=training), chosen(["jax"]), 2, ENVIRONMENT)
    assert rows[2].status == "timed", rows[2].reason

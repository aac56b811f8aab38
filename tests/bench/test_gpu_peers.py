"""The contenders that only a GPU has, as far as they can be seen without one."""

import importlib.util
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from batchnorm.bench.cases import Case
from batchnorm.bench.inputs import draw
from batchnorm.bench.peers import GPU_PEERS, OURS, PEERS, Unavailable, chosen
from batchnorm.bench.peers.attorch import _Block
from batchnorm.bench.peers.eager import EagerBlock, torchs_kernels
from batchnorm.bench.peers.flag_gems import _in_place_of_torch
from batchnorm.bench.run import measure
from bench.helpers import ENVIRONMENT

CASE = Case((8, 6, 5, 5), "relu", residual=True)
EAGER = PEERS["eager"]


def test_a_gpu_has_contenders_of_its_own():
    assert list(GPU_PEERS) == ["eager", "no-cudnn", "compile", "attorch", "flag_gems"]
    assert [peer.name for peer in chosen(["no-cudnn"], GPU_PEERS)] == ["eager", "no-cudnn"]


@pytest.mark.parametrize("name", ["no-cudnn", "attorch", "flag_gems"])
def test_what_is_for_gpus_says_so(name):
    with pytest.raises(Unavailable, match="GPUs"):
        GPU_PEERS[name].build(CASE)


def test_what_is_not_installed_or_cannot_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("attorch", "flag_gems"):
        with pytest.raises(Unavailable, match=f"{name} is not installed"):
            GPU_PEERS[name].build(CASE, "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(Unavailable, match="no batch norm of volumes"):
        GPU_PEERS["attorch"].build(Case((2, 3, 4, 4, 4)), "cuda")
    with pytest.raises(Unavailable, match="CPU only"):
        PEERS["jax"].build(CASE, "cuda")


class Plain(torch.nn.BatchNorm2d):
    """As attorch's first layers: the norm alone."""


class WithActivation(torch.nn.BatchNorm2d):
    def __init__(self, features, act_func=None):
        super().__init__(features)
        self.act_func = act_func

    def forward(self, input):
        output = super().forward(input)
        return getattr(torch.nn.functional, self.act_func)(output) if self.act_func else output


class WithSum(WithActivation):
    def forward(self, input, pre_act_add=None):
        output = torch.nn.BatchNorm2d.forward(self, input)
        output = output if pre_act_add is None else output + pre_act_add
        return getattr(torch.nn.functional, self.act_func)(output) if self.act_func else output


@pytest.mark.parametrize("kind", [Plain, WithActivation, WithSum])
@pytest.mark.parametrize("case", [CASE, replace(CASE, residual=False), replace(CASE, activation="identity")])
def test_whatever_a_layer_of_attorch_fuses_the_block_computes_the_case(kind, case):
    block, eager = _Block(kind, case), EagerBlock(case)
    inputs = draw(case)
    given = [tensor for tensor in (inputs.x, inputs.residual) if tensor is not None]
    torch.testing.assert_close(block(*given), eager(*given))
    fuses = {Plain: False, WithActivation: not case.residual, WithSum: True}[kind]
    assert (block.activation is None) == (fuses or case.activation == "identity")
    assert block.adds == (kind is WithSum and case.residual)


def test_flag_gems_takes_the_place_of_torchs_kernels_and_gives_it_back():
    seen = []

    @contextmanager
    def use_gems():
        seen.append(torch.backends.cudnn.enabled)
        yield

    before = torch.backends.cudnn.enabled
    with _in_place_of_torch(SimpleNamespace(use_gems=use_gems)):
        assert not torch.backends.cudnn.enabled
    assert seen == [False]
    assert torch.backends.cudnn.enabled == before


def test_torchs_kernels_are_named():
    inputs = draw(CASE)
    before = inputs.running_mean.clone()
    assert torchs_kernels(CASE, inputs) == "NativeBatchNorm"
    assert torch.equal(inputs.running_mean, before)


class Stub:
    """Ours under another name, with something changed."""

    name = "stub"

    def __init__(self, **changes):
        self.changes = changes

    def build(self, case, device="cpu"):
        contender = OURS.build(case, device)
        for name, value in self.changes.items():
            setattr(contender, name, value)
        return contender


def test_all_of_a_contenders_steps_run_in_its_context():
    inside = []

    @contextmanager
    def around():
        inside.append(True)
        yield
        inside.pop()

    seen = set()
    case = replace(CASE, training=False)
    layer = OURS.build(case)
    forward = layer.module
    stub = Stub(around=around, module=lambda *given: seen.add(bool(inside)) or forward(*given), norm=layer.norm)
    rows = measure(case, [EAGER, stub], 2, ENVIRONMENT)
    assert rows[2].status == "timed", rows[2].reason
    assert seen == {True}
    assert not inside


def test_who_fails_in_the_middle_of_timing_is_left_out_and_says_why():
    def step():
        raise RuntimeError("out of memory\n…")

    ours, eager, stub = measure(CASE, [EAGER, Stub(step=step)], 2, ENVIRONMENT)
    assert (ours.status, eager.status) == ("timed", "timed")
    assert (stub.status, stub.reason, stub.microseconds) == ("unavailable", "RuntimeError: out of memory", None)


def test_where_eager_torch_gives_nothing_nobody_can_be_judged():
    broken = Stub(results=lambda inputs: 1 / 0)
    broken.name = "eager"
    ours, eager = measure(CASE, [broken], 2, ENVIRONMENT)
    assert (eager.status, eager.reason) == ("unavailable", "ZeroDivisionError: division by zero")
    assert (ours.status, ours.microseconds) == ("unavailable", None)
    assert ours.reason == f"nothing to judge it by, eager torch gave no result: {eager.reason}"

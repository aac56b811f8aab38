"""What is no plain module any more: exported programs, scripted and frozen modules."""

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.errors import ArgumentError

IMAGES = torch.randn(2, 3, 8, 8)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def codes(model: object) -> list[str]:
    return [finding.rule for finding in batchnorm.diagnose(model, select=["BN021"]).findings]


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_program_is_taken_as_it_is(training: bool):
    program = torch.export.export(network().train(training), (IMAGES,))
    before = program.graph_module.code
    assert codes(program) == (["BN021"] if training else [])
    assert program.graph_module.code == before


def test_a_program_has_one_mode_and_is_not_run_on_batches():
    program = torch.export.export(network(), (IMAGES,))
    with pytest.raises(ArgumentError, match="exported, and its mode cannot be changed"):
        batchnorm.diagnose(program, batches=IMAGES)


def test_a_module_frozen_by_jit_has_no_mode_at_all():
    frozen = torch.jit.freeze(torch.jit.script(network().eval()))
    assert codes(frozen) == []


def test_a_traced_model_is_found_from_its_file(tmp_path):
    torch.jit.save(torch.jit.trace(network(), IMAGES, check_trace=False), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt").eval()
    assert codes(loaded) == ["BN021"]

"""Graphs in training mode."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d, **options):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm(4, **options)

    def forward(self, input):
        return F.relu(self.norm(self.conv(input)))


def traced(model: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, IMAGES, check_trace=False)


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (IMAGES,), strict=False)


@planted("BN021", "")
def exported_program() -> Case:
    return Case(exported(Network()).module())


@planted("BN021", "part")
def decomposed_and_part_of_a_model() -> Case:
    return Case(nn.ModuleDict({"part": exported(Network()).run_decompositions().module()}))


@planted("BN021", "")
def exported_with_our_layer() -> Case:
    return Case(exported(Network(batchnorm.GhostBatchNorm2d, ghost_size=1)).run_decompositions().module())


@planted("BN021", "")
def scripted() -> Case:
    return Case(torch.jit.script(Network()))


@planted("BN021", "")
def traced_and_then_put_into_evaluation() -> Case:
    return Case(traced(Network()).eval())


@planted("BN021", "")
def traced_with_our_layer() -> Case:
    return Case(traced(Network(batchnorm.BatchNorm2d)))


@planted("BN021", "")
def a_function_in_a_graph_of_fx() -> Case:
    class Function(Network):
        def forward(self, input):
            return F.batch_norm(self.conv(input), self.norm.running_mean, self.norm.running_var, training=self.training)

    return Case(torch.fx.symbolic_trace(Function()))


@healthy("BN021")
def exported_program_in_evaluation() -> Case:
    return Case(exported(Network().eval()).module())


@healthy("BN021")
def our_layer_in_evaluation() -> Case:
    return Case(exported(Network(batchnorm.BatchNorm2d).eval()).run_decompositions().module())


@healthy("BN021")
def scripted_and_traced_in_evaluation() -> Case:
    return Case(nn.Sequential(torch.jit.script(Network().eval()), traced(Network(batchnorm.BatchNorm2d).eval())))


@healthy("BN021")
def no_statistics_by_choice() -> Case:
    model = Network(track_running_stats=False)
    return Case(nn.Sequential(exported(model).module(), traced(model)))


@healthy("BN021")
def frozen_while_the_rest_trains() -> Case:
    model = Network()
    batchnorm.freeze(model)
    return Case(exported(model.train()).module())


@healthy("BN021")
def layers_in_a_graph_of_fx() -> Case:
    return Case(torch.fx.symbolic_trace(Network()))


@healthy("BN021")
def a_plain_model_in_training() -> Case:
    return Case(Network(), IMAGES)

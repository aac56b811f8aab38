"""Norms in half precision."""

import torch
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network(dtype: torch.dtype, make: type = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), make(4), nn.ReLU(), nn.Conv2d(4, 4, 3), make(4)).to(dtype)


def batches(dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(4, 3, 8, 8, dtype=dtype) for _ in range(2)]


@planted("BN014", "1", "4")
def trained_in_bfloat16() -> Case:
    model = network(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters())
    for batch in batches(torch.bfloat16):
        optimizer.zero_grad()
        model(batch).float().square().mean().backward()
        optimizer.step()
    return Case(model, batches(torch.bfloat16), optimizer=optimizer)


@planted("BN014", "1", "4")
def trained_without_its_optimizer() -> Case:
    model = network(torch.bfloat16)
    model(batches(torch.bfloat16)[0]).float().square().mean().backward()
    return Case(model, batches(torch.bfloat16))


@planted("BN014", "1", "4")
def ours_in_float16_for_inference() -> Case:
    model = network(torch.float16, batchnorm.BatchNorm2d).eval()
    return Case(model, batches(torch.float16))


@planted("BN014", "1")
def near_the_end_of_float16() -> Case:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False)).half()
    model[1].running_var.fill_(5e4)
    return Case(model, [torch.randn(8, 4).half()])


@planted("BN014", "1", "4")
def a_checkpoint() -> Case:
    return Case(network(torch.float16).state_dict())


@planted("BN014", "1")
def a_forward_of_its_own() -> Case:
    class Shifted(nn.BatchNorm1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + self.bias

    return Case(nn.Sequential(nn.Linear(4, 8), Shifted(8)).bfloat16())


@healthy("BN014")
def autocast_keeps_float32() -> Case:
    def forward(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    return Case(network(torch.float32), batches(torch.float32), options={"forward": forward})


@healthy("BN014")
def float32_norms_in_a_bfloat16_model() -> Case:
    model = network(torch.bfloat16)
    for layer in (model[1], model[4]):
        layer.float()
    return Case(model, batches(torch.bfloat16))


@healthy("BN014")
def double() -> Case:
    return Case(network(torch.float64).state_dict())

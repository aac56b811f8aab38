"""``parameter_groups``: every trainable parameter once, gamma and beta of every norm without decay."""

import torch

import batchnorm
from batchnorm import parameter_groups


def model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        batchnorm.BatchNormAct2d(4),
        torch.nn.Conv2d(4, 4, 3),
        torch.nn.GroupNorm(2, 4),
        torch.nn.Flatten(),
        torch.nn.LayerNorm(4),
        torch.nn.Linear(4, 2),
    )


def names(net: torch.nn.Module, group: dict) -> set[str]:
    known = {id(parameter): name for name, parameter in net.named_parameters()}
    return {known[id(parameter)] for parameter in group["params"]}


def test_norms_are_without_decay() -> None:
    net = model()
    decayed, kept = parameter_groups(net, 0.01)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    assert names(net, kept) == {"1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"}
    assert names(net, decayed) == {"0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"}


def test_biases_on_request() -> None:
    net = model()
    decayed, _ = parameter_groups(net, 0.01, decay_biases=False)
    assert names(net, decayed) == {"0.weight", "2.weight", "6.weight"}


def test_frozen_and_shared_parameters() -> None:
    net = model()
    net[0].weight.requires_grad_(False)
    net.append(net[6])
    net.append(torch.nn.Linear(4, 4))
    net[-1].bias = net[5].bias
    groups = parameter_groups(net, 0.01)
    every = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(every) == len(set(every)) == sum(parameter.requires_grad for parameter in net.parameters())
    assert "5.bias" in names(net, groups[1])


def test_empty_groups_are_left_out() -> None:
    assert len(parameter_groups(torch.nn.Linear(2, 2), 0.01)) == 1
    assert parameter_groups(torch.nn.ReLU(), 0.01) == []


def test_the_step_decays_what_it_should() -> None:
    net = model()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(net, 0.5), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 1.0 if name.split(".")[0] in "135" else 0.95
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_rms_norm_is_a_norm() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.RMSNorm(4), torch.nn.InstanceNorm1d(4, affine=True))
    assert names(net, parameter_groups(net, 0.1)[1]) == {"1.weight", "2.weight", "2.bias"}

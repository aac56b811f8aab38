"""``parameter_groups``: every trainable parameter once, gamma and beta of every norm without decay.

``without_decay``: the same in an optimizer that is there, which goes on as before.
"""

import copy

import pytest
import torch

import batchnorm
from batchnorm import parameter_groups
from batchnorm.errors import ArgumentError
from batchnorm.optim import without_decay


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


# --- without_decay ---


def stepped(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "made",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.5, 0.99), weight_decay=0.05),
        lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True, weight_decay=0.05),
    ],
)
def test_the_optimizer_goes_on_as_one_that_was_made_so(made) -> None:
    net = model()
    optimizer = made(net.parameters())
    stepped(net, optimizer)
    twin = copy.deepcopy(net)
    right = made(parameter_groups(twin, optimizer.param_groups[0]["weight_decay"]))
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        right.state[other] = copy.deepcopy(optimizer.state[own])
    without_decay(optimizer, net)
    assert [{**group, "params": 0} for group in optimizer.param_groups] == [
        {**group, "params": 0} for group in right.param_groups
    ]
    for _ in range(2):
        stepped(net, optimizer)
        stepped(twin, right)
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)


def test_groups_and_other_models_stay() -> None:
    net, other = model(), model()
    groups = [
        {"params": list(net[:3].named_parameters()), "lr": 1e-3},
        {"params": list(net[3:].named_parameters()), "weight_decay": 0.0},
        {"params": list(other.named_parameters())},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3)
    without_decay(optimizer, net)
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (4, 1e-3, 0.3),
        (6, 0.1, 0.0),
        (12, 0.1, 0.3),
        (2, 1e-3, 0.0),
    ]
    assert optimizer.param_groups[3]["param_names"] == ["1.weight", "1.bias"]
    assert names(net, optimizer.param_groups[3]) == {"1.weight", "1.bias"}
    before = copy.deepcopy(optimizer.state_dict())
    without_decay(optimizer, net)  # nothing is left to do
    assert optimizer.state_dict() == before


def test_a_group_of_norms_only_is_not_split() -> None:
    net = model()
    optimizer = torch.optim.SGD([{"params": net[1].parameters(), "weight_decay": 0.1}], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    without_decay(optimizer, net)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(2, 0.0)]


def test_under_a_scheduler_it_warns() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="make the scheduler anew"):
        without_decay(optimizer, net)


def test_an_optimizer_that_refuses_keeps_its_group() -> None:
    class Refuses(torch.optim.SGD):
        def add_param_group(self, group: dict) -> None:
            if self.param_groups:
                raise ValueError("one group only")
            super().add_param_group(group)

    net = model()
    optimizer = Refuses(net.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="one group only"):
        without_decay(optimizer, net)
    assert names(net, optimizer.param_groups[0]) == {name for name, _ in net.named_parameters()}


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="none of the model's parameters"):
        without_decay(torch.optim.SGD(model().parameters(), lr=0.1), model())

"""``fold``: what is not folded, why, and that nothing is folded wrongly."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import batchnorm
from batchnorm.surgery.fold import fold
from surgery.filled import Code, filled, off

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Doubled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


class Halved(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) / 2


class Stubborn(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].train()
        return self


def conv(**others: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **others)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def pair(layer: nn.Module | None = None, after: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(layer or conv(), after or norm())


def code(forward: Any, **others: nn.Module) -> Code:
    return Code(forward, **{"conv": conv(), "norm": norm(), **others})


@torch.no_grad()  # what these make of the weight could not be copied with its gradient function
def weight_norm_of_old() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(conv())
    layer(X)
    return layer


@torch.no_grad()
def pruned() -> nn.Module:
    layer = prune.l1_unstructured(conv(), "weight", 0.5)
    layer(X)
    return layer


def with_hook(model: nn.Module, path: str) -> nn.Module:
    model.get_submodule(path).register_forward_hook(lambda module, args, output: None)
    return model


def with_forward(model: nn.Module, path: str) -> nn.Module:
    module = model.get_submodule(path)
    module.forward = type(module).forward.__get__(module)
    return model


def with_mean(model: nn.Module, path: str, mean: float) -> nn.Module:
    model.get_submodule(path).running_mean.fill_(mean)
    return model


def shared(self, x):
    return self.norm(self.conv(x)) + self.conv(x)


def norm_twice(self, x):
    return self.norm(self.conv(x)) + self.norm(x)[..., 2:, 2:]


def also_read(self, x):
    y = self.conv(x)
    return self.norm(y) + y.sum()


def also_returned(self, x):
    y = self.conv(x)
    return self.norm(y), y


def read_weight(self, x):
    return self.norm(self.conv(x)) + self.conv.weight.sum()


def read_statistics(self, x):
    return self.norm(self.conv(x)) + self.norm.running_mean.sum()


def read_name(self, x):
    return self.norm(self.conv(x)) * self.norm.num_features


def in_place(self, x):
    x = x * 1
    y = self.norm(x)
    x.relu_()
    return self.conv(y)


def one_of_two(self, x):
    y = self.norm(x)
    return self.conv(y) + F.relu(y)[..., 1:-1, 1:-1]


def all_or_none(self, x):
    y = self.norm(x)
    return self.conv(y) + self.padded(y)[..., 1:-1, 1:-1]


def toggled(self, x):
    self.norm.train()
    y = self.norm(self.conv(x))
    self.norm.eval()
    return y


def around_identity(self, x):
    return self.norm(self.probe(self.conv(x)))


TABLE = {
    "a subclass of a layer": (
        lambda: pair(Doubled(4, 4, 3)),
        "0 (Doubled), whose class may compute something else than Conv2d",
    ),
    "a subclass of a norm": (lambda: pair(after=Halved(4)), "its class may compute something else than the norm"),
    "parametrized": (
        lambda: pair(nn.utils.parametrizations.weight_norm(conv())),
        "aten.conv2d in 0, which holds modules or parametrizations of its own; after: its output leaves the model",
    ),
    "weight norm of old": (lambda: pair(weight_norm_of_old()), "0 (Conv2d) has hooks"),
    "pruned": (lambda: pair(pruned()), "0 (Conv2d) has hooks"),
    "a hook of the layer": (lambda: with_hook(pair(), "0"), "0 (Conv2d) has hooks"),
    "a hook of the norm": (lambda: with_hook(pair(), "1"), "it has hooks, which would see other values"),
    "a hook around the layer": (
        lambda: with_hook(nn.Sequential(nn.Sequential(conv()), norm()), "0"),
        "0 (Sequential) has hooks, which would see another value",
    ),
    "a hook around the norm": (
        lambda: with_hook(nn.Sequential(conv(), nn.Sequential(nn.Dropout(), norm())), "1"),
        "1 (Sequential) has hooks, which would see another value",
    ),
    "a hook on a step between": (
        lambda: with_hook(nn.Sequential(conv(), nn.Dropout(), norm()), "1"),
        "1 (Dropout) has hooks, which would see another value",
    ),
    "a hook on an Identity between": (
        lambda: with_hook(code(around_identity, probe=nn.Identity()), "probe"),
        "probe (Identity) has hooks, which would see another value",
    ),
    "a forward of the layer's own": (lambda: with_forward(pair(), "0"), "0 (Conv2d) has a method of its own"),
    "a forward of the norm's own": (lambda: with_forward(pair(), "1"), "it has a method of its own"),
    "a layer called twice": (lambda: code(shared), "conv (Conv2d) is called 2 times"),
    "a norm called twice": (lambda: code(norm_twice), "it is called 2 times"),
    "an output read twice": (lambda: code(also_read), "its input is read by aten.sum too"),
    "an activation between": (lambda: nn.Sequential(conv(), nn.ReLU(), norm()), "its input is given by 1 (ReLU)"),
    "a pooling between": (
        lambda: nn.Sequential(norm(), nn.MaxPool2d(2), conv()),
        "before: its input is the model's own; after: its output is read by 1 (MaxPool2d)",
    ),
    "padding between": (lambda: code(lambda self, x: self.conv(F.pad(self.norm(x), (1, 1)))), "is read by aten.pad"),
    "a padded layer": (lambda: nn.Sequential(norm(), conv(padding=1)), "after: 1 (Conv2d) pads with zeros"),
    "a transposed layer": (
        lambda: nn.Sequential(norm(), nn.ConvTranspose2d(4, 4, 2, stride=2)),
        "after: 1 (ConvTranspose2d) is a transposed convolution, at whose borders fewer taps",
    ),
    "another dimension": (
        lambda: pair(nn.Linear(8, 8), nn.BatchNorm2d(4)),
        "the norm's channels are another dimension than the features of 0 (Linear)",
    ),
    "a dimension that is mixed with another": (
        lambda: code(lambda self, x: self.norm(self.conv(x).reshape(6, 4, 4, 6))),
        "aten.reshape does not keep the channels as a dimension",
    ),
    "a dimension of the same size": (
        lambda: code(lambda self, x: self.norm(self.conv(x).transpose(0, 1))),
        "the norm's channels are another dimension than the features of conv (Conv2d)",
    ),
    "a shape that is changed in place": (
        lambda: code(lambda self, x: self.norm(self.conv(x).transpose_(2, 3))),
        "its input is given by aten.transpose",
    ),
    "no statistics": (lambda: pair(after=nn.BatchNorm2d(4, track_running_stats=False)), "it has no running statistics"),
    "stays in training": (lambda: Stubborn(conv(), norm()), "it stays in training mode"),
    "in training for a moment": (lambda: code(toggled), "or normalizes by the batch"),
    "not finite": (lambda: with_mean(pair(), "1", float("inf")), "its scale and shift are not finite"),
    "a mask": (
        lambda: code(
            lambda self, x: self.norm(self.conv(x), mask=torch.ones(4, 6, 6, dtype=torch.bool)),
            norm=batchnorm.BatchNorm2d(4),
        ),
        "it takes more than an input and another residual, such as a mask",
    ),
    "a mask of a fused layer": (
        lambda: code(
            lambda self, x: self.norm(self.conv(x), mask=torch.ones(4, 6, 6, dtype=torch.bool)),
            norm=batchnorm.BatchNormAct2d(4),
        ),
        "it takes more than an input and another residual, such as a mask",
    ),
    "never called": (lambda: code(lambda self, x: self.conv(x)), "it is not called on the example"),
    "an activation in the norm": (
        lambda: nn.Sequential(batchnorm.BatchNormAct2d(4, activation="silu"), conv()),
        "after: its silu stands between",
    ),
    "a residual in the norm": (
        lambda: code(lambda self, x: self.conv(self.norm(x, x * 2)), norm=batchnorm.BatchNormAct2d(4, activation=None)),
        "after: its residual is added before",
    ),
    "its own input as the residual": (
        lambda: code(lambda self, x: self.norm((y := self.conv(x)), y), norm=batchnorm.BatchNormAct2d(4)),
        "its residual is its own input",
    ),
    "a weight that is read": (lambda: code(read_weight), "conv.weight is read by aten.sum too"),
    "statistics that are read": (lambda: code(read_statistics), "norm.running_mean is read by aten.sum too"),
    "in place between": (lambda: code(in_place), "aten.relu works in place before conv (Conv2d) runs"),
    "read by others": (lambda: code(one_of_two), "its output is read by aten.relu"),
    "all or none": (lambda: code(all_or_none, padded=conv(padding=1)), "padded (Conv2d) pads with zeros"),
    "another dtype between": (
        lambda: code(lambda self, x: self.norm(self.conv(x).double()), norm=norm().double()),
        "its input is given by aten.to",
    ),
    "named in the code": (lambda: code(read_name), "AttributeError: 'Identity' object has no attribute 'num_features'"),
    "a list that no module knows": (
        lambda: code(lambda self, x: self.norms[0](self.conv(x))),
        "",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_kept_with_the_reason(case):
    build, words = TABLE[case]
    model = filled(build()) if "finite" not in case else build()
    if case.startswith("a list"):
        model.norms = [model.norm]
        words = "folded, "
    done = fold(model, X)
    assert not done.changed
    assert [outcome.action for outcome in done.kept] == ["kept"]
    assert words in done.kept[0].detail
    if "finite" not in case:
        assert off(done.model, model, X) < 1e-6


def test_an_output_that_leaves_the_model():
    model = filled(code(also_returned))
    (kept,) = fold(model, X).kept
    assert kept.detail == "before: its input leaves the model too; after: its output leaves the model"


def test_a_norm_as_a_function_is_listed():
    def forward(self, x):
        return F.batch_norm(self.norm(self.conv(x)), torch.zeros(4), torch.ones(4))

    done = fold(filled(code(forward)), X)
    assert [outcome.layer for outcome in done.changed] == ["norm"]
    assert [(each.kind, each.detail) for each in done.kept] == [
        ("aten.batch_norm", "it is called as a function, not as a layer")
    ]


def test_dropout_that_is_on_in_evaluation_stands_between():
    model = filled(code(lambda self, x: self.norm(F.dropout(self.conv(x), 0.5, training=True))))
    (kept,) = fold(model, X).kept
    assert kept.detail == "before: its input is given by aten.dropout; after: its output leaves the model"

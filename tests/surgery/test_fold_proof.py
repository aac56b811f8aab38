"""``fold``: the proof, the search for what breaks it, and models that do not trace or cannot be folded."""

import importlib
import itertools

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.errors import SurgeryError
from batchnorm.surgery.fold import fold
from surgery.filled import Code, filled, off

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=padding)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def pair(layer: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(layer or conv(), norm())


def test_what_breaks_the_proof_is_found_and_the_rest_is_folded():
    blocks = nn.Sequential(*(nn.Sequential(conv(padding=1), norm()) for _ in range(6)))

    def forward(self, x):
        x = self.blocks(x)
        return x if isinstance(self.blocks[4][1], nn.BatchNorm2d) else 2 * x

    model = filled(Code(forward, blocks=blocks))
    done = fold(model, X)
    assert len(done.changed) == 5
    assert [outcome.layer for outcome in done.kept] == ["blocks.4.1"]
    assert done.kept[0].detail.startswith("folded, on the example in float64, output 0 of the rewritten model")
    assert off(done.model, model, X) < 1e-5


@pytest.mark.parametrize("attempts", [1, 3, 50])
def test_the_search_ends(attempts, monkeypatch):
    """Code that looks at all norms: none can be folded, and finding that out one by one may take too long."""

    def forward(self, x):
        return self.blocks(x) * len([each for each in self.modules() if isinstance(each, nn.BatchNorm2d)])

    monkeypatch.setattr(importlib.import_module("batchnorm.surgery.fold"), "_ATTEMPTS", attempts)
    model = filled(Code(forward, blocks=nn.Sequential(*(pair(conv(1)) for _ in range(4)))))
    done = fold(model, X)
    assert [outcome.layer for outcome in done.kept] == [f"blocks.{place}.1" for place in range(4)]
    assert off(done.model, model, X) == 0


def test_a_model_that_is_not_the_same_twice_is_refused():
    calls = itertools.count(1)
    model = filled(Code(lambda self, x: self.pair(x) * next(calls), pair=pair()))
    with pytest.raises(SurgeryError, match="of the rewritten model differs by"):
        fold(model, X)


def test_roundings_that_folding_would_make_too_large():
    """A norm before a layer takes away a large mean; folded, it is taken away from a sum that is already rounded."""
    model = filled(nn.Sequential(batchnorm.BatchNorm1d(4), nn.Linear(4, 3, bias=False)))
    x = 1e5 + torch.randn(64, 4)
    model[0].running_mean.copy_(x.mean(0))
    model[0].running_var.copy_(x.var(0))
    (kept,) = fold(model, x).kept
    assert kept.detail.startswith("folded, roundings in float32 would grow to")
    assert not fold(model.double(), x.double()).kept


def test_a_weight_that_half_precision_cannot_hold():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    nn.init.constant_(model[0].weight, 100.0)
    nn.init.constant_(model[1].weight, 1000.0)
    x = torch.randn(3, 4)
    (kept,) = fold(model.half(), x.half() / 1000).kept
    assert kept.detail.startswith("before: the folded weight is not finite in float16, in 0 (Linear); after: ")
    assert not fold(model.float(), x).kept


def test_none_or_all_where_one_weight_of_two_overflows():
    def forward(self, x):
        y = self.norm(x)
        return self.one(y) + self.two(y)

    model = Code(forward, norm=nn.BatchNorm1d(4), one=nn.Linear(4, 3, bias=False), two=nn.Linear(4, 3, bias=False))
    nn.init.constant_(model.norm.weight, 1000.0)
    nn.init.constant_(model.two.weight, 100.0)
    x, done = torch.randn(3, 4).half() / 1000, fold(model.half(), torch.randn(3, 4).half() / 1000)
    assert "the folded weight is not finite in float16, in two (Linear)" in done.kept[0].detail
    assert torch.equal(done.model.one.weight, model.one.weight)
    assert off(done.model, model, x) == 0


# --- models that do not trace ---


def unsure(self, x):
    x = self.norm(self.conv(x))
    return x if x.sum() > 0 else x + 1


def test_what_depends_on_data_is_left():
    (kept,) = fold(filled(Code(unsure, conv=conv(), norm=norm())), X).kept
    assert kept.detail == (
        "before: its input is given by code that does not trace; after: its output is read by code that does not trace"
    )


def test_code_that_does_not_trace_may_call_a_layer_again():
    def forward(self, x):
        y = self.part(x)
        return y if x.sum() > 1e9 else y + self.part[0](x)

    model = filled(Code(forward, part=nn.Sequential(conv(), norm())))
    done = fold(model, X)
    assert "part.0 (Conv2d) is called 2 times" in done.kept[0].detail
    assert off(done.model, model, X) == 0


def test_a_norm_in_code_that_does_not_trace_says_so():
    def twice(self, x):
        x = self.part(x)
        return self.part(x) if x.sum() < 1e9 else x

    model = filled(Code(twice, part=nn.Sequential(conv(padding=1), norm())))
    (kept,) = fold(model, X).kept
    assert kept.detail == "part does not trace: it is called 2 times by code that does not trace"


def test_the_inputs_stay_where_code_that_does_not_trace_works_in_place():
    def forward(self, x):
        return self.part(x) if x.sum() < 1e9 else x

    x = X.clone()
    done = fold(filled(Code(forward, part=nn.Sequential(nn.ReLU(inplace=True), conv(), norm()))), x)
    assert len(done.changed) == 1
    assert torch.equal(x, X)


class FullyShardedDataParallel(nn.DataParallel):
    """Its name and module are all that is looked at: the one of torch needs several processes."""

    __module__ = "torch.distributed.fsdp"


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (pair, torch.randn(3), "the model raises on the example inputs"),
        (lambda: torch.jit.trace(pair().eval(), X), X, "is a torch.jit module. Mend: fold first"),
        (lambda: pair(nn.LazyConv2d(4, 3)), X, "0 (LazyConv2d) has no values yet. Mend: call the model once"),
        (lambda: pair().to("meta"), X, "0.weight is on the meta device and has no values. Mend: load the weights"),
        (lambda: "pair", X, "a str is no torch.nn.Module. Mend: give the module itself"),
        (lambda: nn.DataParallel(pair()), X, "the model is a DataParallel, which is for training in several"),
        (lambda: FullyShardedDataParallel(pair()), X, "Mend: fold what it holds: model.module."),
        (lambda: pair(nn.DataParallel(conv())), X, "Mend: fold what it holds: model.0.module."),
    ],
    ids=["inputs", "jit", "lazy", "meta", "string", "parallel", "sharded", "parallel part"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_cannot_be_folded_at_all_is_refused(model, inputs, words):
    with pytest.raises(SurgeryError) as caught:
        fold(model(), inputs)
    assert words in str(caught.value)


def test_a_model_without_norms_is_copied():
    model = nn.Sequential(conv())
    done = fold(model, X)
    assert not done.changed
    assert not done.kept
    assert "no norms" in str(done)
    assert off(done.model, model, X) == 0

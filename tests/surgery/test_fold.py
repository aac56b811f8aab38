"""``fold``: what stands between, classes of norms, and that the model given stays as it was."""

import pickle

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.surgery.attempt import SumAndActivation
from batchnorm.surgery.fold import fold
from surgery.filled import Code, check_folded, filled, off

IN, OUT = 6, 8


def data() -> torch.Tensor:
    return torch.randn(3, IN, 7, 6, dtype=torch.float64)


def test_norms_on_both_sides_and_in_a_row():
    layers = [nn.BatchNorm2d(IN), nn.BatchNorm2d(IN), nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT), nn.BatchNorm2d(OUT)]
    check_folded(filled(nn.Sequential(*layers)).double(), data(), count=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_however_many_norms_a_layer_takes_on_it_is_rounded_once(dtype):
    layers = [nn.BatchNorm2d(IN), nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT), nn.BatchNorm2d(OUT)]
    model = filled(nn.Sequential(*layers)).to(dtype)
    folded = fold(model, data().to(dtype)).model[1]
    exact = fold(model.double(), data()).model[1]
    assert torch.equal(folded.weight, exact.weight.to(dtype))
    assert torch.equal(folded.bias, exact.bias.to(dtype))


def test_one_norm_before_several_layers():
    def forward(self, x):
        y = self.norm(x)
        return self.one(y) + self.two(y)

    layers = {"norm": nn.BatchNorm2d(IN), "one": nn.Conv2d(IN, OUT, 3), "two": nn.Conv2d(IN, OUT, 3, groups=2)}
    model = filled(Code(forward, **layers)).double()
    check_folded(model, data())
    assert fold(model, data()).changed[0].detail == "into one (Conv2d), two (Conv2d)"


def test_residual_of_the_norm_s_input_stays():
    """Others may read what a norm before a layer takes: the norm goes, not its input."""
    model = Code(lambda self, x: self.conv(self.norm(x)) + x, norm=nn.BatchNorm2d(IN), conv=nn.Conv2d(IN, IN, 1))
    check_folded(filled(model).double(), data())


@pytest.mark.parametrize(
    ("forward", "norm"),
    [
        (lambda self, x: self.norm(self.layer(x).flatten(0, 1)).view(3, 5, OUT), nn.BatchNorm1d(OUT)),  # LeViT
        (lambda self, x: self.norm(self.layer(x).transpose(1, 2)).transpose(1, 2), nn.BatchNorm1d(OUT)),
        (lambda self, x: self.norm(self.layer(x).permute(0, 2, 1).unsqueeze(-1)), nn.BatchNorm2d(OUT)),
        (lambda self, x: self.norm(self.layer(x).movedim(-1, 1).contiguous()), nn.BatchNorm1d(OUT)),
        (lambda self, x: self.norm(self.layer(x).mT.clone()), nn.BatchNorm1d(OUT)),
    ],
    ids=["flatten", "transpose", "permute", "movedim", "mT"],
)
def test_the_channels_are_followed_through_changes_of_shape(forward, norm):
    model = filled(Code(forward, layer=nn.Linear(IN, OUT), norm=norm)).double()
    check_folded(model, torch.randn(3, 5, IN, dtype=torch.float64))


def test_the_channels_are_followed_forward_too():
    def forward(self, x):
        return self.layer(self.norm(x).permute(0, 2, 3, 1))

    check_folded(filled(Code(forward, norm=nn.BatchNorm2d(IN), layer=nn.Linear(IN, OUT))).double(), data())


def test_what_gives_on_values_as_they_are_may_stand_between():
    layers = [
        nn.Conv2d(IN, OUT, 3),
        nn.Dropout(),
        nn.Identity(),
        nn.Dropout2d(inplace=True),
        nn.BatchNorm2d(OUT),
        nn.ReLU(),
    ]
    check_folded(filled(nn.Sequential(*layers)).double(), data())


@pytest.mark.parametrize("activation", ["relu", "silu", torch.nn.LeakyReLU(0.3), None])
@pytest.mark.parametrize("residual", [True, False])
def test_a_fused_layer_leaves_its_sum_and_activation(activation, residual):
    def forward(self, x):
        return self.norm(self.conv(x), x) if residual else self.norm(self.conv(x))

    norm = batchnorm.BatchNormAct2d(IN, activation=activation)
    model = filled(Code(forward, conv=nn.Conv2d(IN, IN, 3, padding=1), norm=norm)).double()
    check_folded(model, data())
    left = fold(model, data()).model.norm
    assert type(left) is SumAndActivation
    assert left.activation == norm.activation
    with pytest.raises(batchnorm.errors.ArgumentError, match="takes no mask"):
        left(data(), mask=torch.ones(3, 7, 6, dtype=torch.bool))


@pytest.mark.parametrize(
    "norm",
    [
        batchnorm.BatchNorm2d(OUT, bias=False),
        nn.SyncBatchNorm(OUT),
        batchnorm.nn.FusingBatchNorm2d(OUT),
        nn.LazyBatchNorm2d(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_other_classes_of_norms(norm):
    model = nn.Sequential(nn.Conv2d(IN, OUT, 3), norm)
    model.eval()(data().float())  # a lazy one gets its shapes
    check_folded(filled(model).double(), data())


def test_a_class_that_is_only_made_in_another_way_is_folded():
    class Depthwise(nn.Conv2d):
        """As the EfficientNet of transformers has it."""

        def __init__(self, channels):
            super().__init__(channels, channels, 3, groups=channels, bias=False)

    class Norm(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels, eps=0.1)

    check_folded(filled(nn.Sequential(Depthwise(IN), Norm(IN))).double(), data())


def test_a_module_under_two_names_is_replaced_at_both():
    norm = nn.BatchNorm2d(OUT)
    model = filled(Code(lambda self, x: self.again(self.conv(x)), conv=nn.Conv2d(IN, OUT, 3), norm=norm, again=norm))
    done = fold(model, data().float())
    assert done.model.norm is done.model.again
    assert type(done.model.norm) is nn.Identity
    assert off(done.model, model, data().float()) < 1e-5


def test_a_tied_weight_stays_with_the_other_layer():
    def forward(self, x):
        return self.norm(self.one(x)) + self.two(x)

    model = Code(forward, one=nn.Conv2d(IN, OUT, 3), two=nn.Conv2d(IN, OUT, 3), norm=nn.BatchNorm2d(OUT))
    model.two.weight = model.one.weight
    check_folded(filled(model).double(), data())


def test_a_part_that_traces_is_folded_where_the_whole_does_not():
    def forward(self, x):
        x = self.part(x)
        return x if x.sum() > 0 else x + 1

    model = Code(forward, part=nn.Sequential(nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT), nn.ReLU()))
    done = fold(filled(model).double(), data())
    assert [outcome.layer for outcome in done.changed] == ["part.1"]
    assert off(done.model, model, data()) < 1e-12


# --- what stays as it was ---


def snapshot(model: nn.Module) -> dict[str, object]:
    states = {
        name: (id(value), value._version, value.clone()) for name, value in model.state_dict(keep_vars=True).items()
    }
    return {
        "states": states,
        "modes": [(name, type(module), module.training) for name, module in model.named_modules()],
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_model_given_stays_as_it_is(training):
    model = filled(nn.Sequential(nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT), nn.Dropout(), nn.ReLU())).train(training)
    model[2].eval()
    x, random = data().float().requires_grad_(), torch.random.get_rng_state()
    kept = snapshot(model)
    done = fold(model, {"input": x})
    assert str(snapshot(model)) == str(kept)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert x.grad is None
    assert not any(module.training for module in done.model.modules())
    mine, theirs = (
        {tensor.data_ptr() for tensor in (*each.parameters(), *each.buffers())} for each in (done.model, model)
    )
    assert not mine & theirs
    assert off(pickle.loads(pickle.dumps(done.model)), model, x) < 1e-5


def test_what_a_folded_layer_keeps_of_its_parameters():
    layer = nn.Conv2d(IN, OUT, 3, bias=False).to(memory_format=torch.channels_last).bfloat16()
    layer.weight.requires_grad_(False)
    model = filled(nn.Sequential(layer, nn.BatchNorm2d(OUT)))  # the norm's are float32
    folded = fold(model, data().bfloat16()).model[0]
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)
    assert type(folded) is nn.Conv2d
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert folded.bias.shape == (OUT,)
    trained = fold(filled(nn.Sequential(nn.Linear(IN, OUT, bias=False), nn.BatchNorm1d(OUT))), torch.randn(3, IN)).model
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in trained.parameters())


def test_arguments_of_every_form():
    model = filled(
        Code(lambda self, x, y: self.norm(self.conv(x + y)), conv=nn.Conv2d(IN, OUT, 3), norm=nn.BatchNorm2d(OUT))
    )
    x = data().float()
    assert len(fold(model, (x, x)).changed) == 1
    assert len(fold(model, [x, x]).changed) == 1
    assert len(fold(nn.Sequential(model.conv, model.norm), {"input": x}).changed) == 1


@pytest.mark.parametrize("kind", ["sync", "ghost", "renorm", "frozen", "freeze"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_norms_that_are_others_in_training_alone_fold(kind, activation):
    plain = batchnorm.BatchNormAct2d(OUT, activation=activation)
    model = filled(nn.Sequential(nn.Conv2d(IN, OUT, 3), plain)).double()
    if kind == "freeze":
        batchnorm.freeze(model)
    else:
        model = batchnorm.convert(model, kind, strict=True)
    assert type(model[1]) is not batchnorm.BatchNormAct2d
    check_folded(model, data())


def test_a_norm_with_domains_stays():
    """It has the statistics of several, and which are to be folded, its next user decides."""
    model = filled(nn.Sequential(nn.Conv2d(IN, OUT, 3), nn.BatchNorm2d(OUT))).double()
    done = fold(batchnorm.convert(model, "domain"), data())
    assert [outcome.action for outcome in done.kept] == ["kept"]

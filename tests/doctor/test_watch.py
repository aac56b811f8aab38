"""What is seen of a norm's calls, and of padding in its input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.doctor.evidence import LayerRun
from batchnorm.doctor.padding import padding_of, valid_positions
from batchnorm.doctor.watch import Watch, differ


def watched(norm: Any, *calls: Any, **keywords: Any) -> LayerRun:
    watch = Watch([("norm", norm)])
    watch.start()
    for input in calls:
        norm(input, **keywords)
    run = watch.watched["norm"].run()
    assert run is not None
    return run


# --- histograms ---


def test_histograms_are_of_what_they_say() -> None:
    norm, x = nn.BatchNorm1d(3), 5 * torch.randn(4000, 3) + torch.tensor([0.0, 100.0, -100.0])
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 1.0)
    run = watched(norm, x)
    normal = torch.distributions.Normal(0.0, 1.0)
    within = float(normal.cdf(torch.tensor(1.0)) - normal.cdf(torch.tensor(-1.0)))
    assert run.standardized.share(-1, 1) == pytest.approx(within, abs=0.02)
    assert run.output.share(-1, 3) == pytest.approx(within, abs=0.02)
    assert run.input.share(-50, 50) == pytest.approx(1 / 3, abs=0.02)
    assert run.input.low < -105
    assert run.input.high > 105
    assert run.activated is None


def test_in_evaluation_values_are_standardised_by_the_running_statistics() -> None:
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean.fill_(10.0)
    norm.running_var.fill_(4.0)
    run = watched(norm, 10 + 2 * torch.rand(100, 3))
    assert run.standardized.share(0, 1) > 0.95
    assert not run.calls[0].by_batch


def test_what_a_layer_s_own_activation_is_given() -> None:
    norm, x, residual = batchnorm.BatchNormAct1d(2, activation="sigmoid"), torch.randn(500, 2), torch.randn(500, 2) + 4
    nn.init.constant_(norm.weight, 3.0)
    nn.init.constant_(norm.bias, -1.0)
    run = watched(norm, x, residual=residual)
    given = nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True) + residual
    expected = torch.histc(given.detach(), 192, -12, 12)
    assert run.activated is not None
    assert (torch.from_numpy(run.activated.counts) - expected).abs().sum() <= 4  # at edges, by their roundings
    assert run.output.share(0, 1) == 1


@pytest.mark.parametrize("shape", [(2, 3, 500), (2, 3, 40, 50), (2, 3, 10, 20, 20), (3000, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_sample_of_many_values_knows_their_channels(shape: tuple[int, ...], channels_last: bool) -> None:
    norm: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](3)
    x = torch.randn(shape)
    x += torch.tensor([-40.0, 0.0, 40.0]).view(3, *[1] * (len(shape) - 2))
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    run = watched(norm, x)
    assert run.standardized.share(-5, 5) == 1  # not so, by the statistics of another channel


def test_masked_positions_are_left_out() -> None:
    norm, x = batchnorm.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    mask = torch.rand(4, 1, 5, 5) < 0.5
    x = torch.where(mask, x, 1000.0)
    run = watched(norm, x, mask=mask)
    assert run.count == int(mask.sum())
    assert run.input.total == 3 * int(mask.sum())
    assert run.input.above == 0
    assert run.output_high is not None
    assert run.output_high.max() < 10


def test_what_is_no_tensor_with_channels_is_listed_and_enters_nothing() -> None:
    class Odd(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input.T)

    run = watched(Odd(3), torch.randn(3, 7))
    assert (run.calls[0].shape, run.calls[0].values, run.count) == ((3, 7), 0, 0)
    assert watch_gives_tuple() is None


def watch_gives_tuple() -> LayerRun | None:
    class Pair(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input), None

    norm = Pair(3)
    watch = Watch([("", norm)])
    watch.start()
    norm(torch.randn(4, 3))
    return watch.watched[""].run()


def test_what_becomes_nan_has_moved() -> None:
    zero, nan = torch.zeros(1), torch.tensor([torch.nan])
    assert differ((zero, None), (nan, None))
    assert not differ((nan, None), (nan.clone(), None))


def test_gradients_are_root_mean_squares_over_all_calls() -> None:
    norm = nn.BatchNorm1d(3)
    watch = Watch([("norm", norm)])
    watch.start()
    inputs = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
    outputs = [norm(x) for x in inputs]
    factors = [torch.randn(5, 3), torch.randn(5, 3)]
    sum((y * factor).sum() for y, factor in zip(outputs, factors, strict=True)).backward()
    gradient = watch.watched["norm"].gradient()
    assert gradient.output == pytest.approx(float(torch.cat(factors).square().mean().sqrt()))
    assert gradient.input == pytest.approx(float(torch.cat([x.grad for x in inputs]).square().mean().sqrt()))
    assert gradient.weight == pytest.approx(float(norm.weight.grad.square().mean().sqrt()))


def test_a_norm_that_somebody_catches_does_not_stay_to_blame() -> None:
    norm = nn.BatchNorm1d(3)
    watch = Watch([("norm", norm)])
    watch.start()
    with pytest.raises(ValueError, match="more than 1 value") as few:
        norm(torch.randn(1, 3))
    assert watch.raised(few.value) == ("norm", (1, 3))

    def elsewhere() -> None:
        norm(torch.randn(4, 3))
        raise RuntimeError

    with pytest.raises(RuntimeError) as other:
        elsewhere()
    assert watch.raised(other.value) == (None, None)


# --- padding ---


def mask_of(*lengths: int, size: int = 10) -> Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def test_masks_that_say_what_is_padding() -> None:
    right = mask_of(10, 6)
    for name, mask, valid in (
        ("attention_mask", right.long(), right),
        ("attention_mask", right.flip(1), right.flip(1)),
        ("key_padding_mask", ~right, right),
        ("bool_masked_pos", torch.rand(2, 10) < 0.5, None),
        ("attention_mask", torch.ones(2, 10, dtype=torch.long), None),
        ("attention_mask", torch.zeros(2, 10, dtype=torch.long), None),
        ("mask", torch.rand(2, 10), None),
        ("mask", torch.ones(2, 10, 10), None),
        ("values", right, None),
    ):
        found = valid_positions({name: mask})
        assert found is None if valid is None else torch.equal(found, valid)
    assert valid_positions(torch.randn(3, 4)) is None
    assert valid_positions(({"mask": right}, torch.zeros(2))) is not None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double().mean((0, 2)), x.double().var((0, 2), unbiased=False)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_the_effect_of_padding_by_a_mask_at_another_resolution(stride: int) -> None:
    valid = mask_of(40, 20, 10, size=40)
    x = torch.randn(3, 2, 40 // stride) + 3 * (~valid[:, ::stride])[:, None]
    padding = padding_of(x, *moments(x), valid)
    kept = x.transpose(1, 2)[valid[:, ::stride]].double()
    mean, var = moments(x)
    assert padding is not None
    assert (padding.by_mask, padding.samples) == (True, 2)
    assert padding.share == pytest.approx(50 / 120)
    shift = (mean - kept.mean(0)).abs() / kept.std(0, unbiased=False)
    assert padding.mean_shift == pytest.approx(float(shift.max()), rel=1e-4)
    ratio = var / kept.var(0, unbiased=False)
    assert padding.variance_ratio == pytest.approx(float(ratio.max()), rel=1e-4)


def test_padding_by_its_looks() -> None:
    x = torch.randn(3, 2, 20)
    x[1, :, 12:] = 7.0
    x[2, :, 19:] = 0.0  # one position says nothing
    padding = padding_of(x, *moments(x), None)
    assert padding is not None
    assert (padding.share, padding.samples, padding.by_mask) == (8 / 60, 1, False)
    # Behind a convolution the last positions have seen its own padding.
    behind = nn.functional.conv1d(x, torch.randn(4, 2, 3), padding=1)
    found = padding_of(behind.detach(), *moments(behind.detach()), None)
    assert found is not None
    assert found.share == pytest.approx(7 / 60)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 3, 10),
        torch.randn(2, 3, 10),
        torch.randn(2, 3, 1),
        torch.randn(0, 3, 10),
        torch.full((2, 3, 10), torch.nan),
        torch.relu(torch.randn(4, 1, 50)),
        torch.eye(4)[torch.randint(4, (3, 50))].transpose(1, 2),
    ],
    ids=["constant", "random", "short", "empty", "nan", "zeros of a relu", "letters"],
)
def test_no_padding(x: Tensor) -> None:
    mean, var = moments(x) if x.numel() else (torch.zeros(3), torch.zeros(3))
    assert padding_of(x, mean, var, None) is None

"""Shared layers."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from doctor.plant import Case, healthy, planted


def network(norm=nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm(8), nn.ReLU())


def batches(count: int = 4, samples: int = 16) -> list[torch.Tensor]:
    return [torch.randn(samples, 3, 8, 8) for _ in range(count)]


@planted("BN015", "1")
def discriminator_on_real_and_generated() -> Case:
    def step(model, real):
        return model(real), model(0.3 * torch.randn_like(real) + 0.5)

    return Case(network(), batches(), options={"forward": step})


class Pyramid(nn.Module):
    """One head on features of three levels."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(3))
        self.head = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))
        with torch.no_grad():
            for scale, level in enumerate(self.levels):
                level.weight.mul_(3**scale)

    def forward(self, image):
        pooled = (nn.functional.avg_pool2d(image, 2**scale) for scale in range(3))
        return [self.head(level(each)).mean() for level, each in zip(self.levels, pooled, strict=True)]


@planted("BN015", "head.1")
def head_shared_by_the_levels_of_a_pyramid() -> Case:
    return Case(Pyramid(), batches())


@planted("BN015", "1")
def one_batch_is_enough_where_they_differ_much() -> Case:
    def step(model, real):
        return model(real), model(real + 3)

    return Case(network(), batches(1), options={"forward": step})


@planted("BN015", "1")
def domains_that_nobody_changes() -> Case:
    def step(model, real):
        return model(real), model(4 * real + 1)

    return Case(network(batchnorm.DomainBatchNorm2d), batches(), options={"forward": step})


@healthy("BN015")
def domains_for_each() -> Case:
    def step(model, real):
        outputs = []
        for name, input in (("source", real), ("target", 4 * real + 1)):
            with batchnorm.domain(model, name):
                outputs.append(model(input))
        return outputs

    return Case(network(batchnorm.DomainBatchNorm2d), batches(), options={"forward": step})


@healthy("BN015")
def twins_of_one_distribution() -> Case:
    def step(model, pair):
        return model(pair[::2]), model(pair[1::2])

    return Case(network(), batches(samples=8), options={"forward": step})


@healthy("BN015")
def twins_in_one_small_batch() -> Case:
    def step(model, pair):
        return [head(half) for head in model for half in pair.chunk(2)]

    heads = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(8))
    return Case(heads, torch.randn(12, 3), options={"forward": step})


@healthy("BN015")
def computed_again_by_checkpointing() -> Case:
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = network()

        def forward(self, input):
            return checkpoint(self.block, input, use_reentrant=False)

    return Case(Checkpointed(), batches(2))


@healthy("BN015")
def nothing_is_shared() -> Case:
    def step(model, real):
        return model(real), model(4 * real + 1)

    model = nn.Sequential(network(), nn.BatchNorm2d(8, track_running_stats=False))
    batchnorm.freeze(model, where=lambda path, _: path == "0.1")
    return Case(model, batches(), options={"forward": step})


@planted("BN015", "1")
def generated_images_of_another_variance() -> Case:
    # A factor 2.2: of the real ones' variance, in every batch.
    def step(model, real):
        return model(real), model(2.2**0.5 * real.flip(0))

    return Case(network(), batches(samples=32), options={"forward": step})


@healthy("BN015")
def twins_with_long_tails_in_four_batches() -> Case:
    def step(model, pair):
        return model(pair[::2].exp()), model(pair[1::2].exp())

    return Case(network(), batches(samples=16), options={"forward": step})

"""Too few values."""

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import batchnorm
from doctor.own_forward import FrozenByForward
from doctor.plant import Case, healthy, planted


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)),
        *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    )


def loader(samples: int, size: int, **options: bool) -> "DataLoader[tuple[Tensor, ...]]":
    return DataLoader(TensorDataset(torch.randn(samples, 4)), size, **{"shuffle": True, **options})


@planted("BN003", "1")
def small_batches() -> Case:
    return Case(perceptron(), [torch.randn(8, 4) for _ in range(2)])


@planted("BN003", "4")
def after_pooling() -> Case:
    return Case(convolutions(), [torch.randn(4, 3, 16, 16)])


@planted("BN003", "1")
def one_sample_as_in_segmentation() -> Case:
    return Case(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), [torch.randn(1, 3, 32, 32)])


@planted("BN003", "1")
def torch_raises() -> Case:
    return Case(perceptron(), [torch.randn(64, 4), torch.randn(1, 4)])


@planted("BN003", "1")
def our_layer_raises() -> Case:
    return Case(batchnorm.convert(perceptron(), "batch"), [torch.randn(1, 4)])


@planted("BN003", "1")
def batches_of_one() -> Case:
    return Case(perceptron(), loader(8, 1))


@planted("BN003", "")
def the_last_batch_of_many() -> Case:
    # It is not among those that are run.
    return Case(perceptron(), loader(32 * 20 + 1, 32))


@planted("BN003", "")
def a_small_last_batch() -> Case:
    return Case(perceptron(), loader(64 + 7, 64))


@planted("BN003", "")
def a_sampler_of_batches_that_keeps_the_rest() -> Case:
    data = TensorDataset(torch.randn(32 * 20 + 1, 4))
    return Case(perceptron(), DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 32, drop_last=False)))


@planted("BN003", "")
def a_last_batch_of_one_image() -> Case:
    # Of values it has enough.
    data = TensorDataset(torch.randn(16 + 1, 3, 16, 16))
    return Case(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), DataLoader(data, 16, shuffle=True))


@planted("BN003", "4")
def a_last_batch_that_raises_after_pooling() -> Case:
    # Of the layer before it enough is left.
    data = TensorDataset(torch.randn(64 + 1, 3, 16, 16))
    return Case(convolutions(), DataLoader(data, 64, shuffle=True))


@planted("BN003", "1")
def ghost_batches() -> Case:
    return Case(batchnorm.convert(perceptron(), "ghost", ghost_size=8), [torch.randn(64, 4)])


@healthy("BN003")
def the_same_without_its_last_batch() -> Case:
    return Case(perceptron(), loader(64 + 7, 64, drop_last=True))


@healthy("BN003")
def a_sampler_of_batches_that_drops_the_rest() -> Case:
    data = TensorDataset(torch.randn(64 + 7, 4))
    return Case(perceptron(), DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 64, drop_last=True)))


@healthy("BN003")
def frozen_by_a_forward_of_its_own() -> Case:
    return Case(nn.Sequential(nn.Conv2d(3, 4, 3), FrozenByForward.trained(4)), [torch.randn(1, 3, 8, 8)])


@healthy("BN003")
def a_last_batch_that_is_large_enough() -> Case:
    return Case(perceptron(), loader(128 + 33, 128))


@healthy("BN003")
def frozen() -> Case:
    model = perceptron()
    batchnorm.freeze(model)
    return Case(model, loader(64 + 1, 64))


@healthy("BN003")
def in_evaluation_mode_while_the_rest_trains() -> Case:
    model = perceptron()
    model[1].eval()
    return Case(model, [torch.randn(8, 4)])


@healthy("BN003")
def batch_renormalization() -> Case:
    return Case(batchnorm.convert(perceptron(), "renorm"), [torch.randn(8, 4)])


@healthy("BN003")
def few_samples_of_many_values() -> Case:
    return Case(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), [torch.randn(2, 3, 16, 16)])


@planted("BN003", "1", ranks=2)
def each_rank_by_itself() -> Case:
    return Case(perceptron(), [torch.randn(16, 4)])


@healthy("BN003", ranks=2)
def two_ranks_together() -> Case:
    return Case(batchnorm.convert(perceptron(), "sync"), [torch.randn(16, 4)])

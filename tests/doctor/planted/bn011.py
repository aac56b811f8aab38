"""Inverted momentum."""

from torch import nn

from doctor.plant import Case, healthy, planted


@planted("BN011", "1")
def momentum_of_keras() -> Case:
    return Case(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.99)))


@planted("BN011", "bn.0", "bn.1")
def momentum_of_tensorflow_in_all() -> Case:
    return Case(
        nn.ModuleDict({"bn": nn.ModuleList([nn.BatchNorm2d(3, momentum=0.9997), nn.BatchNorm3d(2, 1e-3, 0.9)])})
    )


@healthy("BN011")
def cumulative_average_and_half() -> Case:
    return Case(nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.BatchNorm1d(4, momentum=0.5)))


@healthy("BN011")
def no_statistics_to_average() -> Case:
    return Case(nn.Sequential(nn.BatchNorm1d(4, momentum=0.99, track_running_stats=False)))


@planted("BN011", "0", "1")
def no_average() -> Case:
    return Case(nn.Sequential(nn.BatchNorm1d(4, momentum=1.5), nn.BatchNorm1d(4, momentum=-0.1)))


@healthy("BN011")
def kept_by_a_momentum_of_zero() -> Case:
    return Case(nn.Sequential(nn.BatchNorm1d(4, momentum=0.0)))

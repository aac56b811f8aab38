"""``DomainBatchNorm1d`` / ``2d`` / ``3d``: statistics for each domain, and ``domain()`` to say which it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..activation import ActivationLike
from ..errors import ArgumentError
from ..functional import Nonfinite
from ._base import State
from ._variant import Variant

__all__ = ["DomainBatchNorm1d", "DomainBatchNorm2d", "DomainBatchNorm3d", "DomainNorm", "domain"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or "." in name or hasattr(torch.nn.ModuleDict(), name):
        raise ArgumentError(
            f"{name!r} cannot be the name of a domain.",
            "a name is a key of the state_dict: text without a dot that torch.nn.ModuleDict has no attribute of.",
        )


def _one_of(name: str, of: str) -> property:
    def get(self: DomainNorm) -> Tensor:
        found: Tensor = self.statistics[self.domain].get_buffer(of)
        return found

    def put(self: DomainNorm, value: Tensor) -> None:
        setattr(self.statistics[self.domain], of, value)

    return property(get, put, doc=f"{name} of the current domain.")


class DomainNorm(Variant):
    """What the three classes share: one module of running statistics a domain, and the name of the current one."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        domains: Iterable[str] = ("source", "target"),
        activation: ActivationLike = None,
        bias: bool = True,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        if not track_running_stats:
            raise ArgumentError(
                "track_running_stats=False leaves nothing for a domain to have of its own.",
                "keep the running statistics, or use a plain layer.",
            )
        names = [domains] if isinstance(domains, str) else list(domains)
        if not names or len(set(names)) != len(names):
            raise ArgumentError(
                f"domains={names} has no name, or one twice.", 'give different names: ("day", "night").'
            )
        for name in names:
            _check_name(name)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            device=device,
            dtype=dtype,
            activation=activation,
            bias=bias,
            nonfinite=nonfinite,
        )
        first = torch.nn.Module()
        for each in _STATISTICS:
            first.register_buffer(each, self._buffers.pop(each))
        self.statistics = torch.nn.ModuleDict({names[0]: first})
        self._domain = names[0]
        for name in names[1:]:
            self.add_domain(name)

    # Of the current domain, for whoever looks for them where torch's layers have them.
    running_mean = _one_of("The running mean", "running_mean")
    running_var = _one_of("The running variance", "running_var")
    num_batches_tracked = _one_of("The count of batches", "num_batches_tracked")

    @property
    def domains(self) -> tuple[str, ...]:
        """The names, in the order in which they were added."""
        return tuple(self.statistics)

    @property
    def domain(self) -> str:
        """The name of the domain whose statistics the layer uses and moves; :func:`batchnorm.domain` changes it."""
        return self._domain

    @domain.setter
    def domain(self, name: str) -> None:
        if name not in self.statistics:
            raise ArgumentError(f"there is no domain {name!r}, only {self.domains}.", f"add_domain({name!r}) adds one.")
        self._domain = name

    def add_domain(self, name: str, like: str | None = None) -> None:
        """Add a domain; the current one stays the current one.

        Args:
            name: Its name.
            like: The domain whose statistics it begins with; None for those of no batches: mean 0, variance 1.

        Raises:
            ArgumentError: A name that is taken or cannot be one, or a ``like`` that there is not.
        """
        _check_name(name)
        if name in self.statistics:
            raise ArgumentError(f"there is a domain {name!r} already.", "choose another name.")
        if like is not None and like not in self.statistics:
            raise ArgumentError(f"there is no domain {like!r}, only {self.domains}.", "name one of them, or None.")
        statistics = torch.nn.Module()
        pattern = self.statistics[self.domain if like is None else like]
        for each in _STATISTICS:
            statistics.register_buffer(each, pattern.get_buffer(each).detach().clone())
        if like is None:
            _reset(statistics)
        statistics.train(self.training)
        self.statistics[name] = statistics

    def reset_running_stats(self) -> None:
        """Those of every domain become those of no batches: mean 0, variance 1."""
        if "statistics" not in self._modules:  # while torch's class is building the layer
            super().reset_running_stats()
            return
        for statistics in self.statistics.values():
            _reset(statistics)

    def _state(self) -> State:
        own = self.statistics[self._domain]
        return self.weight, self.bias, own.running_mean, own.running_var, own.num_batches_tracked  # type: ignore[return-value]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *others: Any) -> None:
        for each in _STATISTICS:
            shared = state_dict.pop(prefix + each, None)
            for name, statistics in self.statistics.items():
                # Checkpoints of torch's from before it counted have no count; each domain has memory of its own.
                value = shared
                if value is None and each == "num_batches_tracked" and (local_metadata.get("version") or 1) < 2:
                    value = statistics.get_buffer(each)
                if value is not None:
                    state_dict.setdefault(f"{prefix}statistics.{name}.{each}", value.clone())
        # Not torch's class in between, which would look for its own three.
        torch.nn.Module._load_from_state_dict(self, state_dict, prefix, local_metadata, *others)

    def extra_repr(self) -> str:
        """As the plain layer's, and the domains, the current one too."""
        return f"{super().extra_repr()}, domains={self.domains}, domain={self.domain!r}"

    def __repr__(self) -> str:
        # One line, as of any norm: the modules inside have nothing to show.
        return f"{self._get_name()}({self.extra_repr()})"


def _reset(statistics: torch.nn.Module) -> None:
    statistics.get_buffer("running_mean").zero_()
    statistics.get_buffer("running_var").fill_(1)
    statistics.get_buffer("num_batches_tracked").zero_()


@contextmanager
def domain(model: torch.nn.Module, name: str) -> Iterator[None]:
    """Within it, every :class:`DomainBatchNorm1d` / ``2d`` / ``3d`` of a model uses the statistics of ``name``.

    On leaving it, by whatever way, each layer is back in the domain it was in before. It may be nested. The backward
    pass may run outside, but for a region of activation checkpointing whose layers are in evaluation mode: it is
    computed again by the statistics that are current then.

    Args:
        model: A network with such layers, or such a layer.
        name: One of the names that the layers were built with, or that ``add_domain`` gave them.

    Raises:
        ArgumentError: No such layer, or layers that have no domain of this name. Nothing has changed then.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), DomainBatchNorm1d(3, domains=("day", "night")))
        >>> with domain(model, "night"):
        ...     _ = model(torch.randn(8, 4))
        >>> {key: int(value) for key, value in model.state_dict().items() if key.endswith("tracked")}
        {'1.statistics.day.num_batches_tracked': 0, '1.statistics.night.num_batches_tracked': 1}
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, DomainNorm)}
    if not layers:
        raise ArgumentError(
            f"the {type(model).__name__} has no layer with domains.", 'convert(model, "domain") puts them there.'
        )
    without = {path: layer.domains for path, layer in layers.items() if name not in layer.statistics}
    if without:
        listed = ", ".join(f"{path or type(model).__name__} has {names}" for path, names in without.items())
        raise ArgumentError(f"layers without a domain {name!r}: {listed}.", f"add_domain({name!r}) adds one.")
    before = [(layer, layer.domain) for layer in layers.values()]
    try:
        for layer, _ in before:
            layer.domain = name
        yield
    finally:
        for layer, former in before:
            layer._domain = former


class DomainBatchNorm1d(DomainNorm):
    r"""Batch normalization of (N, C) or (N, C, L) input with running statistics for each of several domains.

    .. math:: y = \mathrm{activation}\left(\frac{x - \mu_k}{\sqrt{\sigma_k^2 + \epsilon}} \cdot \gamma + \beta
              + \mathrm{residual}\right)

    In training :math:`\mu_k` and :math:`\sigma_k^2` are the batch's moments, as in :class:`BatchNorm1d`, and they move
    the running statistics of the current domain :math:`k` alone; evaluation normalises by those. Gamma and beta are
    shared (Li et al. 2016, "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv 1603.04779; Chang
    et al. 2019, arXiv 1906.03950, separate them too). A batch is of one domain: :func:`batchnorm.domain` says of which.

    ``state_dict`` has ``weight``, ``bias`` and, for each domain, ``statistics.NAME.running_mean``, ``running_var`` and
    ``num_batches_tracked``. A checkpoint of a layer without domains loads into all of them. ``running_mean``,
    ``running_var`` and ``num_batches_tracked`` of the layer are those of the current domain. It is never a torch
    ``BatchNorm1d``: what replaces those by their class would keep one domain.

    Args:
        num_features: C, the size of dimension 1.
        eps: Added to the variance, inside the root.
        momentum: The weight of the new batch in the current domain's statistics; ``None`` for the cumulative average.
        affine: Whether gamma (``weight``) and beta (``bias``) exist.
        track_running_stats: True; without running statistics domains have nothing of their own.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers. Half-precision input takes float32 ones.
        domains: The names; the first one is current at first. ``add_domain(name, like=None)`` adds more.
        activation: A name, an :class:`batchnorm.Activation`, a torch activation module, or ``None``.
        bias: ``False`` leaves out beta.
        nonfinite: ``"skip"`` or ``"propagate"``.

    Shape:
        - input, residual: (N, C) or (N, C, L); output: the same shape and dtype.
        - mask: bool, (N,) or (N, L), True where valid: elsewhere the output is 0.

    Raises:
        ArgumentError: No domain, one twice, a name with a dot, ``track_running_stats=False``.
        ShapeError: Another number of dimensions or channels, a residual or a mask that does not fit.
        TooFewValuesError: One value a channel in training.
        DtypeError: Input that is not floating point.

    Example:
        >>> layer = DomainBatchNorm1d(2, momentum=1.0)
        >>> _ = layer(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        >>> layer.domain, layer.running_mean
        ('source', tensor([1., 2.]))
        >>> with domain(layer, "target"):
        ...     layer.running_mean
        tensor([0., 0.])
    """

    dims = (2, 3)


class DomainBatchNorm2d(DomainNorm):
    """:class:`DomainBatchNorm1d` for (N, C, H, W) input.

    Shape:
        - input, residual: (N, C, H, W), any strides, which the output keeps.
        - mask: bool, (N, H, W), True where valid.

    Example:
        >>> layer = DomainBatchNorm2d(8, domains=("day",))
        >>> layer.add_domain("night", like="day")
        >>> layer.domains
        ('day', 'night')
    """

    dims = (4,)


class DomainBatchNorm3d(DomainNorm):
    """:class:`DomainBatchNorm1d` for (N, C, D, H, W) input.

    Shape:
        - input, residual: (N, C, D, H, W), any strides, which the output keeps.
        - mask: bool, (N, D, H, W), True where valid.

    Example:
        >>> DomainBatchNorm3d(2, activation="relu")(torch.randn(2, 2, 3, 4, 5)).shape
        torch.Size([2, 2, 3, 4, 5])
    """

    dims = (5,)

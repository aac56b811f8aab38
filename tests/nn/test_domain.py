"""What only layers with domains do, and ``domain()``."""

import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import batchnorm
from batchnorm.errors import ArgumentError


def layer(**arguments: object) -> batchnorm.DomainBatchNorm1d:
    return batchnorm.DomainBatchNorm1d(3, **{"domains": ("day", "night"), **arguments})


def batch(shift: float) -> torch.Tensor:
    return torch.randn(16, 3) + shift


def statistics(norm: torch.nn.Module, name: str) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in norm.statistics[name].buffers()]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_each_domain_is_a_layer_of_its_own_but_for_gamma_and_beta() -> None:
    norm, alone = layer(), {name: torch.nn.BatchNorm1d(3) for name in ("day", "night")}
    for step in range(6):
        name = ("day", "night")[step % 2]
        x = batch(10.0 * (step % 2))
        with batchnorm.domain(norm, name):
            torch.testing.assert_close(norm(x), alone[name](x))
    x = batch(5.0)
    norm.eval()
    for name, other in alone.items():
        with batchnorm.domain(norm, name):
            torch.testing.assert_close(norm(x), other.eval()(x))
            torch.testing.assert_close(norm.running_var, other.running_var)
            assert int(norm.num_batches_tracked) == 3
    assert {name for name, _ in norm.named_parameters()} == {"weight", "bias"}


def test_it_is_never_a_torch_batch_norm() -> None:
    assert not isinstance(layer(), _BatchNorm)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_follows_the_domain(backend: str) -> None:
    torch._dynamo.reset()
    norm, plain = layer(), layer()
    compiled = torch.compile(norm, fullgraph=True, backend=backend)
    for step, name in enumerate(("day", "night", "night", "day")):
        x = batch(4.0 * step)
        with batchnorm.domain(norm, name), batchnorm.domain(plain, name):
            torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())


def test_domain_nests_and_restores_on_every_way_out() -> None:
    model = torch.nn.Sequential(layer(), torch.nn.Sequential(layer(), torch.nn.Linear(3, 3)))
    model[0].domain = "night"

    def now() -> list[str]:
        return [model[0].domain, model[1][0].domain]

    with batchnorm.domain(model, "night"):
        assert now() == ["night", "night"]
        with batchnorm.domain(model[1], "day"):
            assert now() == ["night", "day"]
        assert now() == ["night", "night"]
        model[0].domain = "day"
    assert now() == ["night", "day"]
    with pytest.raises(KeyboardInterrupt), batchnorm.domain(model, "night"):
        raise KeyboardInterrupt
    assert now() == ["night", "day"]


def test_domain_names_the_layers_that_do_not_know_the_name() -> None:
    model = torch.nn.Sequential(layer(), layer(domains=("day",)), layer(domains=("dusk",)))
    with pytest.raises(ArgumentError, match=r"'night': 1 has \('day',\), 2 has \('dusk',\)"):
        batchnorm.domain(model, "night").__enter__()
    assert [norm.domain for norm in model] == ["day", "day", "dusk"]
    with pytest.raises(ArgumentError, match="no layer with domains"):
        batchnorm.domain(torch.nn.Linear(3, 3), "night").__enter__()
    with pytest.raises(ArgumentError, match="no domain 'dusk'"):
        model[0].domain = "dusk"


@pytest.mark.parametrize("domains", [(), ("a", "a"), ("a.b",), ("",), (3,), ("train",), ("items",), ("training",)])
def test_names_that_cannot_be(domains: tuple[object, ...]) -> None:
    with pytest.raises(ArgumentError, match="name"):
        layer(domains=domains)


def test_a_single_text_is_one_name() -> None:
    assert layer(domains="day").domains == ("day",)


def test_add_domain_begins_with_anothers_statistics() -> None:
    norm = layer().double()
    norm(batch(3.0).double())
    norm.add_domain("dusk", like="day")
    norm.add_domain("dawn")
    assert norm.domains == ("day", "night", "dusk", "dawn")
    assert norm.domain == "day"
    assert same(statistics(norm, "dusk"), statistics(norm, "day"))
    assert same(statistics(norm, "dawn"), statistics(norm, "night"))
    assert norm.statistics["dawn"].running_mean.dtype == torch.float64
    before = statistics(norm, "day")
    with batchnorm.domain(norm, "dusk"):
        norm(batch(9.0).double())
    assert same(statistics(norm, "day"), before)
    for name, like in (("day", None), ("noon", "midnight"), ("a.b", None)):
        with pytest.raises(ArgumentError):
            norm.add_domain(name, like)
    assert len(norm.domains) == 4


def test_checkpoints() -> None:
    plain = torch.nn.BatchNorm1d(3)
    plain(batch(7.0))
    expected = [buffer.clone() for buffer in plain.buffers()]
    model = torch.nn.Sequential(layer())
    model.load_state_dict(torch.nn.Sequential(plain).state_dict(), assign=True)
    for name in ("day", "night"):
        assert same(statistics(model[0], name), expected)
    with batchnorm.domain(model, "night"):  # assigned, and yet each its own
        model(batch(-7.0))
    assert same(statistics(model[0], "day"), expected)
    # Without metadata, as other file formats have it.
    other = torch.nn.Sequential(layer())
    other.load_state_dict(dict(model.state_dict()))
    assert same(statistics(other[0], "night"), statistics(model[0], "night"))
    one = {name: value for name, value in model.state_dict().items() if "night" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*night.running_mean"):
        other.load_state_dict(one)
    old = {f"0.{name}": value for name, value in plain.state_dict().items() if name != "num_batches_tracked"}
    other.load_state_dict(old)
    assert torch.equal(other[0].statistics["night"].running_mean, plain.running_mean)


def test_all_domains_move_and_reset_together() -> None:
    norm = layer()
    for name in norm.domains:
        with batchnorm.domain(norm, name):
            norm(batch(3.0))
    other = copy.deepcopy(norm)
    assert {buffer.dtype for buffer in norm.half().buffers()} == {torch.float16, torch.int64}
    assert {buffer.device.type for buffer in layer(device="meta").buffers()} == {"meta"}
    other.reset_parameters()
    for name in other.domains:
        assert same(statistics(other, name), list(torch.nn.BatchNorm1d(3).buffers()))
    replaced = torch.full((3,), 5.0)
    other.running_mean = replaced
    assert other.statistics["day"].running_mean is replaced
    assert dict(other.named_buffers())["statistics.day.running_mean"] is replaced


def test_the_repr_names_the_domains_in_one_line() -> None:
    text = repr(layer(activation="relu"))
    assert "\n" not in text
    assert "domains=('day', 'night'), domain='day'" in text

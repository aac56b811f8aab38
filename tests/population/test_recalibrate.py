"""``recalibrate``: what comes out is the moments of all that reaches a layer, and nothing else has changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import batchnorm
from batchnorm import recalibrate
from batchnorm.errors import ArgumentError
from batchnorm.population import NonfiniteError, pool
from batchnorm.population.progress import report
from population.recalibrate_tools import ORDERS, close, expected, images, network, picture

TORCH, OURS, FUSING = torch.nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.FusingBatchNorm2d


@pytest.fixture
def model():
    made = network()
    made[1].running_mean.fill_(3.0)
    made[5].running_var.fill_(7.0)
    return made


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("norm", [TORCH, OURS, FUSING, batchnorm.GhostBatchNorm2d, batchnorm.BatchRenorm2d])
def test_the_statistics_are_those_of_all_values(norm, order):
    model, x = network(norm), images(23)
    recalibrate(model, x.split(5), order=order)
    assert close(model[1], expected([model[0](x).detach()]))
    if order == "layer-by-layer":
        assert close(model[5], expected([model[:5].eval()(x).detach()]))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 22), max_size=5), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_layer_by_layer_does_not_depend_on_the_batches(cuts, dtype):
    torch.manual_seed(0)
    model, x = network().to(dtype), images(23).to(dtype)
    whole = copy.deepcopy(model)
    recalibrate(whole, x, order="layer-by-layer")
    recalibrate(model, torch.tensor_split(x, sorted(cuts)), order="layer-by-layer")
    for one, other in zip(model.state_dict().items(), whole.state_dict().items(), strict=True):
        if "num_batches" not in one[0]:
            torch.testing.assert_close(one[1], other[1], rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1),
    shift=st.sampled_from([0.0, 1e4]),
    spatial=st.sampled_from([(), (3,), (2, 3), (2, 1, 2)]),
    order=st.sampled_from(ORDERS),
    masked=st.booleans(),
)
def test_the_first_norm_is_exact(sizes, shift, spatial, order, masked):
    torch.manual_seed(1)
    kinds = {0: batchnorm.BatchNorm1d, 1: batchnorm.BatchNorm1d, 2: OURS, 3: batchnorm.BatchNorm3d}
    norm = kinds[len(spatial)](3).double()
    parts = [torch.randn(size, 3, *spatial, dtype=torch.float64) * 1e-2 + shift for size in sizes]
    masks = [torch.rand(len(part), *spatial) < 0.7 for part in parts]
    masks[max(range(len(sizes)), key=sizes.__getitem__)][:] = True
    batches = [{"input": part, "mask": mask} if masked else part for part, mask in zip(parts, masks, strict=True)]
    chosen = [part.movedim(1, -1)[mask] if masked else part for part, mask in zip(parts, masks, strict=True)]
    if sum(part.numel() // 3 for part in chosen) < 2:
        return
    recalibrate(norm, batches, order=order)
    values = torch.cat([part.movedim(1, -1).reshape(-1, 3) if not masked else part for part in chosen])
    np.testing.assert_allclose(norm.running_mean, values.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(norm.running_var, values.var(0), rtol=1e-8)
    assert int(norm.num_batches_tracked) == sum(size > 0 for size in sizes)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(9, 3, 7, 7), (1, 3, 40, 5), (1, 3, 5, 4, 30), (50, 3)])
def test_values_are_converted_in_parts(monkeypatch, shape, masked):
    """One large sample too."""
    monkeypatch.setattr(pool, "_CHUNK", 50)
    x, mask = torch.randn(shape), torch.rand(shape[0], *shape[2:]) < 0.6
    found = pool.moments_of(x, mask if masked else None)
    sizes = [part.numel() for part, _ in pool._parts(x, None)]
    assert max(sizes) <= 50
    assert sum(sizes) == x.numel()
    values = x.movedim(1, -1)[mask] if masked else x.movedim(1, -1).reshape(-1, 3)
    assert int(found[0]) == len(values)
    np.testing.assert_allclose(found[1], values.double().mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found[2], values.double().var(0, correction=0), rtol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_half_precision_is_summed_in_double(order):
    model, x = torch.nn.Sequential(OURS(2).bfloat16()), images(40).bfloat16()
    model[0].running_mean, model[0].running_var = torch.zeros(2), torch.ones(2)
    recalibrate(model, x.split(1), order=order)
    assert close(model[0], expected([x]))


@pytest.mark.parametrize("order", ORDERS)
def test_only_running_statistics_change(model, order):
    model[4].eval()
    model[5].momentum = None
    model[1].register_forward_pre_hook(lambda *_: None)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    x = images(12)
    before, random = picture(model), torch.get_rng_state()
    recalibrate(model, x.split(5), order=order)
    after = picture(model)
    assert after[1] == before[1]
    changed = {one[0] for one, other in zip(after[0], before[0], strict=True) if one != other}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{index}.{name}" for index in (1, 5) for name in statistics}
    assert int(model[5].num_batches_tracked) == 3
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", ["eval", "momentum", "freeze", "track"])
def test_frozen_layers_stay_and_are_used(model, order, how):
    if how == "eval":
        model[1].eval()
    elif how == "momentum":
        model[1].momentum = 0.0
    elif how == "freeze":
        batchnorm.freeze(model, where=lambda path, layer: path == "1")
    else:
        model[1] = torch.nn.BatchNorm2d(3, track_running_stats=False)
    mode, x = model[1].training, images(20)
    before = copy.deepcopy(model[1].state_dict())
    done = recalibrate(model, [x], order=order)
    assert [each.layer for each in done.layers] == ["5"]
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())
    assert model[1].training == mode
    assert close(model[5], expected([model[:5].eval()(x).detach()]))


def test_a_frozen_layer_is_asked_for_no_mode(model):
    batchnorm.freeze(model, where=lambda path, layer: path == "1")
    recalibrate(model, images(4))
    batchnorm.unfreeze(model)
    assert model[1].training


def test_a_model_in_evaluation_mode_is_not_frozen(model):
    assert len(recalibrate(model.eval(), images(4)).layers) == 2
    assert not any(module.training for module in model.modules())


class Pairs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, input, scale=1.0):
        return self.norm(input * scale)


@pytest.mark.parametrize(
    ("batches", "forward"),
    [
        (lambda x: x, None),
        (lambda x: [x[:3], x[3:]], None),
        (lambda x: [(x[:3], None), [x[3:], 0]], None),
        (lambda x: [{"input": x, "scale": 1.0}], None),
        (lambda x: [({"input": x}, 0)], None),
        (lambda x: (x[:3], x[3:]), None),
        (lambda x: iter([x]), None),
        (lambda x: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4), None),
        (lambda x: [(None, x)], lambda model, batch: model(batch[1])),
    ],
)
def test_any_batch(batches, forward):
    model, x = Pairs(), torch.randn(9, 2)
    done = recalibrate(model, batches(x), forward=forward)
    assert close(model.norm, expected([x]))
    assert done.samples == 9


def test_samples_that_cannot_be_counted():
    model, x = Pairs(), torch.randn(9, 2)
    batch = type("Graph", (), {"x": x})()
    with pytest.raises(ArgumentError, match="not clear how the model takes it"):
        recalibrate(model, [batch])
    done = recalibrate(model, [batch], forward=lambda model, batch: model(batch.x))
    assert done.samples is None
    assert "samples" not in str(done)
    with pytest.raises(ArgumentError, match="cannot be counted"):
        recalibrate(model, [batch], forward=lambda model, batch: model(batch.x), max_samples=3)
    with pytest.raises(ArgumentError, match="cannot be counted"):
        batchnorm.adapt(model, [batch], forward=lambda model, batch: model(batch.x), prior=3)


@pytest.mark.parametrize("order", ORDERS)
def test_max_samples_ends_after_the_batch_that_reaches_it(order):
    model, x = Pairs(), torch.randn(20, 2)
    done = recalibrate(model, x.split(4), max_samples=6, order=order)
    assert done.samples == 8
    assert close(model.norm, expected([x[:8]]))


@pytest.mark.parametrize(("size", "masked"), [(64, False), (32, False), (31, False), (8, False), (64, True)])
def test_one_pass_normalises_by_the_batch_where_that_is_enough(size, masked):
    """Beside a single norm before it, the second one's statistics are those of what the rule makes of each batch."""
    first, last = batchnorm.BatchNorm1d(2).double(), batchnorm.BatchNorm1d(2).double()
    x = torch.randn(128, 2, dtype=torch.float64) * torch.linspace(1, 5, 128).unsqueeze(1)
    seen = []
    kept = torch.arange(size) < 20  # of 64, too few

    def forward(model, batch):
        mask = kept[: len(batch)] if masked else None
        seen.append(model[0](batch, mask).detach())
        model[1](seen[-1])

    model, parts = torch.nn.ModuleList([first, last]), x.split(size)
    recalibrate(model, parts, forward=forward)
    for index, part in enumerate(parts):
        if size >= 32 and not masked and len(part) >= 32:
            of = part
        else:
            of = torch.cat([each[kept[: len(each)]] if masked else each for each in parts[: index + 1]])
        wanted = (part - of.mean(0)) / (of.var(0) + 1e-5).sqrt()
        chosen = kept[: len(part)] if masked else slice(None)
        torch.testing.assert_close(seen[index][chosen], wanted[chosen], rtol=1e-8, atol=1e-8)
    assert close(last, expected(seen))


class Shared(torch.nn.Module):
    """One norm, called twice, and another after it."""

    def __init__(self):
        super().__init__()
        self.shared, self.last = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)

    def forward(self, x):
        first = self.shared(x)
        return self.last(self.shared(5 * first + 3) ** 2)


@pytest.mark.parametrize("order", ORDERS)
def test_a_shared_layer_is_pooled_over_its_calls(order):
    model, x = Shared(), torch.randn(40, 2, dtype=torch.float64)
    model.double()
    done = recalibrate(model, x.split(9), order=order)
    assert [each.values for each in done.layers] == [80, 40]
    assert int(model.shared.num_batches_tracked) == 10
    if order == "layer-by-layer":
        z = (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()
        assert close(model.shared, expected([x, 5 * z + 3]), 1e-9)
        seen = []
        model.last.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
        model.eval()(x)
        assert close(model.last, expected(seen), 1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_a_layer_that_no_batch_reaches_stays_and_is_named(model, order):
    model = torch.nn.ModuleDict({"body": model, "head": torch.nn.BatchNorm1d(3)})
    with pytest.warns(UserWarning, match="no batch reached head"):
        done = recalibrate(model, images(5).split(2), forward=lambda model, batch: model["body"](batch), order=order)
    assert done.unreached == ("head",)
    assert int(model["head"].num_batches_tracked) == 0
    assert torch.equal(model["head"].running_var, torch.ones(3))


def test_batches_of_one_sample():
    model, x = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)), torch.randn(11, 3)
    for order in ORDERS:
        recalibrate(model, x.split(1), order=order)
        assert close(model[0], expected([x]))


def test_a_domain_of_its_own():
    model, x = torch.nn.Sequential(batchnorm.DomainBatchNorm1d(2)), torch.randn(9, 2)
    source = copy.deepcopy(model[0].statistics["source"].state_dict())
    with batchnorm.domain(model, "target"):
        recalibrate(model, x)
        assert close(model[0], expected([x]))
    assert all(torch.equal(value, source[name]) for name, value in model[0].statistics["source"].state_dict().items())

    def switched(model, batch):
        with batchnorm.domain(model, "target"):
            model(batch)

    with pytest.raises(ArgumentError, match="of another domain"):
        recalibrate(model, x, forward=switched)


def test_inference_mode_leaves_ordinary_buffers(model):
    with torch.inference_mode():
        recalibrate(model, images(9).split(4))
    assert not model[1].running_mean.is_inference()
    model.train()(images(9)).sum().backward()


def test_buffers_of_inference_mode():
    with torch.inference_mode():
        model = network()
    x = images(9)
    recalibrate(model, x)
    with torch.no_grad():
        assert close(model[1], expected([model[0](x)]))


@pytest.mark.parametrize("wrap", ["compile", "inner", "in place", "parallel"])
def test_what_is_wrapped_is_recalibrated_inside(model, wrap):
    x, compiled = images(9), []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    plain, given = copy.deepcopy(model), model
    if wrap == "compile":
        given = torch.compile(model, backend=backend)
    elif wrap == "inner":
        given = torch.nn.Sequential(torch.compile(model, backend=backend))
    elif wrap == "in place":
        model.compile(backend=backend)
    else:
        given = torch.nn.DataParallel(model)
    given(x)
    before = len(compiled)
    recalibrate(given, x.split(4))
    recalibrate(plain, x.split(4))
    assert len(compiled) == before, "compiled again for the hooks"
    assert torch.equal(model[5].running_var, plain[5].running_var)


def test_autocast_and_the_model_as_a_norm_itself():
    norm, x = torch.nn.BatchNorm1d(2), torch.randn(9, 2)
    with torch.autocast("cpu", torch.bfloat16):
        done = recalibrate(norm, x)
    assert close(norm, expected([x]))
    assert "(the model itself)" in str(done)


@pytest.mark.parametrize(
    ("change", "batches", "arguments", "message"),
    [
        (None, [], {}, "batches is empty"),
        (None, iter([]), {}, "batches is empty"),
        (None, [], {"order": "layer-by-layer"}, "batches is empty"),
        (None, 7, {}, "cannot be iterated"),
        (None, torch.utils.data.TensorDataset(torch.zeros(2, 2)), {}, "is a data set"),
        (None, "x", {"max_samples": 0}, "max_samples is 0"),
        (None, "x", {"max_samples": 7}, "ended after 6 of max_samples=7"),
        (None, "x", {"order": "two-pass"}, "order is 'two-pass'"),
        (None, iter([torch.zeros(3, 2)]), {"order": "layer-by-layer"}, "can be iterated once"),
        (None, torch.zeros(1, 2), {}, "1 value a channel"),
        (lambda model: torch.nn.LayerNorm(2), "x", {}, "no batch norm whose statistics"),
        (lambda model: (batchnorm.freeze(model), model)[1], "x", {}, "all 1 are frozen .* unfreeze"),
        (lambda model: torch.nn.Sequential(torch.nn.Linear(2, 2), model.eval()), "x", {}, "frozen .*with model.eval"),
        (lambda model: torch.nn.BatchNorm1d(2, momentum=0.0), "x", {}, "frozen .*a momentum"),
        (lambda model: torch.nn.BatchNorm1d(0), "x", {}, "no batch norm whose statistics"),
        (None, [{"image": torch.zeros(3, 2)}], {}, "a dict of image, and the model's .*forward=lambda"),
        (lambda model: torch.jit.trace(model, torch.zeros(2, 2)), "x", {}, "is scripted"),
        (lambda model: torch.nn.LazyBatchNorm1d(), "x", {}, "has no values yet"),
        (lambda model: model.to("meta"), "x", {}, "has no values yet"),
        (None, "x", {"forward": lambda model, batch: batch}, "no batch reached any of norm"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_is_refused(change, batches, arguments, message):
    model = Pairs()
    before = picture(model)
    given = model if change is None else change(copy.deepcopy(model))
    with pytest.raises(ArgumentError, match=message):
        recalibrate(given, torch.randn(6, 2) if isinstance(batches, str) else batches, **arguments)
    assert picture(model) == before


@pytest.mark.parametrize("order", ORDERS)
def test_a_norm_without_channels_is_passed_over(order):
    model, x = torch.nn.ModuleList([batchnorm.BatchNorm1d(0), torch.nn.BatchNorm1d(2)]), torch.randn(5, 2)
    done = recalibrate(model, x, forward=lambda model, batch: (model[0](batch[:, :0]), model[1](batch)), order=order)
    assert [each.layer for each in done.layers] == ["1"]
    assert done.unreached == ()


@pytest.mark.parametrize("order", ORDERS)
def test_the_input_is_no_first_keyword(order):
    class Masked(Pairs):
        def __init__(self):
            super().__init__()
            self.norm = OURS(2)

        def forward(self, input):
            return self.norm(mask=input[:, 0, :, :] > 0, input=input)

    model, x = Masked(), images(5)
    recalibrate(model, x, order=order)
    assert close(model.norm, expected([x.movedim(1, -1)[x[:, 0] > 0]]))


@pytest.mark.parametrize("wrap", ["averaged", "module", "compiled"])
def test_the_mode_of_a_wrapper_freezes_nothing(model, wrap):
    wrappers = {
        "averaged": torch.optim.swa_utils.AveragedModel,
        "module": torch.nn.Sequential,
        "compiled": torch.compile,
    }
    given = wrappers[wrap](model.eval()).train(False)
    given.training = True
    assert len(recalibrate(given, images(5)).layers) == 2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_named(model, order, bad):
    x = images(12)
    x[9, 0, 3, 3] = bad
    before = picture(model)
    with pytest.raises(NonfiniteError, match=r"batch 2 gives 1 \(BatchNorm2d\)"):
        recalibrate(model, x.split(4), order=order)
    assert picture(model) == before


def test_statistics_too_large_for_the_buffers():
    norm = torch.nn.BatchNorm1d(1).half()
    with pytest.raises(NonfiniteError, match=r"too large for its buffers' torch.float16"):
        recalibrate(norm, torch.tensor([[-3e4], [3e4]]), forward=lambda model, batch: model(batch.half()))
    assert torch.equal(norm.running_var, torch.ones(1).half())


class Turns(torch.nn.Module):
    """Two norms in an order that the data decides."""

    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)])

    def forward(self, x):
        first, second = self.norms if x[0, 0] > 0 else reversed(self.norms)
        return second(first(x))


def test_layer_by_layer_wants_one_order_of_calls():
    model, batches = Turns(), [torch.rand(4, 2), -torch.rand(4, 2)]
    before = picture(model)
    with pytest.raises(ArgumentError, match="not every batch calls the norms in the order"):
        recalibrate(model, batches, order="layer-by-layer")
    assert picture(model) == before
    assert [each.values for each in recalibrate(model, batches).layers] == [8, 8]


class Catches(Pairs):
    def forward(self, input):
        try:
            return super().forward(input)
        except:  # noqa: E722
            return input


def test_layer_by_layer_passes_through_code_that_catches_exceptions():
    class Careful(Pairs):
        def forward(self, input):
            try:
                return super().forward(input)
            except Exception:
                return None

    x = torch.randn(6, 2)
    model = Careful()
    recalibrate(model, x, order="layer-by-layer")
    assert close(model.norm, expected([x]))
    with pytest.raises(ArgumentError, match="catches what should leave"):
        recalibrate(Catches(), x.split(3), order="layer-by-layer")


class Once:
    """Can be iterated once, and is no iterator: what ``tqdm`` makes of a generator."""

    def __init__(self, parts):
        self.parts = iter(parts)

    def __iter__(self):
        yield from self.parts


def test_layer_by_layer_sees_the_first_batch_of_what_can_be_iterated_once(model):
    norm, x = torch.nn.BatchNorm1d(2), torch.randn(9, 2)
    done = recalibrate(norm, Once(x.split(3)), order="layer-by-layer")
    assert (done.batches, done.passes) == (3, 1)
    assert close(norm, expected([x]))
    before = picture(model)
    with pytest.raises(ArgumentError, match="pass 2 had 0 batches"):
        recalibrate(model, Once(images(9).split(3)), order="layer-by-layer")
    assert picture(model) == before


def test_layer_by_layer_wants_the_same_data_every_time(model):
    class Shrinking:
        size = 5

        def __iter__(self):
            self.size -= 1
            return iter([images(self.size)])

    before = picture(model)
    with pytest.raises(ArgumentError, match="pass 2 had 1 batches and 3 samples, and the first 1 and 4"):
        recalibrate(model, Shrinking(), order="layer-by-layer")
    assert picture(model) == before


def test_progress(model, capsys):
    calls = []
    recalibrate(model, images(4).split(2), order="layer-by-layer", progress=lambda *args: calls.append(args))
    assert calls == [(1, 2, 1, 2), (2, 2, 1, 2), (1, 2, 2, 2), (2, 2, 2, 2)]
    recalibrate(model, images(4).split(2), progress=True)
    assert capsys.readouterr().err.endswith("recalibrate: batch 2 of 2\n")
    recalibrate(model, iter(images(4).split(2)), progress=True)
    assert capsys.readouterr().err.endswith("recalibrate: batch 2\n")
    assert report(True, "recalibrate", rank=1) is None
    batchnorm.adapt(model, images(4).split(2), max_samples=3, progress=True)
    assert capsys.readouterr().err.endswith("adapt: batch 2\n")
    calls.clear()
    recalibrate(model, iter(images(4).split(2)), progress=lambda *args: calls.append(args))
    assert calls == [(1, None, 1, 1), (2, None, 1, 1)]


def test_the_result_says_how_far_statistics_moved():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2, eps=1e-12))
    model[0].running_var.fill_(4.0)
    done = recalibrate(model, torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    (moved,) = done.layers
    assert (moved.layer, moved.kind, moved.values) == ("0", "BatchNorm1d", 2)
    assert moved.mean_shift == pytest.approx(1.0)
    assert moved.variance_ratio == pytest.approx((0.0, 0.5))
    assert str(done).splitlines()[-1] == "1 batches of 2 samples, one-pass, 1 pass"


def test_a_process_group_needs_torch_distributed():
    with pytest.raises(ArgumentError, match="not initialised"):
        recalibrate(network(), images(4), process_group=object())

"""One look at a model: what it sees, on whatever a user may have, and that everything comes back."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import doctor
from batchnorm.doctor.collect import collect
from batchnorm.doctor.evidence import Evidence, Settings
from batchnorm.doctor.rule import Need
from batchnorm.doctor.static import of_tensors
from batchnorm.errors import ArgumentError
from doctor.pictures import around, picture

UNTRACED = frozenset(Need) - {Need.GRAPH}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 2, 3))


def images(number: int = 3, samples: int = 4) -> list[Tensor]:
    return [torch.randn(samples, 2, 6, 6) for _ in range(number)]


def looked_at(model: nn.Module, needs: frozenset[Need] = UNTRACED, **options: Any) -> Evidence:
    """The evidence, where everything came back."""
    before = picture(model), around()
    evidence = collect(model, needs=needs, **options)
    assert (picture(model), around()) == before
    return evidence


# --- what is seen ---


def test_what_is_seen_of_a_network() -> None:
    model, batches = network(), images()
    evidence = looked_at(model, frozenset(Need), batches=batches)
    (layer,) = evidence.layers
    inputs = torch.cat([model[0](batch) for batch in batches]).double()
    mean, var = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), unbiased=False)
    for run in (layer.in_training, layer.in_evaluation):
        assert run is not None
        assert run.count == inputs[:, 0].numel()
        torch.testing.assert_close(run.mean, mean.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run.var, var.detach(), rtol=1e-5, atol=1e-6)
        assert [call.batch for call in run.calls] == [0, 1, 2]
        assert [call.shape for call in run.calls] == [(4, 4, 4, 4)] * 3
        assert run.input.total == run.standardized.total == run.output.total == inputs.numel()
    assert [call.by_batch and call.moved for call in layer.in_training.calls] == [True] * 3
    assert [call.by_batch or call.moved for call in layer.in_evaluation.calls] == [False] * 3
    assert evidence.training.tracked == {"1": 1}
    assert evidence.training.moved == {"1"}
    assert evidence.evaluation.moved == frozenset()
    assert (layer.after_train, layer.after_eval) == (True, False)
    assert evidence.training.samples == (4, 4, 4)
    assert evidence.training.outputs == ((4, 2, 2, 2),)
    assert layer.gradient.output > 0
    assert layer.gradient.input > 0
    assert layer.gradient.weight > 0
    assert evidence.independence.difference == 0
    assert [str(call) for call in evidence.calls_of(layer)] == ["1 (BatchNorm2d)"]


def test_gradients_are_those_of_the_loss() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    pairs = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(2)]
    evidence = looked_at(model, batches=pairs, loss=nn.functional.cross_entropy)
    hidden = model[0](pairs[0][0]).detach().requires_grad_()
    output = model[1](hidden)
    output.retain_grad()
    loss = nn.functional.cross_entropy(model[2](output), pairs[0][1])
    loss.backward()
    gradient = evidence.layers[0].gradient
    expected = [each.square().mean().sqrt() for each in (output.grad, hidden.grad, model[1].weight.grad)]
    assert [gradient.output, gradient.input, gradient.weight] == pytest.approx([float(each) for each in expected])
    assert evidence.training.losses[0] == pytest.approx(float(loss.detach()))
    assert len(evidence.evaluation.losses) == 2


def test_it_is_the_same_every_time() -> None:
    model, batches = network(), images()
    one, other = (collect(model, batches=batches, needs=UNTRACED) for _ in range(2))
    for first, second in zip(one.layers, other.layers, strict=True):
        assert first.in_training.output.counts.tolist() == second.in_training.output.counts.tolist()
        assert first.gradient == second.gradient


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_statistics_that_become_nan_have_moved(value: float) -> None:
    model = network()
    batch = torch.randn(4, 2, 6, 6)
    batch[0, 0, 0, 0] = value
    (layer,) = looked_at(model, batches=[batch]).layers
    assert layer.in_training.calls[0].moved
    assert layer.in_training.calls[0].nonfinite == 4 * 4 * 4 * 4 - int(torch.isfinite(model[0](batch)).sum())


def test_buffers_of_nan_come_back() -> None:
    model = network()
    model[1].running_mean.fill_(torch.nan)
    evidence = looked_at(model, batches=images())
    assert evidence.layers[0].in_evaluation.standardized.other > 0


# --- everything comes back ---


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["loader", "forward", "norm", "hook", "loss", "gradient", "train"])
def test_stopped_anywhere(where: str, error: type[BaseException]) -> None:
    stops = 0
    for at in range(1, 40):
        model, events = network(), 0
        model[0].eval()
        model[1].weight.grad = torch.ones(4)

        def event(place: str, at: int = at) -> None:
            nonlocal events
            if place == where:
                events += 1
                if events == at:
                    raise error

        class Loader:
            def __iter__(self, event: Any = event):
                for batch in images():
                    event("loader")
                    yield batch, torch.zeros(4)

        def loss(output: Tensor, target: Tensor, event: Any = event) -> Tensor:
            event("loss")
            output.register_hook(lambda _: event("gradient")) if output.requires_grad else None
            return output.mean()

        model[2].register_forward_pre_hook(lambda *_, event=event: event("forward"))
        model[1].register_forward_pre_hook(lambda *_, event=event: event("norm"))
        model[1].register_forward_hook(lambda *_, event=event: event("hook"))
        model[3].train = lambda mode=True, event=event, layer=model[3]: (event("train"), nn.Dropout.train(layer, mode))
        before = picture(model), around()
        try:
            collect(model, batches=Loader(), loss=loss, needs=UNTRACED)
        except (error, ArgumentError):
            stops += 1
        assert (picture(model), around()) == before
        if events < at:
            break
    assert events < at
    assert stops >= 1 or where in ("norm", "hook")  # what a norm raises is a finding


@pytest.mark.parametrize("every", [31, pytest.param(1, marks=pytest.mark.slow)])
def test_interrupted_at_any_line(every: int) -> None:
    folder = str(Path(doctor.__file__).parent)
    also = {sys.modules["batchnorm.surgery.randomness"].__file__}
    x = torch.randn(4, 2)
    loader = torch.utils.data.DataLoader(x, batch_size=2, shuffle=True, generator=torch.Generator())

    def traced(at: tuple[str, int, int] | None) -> Counter[tuple[str, int]]:
        """Interrupts at the first or the last time that a line is reached: (file, line, how often)."""
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.BatchNorm1d(2))
        model[1].eval()
        model[0].weight.grad = torch.ones(2)
        model[2].weight.register_post_accumulate_grad_hook(lambda _: None)
        drawn = loader.generator.get_state()
        before, reached, kept = (picture(model), around()), Counter(), sys.gettrace()

        def line(frame: Any, event: str, _: Any) -> Any:
            if event == "line":
                where = (frame.f_code.co_filename, frame.f_lineno)
                reached[where] += 1
                if (*where, reached[where]) == at:
                    raise KeyboardInterrupt
            return line

        def call(frame: Any, *_: Any) -> Any:
            file = frame.f_code.co_filename
            return line if file.startswith(folder) or file in also else None

        sys.settrace(call)
        try:
            collect(model, batches=loader, needs=UNTRACED)
        except KeyboardInterrupt:
            stopped = True
        else:
            stopped = False
        finally:
            sys.settrace(kept)
        assert stopped == (at is not None), at
        assert (picture(model), around()) == before, at
        assert torch.equal(loader.generator.get_state(), drawn), at
        return reached

    all_lines = traced(None)
    assert len(all_lines) > 300
    places = [(*where, time) for where, times in all_lines.items() for time in sorted({1, times})]
    for place in places[::every]:
        traced(place)


def test_a_second_interrupt_while_the_first_is_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnorm.doctor.keeping import Keeping

    model, restore, times = network(), Keeping.restore, []

    def interrupted(self: Keeping) -> None:
        times.append(1)
        if len(times) == 2:  # after training, then after the evaluation that is interrupted
            self._modules[0][0].__dict__.clear()
            raise KeyboardInterrupt
        restore(self)

    def stops(layer: nn.Module, *_: Any) -> None:
        if not layer.training:
            raise KeyboardInterrupt

    model[1].register_forward_pre_hook(stops)
    batches = images()
    before = picture(model), around()
    monkeypatch.setattr(Keeping, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(model, batches=batches, needs=UNTRACED)
    assert len(times) == 3
    assert (picture(model), around()) == before


def test_random_numbers_go_on_where_they_were() -> None:
    class Noisy(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input + torch.rand(1) + random.random() + np.random.rand())

    data = torch.utils.data.TensorDataset(torch.randn(16, 2))
    loader = torch.utils.data.DataLoader(data, 4, shuffle=True)
    looked_at(Noisy(2), batches=loader)
    own = torch.Generator().manual_seed(3)
    sampler = torch.utils.data.RandomSampler(data, generator=own)
    for given in (
        torch.utils.data.DataLoader(data, 4, shuffle=True, generator=own),
        torch.utils.data.DataLoader(data, 4, sampler=sampler),
        torch.utils.data.DataLoader(data, batch_sampler=torch.utils.data.BatchSampler(sampler, 4, False)),
    ):
        state = own.get_state()
        looked_at(Noisy(2), batches=given)
        assert torch.equal(own.get_state(), state)


def test_a_model_that_keeps_things() -> None:
    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.momentum_norm = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            self.seen, self.cache, self.center = [], {"by": {}}, torch.zeros(2)
            self.register_buffer("queue", torch.zeros(8, 2))
            self.steps = 0

        def forward(self, input: Tensor) -> Tensor:
            self.steps += 1
            self.last = input
            self.seen.append(input)
            self.cache["by"][self.steps] = input
            self.center += input.mean(0)
            with torch.no_grad():
                for slow, fast in zip(self.momentum_norm.parameters(), self.norm.parameters(), strict=True):
                    slow.mul_(0.9).add_(0.1 * (fast + 1))
                    fast.data = fast + 0
                keys = self.momentum_norm(input)
                self.queue = torch.cat([keys, self.queue])[:8]
            return self.norm(input) @ self.queue.clone().T

    looked_at(Queue(), frozenset(Need), batches=[torch.randn(4, 2) for _ in range(2)])


def test_under_no_grad_inference_mode_and_autocast() -> None:
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        batches = [torch.randn(4, 3)]
        with context:
            evidence = looked_at(model, batches=batches)
        assert evidence.layers[0].gradient.output > 0


def test_a_model_of_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    evidence = looked_at(model, batches=[torch.randn(4, 3)])
    assert evidence.layers[0].in_training.calls[0].moved
    assert evidence.layers[0].gradient is None
    assert evidence.training.without_backward == "nothing in the output needs a gradient"


def test_hooks_of_the_user_run_and_stay() -> None:
    model, calls = network(), []
    model[1].weight.register_post_accumulate_grad_hook(lambda p: p.data.add_(p.grad))
    model[1].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[1].register_forward_pre_hook(lambda layer, args: (args[0] + 100,))
    model[1].register_forward_hook(lambda layer, args, output: output + 50)
    evidence = looked_at(model, batches=images())
    (layer,) = evidence.layers
    assert layer.in_training.mean.min() > 90  # what a hook put in its place is the norm's input
    assert layer.in_training.output_mean.abs().max() < 1  # and this is what the norm itself gives
    assert calls == ["backward"]


def test_a_hook_that_a_norm_gets_while_it_is_watched_goes() -> None:
    class Hooking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.input = nn.Parameter(torch.randn(4, 2))

        def forward(self, input: Tensor) -> Tensor:
            return self.norm(self.input) + input  # a parameter is the norm's input, and is given a hook

    looked_at(Hooking(), batches=[torch.randn(4, 2)])


# --- kinds of models ---


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, norm: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.first, self.reentrant = nn.Linear(3, 3), reentrant
        self.block = nn.Sequential(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 3), norm(3))

    def forward(self, input: Tensor) -> Tensor:
        return checkpoint(self.block, self.first(input), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    evidence = looked_at(Checkpointed(reentrant), frozenset(Need), batches=[torch.randn(4, 3) for _ in range(2)])
    for layer in evidence.layers:
        assert layer.in_training.count == 8
        assert len(layer.in_training.first_step) == 1
        assert layer.gradient.weight > 0
    assert [call.recomputed for call in evidence.layers[0].in_training.calls] == [False, True, False]
    assert evidence.training.moved_in_backward >= {"block.1"}
    assert evidence.training.tracked["block.1"] == 2
    ours = looked_at(Checkpointed(reentrant, batchnorm.BatchNorm1d), batches=[torch.randn(4, 3)])
    assert ours.training.moved_in_backward == frozenset()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_norm_that_stopped_in_a_recomputation_is_not_to_blame(reentrant: bool) -> None:
    class Raises(Checkpointed):
        def forward(self, input: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise RuntimeError("no evaluation here")
            return super().forward(input)

    with pytest.raises(
        ArgumentError, match=r"in evaluation mode on batch 0, in the forward pass: .*no evaluation here"
    ):
        looked_at(Raises(reentrant), batches=[torch.randn(4, 3)])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_norm_that_raises_in_a_recomputation(reentrant: bool) -> None:
    class Once(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError("not again")
            return super().forward(input)

    failure = looked_at(Checkpointed(reentrant, Once), batches=[torch.randn(4, 3)]).training.failure
    assert failure.backward
    assert failure.layer in ("block.1", "block.4")
    assert str(failure.error) == "not again"


def test_fused_norms_that_wait() -> None:
    model = batchnorm.fuse(network(), images(1)[0]).model
    evidence = looked_at(model, frozenset(Need), batches=images())
    assert isinstance(evidence.layers[0].module, batchnorm.FusingBatchNorm2d)
    assert evidence.layers[0].gradient.output > 0
    output = model(images(1)[0])
    assert int(model[1].num_batches_tracked) == 1
    output.sum().backward()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrapped_and_compiled() -> None:
    inner = network()
    compiled = torch.compile(nn.Sequential(torch.compile(inner[0]), *inner[1:]), backend="eager")
    for model in (nn.DataParallel(inner), compiled):
        assert [layer.path for layer in looked_at(model, batches=images()).layers] == ["1"]
    method = network()
    method.compile(backend="eager")
    assert looked_at(method, batches=images()).layers[0].in_training.count


def test_under_ddp(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        _looked_at_under_ddp()
    finally:
        gc.collect()
        torch.distributed.destroy_process_group()


def _looked_at_under_ddp() -> None:
    # By itself, so that the wrapper is gone before its group is: its reducer would else be the last to hold the group,
    # and take it down with the interpreter's lock held, for which the group's own thread may wait for ever.
    model = nn.parallel.DistributedDataParallel(network(), gradient_as_bucket_view=True)
    model(images(1)[0]).sum().backward()
    evidence = looked_at(model, batches=images())
    assert evidence.layers[0].gradient.output > 0
    model(images(1)[0]).sum().backward()  # its reducer is not in the middle of something
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_shared_layer() -> None:
    norm = nn.BatchNorm1d(3)
    evidence = looked_at(nn.Sequential(norm, nn.Linear(3, 3), norm), batches=[torch.randn(4, 3)])
    (layer,) = evidence.layers
    assert layer.path == "0"
    assert len(layer.in_training.first_step) == 2
    assert layer.in_training.count == 8


def test_the_same_input_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, input: Tensor) -> Tensor:
            return self.norm(input) + self.norm(input) + self.norm(2 * input)

    (layer,) = looked_at(Twice(), batches=[torch.randn(4, 3)]).layers
    assert [call.same_input for call in layer.in_training.calls] == [False, True, False]


def test_a_model_that_is_a_norm_and_one_without() -> None:
    evidence = looked_at(nn.BatchNorm1d(3), frozenset(Need), batches=torch.randn(4, 3))
    assert [layer.path for layer in evidence.layers] == [""]
    assert evidence.training.order == ("",)
    assert looked_at(nn.Linear(3, 3), frozenset(Need), batches=torch.randn(4, 3)).layers == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(dtype)
    evidence = looked_at(model, batches=[torch.randn(8, 3, dtype=dtype)])
    assert evidence.layers[0].in_training.calls[0].dtype == dtype
    assert evidence.layers[0].gradient.output > 0
    assert evidence.independence.difference == 0


def test_frozen_norms() -> None:
    model = network()
    batchnorm.freeze(model)
    (layer,) = looked_at(model, frozenset(Need), batches=images()).layers
    assert not any(call.by_batch or call.moved for call in layer.in_training.calls)
    assert (layer.after_train, layer.frozen) == (False, "of a frozen class")


@pytest.mark.parametrize(
    "kind", ["batch", "sync", "ghost", "renorm", "domain", "frozen", "torch-sync"], ids=lambda kind: kind
)
def test_other_kinds_of_norms(kind: str) -> None:
    model = network()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if kind == "torch-sync" else batchnorm.convert(model, kind)
    (layer,) = looked_at(model, frozenset(Need), batches=images()).layers
    assert layer.in_training.count == 3 * 4 * 4 * 4
    assert layer.in_training.calls[0].moved == (kind != "frozen")


def test_parametrized_layers() -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[4])
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    evidence = looked_at(model, batches=images())
    assert evidence.layers[0].gradient.output > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_that_cannot_be_copied_have_no_graph() -> None:
    model = network()
    nn.utils.weight_norm(model[0])
    model(images(1)[0])
    model.lock = threading.Lock()
    evidence = looked_at(model, frozenset(Need), batches=images())
    assert evidence.graph is None
    assert "cannot be copied" in evidence.graph_failure
    assert evidence.layers[0].in_training.count


def test_whatever_the_tracer_raises_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> None:
        raise AssertionError("in export")

    monkeypatch.setattr("batchnorm.doctor.look.trace", raises)
    assert looked_at(network(), frozenset(Need), batches=images()).graph_failure == "AssertionError: in export"


def test_lazy_and_scripted_models_are_refused() -> None:
    with pytest.raises(ArgumentError, match="has no values yet"):
        collect(nn.Sequential(nn.LazyBatchNorm1d()), batches=[torch.randn(4, 3)])
    with pytest.raises(ArgumentError, match="is scripted"):
        collect(torch.jit.script(network()), batches=images())
    with pytest.raises(ArgumentError, match=r"no torch\.nn\.Module"):
        collect(lambda x: x, batches=images())


# --- batches, outputs, losses ---


class Named(nn.Module):
    """Takes keywords and gives what models of transformers give."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, values: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        output = self.norm(values)
        loss = None if labels is None else (output - labels).square().mean()
        return {"loss": loss, "states": (output, [output.sum(), {"mask": output > 0}]), "name": "x"}


def test_dictionaries_with_the_loss_in_the_output() -> None:
    batches = [{"values": torch.randn(4, 3), "labels": torch.randn(4, 3)}, {"values": torch.randn(4, 3)}]
    evidence = looked_at(Named(), frozenset(Need), batches=batches)
    loss = (Named()(batches[0]["values"])["states"][0] - batches[0]["labels"]).square().mean()
    assert evidence.training.losses == pytest.approx([float(loss)])
    assert evidence.training.outputs == ((), (4, 3), (), (4, 3))
    assert evidence.layers[0].gradient.output > 0
    with pytest.raises(
        ArgumentError, match=r"^a loss was given, but a batch is a \w+ and no \(input, target\) pair.*forward="
    ):
        collect(Named(), batches=batches, loss=nn.functional.mse_loss)
    with pytest.raises(ArgumentError, match=r"^a batch is a dict of other"):
        collect(Named(), batches=[{"other": torch.randn(4, 3)}])


def test_data_classes() -> None:
    @dataclass
    class Output:
        logits: Tensor
        inner: Any

    class Model(Named):
        def forward(self, values: Tensor) -> Output:
            return Output(self.norm(values), Output(values, None))

    evidence = looked_at(Model(), batches=[torch.randn(4, 3)])
    assert evidence.training.outputs == ((4, 3), (4, 3))
    assert evidence.independence is not None


def test_forward_says_how() -> None:
    batches = [{"x": torch.randn(4, 2, 6, 6), "meta": "path"} for _ in range(2)]
    evidence = looked_at(network(), batches=batches, forward=lambda model, batch: model(batch["x"]))
    assert evidence.training.samples == (4, 4)


@pytest.mark.parametrize("output", [lambda y: y.to(torch.int64), lambda y: "text", lambda y: torch.zeros(4)])
def test_outputs_without_a_gradient(output: Any) -> None:
    class Model(Named):
        def forward(self, input: Tensor) -> Any:
            return output(self.norm(input))

    evidence = looked_at(Model(), batches=[torch.randn(4, 3)])
    assert evidence.training.without_backward
    assert evidence.layers[0].gradient is None
    skipped = batchnorm.diagnose(Model(), batches=[torch.randn(4, 3)]).skipped
    assert all(evidence.training.without_backward in why for why in skipped.values() if "backward" in why)


def test_complex_outputs() -> None:
    class Model(Named):
        def forward(self, input: Tensor) -> Any:
            return torch.fft.fft(self.norm(input))

    assert looked_at(Model(), batches=[torch.randn(4, 3)]).independence.difference == 0


def test_a_model_with_no_way_back_is_none_without_a_loss() -> None:
    class Model(Named):
        def forward(self, input: Tensor) -> Any:
            output = torch.sigmoid(self.norm(input))
            output.mul_(2)  # what sigmoid keeps for the backward pass is lost
            return output.square()

    evidence = looked_at(Model(), batches=[torch.randn(4, 3)] * 2)
    assert "modified by an inplace operation" in evidence.training.without_backward
    assert evidence.training.samples == (4, 4)
    with pytest.raises(ArgumentError, match="in the backward pass"):
        looked_at(Model(), batches=[(torch.randn(4, 3), torch.randn(4, 3))], loss=nn.functional.mse_loss)


def test_a_loss_that_is_no_number() -> None:
    with pytest.raises(ArgumentError, match=r"^loss\(output, target\) gives no tensor of one value"):
        looked_at(network(), batches=[(images(1)[0], torch.zeros(4))], loss=lambda output, target: output)


def test_iterators_and_generators() -> None:
    drawn = []

    def generator():
        for batch in images(9):
            drawn.append(1)
            yield batch

    evidence = looked_at(network(), batches=generator(), max_batches=2)
    assert len(drawn) == 2
    assert len(evidence.training.samples) == 2
    used = iter(images(1))
    next(used)
    with pytest.raises(ArgumentError, match="batches is empty"):
        looked_at(network(), batches=used)
    with pytest.raises(ArgumentError, match="max_batches is 0"):
        looked_at(network(), batches=images(), max_batches=0)


def test_batches_are_not_changed() -> None:
    class Greedy(Named):
        def forward(self, input: Tensor) -> Tensor:
            return self.norm(input.mul_(2))

    batch = torch.randn(4, 3)
    before = batch.clone()
    evidence = looked_at(Greedy(), batches=[batch])
    assert torch.equal(batch, before)
    torch.testing.assert_close(evidence.layers[0].in_evaluation.mean, (2 * before).double().mean(0))


def test_a_batch_of_one_and_one_of_none() -> None:
    one = looked_at(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), batches=[torch.randn(4, 3), torch.randn(1, 3)])
    assert one.training.failure.layer == "1"
    assert one.training.failure.shape == (1, 3)
    assert one.training.failure.batch == 1
    assert not one.training.failure.backward
    assert one.training.samples == (4,)
    assert one.evaluation.failure is None
    assert one.evaluation.samples == (4, 1)
    none = looked_at(network(), batches=[torch.randn(0, 2, 6, 6), *images(1)])
    assert none.layers[0].in_training.count == 4 * 16
    assert [call.values for call in none.layers[0].in_training.calls] == [0, 64]


def test_a_model_that_raises_elsewhere() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 4))
    with pytest.raises(ArgumentError, match="training mode on batch 0, in the forward pass: RuntimeError") as raised:
        looked_at(model, batches=[torch.randn(4, 3)])
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_model_that_raises_because_of_its_norm() -> None:
    class Wrapped(Named):
        def forward(self, input: Tensor) -> Tensor:
            try:
                return self.norm(input)
            except ValueError as error:
                raise RuntimeError("something went wrong") from error

    assert looked_at(Wrapped(), batches=[torch.randn(1, 3)]).training.failure.layer == "norm"


def test_masks() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.masked = nn.BatchNorm1d(3), batchnorm.BatchNorm1d(3)

        def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
            both = self.norm(input_values) + self.masked(input_values, attention_mask.bool())
            return both + self.masked(mask=attention_mask.bool()[:, None], input=input_values)

    values, mask = torch.randn(2, 3, 10), torch.ones(2, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    evidence = looked_at(Model(), batches=[{"input_values": values, "attention_mask": mask}])
    assert evidence.training.masks == {"attention_mask": pytest.approx(0.2)}
    plain, masked = (layer.in_training.calls[0] for layer in evidence.layers)
    assert plain.padding.by_mask
    assert plain.padding.share == pytest.approx(0.2)
    assert plain.padding.samples == 1
    kept = torch.cat([values[0], values[1, :, :6]], dim=1).double()
    shift = (values.mean((0, 2)) - kept.mean(1)).abs() / kept.std(1, unbiased=False)
    assert plain.padding.mean_shift == pytest.approx(float(shift.max()), rel=1e-3)
    assert (masked.values, masked.masked, masked.padding) == (16, True, None)
    assert masked.mean == pytest.approx(kept.mean(1), rel=1e-5)
    assert evidence.layers[1].in_training.calls[1].same_input


# --- one sample alone ---


def test_a_sample_that_depends_on_others() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    independence = looked_at(model, batches=[torch.randn(8, 3)]).independence
    assert independence.difference > 0.1
    assert independence.layers == ("2",)
    assert independence.samples == 8


def test_a_nan_of_another_sample_counts() -> None:
    model, batch = nn.BatchNorm1d(3, track_running_stats=False), torch.randn(8, 3)
    batch[5] = torch.nan
    assert looked_at(model, batches=[batch]).independence.difference == torch.inf


def test_noise_is_no_dependence() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, input: Tensor) -> Tensor:
            return self.norm(input + torch.randn_like(input))

    assert looked_at(Noisy(), batches=[torch.randn(8, 3)]).independence.difference == 0


def test_a_batch_of_one_says_nothing_about_others() -> None:
    assert looked_at(network(), batches=images(1, samples=1)).independence is None


# --- checkpoints ---


def test_a_checkpoint() -> None:
    model = nn.Sequential(network(), nn.InstanceNorm1d(2))
    evidence = of_tensors(model.state_dict(), Settings())
    assert [layer.path for layer in evidence.layers] == ["0.1"]
    assert set(evidence.layers[0].tensors) == set(model[0][1].state_dict())
    assert [layer.path for layer in of_tensors(nn.BatchNorm1d(2).state_dict(), Settings()).layers] == [""]
    with pytest.raises(ArgumentError, match="no batch norm"):
        of_tensors(nn.Linear(2, 2).state_dict(), Settings())

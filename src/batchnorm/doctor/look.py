"""The runs of a model: traced, in training mode with a backward pass, in evaluation mode, and what else rules need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, SurgeryError
from ..nn._base import is_batch_norm
from ..population.batches import Batches, model_input, moved, samples_of
from ..surgery.example import fresh, said
from ..surgery.graph import Graph
from ..surgery.trace import trace
from .dropout import NoDropout
from .evidence import Evidence, Failure, Mode, Run
from .independence import independence
from .keeping import Keeping
from .outputs import projected, target_of, tensors_in
from .own_forward import FROZEN, is_frozen
from .padding import says_of_all, valid_positions
from .rule import Need
from .unseen import called_by_operator
from .walk import dropouts_before, turned_off
from .watch import Watch, buffers_of, differ

__all__ = ["Look", "Loss"]

Loss = Callable[[Any, Any], Tensor]


class Look:
    """Runs a model, which whoever made it puts back in the end; in between it does so itself.

    Args:
        model: The model inside of any wrapper.
        feed: The batches.
        loss: As for :func:`batchnorm.diagnose`.
        max_batches: At most so many are taken.
        needs: What the rules that will look need: no more is done.
        keeping: The model as it was.

    Attributes:
        batches: Those that are run.
        ends: Whether there are known to be finitely many.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        feed: Batches,
        loss: Loss | None,
        max_batches: int,
        needs: frozenset[Need],
        keeping: Keeping,
    ) -> None:
        self.model, self.feed, self.loss, self.needs, self.keeping = model, feed, loss, needs, keeping
        if not isinstance(max_batches, int) or max_batches < 1:
            raise ArgumentError(f"max_batches is {max_batches!r}.", "give a whole number, at least 1.")
        given = iter(feed)
        self.batches = [batch for batch, _ in islice(given, max_batches)]
        # Of what has no length, whether one more comes: not of an iterator of the user's, who may go on with it.
        self.ends = feed.total is not None or (feed.again and next(given, None) is None)
        if not self.batches:
            raise ArgumentError(
                "batches is empty.", "an iterator that was used up before gives nothing: make a new one."
            )
        self.norms = [(path, module) for path, module in model.named_modules() if is_batch_norm(module)]

    def at(self, evidence: Evidence) -> Evidence:
        """The evidence with what running shows."""
        evidence = self._traced(evidence)
        training, watch = self._run("training")
        flags = {path: module.training for path, module in self.norms}
        gradients = {path: each.gradient() for path, each in watch.watched.items() if each.squares}
        self._back()
        without_dropout = {} if training.failure is not None else self._without_dropout(evidence.graph)
        evaluation, evaluated = self._run("evaluation")
        eval_flags = {path: module.training for path, module in self.norms}
        self._back()
        alone = None
        if evaluation.failure is None:
            with suppress(Exception):  # of models that do not take a batch of copies
                alone = independence(self.model, self.norms, self.batches[0], self.feed, self._back)
            self._back()
        order = {path: place for place, path in enumerate(dict.fromkeys((*training.order, *evaluation.order)))}
        layers = [
            replace(
                layer,
                after_train=flags[layer.path],
                after_eval=eval_flags[layer.path],
                in_training=watch.watched[layer.path].run(),
                in_evaluation=evaluated.watched[layer.path].run(),
                gradient=gradients.get(layer.path),
                without_dropout=without_dropout.get(layer.path),
            )
            for layer in sorted(evidence.layers, key=lambda layer: order.get(layer.path, len(order)))
        ]
        layers = [replace(layer, frozen=layer.frozen or (FROZEN if is_frozen(layer) else None)) for layer in layers]
        return replace(evidence, layers=layers, training=training, evaluation=evaluation, independence=alone)

    def _back(self) -> None:
        self.keeping.restore()

    def _traced(self, evidence: Evidence) -> Evidence:
        if Need.GRAPH not in self.needs:
            return evidence
        input = moved(model_input(self.batches[0]), self.model)
        if not isinstance(input, Tensor | Mapping):
            return replace(evidence, graph_failure="the batches are neither tensors nor dicts, nor pairs that begin so")
        self.model.train()
        try:
            graph = trace(self.model, input)
        except SurgeryError as error:
            return replace(evidence, graph_failure=error.problem)
        except Exception as error:  # of torch.export, which reads whatever the model is made of
            return replace(evidence, graph_failure=said(error))
        finally:
            self._back()
        unread = {**called_by_operator(graph), **evidence.unread}
        evidence = replace(evidence, graph=graph, graph_failure=graph.uncertain.get("", ""), unread=unread)
        return replace(evidence, deployed=self._deployed(evidence, input))

    def _deployed(self, evidence: Evidence, input: Any) -> Graph | None:
        """What feeds what in a model that is given as it is deployed."""
        training = any(module.training for module in self.model.modules())
        if Need.DEPLOYMENT not in self.needs or training or evidence.optimizer is not None or self.loss is not None:
            return None
        try:
            graph = trace(self.model, input)
        except Exception:  # as above; the graph in training mode says why
            return None
        finally:
            self._back()
        return None if graph.uncertain else graph

    def _without_dropout(self, graph: Graph | None) -> dict[str, Tensor]:
        """By path, for norms that dropout feeds, the variance of their input over the batches without it."""
        fed = [] if graph is None else [(path, norm) for path, norm in self.norms if _is_fed_by_dropout(norm, graph)]
        if graph is None or not fed:
            return {}
        self.model.train()
        for call in graph.calls:
            if call.module is not None and turned_off(call):
                call.module.eval()
        watch = Watch(fed)
        watch.start()
        try:
            with torch.no_grad(), NoDropout():
                for number, batch in enumerate(self.batches):
                    watch.batch = number
                    self.feed.run(self.model, fresh(batch))
        finally:
            self._back()
        runs = {path: each.run() for path, each in watch.watched.items()}
        return {path: run.var for path, run in runs.items() if run is not None}

    def _run(self, mode: Mode) -> tuple[Run, Watch]:
        training = mode == "training"
        self.model.train(training)
        watch = Watch(self.norms)
        watch.start()
        before = self._statistics()
        run = Run(mode, target=target_of(self.batches[0]), masks=self._masks())
        backward: frozenset[str] = frozenset()
        tracked: dict[str, int] = {}
        for number, batch in enumerate(self.batches):
            watch.batch, watch.valid = number, valid_positions(batch)
            watch.certain = watch.valid is None or says_of_all(batch, watch.valid)
            # Only the first batch has a backward pass, and by what it is told apart from the others: one is enough.
            differentiates = training and number == 0 and Need.BACKWARD in self.needs
            backwards = False
            try:
                # As it is trained: forward passes may go by whether there are gradients.
                with torch.set_grad_enabled(training):
                    output = self.feed.run(self.model, fresh(batch))
                    objective, is_loss = self._objective(output, batch)
                    if differentiates:
                        between, backwards = self._statistics(), True
                        run = replace(run, without_backward=self._backward(objective))
                        backward = _moved(between, self._statistics())
            except Exception as error:
                layer, shape = watch.raised(error)
                if layer is None and isinstance(error, ArgumentError) and not error.layer:
                    raise  # it says itself what does not fit
                if layer is None and backwards and self.loss is None:
                    # Not what the user would differentiate: the model may have no use for gradients.
                    run, backward = replace(run, without_backward=said(error)), frozenset()
                elif layer is None:
                    raise ArgumentError(
                        f"the model raises in {mode} mode on batch {number}, in the "
                        f"{'backward' if backwards else 'forward'} pass: {type(error).__name__}: {error}",
                        "give batches and a loss= that it can be trained with; forward= says how it is called.",
                    ) from error
                else:
                    run = replace(run, failure=Failure(error, number, layer, shape, backwards))
                    break
            if training and number == 0:
                tracked = _counted(before, self._statistics())
            losses = (*run.losses, float(objective.detach())) if is_loss and objective is not None else run.losses
            run = replace(
                run,
                samples=(*run.samples, samples_of(batch)),
                inputs=(*run.inputs, _first_shape(batch)),
                outputs=run.outputs or tuple(tuple(each.shape) for each in tensors_in(output)),
                losses=losses,
            )
            del output, objective  # with all that they keep for a backward pass, before the next batch needs the memory
        return (
            replace(
                run,
                order=tuple(watch.order),
                moved=_moved(before, self._statistics()),
                moved_in_backward=backward,
                tracked=tracked,
            ),
            watch,
        )

    def _objective(self, output: object, batch: Any) -> tuple[Tensor | None, bool]:
        """What is differentiated, and whether it is the user's loss."""
        if self.loss is not None:
            if not isinstance(batch, list | tuple) or len(batch) < 2:
                raise ArgumentError(
                    f"a loss was given, but a batch is a {type(batch).__name__} and no (input, target) pair.",
                    "give pairs, of a tensor or a dict of keywords and a target; or leave loss= out, and have forward= "
                    'call the model and give {"loss": …}.',
                )
            value = self.loss(output, moved(batch[1], self.model))
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ArgumentError("loss(output, target) gives no tensor of one value.", "reduce it: loss.mean().")
            return value, True
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor) and own.numel() == 1:
            return own, True
        floats = [each for each in tensors_in(output) if each.is_floating_point()]
        # Without a loss any direction will do, but the sum of a norm's outputs has no gradient at its input.
        return (sum(projected(each) for each in floats) if floats else None), False  # type: ignore[return-value]

    def _backward(self, objective: Tensor | None) -> str:
        """Why there is none; empty where there is one."""
        if objective is None:
            return "the output holds no tensor of floating-point numbers"
        if not objective.requires_grad:
            return "nothing in the output needs a gradient"
        self.keeping.without_gradients()
        objective.backward()
        return ""

    def _statistics(self) -> dict[str, tuple[Tensor | None, ...]]:
        return {path: buffers_of(module) for path, module in self.norms}

    def _masks(self) -> dict[str, float]:
        found: dict[str, list[Tensor]] = {}
        for batch in self.batches:
            input = model_input(batch)
            for name, value in input.items() if isinstance(input, Mapping) else ():
                if "mask" in str(name) and isinstance(value, Tensor) and value.dim() > 1:
                    found.setdefault(str(name), []).append((value == 0).flatten())
        return {name: float(torch.cat(parts).float().mean()) for name, parts in found.items()}


def _is_fed_by_dropout(norm: torch.nn.Module, graph: Graph) -> bool:
    return any(dropouts_before(call) for call in graph.calls_of(norm))


def _first_shape(batch: Any) -> tuple[int, ...] | None:
    return next((tuple(each.shape) for each in tensors_in(model_input(batch))), None)


def _moved(
    before: Mapping[str, tuple[Tensor | None, ...]], after: Mapping[str, tuple[Tensor | None, ...]]
) -> frozenset[str]:
    return frozenset(path for path, tensors in before.items() if differ(tensors, after[path]))


def _counted(
    before: Mapping[str, Sequence[Tensor | None]], after: Mapping[str, Sequence[Tensor | None]]
) -> dict[str, int]:
    found = {}
    for path, (_, _, seen) in before.items():
        now = after[path][2]
        if seen is not None and now is not None:
            found[path] = int(now) - int(seen)
    return found

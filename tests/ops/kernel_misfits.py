"""Arguments that do not fit: kernels refuse before they write, or compute what is meant; none crashes.

For a process of its own: it says what it tries before each call, so that one that ends by a signal is known by its last
line, and after ``##`` what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from batchnorm import Activation
from batchnorm.errors import BatchNormError
from batchnorm.functional import batch_norm
from ops.guarded_memory import in_a_process_of_its_own
from ops.kernel_cases import OPS

Arguments = dict[str, Any]
RELU = Activation("relu")
DESCRIBED = (1e-5, "relu", [])


def arguments() -> Arguments:
    torch.manual_seed(0)
    shape, channels = (4, 8, 3, 5), 8
    given = {name: torch.randn(shape) for name in ("input", "grad_output", "residual")}
    given |= {name: torch.rand(channels) + 0.5 for name in ("weight", "bias", "mean", "var", "sum_dz", "sum_dzx")}
    given |= {"running_mean": torch.rand(channels), "running_var": torch.rand(channels) + 0.5}
    given |= {"batches": torch.tensor(3), "count": torch.tensor(60), "mask": torch.rand(4, 3, 5) < 0.7}
    given["bits"] = torch.randint(0, 255, (channels * 8,), dtype=torch.uint8)
    return given


# --- the calls, each with the arguments that it takes ----------------------------------------------------------------


def _operators(kernels: ModuleType) -> dict[str, tuple[str, Callable[[Arguments], Any]]]:
    statistics, layer = "mean var weight bias residual", "weight bias residual"

    def many(a: Arguments, names: str) -> list[Any]:
        return [a[name] for name in names.split()]

    forward = f"input {layer} mask"
    train = f"{forward} running_mean running_var batches"
    normalize = f"input {statistics} mask"
    backward = f"grad_output {normalize} bits"
    found: dict[str, tuple[str, Callable[[Arguments], Any]]] = {
        "moments": ("input mask", lambda a: OPS.moments(*many(a, "input mask"))),
        "normalize": (normalize, lambda a: OPS.normalize(*many(a, normalize), *DESCRIBED)),
        "forward": (forward, lambda a: OPS.forward(*many(a, forward), *DESCRIBED, True)),
        "train": (train, lambda a: OPS.train(*many(a, train), 0.1, True, *DESCRIBED, True)),
        "grad_sums": (backward, lambda a: OPS.grad_sums(*many(a, backward), *DESCRIBED)),
        "backward": (
            f"{backward} count",
            lambda a: OPS.backward(*many(a, f"{backward} count"), *DESCRIBED, [True] * 4),
        ),
        "grad_input": (
            f"{backward} count sum_dz sum_dzx",
            lambda a: OPS.grad_input(*many(a, f"{backward} count sum_dz sum_dzx"), *DESCRIBED, True),
        ),
    }
    # The same by the door that layers take, which is open without a mask.
    return found | {
        "direct train": (
            f"input {layer} running_mean running_var batches",
            lambda a: kernels.train(
                *many(a, f"input {layer}"),
                None,
                *many(a, "running_mean running_var batches"),
                0.1,
                True,
                1e-5,
                RELU,
                True,
            ),
        ),
        "direct normalize": (
            f"input {statistics}",
            lambda a: kernels.normalize(*many(a, f"input {statistics}"), None, 1e-5, RELU),
        ),
        "direct backward": (
            f"grad_output input {statistics} bits count",
            lambda a: kernels.backward(
                *many(a, f"grad_output input {statistics}"), None, *many(a, "bits count"), 1e-5, RELU
            ),
        ),
    }


def _layers() -> dict[str, tuple[str, Callable[[Arguments], Any]]]:
    names = "input running_mean running_var weight bias"

    def run(a: Arguments, training: bool, masked: bool) -> Tensor:
        return batch_norm(
            *(a[name] for name in names.split()),
            training,
            activation=RELU,
            residual=a["residual"],
            mask=a["mask"] if masked else None,
            num_batches_tracked=a["batches"] if training else None,
        )

    return {
        "layer, training": (f"{names} residual batches", lambda a: run(a, True, False)),
        "layer, evaluation": (f"{names} residual", lambda a: run(a, False, False)),
        "layer, training, masked": (f"{names} residual batches mask", lambda a: run(a, True, True)),
        "layer, evaluation, masked": (f"{names} residual mask", lambda a: run(a, False, True)),
    }


# --- what does not fit -----------------------------------------------------------------------------------------------


def _without_memory(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


class Subclass(torch.Tensor):
    """A tensor that torch dispatches like any other."""


# Of these nothing is to be made.
REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "no dimensions": lambda t: torch.tensor(1.0).to(t.dtype),
    "no values": lambda t: t.new_empty(0),
    "no samples": lambda t: t.new_empty(0, *t.shape[1:]) if t.dim() > 1 else t.new_empty(0),
    "flat, one short": lambda t: t.flatten()[:-1],
    "twice as long": lambda t: torch.cat([t, t]) if t.dim() else t.new_zeros(2),
    "one dimension more": lambda t: t.expand(2, *t.shape),
    "one dimension less": lambda t: t[0] if t.dim() else None,
    "meta": lambda t: t.to("meta"),
    "another dtype": lambda t: t.to(torch.int32),
    "8-bit float": lambda t: t.float().to(torch.float8_e4m3fn),
    "complex": lambda t: t.to(torch.complex64),
    "no memory": _without_memory,
}
# A count of any kind says that this is training, and layers count in any dtype, as torch's do.
TAKEN = {"count": ("backward", "direct backward", "grad_input"), "batches": ("train", "direct train", "layer")}

# Something is made of these by torch's dispatcher, or they are refused by whoever comes to it first.
NOT_STRIDED: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.float().to_sparse(),
    "sparse rows": lambda t: t.float().reshape(-1, 1).to_sparse_csr(),
    "mkldnn": lambda t: t.float().to_mkldnn() if t.dim() else None,
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t.float(), t.float()]),
}

# The same values in another guise.
SERVED: dict[str, Callable[[Tensor], Tensor]] = {
    "with a gradient": lambda t: t.requires_grad_(),
    "a parameter": torch.nn.Parameter,
    "a subclass": lambda t: t.as_subclass(Subclass),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t,
    "inside another": lambda t: torch.cat([t.new_ones(5), t.flatten()])[5:].view(t.shape),
    "negative": lambda t: torch._neg_view(-t),
    "imaginary part": lambda t: torch.complex(t, -t).conj().imag,
}
FLOATS = [
    "input",
    "grad_output",
    "residual",
    "weight",
    "bias",
    "mean",
    "var",
    "sum_dz",
    "sum_dzx",
    "running_mean",
    "running_var",
]


def _tried(
    kernels: ModuleType, kinds: dict[str, Any]
) -> Iterator[tuple[str, str, Callable[[Arguments], Any], str, str]]:
    for level, calls in (("operator", _operators(kernels)), ("layer", _layers())):
        for name, (takes, call) in calls.items():
            for argument in takes.split():
                for kind in kinds:
                    yield level, name, call, argument, kind


def refuse(kernels: ModuleType, left_out: tuple[str, ...] = ()) -> None:
    """Every misfit in every place: an error, and everything else as it was."""
    for level, name, call, argument, kind in _tried(kernels, REFUSED | NOT_STRIDED):
        given = arguments()
        misfit = (REFUSED | NOT_STRIDED)[kind](given[argument])
        if misfit is None or kind in left_out or name.startswith(TAKEN.get(argument, ())):
            continue
        print(f"{name}: {argument}, {kind}", end="", flush=True)
        wrong = ""
        try:
            call({**given, argument: misfit})
            if kind in REFUSED:
                wrong = "nothing was refused"
        except Exception as error:
            # What a layer says is in our words, but for what is so odd that torch itself fails on it.
            ours = level == "layer" and kind in REFUSED and kind != "no memory"
            right = isinstance(error, BatchNormError if ours else (RuntimeError, TypeError, ValueError, IndexError))
            if not right or isinstance(error, RecursionError):
                wrong = f"{type(error).__name__}: {error}"
            changed = [other for other, before in arguments().items() if not torch.equal(given[other], before)]
            wrong += f" changed: {changed}" if changed and misfit is not given[argument] else ""
        print(f" ## {wrong}" if wrong else "", flush=True)


def serve(kernels: ModuleType, only: tuple[str, ...] = tuple(SERVED), calls: str = "") -> None:
    """Other guises of the same values: the same result, in the buffers too."""
    for _, name, call, argument, kind in _tried(kernels, {kind: SERVED[kind] for kind in only}):
        # A buffer with the negative bit is what torch's own dispatcher asserts on, where an operator writes to it.
        refused = argument.startswith("running") and kind in ("negative", "imaginary part")
        if refused or argument not in FLOATS or not name.startswith(calls):
            continue
        given, plain = arguments(), arguments()
        print(f"{name}: {argument}, {kind}", end="", flush=True)
        given[argument] = SERVED[kind](given[argument])
        wrong = ""
        with torch.no_grad():
            try:
                pairs = list(zip(_tensors(call(given)), _tensors(call(plain)), strict=True))
                pairs += [(given[name], plain[name]) for name in ("running_mean", "running_var", "batches")]
                # A buffer that requires a gradient is moved by torch's operators, whose rounding is another.
                if not all(torch.allclose(one, other, rtol=1e-6, atol=0) for one, other in pairs):
                    wrong = "another result"
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
        print(f" ## {wrong}" if wrong else "", flush=True)


def _tensors(found: Any) -> list[Tensor]:
    return [t.detach() for t in (found if isinstance(found, tuple) else (found,)) if t is not None]


def check_in_a_process_of_its_own(code: str, least: int = 400) -> None:
    """Code that calls :func:`refuse` or :func:`serve`."""
    tried = in_a_process_of_its_own(code)
    assert len(tried) > least
    wrong = [line for line in tried if " ## " in line]
    assert not wrong, "\n".join(wrong)

"""The compiled CPU kernels (module.cpp, direct.cpp): which instruction set computes, and calls past the dispatcher."""

from torch import Tensor

def instruction_sets() -> tuple[str, ...]:
    """What this binary holds and this processor runs, best first."""

def instruction_set() -> str:
    """The one that computes; a ``RuntimeError`` where the processor runs none."""

def use(name: str) -> None:
    """Let another one compute from here on, in every thread; a ``ValueError`` where it cannot."""

def prepare(tensor: type, parameter: type) -> None:
    """Torch's two classes, whose tensors the functions below take."""

def train(
    input: Tensor,
    output: Tensor,
    mean: Tensor,
    var: Tensor,
    bits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: str,
    parameters: tuple[float, ...],
    /,
) -> bool: ...
def normalize(
    input: Tensor,
    output: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    parameters: tuple[float, ...],
    /,
) -> bool: ...
def backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    training: bool,
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_residual: Tensor | None,
    eps: float,
    activation: str,
    parameters: tuple[float, ...],
    /,
) -> bool: ...
def train_parts(
    input: Tensor,
    output: Tensor,
    mean: Tensor,
    var: Tensor,
    bits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: str,
    parameters: tuple[float, ...],
    /,
) -> bool: ...
def backward_parts(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_residual: Tensor | None,
    eps: float,
    activation: str,
    parameters: tuple[float, ...],
    /,
) -> bool: ...

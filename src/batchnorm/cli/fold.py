"""``batchnorm fold``: a model for inference without its norms, proved and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import torch

__all__ = ["fold"]


def fold(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="The model: package.module:callable, which returns a module or (module, inputs); or a module itself.",
        ),
    ],
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="What it is called with: package.module:callable, or a tensor, a tuple of arguments or a dict of "
            "keywords itself. May be left out where the model comes with inputs.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the folded model goes: .onnx, .pt2 (torch.export) or .pt, .pth (its state_dict).",
            show_default="nothing is written",
        ),
    ] = None,
) -> None:
    """Fold batch norms into the layers beside them, for inference, and prove that the outputs are the same.

    The exit code is 0 where all norms are folded, 1 where some are kept, 2 where it could not run.
    """
    # Imported here: `batchnorm --help` should not wait for them.
    from ..errors import BatchNormError  # noqa: PLC0415
    from ..surgery.fold import fold as folded  # noqa: PLC0415
    from .written import check, write  # noqa: PLC0415

    try:
        if out is not None:
            check(out)
        model, example = _loaded(target, inputs)
        done = folded(model, example)
        print(done, flush=True)
        if out is not None:
            write(done.model, example, out)
            print(f"written: {out}", flush=True)
    except (BatchNormError, OSError) as error:
        _refuse(f"batchnorm fold: {error}")
    except KeyboardInterrupt:
        typer.echo("batchnorm fold: interrupted; nothing is written.", err=True)
        raise typer.Exit(130) from None
    if done.kept:
        raise typer.Exit(1)


def _loaded(target: str, inputs: str | None) -> tuple[torch.nn.Module, Any]:
    """The model and what it is called with."""
    import torch  # noqa: PLC0415

    from ..targets import TargetError  # noqa: PLC0415
    from .given import model_and, value  # noqa: PLC0415

    model, others = model_and(target, "inputs", most=2)
    if inputs is not None:
        return model, value(inputs, torch.Tensor)
    if not others:
        mend = "give them by --inputs package.module:callable, or return (module, inputs)."
        raise TargetError(f"{target} gives a module without inputs.", mend)
    return model, others[0]


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)

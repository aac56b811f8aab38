"""Training without dropout: what the same network sees in training mode when nothing is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["RECURRENT", "NoDropout", "recurrent_dropout"]

_DROPOUTS = {
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d"),
    *("feature_dropout", "feature_dropout_", "alpha_dropout", "alpha_dropout_"),
    *("feature_alpha_dropout", "feature_alpha_dropout_"),
}

#: Functions of several layers, between which they drop out.
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def recurrent_dropout(args: tuple[Any, ...]) -> int:
    """Where a recurrent function has its probability: between the number of layers and whether it trains.

    One place further in the form for packed sequences, which is given their sizes.
    """
    return 5 if isinstance(args[3], bool) else 6


class NoDropout(TorchFunctionMode):
    """Within it, torch's dropout functions give what they take, whatever mode and probability say.

    Example:
        >>> import torch
        >>> with NoDropout():
        ...     torch.nn.functional.dropout(torch.ones(3), 0.9)
        tensor([1., 1., 1.])
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for each of torch's functions."""
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _DROPOUTS:
            return args[0] if args else named["input"]
        if name in RECURRENT:
            place = recurrent_dropout(args)
            args = (*args[:place], 0.0, *args[place + 1 :])
        if name == "multi_head_attention_forward":
            named["training"] = False  # its own calls do not come here
        if name == "scaled_dot_product_attention":
            named |= {**dict(zip(("is_causal",), args[5:], strict=False)), "dropout_p": 0.0}
            args = args[:4]
        return func(*args, **named)

"""Floating-point operations: what an encoder's method asks for, and what a call executes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from recbole_jepa4rec.model.transformer import EncoderConfig

PASSES = {"forward": 1, "forward+backward": 3}
"""Work of a pass, in forward passes."""


def encoder_flop(lengths: Tensor, config: EncoderConfig) -> int:
    """Work of one forward pass: the linear maps and the attention of all layers.

    What an implementation adds is not counted: padding, masked scores, or keys and values of the
    global [CLS] projected at every token.

    Args:
        lengths: tokens of each sequence, int64 ``[B]``.
        config: the encoder's shape.
    """
    size = config.hidden_size
    linear = 2 * int(lengths.sum()) * size * (4 * size + 2 * config.intermediate_size)
    attention = 4 * size * attended_pairs(lengths, config.attention_window)
    return config.num_layers * (linear + attention)


def attended_pairs(lengths: Tensor, window: int | None) -> int:
    """Pairs of a token and one that it attends to.

    Args:
        lengths: tokens of each sequence, int64 ``[B]``, at least 1.
        window: tokens of the local window, half on each side, beside the global [CLS] that sees
            and is seen by its whole sequence; None: every token sees every other.
    """
    if window is None:
        return int((lengths * lengths).sum())
    reach = (lengths - 1).clamp(max=window // 2)
    local = lengths + reach * (2 * lengths - reach - 1)
    far_from_cls = lengths - 1 - reach
    return int((local + 2 * far_from_cls).sum())


def executed_flop(run: Callable[[], Any]) -> int:
    """Operations of the matrix products that a call executes, those of padding included.

    Attention's own are among them on a GPU alone: torch has no count for its kernel of a CPU.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())

"""The shape of a sentence encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda hidden: F.gelu(hidden, approximate="tanh"),
    "relu": F.relu,
}


TRAINING_TARGETS = ("random", "all_prefixes")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a sentence encoder.

    Attributes:
        vocab_size: tokens, ``V``.
        hidden_size: ``D``.
        num_layers: Transformer layers.
        num_heads: attention heads; divides ``hidden_size``.
        intermediate_size: width of the feed-forward networks.
        max_token_positions: longest sequence, in tokens.
        max_item_positions: items of a history plus one for [CLS].
        attention_window: tokens seen locally (even: half on each side, while [CLS] sees and is
            seen by all), or None for dense attention.
        dropout: dropout of embeddings and layer outputs, in [0, 1).
        attention_dropout: dropout of attention probabilities, in [0, 1); slow on a CPU.
        layer_norm_eps: epsilon of every LayerNorm.
        activation: of the feed-forward networks, a key of ``ACTIVATIONS``.
        use_token_type: whether token types are embedded.
        training_targets: how a history is read. ``random``: the paper's way, newest item first,
            every token sees every other, one [CLS] in front, which predicts the one next item.
            ``all_prefixes``: oldest item first, tokens see their own item and earlier ones, a
            [CLS] behind each item, which predicts the item after it.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_token_positions: int = 1024
    max_item_positions: int = 51
    attention_window: int | None = 64
    dropout: float = 0.1
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    use_token_type: bool = True
    training_targets: str = "random"

    @property
    def item_causal(self) -> bool:
        """Whether no token sees a later item."""
        return self.training_targets == "all_prefixes"

    def __post_init__(self) -> None:
        window = self.attention_window
        if window is not None and (window < 2 or window % 2):
            raise ValueError(f"attention_window {window} is not an even number above 0 (or null)")
        for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} {value!r} is not a whole number above 0")
        if self.activation not in ACTIVATIONS:
            allowed = ", ".join(ACTIVATIONS)
            raise ValueError(f"unknown activation {self.activation!r} (allowed: {allowed})")
        if self.training_targets not in TRAINING_TARGETS:
            allowed = ", ".join(TRAINING_TARGETS)
            raise ValueError(
                f"unknown training_targets {self.training_targets!r} (allowed: {allowed})"
            )
        if self.item_causal and window is not None:
            raise ValueError(
                f"attention_window is {window}; allowed with training_targets='all_prefixes': null"
            )

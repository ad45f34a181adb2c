"""What JEPA4Rec learns by: the weights of its losses, and the predictor that L_map asks (3.3)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor, nn

from recbole_jepa4rec.config.sentence_settings import ItemTextSettings

Kind = TypeVar("Kind", bound="RankingObjective")


@dataclass(frozen=True, kw_only=True)
class RankingObjective:
    """What finetuning compares (paper 3.4); the fields are keys of the model's settings."""

    temperature: float
    items_per_step: int

    @classmethod
    def of(cls: type[Kind], settings: ItemTextSettings) -> Kind:
        """What settings say, as far as they have the keys."""
        return cls(**settings.model_dump(include={field.name for field in fields(cls)}))

    @property
    def loss_weights(self) -> dict[str, float]:
        """The terms of pre-training and their weights, without those of weight zero."""
        raise NotImplementedError

    @property
    def finetune_weights(self) -> dict[str, float]:
        """The terms of finetuning: L_FT."""
        return {"finetune": 1.0}


@dataclass(frozen=True, kw_only=True)
class Objective(RankingObjective):
    """What is masked and compared, and with which weight (paper 3.3, 3.4).

    The fields are keys of ``JEPA4RecSettings``, which says what each means and allows; those with a
    default leave out what RecFormer has not.
    """

    history_mask_ratio: float
    next_item_mask_ratio: float
    mlm_weight: float
    sequence_pass: str
    mask_unit: str
    mlm_reduction: str
    mapping_weight: float = 0.0
    mapping_reduction: str = "mean"
    unmasked_target: str = "uniform"
    positive_encoder: str = "context"
    item_encoder: str = "context"
    contrastive_weight: float = 1.0
    collapse_prevention: str | None = "ema"
    sigreg_weight: float = 0.05
    sigreg_directions: int = 256
    rollout_steps: int = 1

    @property
    def rolls_out(self) -> bool:
        """Whether training rolls out further than the one next item."""
        return self.rollout_steps > 1

    @property
    def finetune_weights(self) -> dict[str, float]:
        """The terms of finetuning: L_FT, and the same of a rollout's later steps."""
        return super().finetune_weights | ({"rollout": 1.0} if self.rolls_out else {})

    @property
    def loss_weights(self) -> dict[str, float]:
        """The terms of L_PT and their weights, without those of weight zero."""
        share = self.sigreg_weight if self.collapse_prevention == "sigreg" else 0.0
        weights = {
            "sequence_item": self.contrastive_weight,
            "mlm": self.mlm_weight,
            "mapping": self.mapping_weight * (1 - share),
            "sigreg": self.mapping_weight * share,
            "rollout": self.contrastive_weight * self.rolls_out,
        }
        return {name: weight for name, weight in weights.items() if weight}


class Predictor(nn.Module):
    """FFN1 guesses a masked history item, FFN2 the half-hidden next item (paper 3.3.2).

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.history = _feed_forward(hidden_size)
        self.next_item = _feed_forward(hidden_size)
        self.unmasked = nn.Parameter(torch.zeros(hidden_size))

    def predict_history(self, sequence: Tensor, position: Tensor, was_masked: Tensor) -> Tensor:
        """FFN1(h_CLS + D_n), ``+`` for concatenation.

        Args:
            sequence: h_CLS, ``[B, D]``.
            position: item position embedding D_n of the item to guess, ``[B, D]``.
            was_masked: whether a token of that item was masked, bool ``[B]``; where none was,
                the learnable vector that starts at zero stands in for D_n.

        Returns:
            ``[B, D]``.
        """
        place = torch.where(was_masked[:, None], position, self.unmasked.to(position.dtype))
        return self.history(torch.cat([sequence, place], dim=1))

    def predict_next(self, sequence: Tensor, masked_item: Tensor) -> Tensor:
        """FFN2(h_CLS + h_{n+1,M}), both ``[B, D]``; returns ``[B, D]``."""
        return self.next_item(torch.cat([sequence, masked_item], dim=1))


def _feed_forward(hidden_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )

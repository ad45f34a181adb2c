"""What pre-training and finetuning ask for: masking, comparisons, weights (paper 3.3, 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints


@dataclass(frozen=True)
class Objective:
    """What is masked and compared, and with which weight: masked tokens and the next item.

    Attributes:
        history_mask_ratio: share of history tokens selected for masking.
        next_item_mask_ratio: share of the next item's tokens selected for masking.
        temperature: tau of the contrastive losses.
        mlm_weight: lambda_1; 0 leaves the masked-token loss out.
        sequence_pass: whether L_S-I reads h_CLS from the masked history or from a clean pass.
        items_per_step: item sentences that a finetuning step encodes anew, with gradient: all of
            them if there are no more, else the batch's next items and a sample of the others,
            weighted to stand for them all. 0: none, the table stays as the epoch began.

    Raises:
        ValueError: for a value outside its range; names it.
    """

    history_mask_ratio: float
    next_item_mask_ratio: float
    temperature: float
    mlm_weight: float
    sequence_pass: Literal["masked", "clean"]
    items_per_step: int

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), ""
            if get_args(kind) and value not in get_args(kind):
                allowed = ", ".join(get_args(kind))
            elif name.endswith("_ratio") and not 0 <= value <= 1:
                allowed = "0 to 1"
            elif (name.endswith("_weight") or name == "items_per_step") and not value >= 0:
                allowed = "0 or more"
            elif name == "temperature" and not value > 0:
                allowed = "> 0"
            if allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True)
class JointEmbeddingObjective(Objective):
    """The same, and the items that are guessed in embedding space.

    Attributes:
        unmasked_target: history item to predict where none was masked.
        mapping_weight: lambda_2; 0 leaves the mapping loss out.
        mapping_reduction: over D, in the mapping loss.
        positive_encoder: which encoder gives the next items' vectors in L_S-I.
        item_encoder: which encoder makes the item table.
    """

    unmasked_target: Literal["uniform", "newest"]
    mapping_weight: float
    mapping_reduction: Literal["sum", "mean"]
    positive_encoder: Literal["context", "target"]
    item_encoder: Literal["context", "target"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.item_encoder == "target" and self.items_per_step:
            raise ValueError(
                f"items_per_step is {self.items_per_step}; allowed with item_encoder='target', "
                "which gets no gradient: 0"
            )

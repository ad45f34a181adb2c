"""RecFormer as a RecBole sequential model (Li et al. 2023, arXiv 2305.13731)."""

from __future__ import annotations

from recbole_jepa4rec.config.sentence_settings import RecFormerSettings
from recbole_jepa4rec.model.jepa4rec import JEPA4Rec


class RecFormer(JEPA4Rec):
    """JEPA4Rec without target encoder, predictor and mapping loss.

    It is pre-trained by L_PT = L_IIC + lambda L_MLM (RecFormer, Eq. 10: the item-item contrastive
    and the masked language modelling task), then finetuned in two stages (Algorithm 1).

    Args:
        config: a RecBole config with the keys of ``properties/model/RecFormer.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    settings = RecFormerSettings

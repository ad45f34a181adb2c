"""JEPA4Rec as a RecBole sequential model (Nguyen and Le: JEPA4Rec; paper section 3)."""

from __future__ import annotations

from typing import Any

from recbole_jepa4rec.model.ema import ExponentialMovingAverage
from recbole_jepa4rec.model.encoder import MLMHead, SentenceEncoder
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.model.objective import JointEmbeddingObjective
from recbole_jepa4rec.model.predictor import Predictor
from recbole_jepa4rec.model.recformer import RecFormer, unpack
from recbole_jepa4rec.text.sentences import ItemSentences


class JEPA4Rec(RecFormer):
    """RecFormer with a target encoder, a predictor and the mapping loss between them.

    The core is a :class:`~recbole_jepa4rec.model.jepa.JointEmbeddingModel`; sentences, encoder,
    finetuning and ranking are RecFormer's, as in the paper.

    Args:
        config: a RecBole config with the keys of ``properties/model/JEPA4Rec.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.
    """

    core: JointEmbeddingModel

    def _build_core(
        self, config: Any, sentences: ItemSentences, encoder: SentenceEncoder, mlm_head: MLMHead
    ) -> JointEmbeddingModel:
        return JointEmbeddingModel(
            sentences=sentences,
            context_encoder=encoder,
            target_encoder=ExponentialMovingAverage(
                encoder, config["ema_momentum"], config["ema_final_momentum"]
            ),
            predictor=Predictor(encoder.config.hidden_size),
            mlm_head=mlm_head,
            objective=unpack(JointEmbeddingObjective, config),
            max_sequence_tokens=config["max_sequence_tokens"],
            tokens_per_batch=config["tokens_per_batch"],
        )

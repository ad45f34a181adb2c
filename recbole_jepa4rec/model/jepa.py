"""The joint-embedding predictive model over item sentences, free of configs (paper 3.2 to 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import Draw, derive
from recbole_jepa4rec.model.ema import ExponentialMovingAverage
from recbole_jepa4rec.model.encoder import MLMHead, SentenceEncoder
from recbole_jepa4rec.model.loss import mapping_loss
from recbole_jepa4rec.model.masked_pair import MaskedPair
from recbole_jepa4rec.model.objective import JointEmbeddingObjective
from recbole_jepa4rec.model.predictor import Predictor
from recbole_jepa4rec.model.sentence_model import SentenceModel
from recbole_jepa4rec.text.masking import draw_masked_item
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch


class JointEmbeddingModel(SentenceModel):
    """A sentence model that also guesses items in embedding space.

    The context encoder is the sentence model's encoder; the target encoder is its moving average
    and stands in for its fixed copy.

    Args:
        sentences: the items' token store.
        context_encoder: f_theta, trained by gradient.
        target_encoder: its moving average.
        predictor: FFN1 and FFN2.
        mlm_head: logits over the vocabulary.
        objective: masking, losses and their weights.
        max_sequence_tokens: tokens of a history or sentence, [CLS] counted; the rest is cut.
        tokens_per_batch: tokens encoded at once where no gradient is needed.
    """

    objective: JointEmbeddingObjective
    fixed_copy: ExponentialMovingAverage[SentenceEncoder]

    def __init__(
        self,
        sentences: ItemSentences,
        context_encoder: SentenceEncoder,
        target_encoder: ExponentialMovingAverage[SentenceEncoder],
        predictor: Predictor,
        mlm_head: MLMHead,
        objective: JointEmbeddingObjective,
        max_sequence_tokens: int,
        tokens_per_batch: int,
    ) -> None:
        super().__init__(
            sentences,
            context_encoder,
            target_encoder,
            mlm_head,
            objective,
            max_sequence_tokens,
            tokens_per_batch,
        )
        self.predictor = predictor

    @property
    def context_encoder(self) -> SentenceEncoder:
        """f_theta."""
        return self.encoder

    @property
    def target_encoder(self) -> ExponentialMovingAverage[SentenceEncoder]:
        """The moving average of f_theta."""
        return self.fixed_copy

    @property
    def loss_weights(self) -> dict[str, float]:
        """The terms of L_PT and their weights, without those of weight zero (paper 3.3.2)."""
        weight = self.objective.mapping_weight
        return super().loss_weights | ({"mapping": weight} if weight else {})

    def begin_phase(self, steps: int, items_frozen: bool) -> None:
        """As the sentence model's; the momentum's schedule begins anew."""
        self.target_encoder.begin(steps)
        super().begin_phase(steps, items_frozen)

    def weights_moved(self) -> None:
        """To be called after every optimizer step: moves the average, ages the item table."""
        super().weights_moved()
        if not self.items_frozen:
            self.target_encoder.update(self.context_encoder)

    def _item_encoder(self) -> SentenceEncoder:
        if self.objective.item_encoder == "target":
            return self.target_encoder.module
        return super()._item_encoder()

    def _passes(self, pair: MaskedPair, positives: TokenBatch) -> dict[str, TokenBatch]:
        passes = super()._passes(pair, positives)
        if self.objective.positive_encoder == "target":
            del passes["positive"]
        return passes

    def _positive_vectors(self, vectors: dict[str, Tensor], positives: TokenBatch) -> Tensor:
        if self.objective.positive_encoder == "target":
            return self._target_vectors(positives)
        return super()._positive_vectors(vectors, positives)

    def _further_losses(self, pair: MaskedPair, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """L_map: a history item and the next item, guessed by the predictor (paper 3.3.2)."""
        if not self.objective.mapping_weight:
            return {}
        place, was_masked = self._masked_item(pair)
        found = place > 0
        newest = pair.lengths.cumsum(0) - pair.lengths
        items = pair.item_ids[(newest + pair.histories.items_back(place))[found]]
        positions = self.context_encoder.embedding.item_positions(place[found])
        whole = vectors["masked"][pair.histories.cls_counts.cumsum(0) - 1]
        predicted = (
            self.predictor.predict_history(whole[found], positions, was_masked[found]),
            self.predictor.predict_next(whole, vectors["next"]),
        )
        sentence_of_item = self.sentences.sentence_of_item
        truth = sentence_of_item[items], sentence_of_item[pair.next_items]
        return {"mapping": self._mapping_loss(predicted, truth)}

    def _masked_item(self, pair: MaskedPair) -> tuple[Tensor, Tensor]:
        """As ``draw_masked_item``, which wants a sequence at least."""
        if not len(pair.lengths):
            return pair.lengths, pair.lengths.bool()
        keys = derive(pair.keys, Draw.MASKED_ITEM)
        return draw_masked_item(pair.histories, pair.selected, keys, self.objective.unmasked_target)

    def _mapping_loss(
        self, predicted: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Sum over the two kinds of item; ``truth`` holds the sentences of what was predicted."""
        distinct, which = torch.unique(torch.cat(truth), return_inverse=True)
        targets = self._target_vectors(self._single(distinct))[which]
        total = targets.new_zeros(())
        for vectors, target in zip(predicted, targets.split([*map(len, truth)]), strict=True):
            loss = mapping_loss(vectors, target, self.objective.mapping_reduction)
            total = total + processes.shard_of_mean(loss, len(vectors))
        return total

    @torch.no_grad()
    def _target_vectors(self, batch: TokenBatch) -> Tensor:
        return self.target_encoder.module.cls(batch)

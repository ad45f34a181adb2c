"""The joint-embedding predictive model over item sentences, free of configs (paper 3.2 to 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import pandas as pd
import torch
from torch import Tensor, nn

from recbole_jepa4rec.candidates import draw_candidates
from recbole_jepa4rec.keyed_random import derive
from recbole_jepa4rec.loss import contrastive_loss, cosine_similarity, mapping_loss, mlm_loss
from recbole_jepa4rec.masking import draw_masked_item, mask_tokens
from recbole_jepa4rec.model.ema import ExponentialMovingAverage
from recbole_jepa4rec.model.encoder import MLMHead, SentenceEncoder
from recbole_jepa4rec.model.predictor import Predictor
from recbole_jepa4rec.sentences import ItemSentences, TokenBatch


@dataclass(frozen=True)
class Objective:
    """What is masked, what is compared with what, and with which weight.

    Attributes:
        history_mask_ratio: share of history tokens selected for masking.
        next_item_mask_ratio: share of the next item's tokens selected for masking.
        unmasked_target: history item to predict where none was masked.
        temperature: tau of the contrastive losses.
        mlm_weight: lambda_1; 0 leaves the masked-token loss out.
        mapping_weight: lambda_2; 0 leaves the mapping loss out.
        mapping_reduction: over D, in the mapping loss.
        sequence_pass: whether L_S-I reads h_CLS from the masked history or from a clean pass.
        positive_encoder: which encoder gives the next items' vectors in L_S-I.
        item_encoder: which encoder makes the item table.
        items_per_step: item sentences that a finetuning step encodes anew, with gradient: all of
            them if there are no more, else the batch's next items and a sample of the others,
            weighted to stand for them all. 0: none, the table stays as the epoch began.

    Raises:
        ValueError: for a value outside its range; names it.
    """

    history_mask_ratio: float = 0.15
    next_item_mask_ratio: float = 0.5
    unmasked_target: Literal["uniform", "newest"] = "uniform"
    temperature: float = 0.05
    mlm_weight: float = 0.1
    mapping_weight: float = 0.1
    mapping_reduction: Literal["sum", "mean"] = "sum"
    sequence_pass: Literal["masked", "clean"] = "masked"
    positive_encoder: Literal["context", "target"] = "context"
    item_encoder: Literal["context", "target"] = "context"
    items_per_step: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Objective).items():
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


class JointEmbeddingModel(nn.Module):
    """Context encoder, target encoder, predictor and masked-token head, put together.

    Histories come as item ids packed newest first ``[M]`` with their lengths ``[B]``.

    Args:
        sentences: the items' token store.
        context_encoder: f_theta, trained by gradient.
        target_encoder: its moving average.
        predictor: FFN1 and FFN2.
        mlm_head: logits over the vocabulary.
        objective: masking, losses and their weights.
        max_sequence_tokens: tokens of a history, [CLS] counted; past that the oldest are cut.
        tokens_per_batch: tokens encoded at once when the item table is made.
    """

    items_frozen: Tensor
    ordinary_ids: Tensor

    def __init__(
        self,
        sentences: ItemSentences,
        context_encoder: SentenceEncoder,
        target_encoder: ExponentialMovingAverage[SentenceEncoder],
        predictor: Predictor,
        mlm_head: MLMHead,
        objective: Objective,
        max_sequence_tokens: int,
        tokens_per_batch: int,
    ) -> None:
        super().__init__()
        self.sentences = sentences
        self.context_encoder, self.target_encoder = context_encoder, target_encoder
        self.predictor, self.mlm_head = predictor, mlm_head
        self.objective = objective
        self.max_sequence_tokens, self.tokens_per_batch = max_sequence_tokens, tokens_per_batch
        special = sentences.special
        ordinary = [i for i in range(sentences.vocab_size) if i not in special.all]
        self.register_buffer("ordinary_ids", torch.tensor(ordinary), persistent=False)
        self.register_buffer("items_frozen", torch.zeros((), dtype=torch.bool))
        self.item_table: Tensor | None = None
        self.item_table_is_old = True
        self.tokens_seen = 0
        self.register_load_state_dict_post_hook(_age_item_table)

    def pretrain_losses(
        self, item_ids: Tensor, lengths: Tensor, next_items: Tensor, keys: Tensor
    ) -> dict[str, Tensor]:
        """The terms of L_PT, unweighted; a term of weight zero is left out.

        Args:
            item_ids: histories, packed newest first, ``[M]``.
            lengths: items of each history, ``[B]``.
            next_items: ground-truth next items, ``[B]``.
            keys: one random key for each sequence, ``[B]``.
        """
        aim = self.objective
        next_sentences = self.sentences.sentence_of_item[next_items]
        distinct, positive = torch.unique(next_sentences, return_inverse=True)
        histories = self.sentences.histories(item_ids, lengths, self.max_sequence_tokens)
        next_clean, positives = self._single(next_sentences), self._single(distinct)
        masked, selected = self._mask(histories, aim.history_mask_ratio, derive(keys, 0))
        next_masked, next_selected = self._mask(
            next_clean, aim.next_item_mask_ratio, derive(keys, 1)
        )

        passes = {"masked": masked, "next": next_masked}
        if aim.sequence_pass == "clean":
            passes["clean"] = histories
        if aim.positive_encoder == "context":
            passes["context"] = positives
        tokens = torch.cat([selected, next_selected]).nonzero()[:, 0]
        vectors, hidden = self._encode_together(passes, tokens)
        if aim.positive_encoder == "target":
            vectors["target"] = self._target_vectors(positives)

        sequences, items = vectors[aim.sequence_pass], vectors[aim.positive_encoder]
        losses = {"sequence_item": contrastive_loss(sequences, items, positive, aim.temperature)}
        if aim.mlm_weight:
            labels = torch.cat([histories.input_ids, next_clean.input_ids])[tokens]
            table = self.context_encoder.embedding.tokens.weight
            losses["mlm"] = mlm_loss(self.mlm_head(hidden, table), labels)
        if aim.mapping_weight:
            place, was_masked = draw_masked_item(
                histories, selected, derive(keys, 2), aim.unmasked_target
            )
            losses["mapping"] = self._mapping_losses(
                vectors["masked"],
                vectors["next"],
                next_sentences,
                item_ids,
                lengths,
                place,
                was_masked,
            )
        return losses

    def _mapping_losses(
        self,
        sequences: Tensor,
        masked_next: Tensor,
        next_sentences: Tensor,
        item_ids: Tensor,
        lengths: Tensor,
        place: Tensor,
        was_masked: Tensor,
    ) -> Tensor:
        """L_map: a history item at position ``place`` (0: there is none) and the next item."""
        found = place > 0
        items = item_ids[(lengths.cumsum(0) - lengths + place - 1)[found]]
        wanted = torch.cat([self.sentences.sentence_of_item[items], next_sentences])
        distinct, which = torch.unique(wanted, return_inverse=True)
        targets = self._target_vectors(self._single(distinct))[which]
        positions = self.context_encoder.embedding.item_positions(place[found])
        history = self.predictor.predict_history(sequences[found], positions, was_masked[found])
        next_item = self.predictor.predict_next(sequences, masked_next)
        reduction = self.objective.mapping_reduction
        return mapping_loss(history, targets[: len(items)], reduction) + mapping_loss(
            next_item, targets[len(items) :], reduction
        )

    def finetune_loss(
        self, item_ids: Tensor, lengths: Tensor, next_items: Tensor, keys: Tensor
    ) -> Tensor:
        """L_FT: softmax over all item sentences (paper 3.4); arguments as in pre-training.

        The candidates are the distinct sentences: items with the same text are one item to a text
        model. See ``Objective.items_per_step`` for how old their vectors are.
        """
        aim = self.objective
        sequences = self.encode_histories(item_ids, lengths)
        wanted = self.sentences.sentence_of_item[next_items]
        if self.items_frozen or not aim.items_per_step:
            table = self.item_vectors(refresh=False)
            return contrastive_loss(sequences, table, wanted, aim.temperature)
        candidates, positive, log_weights = draw_candidates(
            wanted, self.sentences.num_sentences, aim.items_per_step, derive(keys.sum(), 3)
        )
        items = self._encode(self._single(candidates))
        return contrastive_loss(sequences, items, positive, aim.temperature, log_weights)

    def encode_histories(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """h_CLS of unmasked histories, ``[B, D]``."""
        return self._encode(self.sentences.histories(item_ids, lengths, self.max_sequence_tokens))

    def scores(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """Cosine of every history with every item, padding item included, ``[B, N]``.

        Similarities are computed once for each sentence, so that items of one text tie exactly.
        """
        similarity = cosine_similarity(
            self.encode_histories(item_ids, lengths), self.item_vectors()
        )
        return similarity[:, self.sentences.sentence_of_item]

    @torch.no_grad()
    def item_vectors(self, refresh: bool = True) -> Tensor:
        """The item table: vectors of all sentences ``[S, D]``, encoded anew when weights moved.

        Args:
            refresh: whether a table that is older than the weights is encoded anew.
        """
        if self.item_table is None or (refresh and self.item_table_is_old):
            self.item_table = self._encode_sentences(self._item_encoder(), self._every_sentence())
            self.item_table_is_old = False
        return self.item_table

    @torch.no_grad()
    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items to the catalogue and their vectors to the table; returns their ids."""
        known = self.sentences.num_sentences
        item_ids = self.sentences.append(item_text)
        if self.item_table is not None and not self.item_table_is_old:
            new = torch.arange(known, self.sentences.num_sentences, device=self.item_table.device)
            vectors = self._encode_sentences(self._item_encoder(), new)
            self.item_table = torch.cat([self.item_table, vectors])
        return item_ids

    @torch.no_grad()
    def freeze_items(self, frozen: bool) -> None:
        """Fix the item side, or let it move again.

        While frozen, the table is what the target encoder says and the target encoder stands
        still; it starts from the weights that made the table so far.
        """
        if frozen and not self.items_frozen and self.objective.item_encoder == "context":
            self.target_encoder.copy_from(self.context_encoder)
        self.items_frozen.fill_(frozen)

    def weights_moved(self) -> None:
        """To be called after every optimizer step: moves the average, ages the item table."""
        self.item_table_is_old = True
        if not self.items_frozen:
            self.target_encoder.update(self.context_encoder)

    def _item_encoder(self) -> SentenceEncoder:
        if self.objective.item_encoder == "target" or self.items_frozen:
            return self.target_encoder.average
        return self.context_encoder

    def _mask(self, batch: TokenBatch, rate: float, keys: Tensor) -> tuple[TokenBatch, Tensor]:
        return mask_tokens(batch, rate, keys, self.sentences.special.mask, self.ordinary_ids)

    def _every_sentence(self) -> Tensor:
        return torch.arange(self.sentences.num_sentences, device=self.sentences.offsets.device)

    def _single(self, sentence_ids: Tensor) -> TokenBatch:
        return self.sentences.single(sentence_ids, self.max_sequence_tokens)

    def _encode(self, batch: TokenBatch) -> Tensor:
        self.tokens_seen += batch.num_tokens
        return self.context_encoder.cls(batch)

    def _encode_together(
        self, passes: dict[str, TokenBatch], tokens: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encode several batches in one forward: [CLS] vectors by name, hidden states at tokens."""
        joint = TokenBatch.concat(list(passes.values()))
        self.tokens_seen += joint.num_tokens
        hidden = self.context_encoder(joint, torch.cat([joint.cls_index, tokens]))
        parts = hidden[: joint.sequences].split([batch.sequences for batch in passes.values()])
        return dict(zip(passes, parts, strict=True)), hidden[joint.sequences :]

    @torch.no_grad()
    def _target_vectors(self, batch: TokenBatch) -> Tensor:
        return self.target_encoder.average.cls(batch)

    def _encode_sentences(self, encoder: SentenceEncoder, sentence_ids: Tensor) -> Tensor:
        """Vectors of sentences, in chunks of similar length and bounded tokens, ``[S', D]``."""
        was_training = encoder.training
        encoder.eval()
        lengths = self.sentences.sentence_lengths[sentence_ids]
        order = torch.argsort(lengths)
        chunk = (lengths[order] + 1).cumsum(0) // self.tokens_per_batch
        sizes = torch.unique_consecutive(chunk, return_counts=True)[1].tolist()
        vectors = torch.empty(len(order), encoder.config.hidden_size, device=order.device)
        for places in order.split(sizes):
            vectors[places] = encoder.cls(self._single(sentence_ids[places])).float()
        encoder.train(was_training)
        return vectors


def _age_item_table(model: JointEmbeddingModel, _: object) -> None:
    """Other weights were loaded: what they say of the items is not known yet."""
    model.item_table_is_old = True

"""The joint-embedding predictive model over item sentences, free of configs (paper 3.2 to 3.4)."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from recbole_jepa4rec.candidates import draw_candidates
from recbole_jepa4rec.keyed_random import Draw, derive
from recbole_jepa4rec.loss import contrastive_loss, cosine_similarity, mapping_loss, mlm_loss
from recbole_jepa4rec.masking import draw_masked_item, mask_tokens
from recbole_jepa4rec.model.ema import ExponentialMovingAverage
from recbole_jepa4rec.model.encoder import MLMHead, SentenceEncoder
from recbole_jepa4rec.model.objective import Objective
from recbole_jepa4rec.model.predictor import Predictor
from recbole_jepa4rec.sentences import ItemSentences
from recbole_jepa4rec.token_batch import TokenBatch, fill_batches


class JointEmbeddingModel(nn.Module):
    """Context encoder, target encoder, predictor and masked-token head, put together.

    Histories come as item ids packed newest first ``[M]`` with their lengths ``[B]``. How they are
    read is the encoder's matter (``EncoderConfig.training_targets``): with ``random`` a history has
    one [CLS] and one target, the next item; with ``all_prefixes`` it has a [CLS] behind each item,
    ``Q`` in all, each with the item after it as target.

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
        self.item_causal = context_encoder.config.item_causal
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
        histories = self._histories(item_ids, lengths)
        wanted = self._wanted(histories, item_ids, lengths, next_items)
        distinct, positive = torch.unique(wanted, return_inverse=True)
        next_clean, positives = self._single(next_sentences), self._single(distinct)
        masked, selected = self._mask(
            histories, aim.history_mask_ratio, derive(keys, Draw.HISTORY_MASK)
        )
        next_masked, next_selected = self._mask(
            next_clean, aim.next_item_mask_ratio, derive(keys, Draw.NEXT_ITEM_MASK)
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
                histories, selected, derive(keys, Draw.MASKED_ITEM), aim.unmasked_target
            )
            found = place > 0
            items = item_ids[(lengths.cumsum(0) - lengths + histories.items_back(place))[found]]
            positions = self.context_encoder.embedding.item_positions(place[found])
            whole = vectors["masked"][histories.cls_counts.cumsum(0) - 1]
            predicted = (
                self.predictor.predict_history(whole[found], positions, was_masked[found]),
                self.predictor.predict_next(whole, vectors["next"]),
            )
            truth = self.sentences.sentence_of_item[items], next_sentences
            losses["mapping"] = self._mapping_loss(predicted, truth)
        return losses

    def finetune_loss(
        self, item_ids: Tensor, lengths: Tensor, next_items: Tensor, key: Tensor
    ) -> Tensor:
        """L_FT: softmax over all item sentences (paper 3.4).

        The candidates are the distinct sentences: items with the same text are one item to a text
        model. See ``Objective.items_per_step`` for how old their vectors are.

        Args:
            item_ids: histories, packed newest first, ``[M]``.
            lengths: items of each history, ``[B]``.
            next_items: ground-truth next items, ``[B]``.
            key: random key of the step, scalar.
        """
        aim = self.objective
        histories = self._histories(item_ids, lengths)
        sequences = self._encode(histories)
        wanted = self._wanted(histories, item_ids, lengths, next_items)
        if self.items_frozen or not aim.items_per_step:
            first = self.sentences.used.start
            table = self.item_vectors(refresh=False)[first:]
            return contrastive_loss(sequences, table, wanted - first, aim.temperature)
        candidates, positive, log_weights = draw_candidates(
            wanted, self.sentences.used, aim.items_per_step, derive(key, Draw.CANDIDATES)
        )
        items = self._encode(self._single(candidates))
        return contrastive_loss(sequences, items, positive, aim.temperature, log_weights)

    def encode_histories(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """h_CLS of unmasked histories, whole, ``[B, D]``; ``tokens_per_batch`` tokens at once."""
        histories = self._histories(item_ids, lengths)
        self.tokens_seen += histories.num_tokens
        sizes = fill_batches(histories.lengths, self.tokens_per_batch, max(1, len(lengths)))
        parts = [self.context_encoder.whole(part) for part in histories.split(sizes)]
        return torch.cat(parts) if parts else self.context_encoder.whole(histories)

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
            every = torch.arange(self.sentences.num_sentences, device=self.sentences.offsets.device)
            self.item_table = self._encode_sentences(self._item_encoder(), every)
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

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts; no sentence that the table has already is encoded again."""
        self.sentences.reassign(item_ids, self.add_items(item_text))

    def drop_items(self, first: int) -> None:
        """Forget the items from id ``first`` on, which were the last to be added."""
        self.sentences.truncate(first)
        if self.item_table is not None:
            self.item_table = self.item_table[: self.sentences.num_sentences]

    @torch.no_grad()
    def freeze_items(self, frozen: bool) -> None:
        """Fix the item side, or let it move again.

        While frozen, the table is what the target encoder says and the target encoder stands
        still; it starts from the weights that made the table so far.
        """
        if frozen and not self.items_frozen and self.objective.item_encoder == "context":
            self.target_encoder.copy_from(self.context_encoder)
        self.item_table_is_old |= frozen != bool(self.items_frozen)
        self.items_frozen.fill_(frozen)

    def weights_moved(self) -> None:
        """To be called after every optimizer step: moves the average, ages the item table."""
        if not self.items_frozen:
            self.item_table_is_old = True
            self.target_encoder.update(self.context_encoder)

    def _item_encoder(self) -> SentenceEncoder:
        if self.objective.item_encoder == "target" or self.items_frozen:
            return self.target_encoder.average
        return self.context_encoder

    def _mapping_loss(
        self, predicted: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]
    ) -> Tensor:
        """L_map: predictions and true sentences of a history item and of the next item."""
        distinct, which = torch.unique(torch.cat(truth), return_inverse=True)
        targets = self._target_vectors(self._single(distinct))[which]
        return sum(
            (
                mapping_loss(vectors, target, self.objective.mapping_reduction)
                for vectors, target in zip(
                    predicted, targets.split([*map(len, truth)]), strict=True
                )
            ),
            start=targets.new_zeros(()),
        )

    def _mask(self, batch: TokenBatch, rate: float, keys: Tensor) -> tuple[TokenBatch, Tensor]:
        return mask_tokens(batch, rate, keys, self.sentences.special.mask, self.ordinary_ids)

    def _single(self, sentence_ids: Tensor) -> TokenBatch:
        return self.sentences.single(sentence_ids, self.max_sequence_tokens, self.item_causal)

    def _histories(self, item_ids: Tensor, lengths: Tensor) -> TokenBatch:
        return self.sentences.histories(
            item_ids, lengths, self.max_sequence_tokens, self.item_causal
        )

    def _wanted(
        self, histories: TokenBatch, item_ids: Tensor, lengths: Tensor, next_items: Tensor
    ) -> Tensor:
        """Sentence that each [CLS] must predict, ``[Q]``: of the next item, or of the one after."""
        counts = histories.cls_counts
        sequence = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        nth = (
            torch.arange(len(sequence), device=counts.device)
            - (counts.cumsum(0) - counts)[sequence]
        )
        back = counts[sequence] - 1 - nth  # items between this [CLS] and the next item
        place = (lengths.cumsum(0) - lengths)[sequence] + back - 1
        items = torch.where(back > 0, item_ids[place.clamp(min=0)], next_items[sequence])
        return self.sentences.sentence_of_item[items]

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
        counts = [len(batch.cls_index) for batch in passes.values()]
        *parts, others = hidden.split([*counts, len(tokens)])
        return dict(zip(passes, parts, strict=True)), others

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

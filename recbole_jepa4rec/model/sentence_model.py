"""A sequence encoder over item sentences, free of configs: RecFormer's half of JEPA4Rec."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import Draw, derive
from recbole_jepa4rec.model.candidates import draw_candidates
from recbole_jepa4rec.model.ema import FixedCopy
from recbole_jepa4rec.model.encoder import MLMHead, SentenceEncoder
from recbole_jepa4rec.model.item_table import ItemTable
from recbole_jepa4rec.model.loss import contrastive_loss, cosine_similarity, mlm_loss
from recbole_jepa4rec.model.masked_pair import MaskedPair
from recbole_jepa4rec.model.objective import Objective
from recbole_jepa4rec.text.masking import mask_tokens
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch, fill_batches


class SentenceModel(nn.Module):
    """An encoder of item sentences and histories, its masked-token head and its item table.

    Learns by masked tokens and by telling a history's next item from others, in the batch or in
    the catalogue. Histories come as item ids packed newest first ``[M]`` with their lengths
    ``[B]``. How they are read is the encoder's matter (``EncoderConfig.training_targets``): with
    ``random`` a history has one [CLS] and one target, the next item; with ``all_prefixes`` it has a
    [CLS] behind each item, ``Q`` in all, each with the item after it as target.

    Where a run has several processes each is given its own histories, maybe none. The losses are
    its part of those of all (``processes.shard_of_mean``), compared with what all of them want.

    Args:
        sentences: the items' token store.
        encoder: of sentences and histories, trained by gradient.
        fixed_copy: of the encoder; makes the item table while items are frozen.
        mlm_head: logits over the vocabulary.
        objective: masking, losses and their weights.
        max_sequence_tokens: tokens of a history or sentence, [CLS] counted; the rest is cut.
        tokens_per_batch: tokens encoded at once where no gradient is needed.
    """

    items_frozen: Tensor
    ordinary_ids: Tensor

    def __init__(
        self,
        sentences: ItemSentences,
        encoder: SentenceEncoder,
        fixed_copy: FixedCopy[SentenceEncoder],
        mlm_head: MLMHead,
        objective: Objective,
        max_sequence_tokens: int,
        tokens_per_batch: int,
    ) -> None:
        super().__init__()
        self.sentences, self.objective = sentences, objective
        self.encoder, self.fixed_copy, self.mlm_head = encoder, fixed_copy, mlm_head
        self.max_sequence_tokens, self.tokens_per_batch = max_sequence_tokens, tokens_per_batch
        self.item_causal = encoder.config.item_causal
        self.item_table = ItemTable(sentences, max_sequence_tokens, tokens_per_batch)
        special = sentences.special
        ordinary = [i for i in range(sentences.vocab_size) if i not in special.all]
        self.register_buffer("ordinary_ids", torch.tensor(ordinary), persistent=False)
        self.register_buffer("items_frozen", torch.zeros((), dtype=torch.bool))
        self.tokens_seen = 0
        self.register_load_state_dict_post_hook(_age_item_table)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The terms of ``pretrain_losses`` and their weights, without those of weight zero."""
        weights = {"sequence_item": 1.0, "mlm": self.objective.mlm_weight}
        return {name: weight for name, weight in weights.items() if weight}

    def pretrain_losses(
        self, item_ids: Tensor, lengths: Tensor, next_items: Tensor, keys: Tensor
    ) -> dict[str, Tensor]:
        """The terms that ``loss_weights`` names, unweighted.

        Args:
            item_ids: histories, packed newest first, ``[M]``.
            lengths: items of each history, ``[B]``.
            next_items: ground-truth next items, ``[B]``.
            keys: one random key for each sequence, ``[B]``.
        """
        pair = self._masked_pair(item_ids, lengths, next_items, keys)
        wanted = self._wanted(pair.histories, item_ids, lengths, next_items)
        distinct = torch.unique(processes.all_gather(wanted))
        positives = self._single(processes.shard(distinct))
        vectors, hidden = self._encode_together(self._passes(pair, positives), pair.tokens)
        sequences = vectors[self.objective.sequence_pass]
        items = processes.all_gather(self._positive_vectors(vectors, positives))
        positive = torch.searchsorted(distinct, wanted)
        loss = contrastive_loss(sequences, items, positive, self.objective.temperature)
        losses = {"sequence_item": processes.shard_of_mean(loss, len(wanted))}
        if self.objective.mlm_weight:
            table = self.encoder.embedding.tokens.weight
            loss = mlm_loss(self.mlm_head(hidden, table), pair.labels)
            losses["mlm"] = processes.shard_of_mean(loss, len(pair.labels))
        return {**losses, **self._further_losses(pair, vectors)}

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
        if self.reads_item_table:
            first = self.sentences.used.start
            table = self.item_vectors(refresh=False)[first:]
            loss = contrastive_loss(sequences, table, wanted - first, aim.temperature)
            return processes.shard_of_mean(loss, len(wanted))
        candidates, positive, log_weights = draw_candidates(
            wanted, self.sentences.used, aim.items_per_step, derive(key, Draw.CANDIDATES)
        )
        items = processes.all_gather(self._encode(self._single(processes.shard(candidates))))
        loss = contrastive_loss(sequences, items, positive, aim.temperature, log_weights)
        return processes.shard_of_mean(loss, len(wanted))

    @property
    def reads_item_table(self) -> bool:
        """Whether finetuning compares with the item table and encodes no item anew."""
        return bool(self.items_frozen) or not self.objective.items_per_step

    def table_of_epoch(self) -> Tensor | None:
        """The item table that steps read although the weights move, ``[S, D]``.

        ``None`` where there is none, or where it can be made again from the weights.
        """
        return self.item_table.vectors if self.reads_item_table and not self.items_frozen else None

    def encode_histories(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """h_CLS of unmasked histories, whole, ``[B, D]``; ``tokens_per_batch`` tokens at once."""
        histories = self._histories(item_ids, lengths)
        self.tokens_seen += histories.num_tokens
        sizes = fill_batches(histories.lengths, self.tokens_per_batch, max(1, len(lengths)))
        parts = [self.encoder.whole(part) for part in histories.split(sizes)]
        return torch.cat(parts) if parts else self.encoder.whole(histories)

    def scores(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """Cosine of every history with every item, padding item included, ``[B, N]``.

        Similarities are computed once for each sentence, so that items of one text tie exactly.
        """
        similarity = cosine_similarity(
            self.encode_histories(item_ids, lengths), self.item_vectors()
        )
        return similarity[:, self.sentences.sentence_of_item]

    def item_vectors(self, refresh: bool = True) -> Tensor:
        """The item table ``[S, D]``; see ``ItemTable.read``."""
        return self.item_table.read(self._item_encoder(), refresh)

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items to the catalogue and their vectors to the table; returns their ids."""
        item_ids = self.sentences.append(item_text)
        self.item_table.extend(self._item_encoder())
        return item_ids

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts; no sentence that the table has already is encoded again."""
        self.sentences.reassign(item_ids, self.add_items(item_text))

    def drop_items(self, first: int) -> None:
        """Forget the items from id ``first`` on, which were the last to be added."""
        self.sentences.truncate(first)
        self.item_table.truncate()

    def begin_phase(self, steps: int, items_frozen: bool) -> None:
        """A phase of so many steps begins, with the item side fixed or free to move.

        While frozen, the table is what the fixed copy says and the copy stands still; it starts
        from the weights that made the table so far, so that the table can be made again from
        weights, for new items too.
        """
        if items_frozen and not self.items_frozen:
            self.fixed_copy.copy_from(self._item_encoder())
        self.item_table.is_old |= items_frozen != bool(self.items_frozen)
        self.items_frozen.fill_(items_frozen)

    def weights_moved(self) -> None:
        """To be called after every optimizer step: ages the item table."""
        self.item_table.is_old |= not self.items_frozen

    def _item_encoder(self) -> SentenceEncoder:
        return self.fixed_copy.module if self.items_frozen else self.encoder

    def _passes(self, pair: MaskedPair, positives: TokenBatch) -> dict[str, TokenBatch]:
        """What the encoder reads in a pre-training step; the masked tokens stand first."""
        passes = {"masked": pair.masked, "next": pair.next_masked, "positive": positives}
        if self.objective.sequence_pass == "clean":
            passes["clean"] = pair.histories
        return passes

    def _positive_vectors(self, vectors: dict[str, Tensor], positives: TokenBatch) -> Tensor:
        """Vectors of the sentences that this process encodes among those wanted, ``[P, D]``."""
        return vectors["positive"]

    def _further_losses(self, pair: MaskedPair, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def _masked_pair(
        self, item_ids: Tensor, lengths: Tensor, next_items: Tensor, keys: Tensor
    ) -> MaskedPair:
        aim = self.objective
        histories = self._histories(item_ids, lengths)
        next_clean = self._single(self.sentences.sentence_of_item[next_items])
        masked, selected = self._mask(
            histories, aim.history_mask_ratio, derive(keys, Draw.HISTORY_MASK)
        )
        next_masked, next_selected = self._mask(
            next_clean, aim.next_item_mask_ratio, derive(keys, Draw.NEXT_ITEM_MASK)
        )
        return MaskedPair(
            item_ids=item_ids,
            lengths=lengths,
            next_items=next_items,
            keys=keys,
            histories=histories,
            masked=masked,
            next_clean=next_clean,
            next_masked=next_masked,
            selected=selected,
            tokens=torch.cat([selected, next_selected]).nonzero()[:, 0],
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
        return self.encoder.cls(batch)

    def _encode_together(
        self, passes: dict[str, TokenBatch], tokens: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encode several batches in one forward: [CLS] vectors by name, hidden states at tokens."""
        joint = TokenBatch.concat(list(passes.values()))
        self.tokens_seen += joint.num_tokens
        hidden = self.encoder(joint, torch.cat([joint.cls_index, tokens]))
        counts = [len(batch.cls_index) for batch in passes.values()]
        *parts, others = hidden.split([*counts, len(tokens)])
        return dict(zip(passes, parts, strict=True)), others


def _age_item_table(model: SentenceModel, _: object) -> None:
    """Other weights were loaded: what they say of the items is not known yet."""
    model.item_table.is_old = True

"""Items and histories as sentences, ranked by cosine, free of configs (paper 3.2, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import PartlyOnCPU, sent
from recbole_jepa4rec.base.keyed_random import Draw, derive
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.item_table import ItemTable, draw_candidates
from recbole_jepa4rec.model.loss import contrastive_loss, cosine_similarity, cosine_to
from recbole_jepa4rec.model.objective import RankingObjective
from recbole_jepa4rec.model.ranking_head import Entries, Queries, RankingHead
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch, fill_batches


class SentenceRanker(PartlyOnCPU):
    """An encoder of item sentences and histories that learns to rank items.

    How histories are read is the encoder's matter (``EncoderConfig.training_targets``): with
    ``random`` a history has one [CLS] and one target, the next item; with ``all_prefixes`` it has a
    [CLS] behind each item, ``Q`` in all, each with the item after it as target.

    Where a run has several processes each is given its own histories, maybe none. The losses are
    its part of those of all (``processes.shard_of_mean``), compared with what all of them want.

    Histories lie on the CPU, and all that follows from ids alone is worked out there: what is read,
    drawn and wanted.

    A subclass says how it is pre-trained, and when items are frozen.

    Args:
        sentences: the items' token store.
        encoder: of sentences and histories, trained by gradient.
        objective: losses and their weights.
        max_sequence_tokens: tokens of a history or sentence, [CLS] counted; the rest is cut.
        tokens_per_batch: tokens encoded at once where no gradient is needed.
        head: what is added to the similarity; ``None`` for nothing.

    Attributes:
        items_frozen: whether the item table stays as it is while the weights move.
        tokens_seen: tokens that were read so far, but for those of the item table.
    """

    on_cpu = ("items_frozen",)
    items_frozen: Tensor
    objective: RankingObjective

    def __init__(
        self,
        sentences: ItemSentences,
        encoder: SentenceEncoder,
        objective: RankingObjective,
        max_sequence_tokens: int,
        tokens_per_batch: int,
        head: RankingHead | None = None,
    ) -> None:
        super().__init__()
        self.head, self.sentences = head, sentences
        self.encoder, self.objective = encoder, objective
        self.max_sequence_tokens, self.tokens_per_batch = max_sequence_tokens, tokens_per_batch
        self.item_table = ItemTable(sentences, max_sequence_tokens, tokens_per_batch)
        self.register_buffer("items_frozen", torch.zeros((), dtype=torch.bool))
        self.tokens_seen = 0
        self.register_load_state_dict_post_hook(_age_item_table)

    def pretrain_losses(
        self, histories: PackedHistories, keys: Tensor, step: Tensor | int = 0
    ) -> dict[str, Tensor]:
        """The terms that ``objective.loss_weights`` names, unweighted.

        Args:
            histories: ``B`` of them, each with its next item as target.
            keys: one random key for each, ``[B]``.
            step: random key of the step, the same in all processes.
        """
        raise NotImplementedError

    def finetune_losses(
        self, histories: PackedHistories, keys: Tensor, step: Tensor | int
    ) -> dict[str, Tensor]:
        """L_FT, a softmax over all item sentences (paper 3.4), and of what else is asked for.

        The candidates are the distinct sentences: items with the same text are one item to a text
        model. With a head they are the items, which have neighbours of their own. See the key
        ``items_per_step`` for how old their vectors are.

        Args:
            histories: each with its next item as target.
            keys: one random key for each, ``[B]``.
            step: random key of the step, scalar.
        """
        aim = self.objective
        batch = self._read(histories)
        vectors = self._encode(batch)
        later, rolled = self._later_steps(histories, keys)
        asked = [self._queries(histories, batch), *later]
        wanted = self._wanted(asked)
        among = self.sentences.used if self.head is None else range(1, self.sentences.num_items)
        if self.reads_item_table:
            candidates, log_weights = torch.arange(among.start, among.stop), None
            sentences, numbers, positive = self._sent(
                (self._sentence_of(candidates), candidates, wanted - among.start)
            )
            texts = self.item_vectors(refresh=False)[sentences]
        else:
            candidates, positive, weights = draw_candidates(
                wanted, among, aim.items_per_step, derive(step, Draw.CANDIDATES)
            )
            own = self._sentence_of(processes.shard(candidates))
            texts = processes.all_gather(self._encode(self._single(own)))
            numbers, positive, log_weights = self._sent((candidates, positive, weights))
        items = self._compared(texts, numbers)
        compared = [vectors, *rolled], items, positive
        losses = self._softmaxes(asked, *compared, candidates, log_weights)
        return dict(zip(aim.finetune_weights, losses, strict=True))

    def _later_steps(
        self, histories: PackedHistories, keys: Tensor
    ) -> tuple[list[Queries], list[Tensor]]:
        """What is asked for beside the items after those read, and its vectors: nothing."""
        return [], []

    def _softmaxes(
        self,
        asked: Sequence[Queries],
        vectors: Sequence[Tensor],
        items: Tensor,
        positive: Tensor,
        candidates: Tensor,
        log_weights: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """This process's part of a softmax over the same candidates for each kind of queries.

        Args:
            asked: kinds of queries.
            vectors: of each kind, ``[Q, D]``.
            items: vectors of the candidates, ``[C, D]``.
            positive: which of these each query wants, those of one kind after the other.
            candidates: sentences or, with a head, items, on the CPU, ``[C]``.
            log_weights: see ``contrastive_loss``.
        """
        wanted = positive.split([len(queries.row) for queries in asked])
        for queries, hidden, right in zip(asked, vectors, wanted, strict=True):
            added, tau = self._added(queries, candidates), self.objective.temperature
            loss = contrastive_loss(hidden, items, right, tau, log_weights, added)
            yield processes.shard_of_mean(loss, len(right))

    def cosines(self, histories: PackedHistories) -> Tensor:
        """Cosine of every history with every item, padding item included, ``[B, N]``."""
        return self.cosines_of(self.encode_histories(histories))

    def cosines_of(self, sequences: Tensor) -> Tensor:
        """Cosine of vectors ``[B, D]`` with every item, padding item included, ``[B, N]``.

        They are computed once for each sentence, so that items of one text tie exactly.
        """
        if self.head is not None and self.head.item_ids is not None:
            return cosine_similarity(sequences, self.candidate_vectors())
        table = self.item_vectors()
        sentence_of_item = self.item_table.sentence_of_item(table.device)
        return cosine_to(sequences, self.item_table.directions(table))[:, sentence_of_item]

    def candidate_vectors(self) -> Tensor:
        """What ranking compares a history with: a vector of each item, ``[N, D]``."""
        table = self.item_vectors()
        sentence_of_item = self.item_table.sentence_of_item(table.device)
        items = torch.arange(len(sentence_of_item), device=table.device)
        return self._compared(table[sentence_of_item], items)

    def encode_histories(self, histories: PackedHistories) -> Tensor:
        """h_CLS of unmasked histories, whole, ``[B, D]``; ``tokens_per_batch`` tokens at once."""
        return self._encode_whole(self._read(histories))

    def item_vectors(self, refresh: bool = True) -> Tensor:
        """The item table ``[S, D]``; see ``ItemTable.read``."""
        return self.item_table.read(self._item_encoder, refresh)

    @property
    def reads_item_table(self) -> bool:
        """Whether finetuning compares with the item table and encodes no item anew."""
        return bool(self.items_frozen) or not self.objective.items_per_step

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items to the catalogue and their vectors to the table; returns their ids."""
        item_ids = self.sentences.append(item_text)
        self.item_table.extend(self._item_encoder)
        return item_ids

    def drop_items(self, first: int) -> None:
        """Forget the items from id ``first`` on, which were the last to be added."""
        self.sentences.truncate(first)
        self.item_table.truncate()
        self.encoder.forget_sentences()

    def weights_moved(self) -> None:
        """To be called after every optimizer step: ages the item table."""
        self.item_table.is_old |= not self.items_frozen

    @property
    def _item_encoder(self) -> SentenceEncoder:
        """What makes the item table."""
        return self.encoder

    def _read(self, histories: PackedHistories, left: int = 0) -> TokenBatch:
        """Tokens of histories, of whose ``max_sequence_tokens`` so many are left for others."""
        return self.sentences.histories(
            histories.newest_first(),
            histories.lengths,
            self.max_sequence_tokens - left,
            self.encoder.config.training_targets,
        )

    def _single(self, sentence_ids: Tensor) -> TokenBatch:
        return self.sentences.single(
            sentence_ids, self.max_sequence_tokens, self.encoder.config.training_targets
        )

    def _encode(self, batch: TokenBatch) -> Tensor:
        self.tokens_seen += batch.num_tokens
        return self.encoder.cls(batch)

    def _encode_whole(self, batch: TokenBatch, latents: Tensor | None = None) -> Tensor:
        """Vectors at the [CLS] that have seen their whole sequence, ``[B, D]``.

        Args:
            batch: ``B`` sequences, ``tokens_per_batch`` tokens of which are encoded at once.
            latents: see ``SentenceEncoder.whole``, ``[B, s, D]``.
        """
        self.tokens_seen += batch.num_tokens
        sizes = fill_batches(batch.lengths, self.tokens_per_batch, max(1, batch.sequences)) or [0]
        inputs = [None] * len(sizes) if latents is None else latents.split(sizes)
        parts = zip(batch.split(sizes), inputs, strict=True)
        return torch.cat([self.encoder.whole(*part) for part in parts])

    def _sent(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors where the weights are, in one copy."""
        return sent(tensors, self.encoder.device)

    def _queries(self, histories: PackedHistories, batch: TokenBatch) -> Queries:
        """What each [CLS] has read: a history, or one of its prefixes, ``Q`` of them."""
        counts = batch.cls_counts
        row = torch.arange(len(counts)).repeat_interleave(counts)
        nth = torch.arange(len(row)) + 1
        back = counts.cumsum(0)[row] - nth  # items between this [CLS] and the next item
        return Queries(histories, row, histories.lengths[row] - back)

    def _wanted(self, asked: Sequence[Queries]) -> Tensor:
        """Candidates that queries must predict, ``[Q]``, of one kind after the other."""
        items = torch.cat([queries.next_items for queries in asked])
        return self.sentences.sentence_of_item[items] if self.head is None else items

    def _sentence_of(self, candidates: Tensor) -> Tensor:
        """Sentences of candidates, which are sentences or, with a head, items."""
        return candidates if self.head is None else self.sentences.sentence_of_item[candidates]

    def _compared(self, texts: Tensor, candidates: Tensor) -> Tensor:
        """Vectors of candidates: their texts', and with a head their own on top of these."""
        return texts if self.head is None else self.head.candidate_vectors(texts, candidates)

    def _added(self, queries: Queries, candidates: Tensor) -> list[Entries]:
        """What the head adds in training to the logits of these candidates."""
        if self.head is None:
            return []
        of_history, of_neighbours = self.head.entries(queries, candidates)
        return of_history + of_neighbours


def _age_item_table(model: SentenceRanker, _: object) -> None:
    """Other weights were loaded: what they say of the items is not known yet."""
    model.item_table.is_old = True

"""The joint-embedding predictive model over item sentences, free of configs (paper 3.3, 3.4).

Histories pass through the encoder, masked and whole; the predictor guesses items from what comes
out; three losses compare it with other items, with the masked tokens and with the target encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import PartlyOnCPU, sent
from recbole_jepa4rec.base.keyed_random import Draw, derive
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.encoder import MLMHead, SentenceEncoder, identity
from recbole_jepa4rec.model.item_table import ItemTable, draw_candidates
from recbole_jepa4rec.model.loss import (
    contrastive_loss,
    cosine_similarity,
    cosine_to,
    mapping_loss,
    mlm_loss,
)
from recbole_jepa4rec.model.moving_average import FixedCopy
from recbole_jepa4rec.model.objective import Objective, Predictor
from recbole_jepa4rec.model.ranking_head import Entries, Queries, RankingHead
from recbole_jepa4rec.model.rollout import as_inputs, roll_out
from recbole_jepa4rec.model.sigreg import draw_directions, sigreg
from recbole_jepa4rec.text.masking import Masking
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch, fill_batches, with_latents


class JointEmbeddingModel(PartlyOnCPU):
    """An encoder of item sentences and histories, and what it learns by.

    How histories are read is the encoder's matter (``EncoderConfig.training_targets``): with
    ``random`` a history has one [CLS] and one target, the next item; with ``all_prefixes`` it has a
    [CLS] behind each item, ``Q`` in all, each with the item after it as target.

    Where a run has several processes each is given its own histories, maybe none. The losses are
    its part of those of all (``processes.shard_of_mean``), compared with what all of them want.

    Histories lie on the CPU, and all that follows from ids alone is worked out there: what is read,
    masked, drawn and wanted.

    Args:
        sentences: the items' token store.
        encoder: the context encoder f_theta, of sentences and histories, trained by gradient.
        target_encoder: its moving average; or, where nothing is predicted of it, a fixed copy.
            Makes the item table while items are frozen, when it stands still. ``None`` where
            they never are.
        mlm_head: logits over the vocabulary; ``None`` where no token is masked.
        predictor: FFN1 and FFN2; ``None`` without mapping loss.
        objective: masking, losses and their weights.
        max_sequence_tokens: tokens of a history or sentence, [CLS] counted; the rest is cut.
        tokens_per_batch: tokens encoded at once where no gradient is needed.
        head: what is added to the similarity; ``None`` for nothing.
    """

    on_cpu = ("items_frozen",)
    items_frozen: Tensor

    def __init__(
        self,
        sentences: ItemSentences,
        encoder: SentenceEncoder,
        target_encoder: FixedCopy[SentenceEncoder] | None,
        mlm_head: MLMHead | None,
        predictor: Predictor | None,
        objective: Objective,
        max_sequence_tokens: int,
        tokens_per_batch: int,
        head: RankingHead | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.sentences, self.objective = sentences, objective
        self.encoder, self.fixed_copy, self.mlm_head = encoder, target_encoder, mlm_head
        self.predictor = predictor
        self.max_sequence_tokens, self.tokens_per_batch = max_sequence_tokens, tokens_per_batch
        self.item_table = ItemTable(sentences, max_sequence_tokens, tokens_per_batch)
        self.masking = Masking.of(
            sentences,
            objective.mask_unit,
            objective.history_mask_ratio,
            objective.next_item_mask_ratio,
            objective.unmasked_target,
        )
        width = encoder.config.hidden_size
        self.reentry = identity(width) if objective.rolls_out else None
        self.register_buffer("items_frozen", torch.zeros((), dtype=torch.bool))
        self.tokens_seen = 0
        self.register_load_state_dict_post_hook(_age_item_table)

    @property
    def target_encoder(self) -> FixedCopy[SentenceEncoder]:
        """The encoder without gradient, which weights on disk know as ``fixed_copy``."""
        assert self.fixed_copy is not None
        return self.fixed_copy

    def pretrain_losses(
        self, histories: PackedHistories, keys: Tensor, step: Tensor | int = 0
    ) -> dict[str, Tensor]:
        """The terms that ``Objective.loss_weights`` names, unweighted (paper 3.3).

        Args:
            histories: ``B`` of them, each with its next item as target.
            keys: one random key for each, ``[B]``.
            step: random key of the step, the same in all processes.
        """
        aim, masking = self.objective, self.masking
        clean = self._read(histories)
        next_clean = self._single(self.sentences.sentence_of_item[histories.targets])
        masked, selected = masking.of_histories(clean, derive(keys, Draw.HISTORY_MASK))
        next_masked, next_selected = masking.of_next_items(
            next_clean, derive(keys, Draw.NEXT_ITEM_MASK)
        )
        later, rolled = self._later_steps(histories, keys) if aim.contrastive_weight else ([], [])
        asked = [self._queries(histories, clean), *later]
        wanted = self._wanted(asked)
        distinct = torch.unique(processes.all_gather(wanted))
        positives = self._single(self._sentence_of(processes.shard(distinct)))

        passes = {"masked": masked, "next": next_masked}
        if aim.contrastive_weight and aim.positive_encoder == "context":
            passes["positive"] = positives
        if aim.contrastive_weight and aim.sequence_pass == "clean":
            passes["clean"] = clean
        tokens = torch.cat([selected, next_selected]).nonzero()[:, 0]
        vectors, hidden = self._encode_together(passes, tokens)

        labels = torch.cat([clean.input_ids, next_clean.input_ids])[tokens]
        positive, labels = self._sent((torch.searchsorted(distinct, wanted), labels))
        losses: dict[str, Tensor] = {}
        if aim.contrastive_weight:
            if aim.positive_encoder == "target":
                vectors["positive"] = self._target_vectors(positives)
            items = processes.all_gather(vectors["positive"])
            compared = [vectors[aim.sequence_pass], *rolled], items, positive
            names = "sequence_item", "rollout"
            losses |= zip(names, self._softmaxes(asked, *compared, distinct), strict=False)
        if aim.mlm_weight:
            losses["mlm"] = self._mlm_term(hidden, labels, int(selected.sum()))
        if aim.mapping_weight:
            guessed = masking.items_to_guess(clean, selected, derive(keys, Draw.MASKED_ITEM))
            losses |= self.mapping_terms(histories, clean, *guessed, vectors, step)
        return losses

    def mapping_terms(
        self,
        histories: PackedHistories,
        clean: TokenBatch,
        row: Tensor,
        place: Tensor,
        was_masked: Tensor,
        vectors: dict[str, Tensor],
        step: Tensor | int,
    ) -> dict[str, Tensor]:
        """L_map: history items and the next item, guessed by the predictor (paper 3.3.2).

        Args:
            histories: ``B`` of them.
            clean: their sentences.
            row: history of each item to guess, ``[P]``.
            place: its item position there, ``[P]``.
            was_masked: whether a token of it was masked, ``[P]``.
            vectors: at the [CLS] of the masked histories and of the masked next items.
            step: random key of the step.

        Returns:
            ``mapping``, the sum of two means, one for each kind of item; ``sigreg``, where it
            prevents a collapse, of the items' vectors and of all h_CLS, the mean of both.
        """
        assert self.predictor is not None
        aim = self.objective
        newest = histories.lengths.cumsum(0) - 1
        items = histories.items[newest[row] - clean.items_back(row, place)]
        truth = self.sentences.sentence_of_item[torch.cat([items, histories.targets])]
        distinct = torch.unique(processes.all_gather(truth))
        last_cls, which = clean.cls_counts.cumsum(0) - 1, torch.searchsorted(distinct, truth)
        row, place, was_masked, last_cls, which = self._sent(
            (row, place, was_masked, last_cls, which)
        )
        positions, h_cls = self.encoder.embedding.item_positions(place), vectors["masked"][last_cls]
        predicted = (
            self.predictor.predict_history(h_cls[row], positions, was_masked),
            self.predictor.predict_next(h_cls, vectors["next"]),
        )
        of_items = self._target_vectors(self._single(processes.shard(distinct)))
        every = processes.all_gather(of_items)[which]
        total = of_items.new_zeros(())
        for guess, target in zip(predicted, every.split([*map(len, predicted)]), strict=True):
            stops = aim.collapse_prevention == "ema"
            loss = mapping_loss(guess, target, aim.mapping_reduction, stop_gradient=stops)
            total = total + processes.shard_of_mean(loss, len(guess))
        if aim.collapse_prevention != "sigreg":
            return {"mapping": total}
        drawn = draw_directions(step, of_items.shape[1], aim.sigreg_directions)
        directions = sent(drawn, self.encoder.device)
        both = sigreg(of_items, directions) + sigreg(vectors["masked"], directions)
        return {"mapping": total, "sigreg": both / 2}

    def finetune_losses(
        self, histories: PackedHistories, keys: Tensor, step: Tensor | int
    ) -> dict[str, Tensor]:
        """L_FT, a softmax over all item sentences (paper 3.4), and that of a rollout.

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
        """What a rollout asks for after its first step, and the vectors; nothing without one."""
        if not self.objective.rolls_out:
            return [], []
        steps = self.objective.rollout_steps
        queries, vectors = roll_out(histories, steps, keys, self.encode_histories)
        return [queries], [vectors]

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
        table = self.item_vectors()
        sentence_of_item = self.item_table.sentence_of_item(table.device)
        if self.head is None or self.head.item_ids is None:
            directions = self.item_table.directions(table)
            return cosine_to(sequences, directions)[:, sentence_of_item]
        return cosine_similarity(sequences, self.candidate_vectors())

    def candidate_vectors(self) -> Tensor:
        """What ranking compares a history with: a vector of each item, ``[N, D]``."""
        table = self.item_vectors()
        sentence_of_item = self.item_table.sentence_of_item(table.device)
        items = torch.arange(len(sentence_of_item), device=table.device)
        return self._compared(table[sentence_of_item], items)

    def encode_histories(
        self, histories: PackedHistories, latents: Sequence[Tensor] = ()
    ) -> Tensor:
        """h_CLS of unmasked histories, whole, ``[B, D]``; ``tokens_per_batch`` tokens at once.

        Args:
            histories: ``B`` of them.
            latents: what re-enters behind them, oldest first, ``[B, D]`` each.
        """
        batch = self._read(histories, len(latents))
        self.tokens_seen += batch.num_tokens
        sizes = fill_batches(batch.lengths, self.tokens_per_batch, max(1, len(histories)))
        sizes = sizes or [0]
        inputs: Sequence[Tensor | None] = [None] * len(sizes)
        if latents:
            inputs = as_inputs(latents, self.reentry).split(sizes)
        parts = zip(batch.split(sizes), inputs, strict=True)
        return torch.cat([self.encoder.whole(*part) for part in parts])

    def item_vectors(self, refresh: bool = True) -> Tensor:
        """The item table ``[S, D]``; see ``ItemTable.read``."""
        return self.item_table.read(self._item_encoder, refresh)

    @property
    def reads_item_table(self) -> bool:
        """Whether finetuning compares with the item table and encodes no item anew."""
        return bool(self.items_frozen) or not self.objective.items_per_step

    def table_of_epoch(self) -> Tensor | None:
        """The item table that steps read although the weights move, ``[S, D]``.

        ``None`` where there is none, or where it can be made again from the weights.
        """
        return self.item_table.vectors if self.reads_item_table and not self.items_frozen else None

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items to the catalogue and their vectors to the table; returns their ids."""
        item_ids = self.sentences.append(item_text)
        self.item_table.extend(self._item_encoder)
        return item_ids

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts; no sentence that the table has already is encoded again."""
        self.sentences.reassign(item_ids, self.add_items(item_text))

    def drop_items(self, first: int) -> None:
        """Forget the items from id ``first`` on, which were the last to be added."""
        self.sentences.truncate(first)
        self.item_table.truncate()
        self.encoder.forget_sentences()

    def begin_phase(self, steps: int, items_frozen: bool) -> None:
        """A phase of so many steps begins, with the item side fixed or free to move.

        The target encoder's schedule begins anew. While items are frozen it stands still and makes
        the table; it starts from the weights that made the table so far, so that the table can be
        made again from weights, for new items too.
        """
        self.target_encoder.begin(steps)
        if items_frozen and not self.items_frozen:
            self.target_encoder.copy_from(self._item_encoder)
        self.item_table.is_old |= items_frozen != bool(self.items_frozen)
        self.items_frozen.fill_(items_frozen)

    def weights_moved(self) -> None:
        """To be called after every optimizer step: moves the average, ages the item table."""
        if not self.items_frozen:
            self.item_table.is_old = True
            self.target_encoder.update(self.encoder)

    @property
    def _item_encoder(self) -> SentenceEncoder:
        """What makes the item table."""
        if self.items_frozen or self.objective.item_encoder == "target":
            return self.target_encoder.module
        return self.encoder

    def _sent(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors where the weights are, in one copy."""
        return sent(tensors, self.encoder.device)

    @property
    def most_steps(self) -> int:
        """Of a rollout whose latents leave room for an item of the history."""
        return min(self.encoder.config.max_item_positions - 1, self.max_sequence_tokens - 1)

    def _read(self, histories: PackedHistories, latents: int = 0) -> TokenBatch:
        """Tokens of histories, without the oldest items where so many latents need their room."""
        if latents:
            histories = histories.newest(self.encoder.config.max_item_positions - 1 - latents)
        batch = self.sentences.histories(
            histories.newest_first(),
            histories.lengths,
            self.max_sequence_tokens - latents,
            self.encoder.config.training_targets,
        )
        special = self.sentences.special
        return with_latents(batch, latents, special.mask, special.cls)

    def _single(self, sentence_ids: Tensor) -> TokenBatch:
        return self.sentences.single(
            sentence_ids, self.max_sequence_tokens, self.encoder.config.training_targets
        )

    def _mlm_term(self, hidden: Tensor, labels: Tensor, of_history: int) -> Tensor:
        """L_MLM of hidden states at masked tokens, those of histories first."""
        assert self.mlm_head is not None
        asked, bias = self.mlm_head.asked(hidden), self.mlm_head.bias
        offered = self.encoder.embedding.tokens.weight
        sizes = [len(labels)]
        if self.objective.mlm_reduction == "separate":
            sizes = [of_history, len(labels) - of_history]
        parts = zip(asked.split(sizes), labels.split(sizes), strict=True)
        means = [
            processes.shard_of_mean(mlm_loss(part, offered, wanted, bias), len(wanted))
            for part, wanted in parts
        ]
        return sum(means[1:], start=means[0])

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
        at_cls, others = hidden.split([len(joint.cls_index), len(tokens)])
        parts = self.encoder.vectors(at_cls).split(counts)
        return dict(zip(passes, parts, strict=True)), others

    def _target_vectors(self, batch: TokenBatch) -> Tensor:
        """What is to be predicted of clean sentences: the moving average's; else one's own."""
        if self.objective.collapse_prevention != "ema":
            return self._encode(batch)
        with torch.no_grad():
            return self.target_encoder.module.cls(batch)


def _age_item_table(model: JointEmbeddingModel, _: object) -> None:
    """Other weights were loaded: what they say of the items is not known yet."""
    model.item_table.is_old = True

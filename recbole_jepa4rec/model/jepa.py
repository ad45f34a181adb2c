"""The joint-embedding predictive model over item sentences, free of configs (paper 3.3).

Histories pass through the encoder, masked and whole; the predictor guesses items from what comes
out; three losses compare it with other items, with the masked tokens and with the target encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.base.keyed_random import Draw, derive
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.loss import mapping_loss, mlm_loss
from recbole_jepa4rec.model.moving_average import FixedCopy
from recbole_jepa4rec.model.objective import Objective, Predictor
from recbole_jepa4rec.model.ranking_head import Queries, RankingHead
from recbole_jepa4rec.model.rollout import as_inputs, roll_out
from recbole_jepa4rec.model.sentence_ranker import SentenceRanker
from recbole_jepa4rec.model.sigreg import draw_directions, sigreg
from recbole_jepa4rec.model.transformer import MLMHead, identity
from recbole_jepa4rec.text.masking import Masking
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch, with_latents


class JointEmbeddingModel(SentenceRanker):
    """A ranker that is pre-trained by masking, by prediction and by comparison.

    Args:
        encoder: the context encoder f_theta, of sentences and histories, trained by gradient.
        target_encoder: its moving average; or, where nothing is predicted of it, a fixed copy.
            Makes the item table while items are frozen, when it stands still.
        mlm_head: logits over the vocabulary.
        predictor: FFN1 and FFN2; ``None`` without mapping loss.
        objective: masking, losses and their weights.

    The other arguments are a ``SentenceRanker``'s.
    """

    objective: Objective

    def __init__(
        self,
        sentences: ItemSentences,
        encoder: SentenceEncoder,
        target_encoder: FixedCopy[SentenceEncoder],
        mlm_head: MLMHead,
        predictor: Predictor | None,
        objective: Objective,
        max_sequence_tokens: int,
        tokens_per_batch: int,
        head: RankingHead | None = None,
    ) -> None:
        super().__init__(sentences, encoder, objective, max_sequence_tokens, tokens_per_batch, head)
        self.fixed_copy, self.mlm_head, self.predictor = target_encoder, mlm_head, predictor
        self.masking = Masking.of(
            sentences,
            objective.mask_unit,
            objective.history_mask_ratio,
            objective.next_item_mask_ratio,
            objective.unmasked_target,
        )
        self.reentry = identity(encoder.config.hidden_size) if objective.rolls_out else None

    @property
    def target_encoder(self) -> FixedCopy[SentenceEncoder]:
        """The encoder without gradient, which weights on disk know as ``fixed_copy``."""
        return self.fixed_copy

    def pretrain_losses(
        self, histories: PackedHistories, keys: Tensor, step: Tensor | int = 0
    ) -> dict[str, Tensor]:
        """The terms that ``Objective.loss_weights`` names, unweighted (paper 3.3)."""
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

    def encode_histories(
        self, histories: PackedHistories, latents: Sequence[Tensor] = ()
    ) -> Tensor:
        """h_CLS of unmasked histories, whole, ``[B, D]``; ``tokens_per_batch`` tokens at once.

        Args:
            histories: ``B`` of them; the oldest items are left out where latents need their room.
            latents: what re-enters behind them, oldest first, ``[B, D]`` each.
        """
        if not latents:
            return super().encode_histories(histories)
        count, special = len(latents), self.sentences.special
        kept = histories.newest(self.encoder.config.max_item_positions - 1 - count)
        batch = with_latents(self._read(kept, count), count, special.mask, special.cls)
        return self._encode_whole(batch, as_inputs(latents, self.reentry))

    def _later_steps(
        self, histories: PackedHistories, keys: Tensor
    ) -> tuple[list[Queries], list[Tensor]]:
        """What a rollout asks for after its first step, and the vectors; nothing without one."""
        if not self.objective.rolls_out:
            return super()._later_steps(histories, keys)
        steps = self.objective.rollout_steps
        queries, vectors = roll_out(histories, steps, keys, self.encode_histories)
        return [queries], [vectors]

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
        super().weights_moved()
        if not self.items_frozen:
            self.target_encoder.update(self.encoder)

    @property
    def _item_encoder(self) -> SentenceEncoder:
        """What makes the item table."""
        if self.items_frozen or self.objective.item_encoder == "target":
            return self.target_encoder.module
        return self.encoder

    def _mlm_term(self, hidden: Tensor, labels: Tensor, of_history: int) -> Tensor:
        """L_MLM of hidden states at masked tokens, those of histories first."""
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

"""The item table, one vector for each distinct sentence (paper 3.4, the matrix I), and samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.allocator import give_back_freed_memory
from recbole_jepa4rec.base.device import Mirror, sent
from recbole_jepa4rec.base.keyed_random import derive, uniform
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.text.sentences import ItemSentences

LARGE_TABLE = 1 << 26
"""Numbers of a table for which freed memory is given back first, lest it stand beside that."""


class ItemTable:
    """Vectors of all sentences, encoded when they are read and kept until the weights move.

    The processes of a run share the work: all of them read, extend or encode alike.

    Args:
        sentences: the items' token store.
        max_sequence_tokens: tokens of a sentence, [CLS] counted; past that the last are cut.
        tokens_per_batch: tokens encoded at once.

    Attributes:
        vectors: ``[S, D]``; None before they were read.
        is_old: whether the weights have moved since.
    """

    def __init__(
        self, sentences: ItemSentences, max_sequence_tokens: int, tokens_per_batch: int
    ) -> None:
        self.sentences = sentences
        self.max_sequence_tokens, self.tokens_per_batch = max_sequence_tokens, tokens_per_batch
        self.vectors: Tensor | None = None
        self.is_old = True
        self._mirror = Mirror()
        self._directions: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def read(self, encoder: SentenceEncoder, refresh: bool = True) -> Tensor:
        """Vectors of all sentences, ``[S, D]``, without gradient; a collective.

        Args:
            encoder: what encodes them where they are missing or old.
            refresh: whether old ones are encoded anew.
        """
        if self.vectors is None or (refresh and self.is_old):
            self.vectors = self._directions = None  # their memory is free for the new ones
            if self.sentences.num_sentences * encoder.config.hidden_size > LARGE_TABLE:
                give_back_freed_memory()
            self.vectors = self.encode(encoder, range(self.sentences.num_sentences))
            self.is_old = False
        return self.vectors

    def hold(self, vectors: Tensor) -> None:
        """Take vectors of earlier weights, ``[S, D]``; they are old."""
        self.vectors = vectors
        self.is_old = True

    def directions(self, vectors: Tensor) -> Tensor:
        """Those vectors at length 1, made once, ``[S, D]``; of a large table each time."""
        if vectors.numel() > LARGE_TABLE:
            return F.normalize(vectors, dim=1)
        if self._directions is None or self._directions[0] is not vectors:
            self._directions = vectors, F.normalize(vectors, dim=1)
        return self._directions[1]

    def sentence_of_item(self, device: torch.device) -> Tensor:
        """Sentence of every item, ``[N]`` on the device."""
        return self._mirror.of("sentence_of_item", self.sentences.sentence_of_item, device)

    @torch.no_grad()
    def extend(self, encoder: SentenceEncoder) -> None:
        """Encode the sentences that were appended since; nothing to do for an old table."""
        if self.vectors is not None and not self.is_old:
            appended = range(len(self.vectors), self.sentences.num_sentences)
            self.vectors = torch.cat([self.vectors, self.encode(encoder, appended)])

    def truncate(self) -> None:
        """Forget the vectors of sentences that are there no more."""
        if self.vectors is not None:
            self.vectors = self.vectors[: self.sentences.num_sentences]

    def encode(self, encoder: SentenceEncoder, sentences: range, shared: bool = True) -> Tensor:
        """Vectors of these sentences, in chunks of similar length and bounded tokens.

        A chunk is encoded whole by one process, so that every number of processes gives the same
        bits.

        Args:
            encoder: what encodes them.
            sentences: their ids.
            shared: whether processes share the work; else this one does it all.
        """
        was_training = encoder.training
        encoder.eval()
        ids = torch.arange(sentences.start, sentences.stop)
        lengths = self.sentences.sentence_lengths[ids]
        order = torch.argsort(lengths, stable=True)
        chunk = (lengths[order] + 1).cumsum(0) // self.tokens_per_batch
        sizes = torch.unique_consecutive(chunk, return_counts=True)[1].tolist()
        rows = sent(order, encoder.device)
        chunks, there = order.split(sizes), rows.split(sizes)
        vectors = torch.empty(len(order), encoder.config.hidden_size, device=encoder.device)
        numbers = torch.arange(len(chunks))
        own = processes.shard(numbers) if shared else numbers
        for number in own.tolist():
            batch = self.sentences.single(
                ids[chunks[number]], self.max_sequence_tokens, encoder.config.training_targets
            )
            vectors[there[number]] = encoder.cls(batch).float()
        encoder.train(was_training)
        if shared and processes.world_size() > 1:
            processes.barrier()  # one may have had more to read than the exchange waits for
            for rank, part in enumerate(numbers.tensor_split(processes.world_size())):
                places = torch.cat([rows[:0], *(there[number] for number in part.tolist())])
                vectors[places] = processes.broadcast_rows(vectors[places], rank)
        return vectors


def draw_candidates(
    wanted: Tensor, among: range, size: int, key: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a batch wants and a uniform sample of the others; a collective, on the CPU.

    Args:
        wanted: sentence, or item, that each [CLS] of this process must predict, ``[Q]``; one a
            sequence, or several.
        among: ids of all sentences that items have, or of all items, ``S`` of them.
        size: candidates to draw; at least one is sampled where any is left.
        key: random key of the batch, scalar.

    Returns:
        Ids ``[C]``, the same in all processes; the index of each wanted one among them ``[Q]``;
        and the logarithm of how many ids each candidate stands for, ``[C]``: 0 for those that any
        process wants, and for all where ``C = S``.
    """
    wanted = wanted - among.start
    draw = uniform(derive(key, torch.arange(len(among))))
    draw[processes.all_gather(wanted)] = -1.0
    needed = int((draw < 0).sum())
    size = min(max(size, needed + 1), len(among))
    candidates = draw.topk(size, largest=False).indices
    place = torch.empty_like(draw, dtype=torch.int64)
    place[candidates] = torch.arange(size)
    stands_for = (len(among) - needed) / max(size - needed, 1)
    log_weights = (draw[candidates] >= 0) * math.log(max(stands_for, 1.0))
    return candidates + among.start, place[wanted], log_weights

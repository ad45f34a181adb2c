"""What is hidden of histories and next items, and the draw of one masked item (paper 3.3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import Draw, below, derive, uniform
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import TokenBatch
from recbole_jepa4rec.text.tokenizer import word_beginnings

MASKED_SHARE = 0.8  # of the selected tokens: replaced with [MASK]
RANDOM_SHARE = 0.1  # replaced with a random token; the rest keeps its token


@dataclass(frozen=True)
class Masking:
    """How pre-training hides its input, all on the CPU.

    Attributes:
        unit: what is selected at once: ``"token"``, ``"word"``, or ``"item"`` for whole items of
            histories and tokens of next items.
        history_ratio: share of histories that is selected.
        next_item_ratio: share of the next items' tokens.
        unmasked_target: as in ``draw_masked_item``.
        mask_id: id of [MASK].
        ordinary_ids: token ids to draw replacements from (the special ones left out), ``[V']``.
        begins_word: which token ids begin a word, bool ``[V]``; ``None`` unless words are selected.
    """

    unit: str
    history_ratio: float
    next_item_ratio: float
    unmasked_target: str
    mask_id: int
    ordinary_ids: Tensor
    begins_word: Tensor | None

    @classmethod
    def of(
        cls,
        sentences: ItemSentences,
        unit: str,
        history_ratio: float,
        next_item_ratio: float,
        unmasked_target: str,
    ) -> Masking:
        """Of tokens of the sentences' vocabulary."""
        special = sentences.special
        ordinary = [i for i in range(sentences.vocab_size) if i not in special.all]
        begins_word = None
        if unit == "word":
            begins_word = torch.tensor(word_beginnings(sentences.tokenizer))
        asked = unit, history_ratio, next_item_ratio, unmasked_target
        return cls(*asked, special.mask, torch.tensor(ordinary), begins_word)

    def of_histories(self, clean: TokenBatch, keys: Tensor) -> tuple[TokenBatch, Tensor]:
        """Tokens, words or whole items of histories hidden, and which tokens, bool ``[T]``."""
        if self.unit == "item":
            return hide_items(clean, self.history_ratio, keys, self.mask_id)
        return self._tokens(clean, self.history_ratio, keys)

    def of_next_items(self, clean: TokenBatch, keys: Tensor) -> tuple[TokenBatch, Tensor]:
        """Tokens or words of next items hidden, and which tokens, bool ``[T]``."""
        return self._tokens(clean, self.next_item_ratio, keys)

    def items_to_guess(
        self, clean: TokenBatch, selected: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Row, item position and whether it was masked, ``[P]`` each: of one item a history.

        Where whole items are hidden, of all of these.
        """
        if self.unit == "item":
            row, place = items_of_tokens(clean, selected)
            return row, place, torch.ones_like(row, dtype=torch.bool)
        place, was_masked = draw_masked_item(clean, selected, keys, self.unmasked_target)
        row = place.nonzero()[:, 0]
        return row, place[row], was_masked[row]

    def _tokens(self, clean: TokenBatch, rate: float, keys: Tensor) -> tuple[TokenBatch, Tensor]:
        return mask_tokens(clean, rate, keys, self.mask_id, self.ordinary_ids, self.begins_word)


def mask_tokens(
    batch: TokenBatch,
    rate: float,
    keys: Tensor,
    mask_id: int,
    ordinary_ids: Tensor,
    begins_word: Tensor | None = None,
) -> tuple[TokenBatch, Tensor]:
    """BERT's masking: select tokens at ``rate``, then replace 80 % by [MASK], 10 % at random.

    Args:
        batch: packed sequences of ``T`` tokens; ``[CLS]`` is never selected.
        rate: share of tokens to select, in ``[0, 1]``.
        keys: one random key for each sequence, ``[B]``.
        mask_id: id of [MASK].
        ordinary_ids: token ids to draw replacements from (the special ones left out), ``[V']``.
        begins_word: which token ids begin a word, bool ``[V]``; where given, the tokens of a word
            are selected together.

    Returns:
        The batch with its tokens replaced, and which tokens were selected, bool ``[T]``.
    """
    token_keys = derive(keys[batch.sequence_of_token], batch.item_positions, batch.token_positions)
    draw = uniform(derive(token_keys, Draw.SELECTED))
    if begins_word is not None:
        draw = draw[first_of_word(batch, begins_word)]
    selected = (draw < rate) & (batch.token_types != 0)
    fate = uniform(derive(token_keys, Draw.FATE))
    drawn = ordinary_ids[below(derive(token_keys, Draw.REPLACEMENT), len(ordinary_ids))]
    replaced = torch.where(fate < MASKED_SHARE, torch.full_like(drawn, mask_id), drawn)
    changed = selected & (fate < MASKED_SHARE + RANDOM_SHARE)
    ids = torch.where(changed, replaced, batch.input_ids)
    stored = batch.sentences
    others = None if stored is None else torch.full_like(stored, -1)
    return batch.replace(input_ids=ids, sentences=others), selected


def hide_items(
    batch: TokenBatch, rate: float, keys: Tensor, mask_id: int
) -> tuple[TokenBatch, Tensor]:
    """Hide whole items of histories: each token of theirs becomes [MASK].

    Args:
        batch: packed histories of ``T`` tokens.
        rate: share of the items to hide, in ``[0, 1]``. Of two items and more at least one is
            hidden, unless the rate is 0, and at least one is not.
        keys: one random key for each history, ``[B]``.
        mask_id: id of [MASK].

    Returns:
        The batch with its tokens replaced, and which tokens are hidden, bool ``[T]``.
    """
    row, is_item = batch.sequence_of_token, batch.token_types != 0
    draw = uniform(derive(keys[row], batch.item_positions, Draw.SELECTED))
    ends = draw.new_full((2, batch.sequences), 2.0)
    first, last = ends.scatter_reduce(
        1, row[is_item].expand(2, -1), torch.stack([draw, -draw])[:, is_item], "amin"
    )
    chosen = (draw < rate) | ((draw == first[row]) & (rate > 0))
    hidden = chosen & is_item & (draw != -last[row])
    stored = batch.sentences
    others = None if stored is None else torch.full_like(stored, -1)
    ids = batch.input_ids.masked_fill(hidden, mask_id)
    return batch.replace(input_ids=ids, sentences=others), hidden


def first_of_word(batch: TokenBatch, begins_word: Tensor) -> Tensor:
    """Place of the first token of the word that each token belongs to, ``[T]``.

    A sequence, an item, an attribute's name and its value begin a word, whatever their first token.
    """
    begins = begins_word[batch.input_ids]
    for part in (batch.sequence_of_token, batch.item_positions, batch.token_types):
        begins[1:] |= part[1:] != part[:-1]
    place = torch.arange(len(begins), device=begins.device)
    return (place * begins).cummax(dim=0).values


def draw_masked_item(
    batch: TokenBatch, selected: Tensor, keys: Tensor, unmasked_target: str
) -> tuple[Tensor, Tensor]:
    """Draw one history item with a selected token for each sequence, else an unmasked one.

    Args:
        batch: packed histories.
        selected: tokens chosen by :func:`mask_tokens`, bool ``[T]``.
        keys: one random key for each sequence, ``[B]``.
        unmasked_target: which item serves where no token was selected: ``"uniform"``, any item
            of the history, or ``"newest"``.

    Returns:
        Item positions in the order of the batch, ``[B]`` (0 where no item has a token), and
        whether the item has a selected token, bool ``[B]``.
    """
    if not batch.sequences:
        return batch.lengths, batch.lengths.bool()
    width = int(batch.item_positions.max()) + 1
    present = _items_where(batch, batch.token_types != 0, width)
    masked = _items_where(batch, selected, width)
    was_masked = masked.any(dim=1)
    if unmasked_target == "newest":
        newest_first = present.flip(1) if batch.all_prefixes else present
        newest = newest_first & (newest_first.cumsum(dim=1) == 1)
        present = newest.flip(1) if batch.all_prefixes else newest
    candidates = torch.where(was_masked[:, None], masked, present)
    count = candidates.sum(dim=1)
    nth = below(keys, count.clamp(min=1)) + 1
    reached = (candidates.cumsum(dim=1) == nth[:, None]) & candidates
    return reached.to(torch.uint8).argmax(dim=1), was_masked


def items_of_tokens(batch: TokenBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Items that have one of these tokens: their sequences and item positions, ``[P]`` each."""
    width = int(batch.item_positions.max()) + 1 if batch.num_tokens else 1
    row, place = _items_where(batch, tokens, width).nonzero().unbind(dim=1)
    return row, place


def _items_where(batch: TokenBatch, tokens: Tensor, width: int) -> Tensor:
    """Which item positions have one of ``tokens``, bool ``[B, width]``; position 0 is [CLS]."""
    cells = batch.sequence_of_token * width + batch.item_positions
    found = torch.zeros(batch.sequences * width, dtype=torch.bool, device=tokens.device)
    found[cells[tokens]] = True
    found = found.view(batch.sequences, width)
    found[:, 0] = False
    return found

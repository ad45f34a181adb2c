"""Item sentences and the token sequences made of them (JEPA4Rec, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import tokenizers
import torch
from tokenizers import Tokenizer
from torch import Tensor

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.device import PartlyOnCPU
from recbole_jepa4rec.config.sentence_settings import ItemTextSettings
from recbole_jepa4rec.text import tensor_cache
from recbole_jepa4rec.text.row_encoder import (
    CLS,
    FILE,
    LISTS,
    RECFORMER,
    ROWS_AT_ONCE,
    EncodedRows,
    RowEncoder,
    SentenceIndex,
    encoded_rows,
)
from recbole_jepa4rec.text.tensor_cache import GrowingTensor, TensorCache
from recbole_jepa4rec.text.token_batch import RANDOM, TokenBatch, pack
from recbole_jepa4rec.text.tokenizer import SpecialIds, encode_texts, unlimited

_FORMAT = "recbole_jepa4rec item sentences 2"


class ItemSentences(PartlyOnCPU):
    """Token sequences of all items, each different one stored once.

    An item's sentence is its attributes flattened to name tokens and value tokens. Item 0 is the
    padding item; its sentence (0), like that of any item without text, is empty.

    Buffers (none is saved with a model): ``input_ids`` int32 and ``token_types`` uint8 hold one
    ``[CLS]`` and then all sentences end to end, sentence ``s`` at ``offsets[s]:offsets[s + 1]``;
    ``sentence_of_item`` int64 ``[N]``. All stay on the CPU, where batches are made.

    Args:
        attributes: column names of the item text, in the order they appear in a sentence.
        tokenizer: turns names and values into tokens; the instance keeps a copy of its own.
        max_attribute_tokens: tokens an attribute may have, its name included.
        sentence_format: ``FILE`` or ``RECFORMER``, see ``in_format``.
        special: the special tokens, where the vocabulary has other names for them than BERT's.

    Raises:
        ValueError: if an attribute's name leaves no room for its value.
    """

    on_cpu = ("input_ids", "token_types", "offsets", "sentence_of_item")
    input_ids: Tensor
    token_types: Tensor
    offsets: Tensor
    sentence_of_item: Tensor

    def __init__(
        self,
        attributes: Sequence[str],
        tokenizer: Tokenizer,
        max_attribute_tokens: int = 32,
        sentence_format: str = FILE,
        special: SpecialIds | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = unlimited(tokenizer)
        self.special = special or SpecialIds.of(self.tokenizer)
        self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.max_attribute_tokens, self.sentence_format = max_attribute_tokens, sentence_format
        names = in_format([str(a) for a in attributes], sentence_format)
        self.names = {attribute: self._name_tokens(attribute, n) for attribute, n in names.items()}
        no_items = torch.empty(0, dtype=torch.int64)
        self.register_buffer("input_ids", torch.tensor([self.special.cls]).int(), persistent=False)
        self.register_buffer("token_types", torch.tensor([CLS]).byte(), persistent=False)
        self.register_buffer("offsets", torch.tensor([1, 1]), persistent=False)
        self.register_buffer("sentence_of_item", no_items, persistent=False)

    @classmethod
    def of(
        cls,
        settings: ItemTextSettings,
        item_text: pd.DataFrame,
        tokenizer: Tokenizer,
        special: SpecialIds | None = None,
    ) -> ItemSentences:
        """Those of a catalogue as settings ask for them; see ``build``."""
        return cls.build(
            item_text,
            tokenizer,
            max_attribute_tokens=settings.max_attribute_tokens,
            cache_dir=Path(settings.cache_dir or tensor_cache.default_cache_dir()),
            address=settings.address,
            sentence_format=settings.sentence_format,
            special=special,
        )

    @classmethod
    def build(
        cls,
        item_text: pd.DataFrame,
        tokenizer: Tokenizer,
        max_attribute_tokens: int = 32,
        cache_dir: Path | None = None,
        address: str | None = None,
        sentence_format: str = FILE,
        special: SpecialIds | None = None,
    ) -> ItemSentences:
        """Tokenise a catalogue, or read its tokens from the cache.

        Python holds the tokens of few rows at a time. In a large catalogue those of all are mapped
        from a file in the cache folder, of which only what is touched need be in memory.

        Args:
            item_text: one row an item, row 0 (the padding item) empty; one text column an
                attribute; "" where an item lacks it.
            tokenizer: as for the class.
            max_attribute_tokens: as for the class.
            cache_dir: folder of the token cache; none is used without it.
            address: of a Ray cluster that tokenises; without it the threads of this process do.
                The result is the same.
            sentence_format: as for the class.
            special: as for the class.

        Raises:
            ValueError: if row 0 is missing or has text, a name leaves no room for its value, or no
                cluster is there.
        """
        if len(item_text) == 0 or any(item_text.iloc[0]):
            raise ValueError("row 0 of the item text is the padding item and must be there, empty")
        sentences = cls(list(item_text), tokenizer, max_attribute_tokens, sentence_format, special)
        if cache_dir is None:
            sentences._fill(item_text, None, address)
            return sentences
        key = content_key(
            item_text, sentences.tokenizer, max_attribute_tokens, sentence_format, special
        )
        cache = TensorCache(cache_dir, "sentences", key)
        stored = cache.read()
        if stored is None:
            is_mapped = sentences._fill(item_text, cache_dir, address)
            if cache.write(dict(sentences.named_buffers())) and is_mapped:
                stored = cache.read()  # and the file that they grew in is gone
        for name, tensor in (stored or {}).items():
            setattr(sentences, name, tensor)
        return sentences

    @property
    def num_items(self) -> int:
        """Number of items ``N``, the padding item included."""
        return self.sentence_of_item.numel()

    @property
    def num_sentences(self) -> int:
        """Number of different sentences, the empty one included."""
        return self.offsets.numel() - 1

    @property
    def sentence_lengths(self) -> Tensor:
        """Tokens of each sentence without ``[CLS]``, ``[S]``."""
        return self.offsets.diff()

    @property
    def used(self) -> range:
        """Ids of the sentences that items have: the empty one (0) only if an item lacks text."""
        items = self.sentence_of_item[1:]
        return range(int(items.min()) if len(items) else 0, self.num_sentences)

    def single(
        self, sentence_ids: Tensor, max_tokens: int | None = None, training_targets: str = RANDOM
    ) -> TokenBatch:
        """``[CLS] S_i`` for each sentence, or ``S_i [CLS]`` with ``all_prefixes``.

        Args:
            sentence_ids: ids of sentences (``sentence_of_item[item_ids]``), ``[M]``.
            max_tokens: tokens a sequence may have, ``[CLS]`` included; the last ones are cut.
            training_targets: see ``TokenBatch``.
        """
        one_each = torch.ones_like(sentence_ids)
        return pack(self, sentence_ids, one_each, max_tokens, training_targets)

    def histories(
        self, item_ids: Tensor, lengths: Tensor, max_tokens: int, training_targets: str = RANDOM
    ) -> TokenBatch:
        """``[CLS] S_n ... S_1`` for each history, or ``S_1 [CLS] ... S_n [CLS]``.

        Args:
            item_ids: items of all histories end to end, newest first in each, ``[M]``.
            lengths: items of each history, 0 allowed, ``[B]``, sum ``M``.
            max_tokens: tokens a sequence may have, ``[CLS]`` included; the oldest tokens are cut,
                or the oldest items with ``all_prefixes``.
            training_targets: see ``TokenBatch``.
        """
        return pack(self, self.sentence_of_item[item_ids], lengths, max_tokens, training_targets)

    def append(self, item_text: pd.DataFrame) -> Tensor:
        """Add items at the end of the catalogue, reusing the sentences it has already.

        Args:
            item_text: one row an item; a missing column or value counts as empty.

        Returns:
            Ids of the new items, ``[rows]``.

        Raises:
            ValueError: if a column is none of the catalogue's.
        """
        for column in item_text.columns.difference(list(self.names)):
            hint = did_you_mean(str(column), self.names) or f"; have {', '.join(self.names)}"
            raise ValueError(f"unknown item attribute {column!r}{hint}")
        first = self.num_items
        self._extend([self._encoder(item_text)])
        return torch.arange(first, self.num_items)

    def reassign(self, item_ids: Tensor, appended: Tensor) -> None:
        """Give items the sentences of as many that were appended last, which are forgotten."""
        sentence_of_item = self.sentence_of_item[: self.num_items - len(appended)].clone()
        sentence_of_item[item_ids] = self.sentence_of_item[appended]
        self.sentence_of_item = sentence_of_item

    def truncate(self, num_items: int) -> None:
        """Forget the items from this id on, and the sentences that came with them."""
        kept = int(self.sentence_of_item[:num_items].max()) + 1
        if "_index" in vars(self):  # made when it was first needed
            self._index.truncate(kept)
        self.sentence_of_item = self.sentence_of_item[:num_items]
        self.offsets = self.offsets[: kept + 1]
        self.input_ids = self.input_ids[: self.offsets[-1]]
        self.token_types = self.token_types[: self.offsets[-1]]

    def _fill(self, item_text: pd.DataFrame, folder: Path | None, address: str | None) -> bool:
        """Tokenise a catalogue; returns what ``_extend`` does."""
        is_mapped = self._extend(encoded_rows(self._encoder, item_text, address), folder)
        del self._index  # seldom needed again
        return is_mapped

    def _name_tokens(self, attribute: str, name: str) -> list[int]:
        tokens = encode_texts(self.tokenizer, [name])[0]
        if len(tokens) >= self.max_attribute_tokens:
            raise ValueError(
                f"max_attribute_tokens is {self.max_attribute_tokens}; the name {attribute!r} alone"
                f" takes {len(tokens)} tokens and leaves no room for a value"
            )
        return tokens

    def _extend(self, rows: Iterable[EncodedRows], folder: Path | None = None) -> bool:
        """Add rows as items, and those sentences that are not there yet.

        Args:
            rows: of new items, in order.
            folder: where large token tensors are kept in a file while they grow.

        Returns:
            Whether they are.
        """
        ids = GrowingTensor(self.input_ids, folder)
        types = GrowingTensor(self.token_types, folder)
        sizes, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for part in rows:
            sentences, new_rows = self._index.intern(part.digests)
            new_ids, new_types = part.of_rows(new_rows)
            ids.append(new_ids)
            types.append(new_types)
            sizes.append(part.sizes[new_rows])
            items.append(sentences)
        ends = torch.from_numpy(np.concatenate(sizes).cumsum()).to(self.offsets)
        added = torch.from_numpy(np.concatenate(items)).to(self.sentence_of_item)
        self.input_ids, self.token_types = ids.tensor(), types.tensor()
        self.offsets = torch.cat([self.offsets, self.offsets[-1] + ends])
        self.sentence_of_item = torch.cat([self.sentence_of_item, added])
        return ids.is_mapped

    @cached_property
    def _encoder(self) -> RowEncoder:
        return RowEncoder(
            self.tokenizer, self.names, self.max_attribute_tokens, self.sentence_format
        )

    @cached_property
    def _index(self) -> SentenceIndex:
        """Digests of all sentences, in the order of their ids."""
        index = SentenceIndex()
        for first in range(0, self.num_sentences, ROWS_AT_ONCE):
            bounds = self.offsets[first : first + ROWS_AT_ONCE + 1]
            stored = slice(int(bounds[0]), int(bounds[-1]))
            ids, types = (t[stored].numpy() for t in (self.input_ids, self.token_types))
            index.intern(EncodedRows.of(ids, types, bounds.diff().numpy()).digests)
        return index


def in_format(attributes: Sequence[str], sentence_format: str) -> dict[str, str]:
    """Names as a sentence has them, by attribute, in the order of a sentence.

    RecFormer's authors write title, brand and category, an empty attribute too, and a list without
    commas; where a file has more attributes, these follow here.
    """
    named = {attribute: attribute.replace("_", " ") for attribute in attributes}
    if sentence_format != RECFORMER:
        return named
    first = ("title", "brand", *LISTS)
    order = sorted(attributes, key=lambda a: first.index(a) if a in first else len(first))
    return {a: "category" if a in LISTS else named[a] for a in order}


def content_key(
    item_text: pd.DataFrame,
    tokenizer: tokenizers.Tokenizer,
    max_attribute_tokens: int,
    sentence_format: str = FILE,
    special: SpecialIds | None = None,
) -> str:
    """sha256 over everything the item sentences depend on, as 64 hex digits."""
    settings = [_FORMAT, tokenizers.__version__, str(max_attribute_tokens), sentence_format]
    settings += [tokenizer.to_str(), *([] if special is None else [f"end {special.cls}"])]
    return tensor_cache.content_key(
        settings, *(_NamedColumn(item_text[name]) for name in item_text.columns)
    )


class _NamedColumn:
    """A column's name and then its values, some of which are Python strings at a time."""

    def __init__(self, column: pd.Series) -> None:
        self._column = column

    def __iter__(self) -> Iterator[str]:
        yield str(self._column.name)
        for first in range(0, len(self._column), ROWS_AT_ONCE):
            yield from self._column.iloc[first : first + ROWS_AT_ONCE].to_numpy(dtype=object)

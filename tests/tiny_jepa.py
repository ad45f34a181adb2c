"""A JEPA4Rec of a few thousand weights around given sentences, and histories to train it on."""

from __future__ import annotations

import pandas as pd
import torch

from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.sentence_settings import JEPA4RecSettings
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.model.moving_average import ExponentialMovingAverage
from recbole_jepa4rec.model.objective import Objective, Predictor
from recbole_jepa4rec.model.transformer import EncoderConfig, MLMHead
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.tokenizer import train_wordpiece

ITEMS, MAX_TOKENS = 60, 256
STEP = derive(2020, 0)
KEYS = derive(1, torch.arange(8))
"""One for each of ``eight_users``."""

SHAPE = {
    "vocab_size": 9,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 32,
    "max_token_positions": MAX_TOKENS,
    "max_item_positions": 21,
    "attention_window": None,
    "dropout": 0.0,
}
PAPER = {"mapping_reduction": "sum", "items_per_step": 0}


def tiny_sentences() -> ItemSentences:
    """Of items whose titles have one word to nine, and of which every fifth has no brand."""
    words = [f"w{i}x" for i in range(40)]
    titles = [" ".join(words[(7 * i + j) % 40] for j in range(1 + i % 9)) for i in range(1, ITEMS)]
    brands = ["" if i % 5 == 0 else f"brand{i % 7}" for i in range(1, ITEMS)]
    text = pd.DataFrame({"title": ["", *titles], "brand_name": ["", *brands]})
    corpus = [*titles, *brands, *["title", "brand name"] * 50]
    return ItemSentences.build(text, train_wordpiece(corpus, 400), max_attribute_tokens=32)


def tiny_jepa(
    sentences: ItemSentences,
    training_targets: str = "random",
    layers: int = 1,
    **aims: object,
) -> JointEmbeddingModel:
    """The same weights whenever it is called; item positions are zero with ``random`` alone."""
    torch.manual_seed(11)
    shape = {**SHAPE, "vocab_size": sentences.vocab_size, "num_layers": layers}
    config = EncoderConfig(**shape, training_targets=training_targets)
    encoder = SentenceEncoder(config)
    if training_targets != "random":
        torch.nn.init.normal_(encoder.embedding.item_positions.weight, std=0.2)
    return JointEmbeddingModel(
        sentences=sentences,
        encoder=encoder,
        target_encoder=ExponentialMovingAverage(encoder, 0.9),
        predictor=Predictor(16),
        mlm_head=MLMHead(config),
        objective=Objective.of(JEPA4RecSettings(**{**PAPER, **aims})),
        max_sequence_tokens=MAX_TOKENS,
        tokens_per_batch=200,
    )


def eight_users() -> PackedHistories:
    """Histories of items below ``ITEMS``, and their next items; two occur twice."""
    lengths = torch.tensor([3, 1, 5, 2, 8, 4, 2, 6])
    generator = torch.Generator().manual_seed(5)
    items = torch.randint(1, ITEMS, (int(lengths.sum()),), generator=generator)
    next_items = torch.tensor([4, 9, 9, 17, 30, 41, 52, 4])
    return PackedHistories(items, lengths, torch.arange(8), next_items)

"""A BERT of a few thousand weights and its tokenizer on disk, as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from recbole_jepa4rec.text.tokenizer import train_wordpiece

TEXTS = [
    "red garden hose",
    "blue garden spade for the garden",
    "a very long text about roses and other seeds of the kind that grow in spring and in autumn",
    "can",
    "watering can for roses",
    "kitchen knife",
    "steel knife for the kitchen",
]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    save_tiny_bert(folder)
    return folder


def save_tiny_bert(folder: Path, seed: int = 0) -> None:
    text = [*TEXTS, *Path("dataset/toy/toy.item").read_text(encoding="utf-8").split("\n")]
    wordpiece = train_wordpiece(text, 300)
    first, last = (wordpiece.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    wordpiece.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=wordpiece,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(folder)


def pool_by(folder: Path, mode: str) -> None:
    """Say how vectors are pooled, as sentence-transformers does."""
    (folder / "1_Pooling").mkdir()
    name = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}[mode]
    described = {"word_embedding_dimension": 24, f"pooling_mode_{name}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(described))


def catalogue(texts: list[str]) -> pd.DataFrame:
    """Item text with the padding item first: the first word is a brand, the others a title."""
    parts = [text.partition(" ") for text in texts]
    return pd.DataFrame(
        {"brand": ["", *(p[0] for p in parts)], "title": ["", *(p[2] for p in parts)]}
    )


def write_data_sets(folder: Path, **texts: list[str]) -> None:
    """Data sets of 24 users each, who go round and round through the items with a step of 1 or 2.

    Args:
        folder: the ``data_path``.
        **texts: titles of the items ``i0, i1, ...`` of each data set.
    """
    for name, titles in texts.items():
        (folder / name).mkdir(parents=True)
        items = [f"i{number}\t{title}" for number, title in enumerate(titles)]
        rows = ["item_id:token\ttitle:token_seq", *items]
        (folder / name / f"{name}.item").write_text("\n".join(rows) + "\n", encoding="utf-8")
        rows = ["user_id:token\titem_id:token\ttimestamp:float"]
        for user in range(24):
            step = 1 + user % 2
            rows += [f"u{user}\ti{(user + step * t) % len(titles)}\t{t}" for t in range(6)]
        (folder / name / f"{name}.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")

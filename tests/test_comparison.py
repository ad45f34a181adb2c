"""The numbers of a comparison, against hand-made run folders."""

import json
import math

import numpy as np
import pytest

from recbole_jepa4rec.data.published import beside_published
from recbole_jepa4rec.study.comparison import Row, compare
from recbole_jepa4rec.study.finished_run import read_run
from tests.handmade_runs import PROTOCOL, row, write_run

GAIN = {1: 1.0, 2: 1 / math.log2(3), 3: 0.5, 50: 0.0}
"""NDCG@10 of a rank."""


def comparison(*rows, reference=None, dataset="toy"):
    """Compared, and back from json as the views read it."""
    entries = [each.entry for each in rows]
    seeds = max(rows, key=lambda each: len(each.seeds)).seeds
    assert all(list(each.seeds) == list(seeds) for each in rows)
    found = compare(rows, reference or entries[0], dataset, {"epochs": 3}, "command")
    return json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture
def three(tmp_path):
    """A reference, a baseline that is best on validation, and one that is best on test."""
    return comparison(
        row(tmp_path, "Ours", [1, 1, 3, 50], [1, 2, 3, 50], label="Ours (new)", valid=0.6),
        row(tmp_path, "Chosen", [1, 50, 50, 50], [1, 50, 3, 50], label="Chosen", valid=0.4),
        row(tmp_path, "Other", [1, 1, 1, 1], [1, 1, 1, 2], label="Other", valid=0.3),
    )


def test_means_and_sample_deviations_over_seeds(three):
    ours = three["rows"][0]
    first, second = (1 + 1 + 0.5) / 4, (1 + GAIN[2] + 0.5) / 4
    mean = (first + second) / 2
    assert ours["test"]["ndcg@10"]["mean"] == pytest.approx(mean)
    deviation = math.sqrt((first - mean) ** 2 + (second - mean) ** 2)  # over n - 1 = 1
    assert ours["test"]["ndcg@10"]["std"] == pytest.approx(deviation)
    assert ours["test"]["recall@10"] == {
        "mean": 0.75,
        "std": 0.0,
        "mark": "second",
        "interval": ours["test"]["recall@10"]["interval"],
    }
    assert ours["test"]["mrr"]["mean"] == pytest.approx(
        ((1 + 1 + 1 / 3 + 1 / 50) + (1 + 1 / 2 + 1 / 3 + 1 / 50)) / 8
    )
    assert ours["valid"]["ndcg@10"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0)}
    assert (ours["label"], ours["seeds"], ours["status"]) == ("Ours (new)", [1, 2], "finished")
    assert three["metrics"] == ["recall@10", "ndcg@10", "mrr"]


def test_one_seed_has_no_deviation(tmp_path):
    found = comparison(row(tmp_path, "A", [1, 2]))
    assert found["rows"][0]["test"]["ndcg@10"]["std"] is None
    assert found["best_baseline"] is None and found["tests"] == []


def test_marks(three):
    marks = {row["entry"]: row["test"]["ndcg@10"]["mark"] for row in three["rows"]}
    assert marks == {"Ours": "second", "Chosen": None, "Other": "best"}


def test_metrics_of_lists_have_means_but_neither_marks_nor_tests(tmp_path):
    settings = {"metrics": ["NDCG", "Coverage"]}
    rows = [
        row(tmp_path, name, [1, 3], [1, 3], settings=settings, lists={"coverage@10": share})
        for name, share in (("A", 0.25), ("B", 0.5))
    ]
    found = comparison(*rows)
    assert found["metrics"] == ["ndcg@10", "mrr", "coverage@10"]
    assert found["user_metrics"] == ["ndcg@10", "mrr"] == [*found["improvement"]]
    assert [each["test"]["coverage@10"] for each in found["rows"]] == [
        {"mean": share, "std": 0.0, "interval": None, "mark": None} for share in (0.25, 0.5)
    ]
    assert {each["metric"] for each in found["tests"]} == {"ndcg@10", "mrr"}


def test_equal_rows_share_a_mark(tmp_path):
    ranks = {"A": [1, 3], "B": [1, 3], "C": [3, 3]}
    rows = [row(tmp_path, name, of_users) for name, of_users in ranks.items()]
    marks = [each["test"]["ndcg@10"]["mark"] for each in comparison(*rows)["rows"]]
    assert marks == ["best", "best", "second"]


def test_the_best_baseline_is_chosen_on_validation(three):
    assert three["best_baseline"] == "Chosen"
    ours = (1 + 1 + 0.5 + 1 + GAIN[2] + 0.5) / 8
    chosen = (1 + 1 + 0.5) / 8
    assert three["improvement"]["ndcg@10"] == pytest.approx(100 * (ours / chosen - 1))
    assert three["improvement"]["recall@10"] == pytest.approx(100)


def test_no_percentage_over_zero(tmp_path):
    rows = [row(tmp_path, "A", [1, 3]), row(tmp_path, "B", [50, 50])]
    assert comparison(*rows)["improvement"]["ndcg@10"] is None


def test_tests_are_the_reference_less_each_baseline_user_by_user(three):
    assert [(t["baseline"], t["metric"]) for t in three["tests"]] == [
        (entry, key) for entry in ("Chosen", "Other") for key in ("recall@10", "ndcg@10", "mrr")
    ]
    ours = np.array([1, (1 + GAIN[2]) / 2, 0.5, 0])  # means over the two seeds
    chosen = np.array([1, 0, 0.25, 0])
    test = three["tests"][1]
    assert test["difference"] == pytest.approx((ours - chosen).mean())
    low, high = test["interval"]
    assert low <= test["difference"] <= high
    assert all(t["p"] <= t["p_holm"] <= 1 for t in three["tests"])
    assert three["tests"][1]["p"] < 0.5 < three["tests"][4]["p"]


def test_many_users_make_a_difference_significant(tmp_path):
    good, bad = [1, 2, 3] * 30, [2, 3, 50] * 30
    better = comparison(row(tmp_path, "A", good), row(tmp_path, "B", bad))
    worse = comparison(row(tmp_path / "2", "A", bad), row(tmp_path / "2", "B", good))
    assert max(t["p_holm"] for t in better["tests"]) < 1e-5
    assert min(t["p"] for t in worse["tests"]) > 0.999
    ends = np.array([t["interval"] for t in better["tests"]])
    np.testing.assert_allclose(-ends[:, ::-1], [t["interval"] for t in worse["tests"]])


def test_the_interval_of_a_difference_is_that_of_paired_users(tmp_path):
    rng = np.random.default_rng(5)
    mine = rng.integers(1, 12, 200)
    theirs = mine + (rng.random(200) < 0.1)
    test = comparison(row(tmp_path, "A", mine.tolist()), row(tmp_path, "B", theirs.tolist()))
    found = next(t for t in test["tests"] if t["metric"] == "ndcg@10")

    gain = [[1 / math.log2(r + 1) if r <= 10 else 0 for r in of] for of in (mine, theirs)]
    draws = [rng.integers(0, 200, 200) for _ in range(2000)]
    differences = sorted(
        sum(gain[0][user] - gain[1][user] for user in draw) / 200 for draw in draws
    )
    slow = differences[50], differences[-51]  # 2.5 % beyond each
    width = slow[1] - slow[0]
    assert found["interval"] == pytest.approx(slow, abs=0.15 * width)
    unpaired = sum(np.var(of) / 200 for of in gain) ** 0.5 * 2 * 1.96
    assert unpaired > 3 * width


def test_intervals_of_means_hold_them(three):
    for each in three["rows"]:
        for metric in each["test"].values():
            low, high = metric["interval"]
            assert low <= metric["mean"] + 1e-12 and metric["mean"] <= high + 1e-12


def test_users_are_matched_by_name_not_by_place(tmp_path):
    rows = [
        row(tmp_path, "A", [1, 2, 3], users=["x", "y", "z"]),
        row(tmp_path, "B", [1, 2, 3], users=["x", "y", "z"]),
    ]
    folder = rows[1].runs[1].folder
    rows[1].runs[1].users.reset_index()[::-1].to_parquet(folder / "per_user.parquet")
    rows[1] = Row("B", [1], {1: read_run(folder)}, {})
    assert all(t["difference"] == 0 and t["p"] == 1 for t in comparison(*rows)["tests"])


def test_groups_of_targets(tmp_path):
    counts = [0, 0, 1, 4, 5, 900]
    found = comparison(row(tmp_path, "A", [1, 50, 2, 50, 3, 50], counts=counts))
    assert [(g["name"], g["users"]) for g in found["rows"][0]["groups"]] == [
        ("never seen", 2),
        ("seen 1–4 times", 2),
        ("seen 5+ times", 2),
    ]
    ndcg = [g["ndcg@10"] for g in found["rows"][0]["groups"]]
    assert ndcg == pytest.approx([0.5, GAIN[2] / 2, 0.25])
    assert [g["recall@10"] for g in found["rows"][0]["groups"]] == [0.5, 0.5, 0.5]
    empty = comparison(row(tmp_path / "2", "A", [1, 2]))["rows"][0]["groups"][0]
    assert (empty["users"], empty["ndcg@10"]) == (0, None)


def test_groups_are_means_over_the_seeds(tmp_path):
    counts = [0, 0, 1, 9]
    seeds = [1, 50, 2, 50], [50, 50, 1, 3], [3, 1, 50, 50]
    groups = comparison(row(tmp_path, "A", *seeds, counts=counts))["rows"][0]["groups"]
    ndcg = [(1 + 0 + 0.5 + 1) / 6, (GAIN[2] + 1 + 0) / 3, (0 + 0.5 + 0) / 3]
    assert [g["ndcg@10"] for g in groups] == pytest.approx(ndcg)
    assert [g["recall@10"] for g in groups] == pytest.approx([3 / 6, 2 / 3, 1 / 3])


def test_the_ranking_curve_counts_targets_among_the_first_k(tmp_path):
    found = comparison(row(tmp_path, "A", [1, 2.5, 50], [1, 1, 50]))["rows"][0]["ranking"]
    share = dict(zip(found["k"], found["recall"], strict=True))
    assert found["k"][0] == 1 and found["k"][-1] == 100
    assert share[1] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert share[3] == pytest.approx(2 / 3)
    assert share[100] == 1


@pytest.mark.parametrize(("limit", "found"), [(None, None), (2.6, None), (2.5, 2.5), (2, 2)])
def test_training_that_used_up_its_time(tmp_path, limit, found):
    done = row(tmp_path, "A", [1, 2], settings={"max_train_seconds": limit})
    assert comparison(done)["rows"][0]["time_limit"] == found  # its last point is at 2.5 s


def test_a_row_that_was_cut_is_never_the_best(tmp_path):
    rows = [
        row(tmp_path / name, name, ranks, settings={"max_train_seconds": limit})
        for name, ranks, limit in [("A", [2, 2], None), ("B", [3, 3], None), ("C", [1, 1], 2)]
    ]
    found = comparison(*rows)
    marks = {each["entry"]: each["test"]["ndcg@10"]["mark"] for each in found["rows"]}
    assert marks == {"A": "best", "B": "second", "C": None}
    assert found["best_baseline"] == "B"


def test_training_that_used_up_its_time_with_one_seed(tmp_path):
    curves = [[{"stage": "finetune", "epoch": 0, "seconds": s, "valid": 0.1}] for s in (4, 6)]
    runs = {
        seed: write_run(
            tmp_path / str(seed), [1, 2], learning_curve=curve, settings={"max_train_seconds": 5}
        )
        for seed, curve in enumerate(curves)
    }
    assert comparison(Row("A", [0, 1], runs, {}))["rows"][0]["time_limit"] == 5
    assert comparison(Row("A", [0], {0: runs[0]}, {}))["rows"][0]["time_limit"] is None


def test_cost(tmp_path):
    slow = {"load": 1, "pretrain": 4, "finetune": 5, "evaluate": 4, "total": 20}
    done = row(tmp_path, "A", [1, 2], [1, 2], tokens_per_second=7.0)
    done.runs[2].result["seconds"] = slow
    assert comparison(done)["rows"][0]["cost"] == {
        "train_seconds": 7,
        "total_seconds": 15,
        "tokens_per_second": 7,
        "peak_memory_gib": 0.5,
        "parameters": 1000,
    }


def test_item_vectors(tmp_path):
    def facts(*measured):
        done = row(tmp_path / str(len(measured)), "A", *([1, 2] for _ in measured))
        for run, each in zip(done.runs.values(), measured, strict=True):
            run.result["vectors"] = each
        return comparison(done)["rows"][0]["vectors"]

    spread = {"mean": 2.0, "std": pytest.approx(2**0.5)}
    assert facts({"effective_rank": 1.0}, {"effective_rank": 3.0}) == {"effective_rank": spread}
    assert facts(None) is None
    assert facts({"effective_rank": 1.0}, None, {"effective_rank": 3.0}) is None


class TestFailures:
    def test_a_failed_row_is_shown_but_takes_no_part(self, tmp_path):
        found = comparison(
            row(tmp_path, "A", [2, 3], [2, 3]),
            row(tmp_path, "B", [1, 1], errors=["diverged"]),
            row(tmp_path, "C", [3, 3], [3, 3]),
        )
        failed = found["rows"][1]
        assert (failed["status"], failed["errors"]) == ("failed", {"2": "diverged"})
        assert failed["test"]["ndcg@10"]["mean"] == 1
        assert failed["test"]["ndcg@10"]["mark"] is None
        assert found["rows"][0]["test"]["ndcg@10"]["mark"] == "best"
        assert found["best_baseline"] == "C"
        assert {t["baseline"] for t in found["tests"]} == {"C"}

    def test_without_any_result_of_a_row(self, tmp_path):
        found = comparison(row(tmp_path, "A", [2, 3]), row(tmp_path, "B", errors=["no memory"]))
        assert found["rows"][1]["status"] == "failed"
        assert "test" not in found["rows"][1]

    def test_nothing_is_tested_where_the_reference_failed(self, tmp_path):
        found = comparison(row(tmp_path, "A", errors=["x"]), row(tmp_path, "B", [1, 2]))
        assert (found["best_baseline"], found["improvement"], found["tests"]) == (None, None, [])

    def test_when_everything_failed(self, tmp_path):
        found = comparison(row(tmp_path, "A", errors=["x"]), row(tmp_path, "B", errors=["y"]))
        assert found["users"] is None and found["metrics"] == []

    def test_runs_to_come(self, tmp_path):
        part = row(tmp_path, "A", [1, 2])
        found = comparison(Row("A", [1, 2], part.runs, {}), Row("B", [1, 2], {}, {}))
        assert [each["status"] for each in found["rows"]] == ["partial", "waiting"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_fingerprint": "f" * 16}, "data_fingerprint is '0123456789abcdef' in the first and"),
        ({"dataset": "other"}, "dataset is 'toy' in the first and 'other' in the second"),
        (
            {"protocol": {**PROTOCOL, "filter_history": True}},
            "protocol.filter_history is False in the first and True in the second",
        ),
        ({"settings": {"topk": [10, 5]}}, r"topk is \[10\] in the first and \[10, 5\] in the"),
        ({"settings": {"valid_metric": "Recall@10"}}, "valid_metric is 'NDCG@10' in the first"),
        ({"users": ["u0", "who"]}, r"user_id 'u1' is in one only \(2 such\)"),
    ],
)
def test_mixtures_are_refused_by_both_folders_and_the_field(tmp_path, changes, message):
    one = row(tmp_path, "A", [1, 2])
    other = row(tmp_path, "B", [1, 2], **changes)
    with pytest.raises(ValueError, match=message) as refused:
        comparison(one, other)
    assert f"{tmp_path}/A/seed-1 and {tmp_path}/B/seed-1 cannot be compared" in str(refused.value)


@pytest.mark.parametrize("changes", [{"data_fingerprint": "f" * 16}, {"users": ["u0", "who"]}])
def test_every_run_is_held_against_the_first(tmp_path, changes):
    same = [row(tmp_path, name, [1, 2], [1, 2]) for name in "AB"]
    other = row(tmp_path, "C", [1, 2])
    last = write_run(tmp_path / "C" / "seed-2", [1, 2], seed=2, **changes)
    other = Row("C", [1, 2], {**other.runs, 2: last}, {})
    message = f"{tmp_path}/A/seed-1 and {tmp_path}/C/seed-2 cannot be compared"
    with pytest.raises(ValueError, match=message):
        comparison(*same, other)


class TestItemText:
    def test_rows_that_read_other_text_are_refused(self, tmp_path):
        rows = [
            row(tmp_path, name, [1, 2], text_fingerprint=text and text * 16)
            for name, text in (("A", None), ("B", "b"), ("C", "b"), ("D", None), ("E", "e"))
        ]
        message = (
            f"{tmp_path}/B/seed-1 and {tmp_path}/E/seed-1 cannot be compared: "
            f"text_fingerprint is '{'b' * 16}' in the first and '{'e' * 16}' in the second"
        )
        with pytest.raises(ValueError, match=message):
            comparison(*rows)

    def test_rows_that_read_none_go_with_any(self, tmp_path):
        rows = [
            row(tmp_path, "A", [1, 2]),
            row(tmp_path, "B", [1, 2], text_fingerprint=None),
            row(tmp_path, "C", [1, 2], text_fingerprint="c" * 16),
        ]
        assert comparison(*rows)["data"]["text_fingerprint"] == "c" * 16
        assert comparison(*rows[:2])["data"]["text_fingerprint"] is None


def test_other_targets_are_refused(tmp_path):
    one, other = row(tmp_path, "A", [1, 2]), row(tmp_path, "B", [1, 2])
    other.runs[1].users.loc["u1", "target_item"] = "else"
    with pytest.raises(ValueError, match="target_item of user 'u1' differs"):
        comparison(one, other)


def test_a_run_folder_that_is_not_whole_is_refused(tmp_path):
    done = write_run(tmp_path / "run", [1, 2])
    (done.folder / "per_user.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"per_user\.parquet cannot be read"):
        read_run(done.folder)
    (done.folder / "per_user.parquet").unlink()
    with pytest.raises(ValueError, match=r"per_user\.parquet cannot be read"):
        read_run(done.folder)
    (done.folder / "result.json").unlink()
    with pytest.raises(ValueError, match=r"result\.json cannot be read: No such file"):
        read_run(done.folder)


def test_conditions_that_rows_share_and_those_they_do_not(tmp_path):
    found = comparison(
        row(tmp_path, "A", [1, 2], settings={"epochs": 3, "hidden_size": 8, "state": "INFO"}),
        row(tmp_path, "B", [1, 2], settings={"epochs": 3, "hidden_size": 9, "depth": 1}),
        row(
            tmp_path, "C", [1, 2], settings={"epochs": 3, "hidden_size": 8}, versions={"torch": "3"}
        ),
    )["conditions"]
    assert found["given"] == {"epochs": 3}
    assert found["shared"] == {
        "epochs": 3,
        "metrics": ["Recall", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
    }
    assert found["differing"] == {"hidden_size": {"A": 8, "B": 9, "C": 8}, "depth": {"B": 1}}
    assert found["hardware"] == [{"entries": ["A", "B", "C"], "value": {"device": "cpu"}}]
    assert [each["entries"] for each in found["versions"]] == [["A", "B"], ["C"]]


class TestPublished:
    STATISTICS = {
        "users": 8442,
        "items": 4385,
        "interactions": 59427,
        "average_length": 7.04,
        "density": 1.6e-3,
    }

    def test_a_data_set_of_other_size_is_warned_of(self):
        found = beside_published("Amazon-Scientific", self.STATISTICS)
        assert found["name"] == "Scientific"
        assert found["statistics"]["users"] == 11041
        assert found["relative"]["users"] == pytest.approx(8442 / 11041 - 1)
        assert "users -23.5 %" in found["warning"]

    def test_the_same_counts_are_not(self):
        same = {"users": 4181, "items": 3896, "interactions": 401248, "average_length": 95.97}
        found = beside_published("online_retail", same)
        assert found["warning"] is None
        assert "does not follow" in found["note"]

    def test_a_data_set_that_the_paper_has_not(self):
        assert beside_published("toy", self.STATISTICS) is None

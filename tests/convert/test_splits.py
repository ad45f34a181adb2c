"""Splits as written: against their definitions written slowly, and against what is loaded."""

import json
from collections import defaultdict
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.convert.checks import problems
from recbole_jepa4rec.convert.command_line import main
from recbole_jepa4rec.convert.filters import in_order, read_interactions
from recbole_jepa4rec.convert.settings import Split
from recbole_jepa4rec.convert.split import NAMES, split_files, split_rows
from recbole_jepa4rec.data.atomic_files import read_atomic
from recbole_jepa4rec.data.dataset import SequentialTextDataset
from tests.conftest import ROOT
from tests.convert.conftest import REAL_DATA, reviews, write_json_lines

HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"


def split(rows, kind, seed=2020, **shares):
    """Rows of (user, item, time) of each file."""
    made = split_rows(Split(kind, **shares), seed, in_order(read_interactions(rows)))
    return {
        name: list(part[["user", "item", "time"]].itertuples(index=False, name=None))
        for name, part in split_files(made).items()
    }


def with_history(parts):
    """The definition's last sentence: users whose last row has no training row before leave."""
    trained = defaultdict(list)
    for user, _, time in parts["train"]:
        trained[user].append(time)
    kept = {"train": sorted(parts["train"])}
    for name in ("valid", "test"):
        last = {}
        for user, _, time in parts[name]:
            last[user] = max(time, last.get(user, time))
        kept[name] = sorted(
            row for row in parts[name] if any(t <= last[row[0]] for t in trained[row[0]])
        )
    return kept


rows_of = st.lists(
    st.tuples(
        st.sampled_from("uvwé"), st.sampled_from([f"i{n}" for n in range(12)]), st.integers(0, 30)
    ),
    min_size=10,
    max_size=60,
    unique=True,
)


def attempt(rows, kind, **shares):
    """The files, or None where a part would be empty."""
    try:
        return split(rows, kind, **shares)
    except ValueError as error:
        if "no interaction is left" not in str(error) and "no user has" not in str(error):
            raise
        return None


@given(rows_of, st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_temporal_cuts_everybody_at_the_same_moments(rows, valid_share, test_share):
    made = attempt(rows, "temporal", valid_share=valid_share, test_share=test_share)
    in_time = sorted(row[2] for row in rows)
    first_test = in_time[min(len(rows) - 1, round((1 - test_share) * len(rows)))]
    first_valid = in_time[min(len(rows) - 1, round((1 - (valid_share + test_share)) * len(rows)))]
    parts = {
        "train": [row for row in rows if row[2] < first_valid],
        "valid": [row for row in rows if first_valid <= row[2] < first_test],
        "test": [row for row in rows if row[2] >= first_test],
    }
    expected = with_history(parts)
    assert (made is None) == (not all(expected.values()))
    assert made is None or {name: sorted(part) for name, part in made.items()} == expected


@given(rows_of, st.integers(0, 5))
def test_cold_items_are_drawn_by_id_and_seed_and_never_trained(rows, seed):
    shares = {"valid_share": 0.2, "test_share": 0.3}
    made = attempt(rows, "cold_items", seed=seed, **shares)

    def part_of(item):
        key = seed.to_bytes(8, "little")
        digest = blake2b(item.encode(), digest_size=8, key=key, person=b"cold_items").digest()
        share = int.from_bytes(digest, "little") / 2**64
        return "test" if share < 0.3 else "valid" if share < 0.5 else "train"

    expected = with_history(
        {name: [row for row in rows if part_of(row[1]) == name] for name in NAMES}
    )
    assert (made is None) == (not all(expected.values()))
    assert made is None or {name: sorted(part) for name, part in made.items()} == expected


@given(rows_of)
def test_loo_is_the_protocol(rows):
    made = attempt(rows, "loo")
    histories = defaultdict(list)
    for row in sorted(rows, key=lambda row: row[2]):
        histories[row[0]].append(row)
    long = [history for history in histories.values() if len(history) >= 3]
    if made is None:
        assert not long
        return
    assert sorted(made["test"]) == sorted(history[-1] for history in long)
    assert sorted(made["valid"]) == sorted(history[-2] for history in long)
    assert len(made["train"]) == len(rows) - 2 * len(long)


@given(rows_of, st.integers(2, 4))
def test_last_n_holds_back_the_last_of_each_user(rows, last):
    made = attempt(rows, "last_n", last=last)
    expected = {"train": [], "valid": [], "test": []}
    for user in "uvwé":
        of_user = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
        first = len(of_user) - last
        cut = first - 1 if first >= 2 else len(of_user)
        expected["train"] += of_user[:cut]
        expected["valid"] += of_user[cut : first if first >= 2 else cut]
        expected["test"] += of_user[first:] if first >= 2 else []
    assert (made is None) == (not expected["test"])
    if made is not None:
        assert {name: sorted(part) for name, part in made.items()} == {
            name: sorted(part) for name, part in expected.items()
        }


@settings(max_examples=15)
@given(rows_of, st.sampled_from(["loo", "last_n", "temporal", "cold_items"]))
def test_what_is_written_is_what_is_loaded(tmp_path_factory, rows, kind):
    folder = tmp_path_factory.mktemp("split")
    path = write_json_lines(folder / "r.json", reviews(rows))
    words = ["amazon2018", str(path), "--split", kind, "--out", str(folder / "made")]
    if attempt(rows, kind) is None:
        assert main(words) == 2 and not (folder / "made").exists()
        return
    assert main(words) == 0
    content = json.loads((folder / "made" / "made.stats.json").read_text())["split"]
    given = {"data_path": str(folder), "benchmark_filename": "train,valid,test"}
    loaded = SequentialTextDataset(Config("Markov", "made", config_dict=given))
    assert content["kind"] == kind and content["fingerprint"] == loaded.fingerprint
    train, *evaluated = loaded.build()
    known = set(train.histories.items.tolist())
    for part, name in zip(evaluated, ("valid", "test"), strict=True):
        targets = part.histories.items[part.inter_feat.target].tolist()
        cold = [item not in known for item in targets]
        assert content["parts"][name]["targets"] == len(targets)
        assert content["parts"][name]["cold_targets"] == pytest.approx(sum(cold) / len(cold))
    assert not [p for p in problems(folder / "made") if p.fatal or ".test" in p.path.name]


def test_an_item_keeps_its_part_whatever_else_is_there():
    rows = [(f"u{n % 7}", f"i{n % 40}", n) for n in range(400)]
    some = [row for row in rows if int(row[1][1:]) < 30]

    def parts(rows, seed=2020):
        files = split(rows, "cold_items", seed=seed)
        return {item: name for name, part in files.items() for _, item, _ in part}

    assert parts(some).items() <= parts(rows).items()
    assert parts(some) != parts(some, seed=1)


def test_every_source_and_an_existing_set_can_be_split(tmp_path, made, run):
    rows = "".join(f"u{n % 5}\ti{n % 10}\t{n}\n" for n in range(100))
    table = tmp_path / "t.tsv"
    table.write_text("user_id\titem_id\ttimestamp\n" + rows)
    inter, _, content = made("generic", table, "--split", "temporal", "--test-share", "0.2")
    folder = tmp_path / "made"
    files = [
        read_atomic(folder / f"made.{name}.inter", as_text=True).to_numpy().tolist()
        for name in NAMES
    ]
    assert sorted(row for file in files for row in file) == sorted(inter)
    assert [len(file) for file in files] == [70, 10, 20]
    assert content["split"]["test_share"] == 0.2 and content["split"]["left_out"] == 0
    status, _, errors = run("--from-recbole", folder, "--split", "loo", out="again")
    assert status == 0 and "split loo: 90 interactions train" in errors
    assert (tmp_path / "again" / "again.valid.inter").read_text().startswith(HEAD)
    assert run("from-recbole", folder, "--force", out="again")[0] == 0
    assert not (tmp_path / "again" / "again.valid.inter").exists()
    stats = json.loads((tmp_path / "again" / "again.stats.json").read_text())
    assert stats["split"] is None and stats["fingerprint"] == content["fingerprint"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--test-share 0.2", "--test-share needs --split temporal or --split cold_items"),
        ("--split loo --valid-share 0.2", "--valid-share needs --split temporal"),
        ("--split temporal --test-share 0", "--test-share: '0' must be above 0 and at most 1"),
        ("--split temporal --test-share nan", "--test-share: 'nan' must be a number"),
        ("--split temporal --test-share 0.95", "must leave something to train on"),
        ("--split random", "invalid choice: 'random'"),
        ("--split last_n --test-share 0.2", "--test-share needs --split temporal or --split cold"),
        ("--split loo --last 3", "--last needs --split last_n"),
        ("--split last_n --last 0", "--last 0 must be at least 1"),
        ("--split last_n --last x", "--last: 'x' must be a whole number"),
        ("--split last_n --last 90", "--last 90: no user has 92 interactions, one to train on"),
        ("--split temporal", "--split temporal: no interaction is left for test"),
    ],
)
def test_refusals(run, words, message):
    status, _, errors = run("from-recbole", ROOT / "dataset" / "toy", *words.split())
    assert status == 2 and message in errors and errors.count("\n") == 1


def test_a_repetition_that_loo_would_tear_apart(tmp_path, run):
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "c", 3)]
    path = write_json_lines(tmp_path / "r.json", reviews(rows))
    status, _, errors = run("amazon2018", path, "--split", "loo")
    assert status == 2 and "user 'u' has item 'c' twice at one time" in errors
    assert run("amazon2018", path, "--split", "loo", "--duplicates", "exact")[0] == 0


def test_check_knows_the_files(tmp_path, made, capsys):
    rows = [(f"u{n % 3}", f"i{n}", n) for n in range(30)]
    made("amazon2018", write_json_lines(tmp_path / "r.json", reviews(rows)), "--split", "temporal")
    folder = tmp_path / "made"
    assert problems(folder) == []
    (folder / "made.item").write_text("item_id:token\ttitle:token_seq\ni27\tt\ni28\tt\ni29\tt\n")
    with open(folder / "made.valid.inter", "a") as file:
        file.write("u0\tnew\t25\nstray\ti27\t26\nu0\ti27\n")
    with open(folder / "made.test.inter", "a") as file:
        file.write("u0\ti0\t0\n")
    listed = [
        str(problem).removeprefix(f"{folder}/")
        for problem in problems(folder)
        if problem.path.name not in ("made.inter", "made.item")
    ]
    train, other = "made.train.inter", "made.inter has no such row"
    assert sorted(listed) == sorted(
        [
            f"made.valid.inter, line {n}: error: expected an item that {train} or the .item "
            "file holds"
            for n in (2, 3, 4, 5)
        ]
        + [
            f"made.valid.inter, line 5: warning: {other}",
            f"made.valid.inter, line 6: warning: {other}",
            f"made.valid.inter, line 6: error: expected an earlier row of the user in {train}, "
            "found none",
            "made.valid.inter, line 7: error: expected 3 columns (user_id, item_id, timestamp), "
            "found 2",
            f"made.test.inter, line 5: error: stands in {train}, line 2 as well",
        ]
    )
    (folder / "made.test.inter").unlink()
    missing = [str(p) for p in problems(folder) if p.path.name == "made.test.inter"]
    assert missing == [f"{folder}/made.test.inter, line 1: error: expected this file of the split"]
    assert main(["check", str(folder)]) == 1


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL_DATA / "amazon-scientific").is_dir(), reason="no such data set")
@pytest.mark.parametrize("kind", ["temporal", "cold_items"])
def test_amazon_scientific(tmp_path, made, kind):
    _, _, content = made("from-recbole", REAL_DATA / "amazon-scientific", "--split", kind)
    parts = content["split"]["parts"]
    assert problems(tmp_path / "made") == []
    assert parts["test"]["targets"] > 1000
    assert parts["test"]["cold_targets"] == (
        1 if kind == "cold_items" else pytest.approx(0, abs=0.01)
    )

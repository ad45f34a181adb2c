"""Histories, splits, windows and item text, on hand-made files, the toy set and ml-100k."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.dataset import SequentialTextDataset

INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
ITEM = "item_id:token\ttitle:token_seq\tprice:float\tbrand:token\n"


def load(name="toy", cls=SequentialTextDataset, **settings):
    return cls(Config(model="Markov", dataset=name, config_dict=settings))


@pytest.fixture
def write(tmp_path):
    """Write a data set from rows of (user, item, time) and load it."""

    def write(rows, item=None, name="made", inter_header=INTER, **settings):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = ["\t".join(map(str, row)) + "\n" for row in rows]
        (folder / f"{name}.inter").write_text(inter_header + "".join(lines), encoding="utf-8")
        if item is not None:
            (folder / f"{name}.item").write_text(item, encoding="utf-8")
        return load(name, data_path=str(tmp_path), **settings)

    return write


def tokens(dataset, rows):
    """Raw (user, history, target) of fetched rows."""
    user = dataset.id2token("user_id", rows["user_id"])
    target = dataset.id2token("item_id", rows["item_id"])
    histories = [
        "".join(dataset.id2token("item_id", items[:length]))
        for items, length in zip(rows["item_id_list"], rows["item_length"], strict=True)
    ]
    return list(zip(user.tolist(), histories, target.tolist(), strict=True))


def steps(user, items, start=0):
    return [(user, item, start + n) for n, item in enumerate(items)]


class TestSplit:
    def test_users_by_number_of_interactions(self, write):
        dataset = write(
            [row for n, user in enumerate("pqrst") for row in steps(user, "abcde"[: n + 1])]
        )
        train, valid, test = dataset.build()
        assert tokens(dataset, train[:]) == [
            ("q", "a", "b"), ("s", "a", "b"), ("t", "a", "b"), ("t", "ab", "c"),
        ]  # fmt: skip
        assert tokens(dataset, valid[:]) == [("r", "a", "b"), ("s", "ab", "c"), ("t", "abc", "d")]
        assert tokens(dataset, test[:]) == [("r", "ab", "c"), ("s", "abc", "d"), ("t", "abcd", "e")]
        assert dataset.histories.offsets.tolist() == [0, 0, 1, 3, 6, 10, 15]
        assert dataset.histories.train_end.tolist() == [0, 1, 3, 4, 8, 13]
        assert dataset.histories.in_training.sum() == 1 + 2 + 1 + 2 + 3

    def test_time_is_compared_at_full_precision(self, write):
        seconds = 1_700_000_000
        assert np.float32(seconds) == np.float32(seconds + 3)
        rows = [("u", item, seconds + n) for item, n in zip("dcba", (3, 2, 1, 0), strict=True)]
        _, _, test = (dataset := write(rows)).build()
        assert tokens(dataset, test[:]) == [("u", "abc", "d")]

    def test_the_order_of_the_file_breaks_ties(self, write):
        items = "zyxwvutsrqponm"
        rows = [("u", item, 7) for item in items]
        _, _, test = (dataset := write(rows)).build()
        assert tokens(dataset, test[:]) == [("u", items[:-1], items[-1])]

    def test_a_repeated_item_stays(self, write):
        _, _, test = (dataset := write(steps("u", "aabab"))).build()
        assert tokens(dataset, test[:]) == [("u", "aaba", "b")]

    def test_a_second_build_is_equal(self):
        dataset = load()
        for first, second in zip(dataset.build(), dataset.build(), strict=True):
            assert torch.equal(first.inter_feat.target, second.inter_feat.target)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("split", {"RS": [8, 1, 1]}),
            ("split", {"LS": "test_only"}),
            ("order", "RO"),
            ("group_by", "none"),
            ("mode", {"valid": "uni100", "test": "full"}),
        ],
    )
    def test_other_protocols_are_refused_by_name(self, key, value):
        dataset = load()
        dataset.config["eval_args"] = {**dataset.config["eval_args"], key: value}
        with pytest.raises(ValueError, match=f"eval_args.{key}"):
            dataset.build()


class FullPrecision(SequentialDataset):
    """RecBole's own data set, sorted before it casts the time to single precision."""

    def _remap_ID_all(self):  # noqa: N802
        super()._remap_ID_all()
        by = [self.uid_field, self.time_field]
        self.inter_feat = self.inter_feat.sort_values(by, kind="stable", ignore_index=True)


@pytest.fixture(scope="module")
def both():
    """Ours and RecBole's, each with its three parts."""
    return [
        (dataset, dataset.build()) for dataset in (load("ml-100k"), load("ml-100k", FullPrecision))
    ]


def assert_equal_rows(ours, theirs):
    """All columns equal; RecBole's parts stand in order of time, so they are put by user first."""
    expected = theirs[np.argsort(theirs.inter_feat["user_id"].numpy(), kind="stable")]
    got = ours[np.arange(len(ours))]
    assert got.columns == expected.columns
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        assert torch.equal(got[name], expected[name]), name


class TestAgainstRecBole:
    def test_rows_are_equal_on_ml_100k(self, both):
        (_, our_parts), (_, their_parts) = both
        for ours, theirs, count in zip(our_parts, their_parts, (97171, 943, 943), strict=True):
            assert len(ours) == count
            assert {"rating_list", "timestamp_list", "item_length"} <= set(ours[:1].columns)
            assert_equal_rows(ours, theirs)

    def test_other_users_of_the_rows_see_the_same(self, both):
        (ours, (our_train, *_)), (theirs, (their_train, *_)) = both
        assert ours.field2seqlen == theirs.field2seqlen
        assert ours.field2type == theirs.field2type
        assert our_train.item_counter == their_train.item_counter
        assert str(our_train) == str(their_train)
        difference = ours.inter_matrix("csr") != theirs.inter_matrix("csr")
        assert difference.nnz == 0

    def test_columns_of_items_and_users_are_joined(self):
        columns = {"item": ["item_id", "class", "release_year"], "user": ["user_id", "gender"]}
        wanted = {"inter": ["user_id", "item_id", "timestamp"], **columns}
        ours, theirs = (
            load("ml-100k", cls, load_col=wanted) for cls in (SequentialTextDataset, FullPrecision)
        )
        our_test, their_test = ours.build()[2], theirs.build()[2]
        assert our_test[:]["class"].shape[1] > 1
        assert_equal_rows(our_test, their_test)


class TestRows:
    @pytest.fixture
    def train(self, write):
        return write(steps("u", "abcdefg") + steps("v", "gfedcba"), MAX_ITEM_LIST_LENGTH=3).build()[
            0
        ]

    def test_windows_keep_the_newest_items(self, train):
        assert [history for _, history, _ in tokens(train, train[:])] == [
            "a", "ab", "abc", "bcd", "g", "gf", "gfe", "fed",
        ]  # fmt: skip
        rows = train.inter_feat
        assert rows[:]["item_id_list"].shape == (8, 3)
        assert rows[:]["timestamp_list"][1].tolist() == [0, 1, 0]
        assert rows.history_length.tolist() == [1, 2, 3, 4] * 2
        assert rows["item_length"].tolist() == [1, 2, 3, 3] * 2
        assert torch.equal(rows.user_id, rows["user_id"])

    @pytest.mark.parametrize(
        "index",
        [
            np.array([5, 1, 1]),
            torch.tensor([5, 1, 1]),
            [5, 1, 1],
            slice(2, 7, 2),
            slice(0, 0),
            np.arange(8) % 3 == 0,
            torch.arange(8) % 3 == 0,
            np.array([], dtype=np.int64),
            3,
        ],
    )
    def test_every_index_gives_what_recboles_interaction_gives(self, train, index):
        rows = train.inter_feat
        whole = Interaction({name: rows[name] for name in rows})
        got, expected = rows[index], whole[index]
        assert got.columns == expected.columns == rows.columns
        assert len(got) == len(expected)
        for name in got:
            assert torch.equal(got[name], expected[name])

    def test_it_stands_in_for_an_interaction(self, train):
        rows = train.inter_feat
        assert isinstance(rows, Interaction)
        assert "item_id_list" in rows
        assert "title" not in rows
        assert len(rows) == len(train) == 8
        copied = copy.deepcopy(rows)
        rows.sort("item_id")
        assert rows["item_id"].tolist() == sorted(copied["item_id"].tolist())
        assert len(set(zip(rows["item_id"].tolist(), rows.user_id.tolist(), strict=True))) == 8
        rows.drop("timestamp_list")
        assert "timestamp_list" not in rows[:2]
        assert "timestamp_list" in copied[:2]
        with pytest.raises(KeyError):
            rows["timestamp_list"]

    def test_a_window_column_read_whole_is_kept_and_follows_a_sort(self, train):
        rows = train.inter_feat
        before = rows["item_id_list"]
        assert rows["item_id_list"] is before
        rows.sort("item_id")
        assert torch.equal(rows["item_id_list"], rows[:]["item_id_list"])

    def test_other_targets(self, train):
        rows = train.inter_feat.with_targets(torch.tensor([6, 13]))
        assert [history for _, history, _ in tokens(train, rows[:])] == ["def", "dcb"]

    def test_unused_columns_are_dropped(self, write):
        dataset = write(steps("u", "abcd"), unused_col={"inter": ["timestamp", "timestamp_list"]})
        for part in dataset.build():
            assert part[:].columns == ["user_id", "item_id", "item_length", "item_id_list"]


class TestLoading:
    def test_ids_that_pandas_takes_for_missing_stay(self):
        dataset = load()
        users, items = (set(dataset.field2id_token[f"{kind}_id"]) for kind in ("user", "item"))
        assert {"NA", "nan", '"u3'} <= users
        assert {"NA", "null", 'q"17'} <= items
        assert dataset.statistics() == {
            "users": 40,
            "items": 30,
            "interactions": 430,
            "average_length": 10.75,
            "density": 430 / 1200,
        }

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([("u", "a", 1), ("", "b", 2)], "line 3: expected a user_id, found none"),
            ([("u", "", 1)], "line 2: expected a item_id, found none"),
            ([("u", "a", 1), ("u", "b", "")], "line 3: expected a finite timestamp"),
            ([("u", "a", "inf")], "line 2: expected a finite timestamp"),
            ([("u", "a", "soon")], "line 2: expected a number for 'timestamp', found 'soon'"),
            ([("u", "a")], "line 2: expected 3 columns"),
            ([], "no row below the header"),
        ],
    )
    def test_a_faulty_row_is_named(self, write, rows, message):
        with pytest.raises(ValueError, match=message) as error:
            write(rows)
        assert "made.inter" in str(error.value)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("user_id:token\titem_id:token\twhen:float\n", "no column 'timestamp'.*when"),
            (
                "user_id:token\titem_id:token\ttimestamp:token\n",
                "made.inter, line 1: expected column 'timestamp' of type float, found token",
            ),
            ("user:token\titem_id:token\ttimestamp:float\n", "no column 'user_id'"),
            (
                "user_id:token,item_id:token,timestamp:float\n",
                r"made\.inter, line 1: no column 'user_id' \(there are: user_id:token,item_id",
            ),
        ],
    )
    def test_a_faulty_header_is_named(self, write, header, message):
        with pytest.raises(ValueError, match=message):
            write([("u", "a", 1)], inter_header=header)

    def test_an_item_described_twice_is_named_with_both_lines(self, write):
        item = ITEM + "a\tone\t1\tx\nb\ttwo\t1\tx\na\tone\t1\tx\n"
        dataset = write(steps("u", "ab"), item)
        with pytest.raises(ValueError, match="lines 2 and 4: both have item_id 'a'"):
            _ = dataset.item_text
        with pytest.raises(ValueError, match="lines 2 and 4"):
            write(steps("u", "ab"), item, load_col={"inter": "*", "item": "*"})

    def test_an_unknown_data_set_is_refused_with_the_nearest_name(self, write, tmp_path):
        write(steps("u", "ab"))
        with pytest.raises(ValueError, match=r"no data set 'mode' in .*did you mean 'made'"):
            load("mode", data_path=str(tmp_path))
        with pytest.raises(ValueError, match=r"no data set 'ml-100' .*did you mean 'ml-100k'"):
            load("ml-100")

    def test_columns_not_to_load(self, write):
        item = "item_id:token\ttitle:token_seq\tbrand:token\na\tone\tx\n"
        words = {"unload_col": {"item": ["brand"]}}
        assert list(write(steps("u", "ab"), item, load_col=None, **words).item_feat) == [
            "item_id",
            "title",
        ]
        with pytest.raises(ValueError, match=r"unload_col\.item \['brand'\] has no effect"):
            write(steps("u", "ab"), item, **words)

    def test_other_separators_are_refused(self, write):
        with pytest.raises(ValueError, match="field_separator ','"):
            write(steps("u", "ab"), field_separator=",")

    def test_item_columns_for_other_models(self, write):
        item = "item_id:token\ttitle:token_seq\tvector:float_seq\tbrand:token\n"
        item += 'a\t"NA  x\t1 2.5\tNA\nb\t\t\t\n'
        wanted = {"inter": ["user_id", "item_id"], "item": "*"}
        dataset = write(steps("u", "abab"), item, load_col=wanted)
        row = dataset.build()[2][:]
        assert dataset.id2token("title", row["title"][0]).tolist() == ["[PAD]", "[PAD]"]
        known = dataset.item_feat[dataset.token2id("item_id", "a")]
        assert dataset.id2token("title", known["title"]).tolist() == ['"NA', "x"]
        assert dataset.id2token("brand", known["brand"]) == "NA"
        assert known["vector"].tolist() == [1, 2.5]
        assert row["brand"].tolist() == [0]
        assert (
            write(steps("u", "abab"), item, load_col=wanted, seq_len={"title": 1}).num("title") == 2
        )
        with pytest.raises(ValueError, match=r"made\.item, line 2: expected numbers in 'vector'"):
            write(steps("u", "ab"), item.replace("2.5", "2,5"), load_col=wanted)

    def test_ids_count_up_as_they_occur_and_empty_tokens_are_padding(self, write):
        header = "user_id:token\titem_id:token\ttimestamp:float\tshop:token\tnote:token\n"
        rows = [("v", "z", 3, "", ""), ("u", "a", 2, "s", ""), ("v", "a", 1, "", "")]
        item = "item_id:token\tbrand:token\nb\tother\na\t\nz\tmine\n"
        wanted = {"inter": "*", "item": "*"}
        dataset = write(rows, item, inter_header=header, load_col=wanted)
        assert dataset.field2id_token["user_id"].tolist() == ["[PAD]", "v", "u"]
        assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "z", "a"]
        assert dataset.field2id_token["note"].tolist() == ["[PAD]"]
        assert dataset.inter_feat["shop"].tolist() == [0, 0, 1]
        assert dataset.id2token("brand", dataset.item_feat["brand"]).tolist() == [
            "[PAD]", "mine", "[PAD]",
        ]  # fmt: skip

    def test_more_users_than_a_16_bit_number_are_sorted(self, write):
        users = np.random.default_rng(0).permutation(70_000)
        rows = [(f"u{user}", item, time) for item, time in (("b", 2), ("a", 1)) for user in users]
        histories = (dataset := write(rows)).histories
        assert histories.items.tolist() == dataset.token2id("item_id", ["a", "b"]).tolist() * 70_000
        assert dataset.inter_feat["user_id"].tolist() == histories.users.tolist()

    def test_filters_of_recbole_work(self, write):
        rows = steps("u", "abc") + steps("v", "ab")
        assert write(rows, user_inter_num_interval="[3,inf)").statistics()["users"] == 1
        rows = [("u", "b", 5), ("u", "a", 5), ("u", "b", 5), ("u", "c", 1)]
        dataset = write(rows, rm_dup_inter="last")
        assert tokens(dataset, dataset.build()[2][:]) == [("u", "ca", "b")]

    def test_a_filter_that_leaves_nothing_is_named(self, write):
        with pytest.raises(ValueError, match=r"^no interaction .* user_inter_num_interval '\[9"):
            write(steps("u", "abc"), ITEM, user_inter_num_interval="[9,inf)")

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            (
                {"inter": ["user_id", "ratng"]},
                r"made\.inter, line 1: no column 'ratng' \(there are: user",
            ),
            (
                {"inter": "*", "item": ["titel"]},
                r"made\.item, line 1: no column 'titel' \(there are: it",
            ),
            (
                {"inter": "*", "user": ["age"]},
                r"load_col\.user \['age'\]: there is no file .*user",
            ),
        ],
    )
    def test_a_column_that_no_file_has_is_named(self, write, wanted, message):
        with pytest.raises(ValueError, match=message):
            write(steps("u", "abc"), ITEM, load_col=wanted)


class TestCatalogue:
    """It is the items of the interactions, whatever else is loaded."""

    ITEMS = "item_id:token\ttitle:token_seq\tsize:float_seq\tprice:float\tbrand:token\n"
    ITEMS += "cold\told snow\t1 2\t3\tx\nb\tred\t1\t2\ty\n"

    @pytest.mark.parametrize("filters", [True, False])
    def test_item_columns_change_no_split(self, filters):
        columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "title"]}
        plain, loaded = load(), load(load_col=columns, filter_inter_by_user_or_item=filters)
        assert loaded.field2id_token["item_id"].tolist() == (
            plain.field2id_token["item_id"].tolist()
        )
        assert loaded.statistics() == plain.statistics()
        for ours, theirs in zip(loaded.build(), plain.build(), strict=True):
            assert torch.equal(ours.inter_feat.target, theirs.inter_feat.target)

    def test_an_item_without_row_has_an_empty_one(self, write):
        dataset = write(steps("u", "abc"), self.ITEMS, load_col={"inter": "*", "item": "*"})
        dataset.build()
        a, b = (dataset.item_feat[dataset.token2id("item_id", item)] for item in "ab")
        assert dataset.item_num == 4
        assert dataset.id2token("title", b["title"]) == "red"
        assert "old" not in dataset.field2id_token["title"]
        assert (a["title"].tolist(), a["size"].tolist(), a["brand"]) == ([0], [0], 0)

    def test_filtered_items_leave_it(self, write):
        rows = steps("u", "abc") + steps("v", "d")
        wanted = {"inter": "*", "item": ["title"]}  # the id comes by itself
        dataset = write(rows, self.ITEMS, load_col=wanted, user_inter_num_interval="[2,inf)")
        assert dataset.item_num == 4
        dataset = write(
            rows, self.ITEMS, load_col={"inter": "*", "item": "*"}, val_interval={"price": "[1,3]"}
        )
        assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "b"]


class TestItemText:
    def test_the_toy_set_is_read_raw(self):
        dataset = load()
        text = dataset.item_text
        assert list(text) == ["title", "categories", "brand"]
        assert text.shape == (dataset.item_num, 3)
        assert text.index.tolist() == list(range(31))
        assert text.iloc[0].tolist() == ["", "", ""]

        def of(item):
            return text.iloc[dataset.token2id("item_id", item)].tolist()

        assert of("NA") == ["Garden hose", "garden, hose", "Borealis"]
        assert of("i02")[0] == "null"
        assert of("i03")[0] == '"Rose" seeds, the red kind'
        assert of("i04")[0] == '"Watering can'
        assert of("i05")[0] == 'Gloves 7" wide'
        assert of("i07")[0] == "Kitchen knife 🔪 – größe M 日本"
        assert of("i08")[0].count("very") == 400
        assert of("i09") == of("i30") == ["", "", ""]
        assert of("i10") == ["NA", "None", "nan"]
        assert of("i11")[0] == "Guitar strings with blanks and separators"
        assert of("i12") == of("i13")
        assert of("i16") == ["", "travel, backpack", ""]

    def test_columns_are_chosen_and_ordered(self):
        text = load(item_text_fields=["price", "title"]).item_text
        assert list(text) == ["price", "title"]
        assert {"1e1", "", "42.99"} <= set(text["price"])
        assert list(load(item_text_fields="title").item_text) == ["title"]

    def test_what_is_missing_is_named(self, write):
        with pytest.raises(
            ValueError, match=r"no column 'titel' in .*toy\.item \(there are: title"
        ):
            _ = load(item_text_fields=["titel"]).item_text
        with pytest.raises(ValueError, match="item_text_fields: 'title' is there twice"):
            _ = load(item_text_fields=["title", "title"]).item_text
        with pytest.raises(ValueError, match=r"made\.item: No such file"):
            _ = write(steps("u", "ab")).item_text
        with pytest.raises(ValueError, match=r"made\.item: no text column beside 'item_id'"):
            _ = write(steps("u", "ab"), "item_id:token\tprice:float\na\t1\n").item_text

    @pytest.mark.parametrize("rows", ["", "cold\tsnow\t1\tx\n", "a\t \t1\t\n"])
    def test_a_file_without_text_for_any_item_is_named(self, write, rows):
        with pytest.raises(ValueError, match=r"made\.item: no item .* has text in title, brand$"):
            _ = write(steps("u", "ab"), ITEM + rows).item_text


class TestSeveralDataSets:
    @pytest.fixture
    def both(self, write, tmp_path):
        write(steps("u", "abc") + steps("v", "ca"), ITEM + "a\tfirst\t1\tx\n", name="one")
        item = "item_id:token\tname:token\ttitle:token_seq\nb\tB\tsecond\n"
        write(steps("u", "cbab"), item, name="two")
        return load("one,two", data_path=str(tmp_path))

    def test_users_and_items_stay_apart(self, both):
        _, _, test = both.build()
        assert tokens(both, test[:]) == [
            ("one/u", "one/aone/b", "one/c"),
            ("two/u", "two/ctwo/btwo/a", "two/b"),
        ]
        assert both.statistics()["items"] == 6

    def test_text_is_the_union(self, both):
        text = both.item_text
        assert list(text) == ["title", "brand", "name"]
        assert text.iloc[both.token2id("item_id", "one/a")].tolist() == ["first", "x", ""]
        assert text.iloc[both.token2id("item_id", "two/b")].tolist() == ["second", "", "B"]
        assert text.iloc[both.token2id("item_id", "two/a")].tolist() == ["", "", ""]

    def test_recboles_own_data_set_can_be_one_of_them(self):
        dataset = load("toy,ml-100k")
        assert dataset.statistics()["users"] == 40 + 943
        assert "movie_title" in dataset.item_text


class TestFingerprint:
    def test_it_ignores_the_order_of_users_and_nothing_else(self, write):
        u, v = steps("u", "abc"), steps("v", "ca")
        mark = write(u + v).fingerprint
        assert len(mark) == 16
        assert write(v + u).fingerprint == mark
        assert write([v[0], u[0], u[1], v[1], u[2]]).fingerprint == mark
        assert write(steps("u", "abc", start=9) + v).fingerprint == mark
        for other in (
            steps("u", "acb") + v,
            steps("w", "abc") + v,
            steps("u", "abd") + v,
            steps("u", "ab") + steps("v", "cca"),
            u,
        ):
            assert write(other).fingerprint != mark

    def test_it_stays_the_same_in_every_version(self):
        assert load().fingerprint == "8e51249572786edb"

    def test_it_does_not_depend_on_what_else_is_loaded(self):
        wanted = {"inter": ["user_id", "item_id"], "item": ["item_id", "brand"]}
        with_items = load(load_col=wanted, filter_inter_by_user_or_item=False)
        assert with_items.item_num == 31  # without the cold item
        assert with_items.fingerprint == load().fingerprint


def test_the_toy_set_holds_its_nasty_cases():
    inter = pd.read_csv("dataset/toy/toy.inter", sep="\t", quoting=3, na_filter=False)
    inter.columns = ["user", "item", "time"]
    lengths = inter.groupby("user").size()
    assert {1, 2, 3} <= set(lengths)
    assert lengths.max() > 50
    assert inter.duplicated(["user", "item"]).any()
    assert inter.duplicated(["user", "time"]).any()
    assert (inter.groupby("user")["time"].diff() < 0).any()


def test_the_text_fingerprint_is_of_texts_and_not_of_their_order(tmp_path):
    def fingerprint(name, lines):
        folder = tmp_path / name
        folder.mkdir()
        rows = "".join(f"u{u}\ti{i}\t{i}\n" for u in range(4) for i in range(3))
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        (folder / f"{name}.inter").write_text(header + rows)
        (folder / f"{name}.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(lines))
        config = Config("JEPA4Rec", name, config_dict={"data_path": str(tmp_path)})
        return SequentialTextDataset(config).text_fingerprint

    lines = ["i0\ta red thing\n", "i1\ta blue thing\n", "i2\tnothing\n"]
    same = fingerprint("one", lines)
    assert len(same) == 16
    assert fingerprint("two", lines[::-1]) == same
    assert fingerprint("three", [lines[0], lines[1], "i2\tsomething\n"]) != same
    assert fingerprint("four", ["i1\ta red thing\n", "i0\ta blue thing\n", lines[2]]) != same

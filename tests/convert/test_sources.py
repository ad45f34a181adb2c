"""MovieLens, Yelp, Steam, people's own tables, and atomic files that others made."""

import gzip
from typing import ClassVar

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from recbole_jepa4rec.config.protocol import NOBODY_TESTED
from recbole_jepa4rec.convert.command_line import SOURCES
from recbole_jepa4rec.convert.sources import LAYOUTS, OPENERS
from tests.convert.conftest import write_json_lines
from tests.convert.contract import SourceContract

INTER = [["u1", "i1", "10"], ["u1", "i2", "20"]]
FLAGS = "|".join("1" if n in (3, 4) else "0" for n in range(19))


def test_help_names_what_is_opened_and_the_text_that_is_read():
    assert {*SOURCES} == {*OPENERS}
    for name, layout in LAYOUTS.items():
        assert SOURCES[name].meaning.endswith(f"; item text: {', '.join(layout.attributes)}")


@pytest.mark.parametrize(
    ("ratings", "movies"),
    [
        (
            ("u.data", "1\t2\t5\t20\n1\t1\t3\t10\n"),
            ("u.item", f"1|Café (1995)|01-Jan-1995||http://x|{FLAGS}\n2|B|||x|{'0|' * 18}1\n"),
        ),
        (
            ("ratings.dat", "1::2::5::20\n1::1::3::10\n"),
            ("movies.dat", "1::Café (1995)::Animation|Children's\n2::B::Western\n"),
        ),
        (
            ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,5.0,20\n1,1,3.0,10\n"),
            (
                "movies.csv",
                "movieId,title,genres\n1,Café (1995),Animation|Children's\n2,B,Western\n",
            ),
        ),
    ],
)
def test_movielens(made, tmp_path, ratings, movies):
    encoding = "utf-8" if ratings[0].endswith("csv") else "latin-1"
    for name, content in (ratings, movies):
        (tmp_path / name).write_text(content, encoding=encoding)
    inter, item, _ = made("movielens", tmp_path)
    assert inter == [["1", "1", "10"], ["1", "2", "20"]]
    assert item == [["1", "Café (1995)", "Animation, Children's"], ["2", "B", "Western"]]
    words = ("movielens", tmp_path / ratings[0], tmp_path / movies[0], "--min-rating", 4)
    assert made(*words, out="liked")[0] == [["1", "2", "20"]]


class TestYelp(SourceContract):
    source = "yelp"
    inter: ClassVar = [["u", "b", "1531001351"]]
    item: ClassVar = [["b", "Bar", "Bars, Pubs", "Reno"]]

    def write(self, folder):
        review = {"user_id": "u", "business_id": "b", "stars": 4.0, "date": "2018-07-07 22:09:11"}
        bar = {"business_id": "b", "name": "Bar", "categories": "Bars, Pubs", "city": "Reno"}
        files = {"review.json": [review], "business.json": [bar]}
        return [write_json_lines(folder / name, lines) for name, lines in files.items()]


class TestSteam(SourceContract):
    source = "steam"
    inter: ClassVar = [["a b", "7", "1513468800"]]
    item: ClassVar = [["7", "Go", "Indie, Casual", "", ""]]

    def write(self, folder):
        review = "{u'username': u'a b', u'product_id': u'7', u'date': u'2017-12-17'}"
        game = "{u'id': u'7', u'app_name': u'Go', u'genres': [u'Indie', u'Casual']}"
        files = {"reviews.json.gz": [review], "games.json.gz": [game]}
        return [write_json_lines(folder / name, lines) for name, lines in files.items()]


class TestGeneric:
    ROWS = [
        {"who": "u1", "what": "i2", "at": 20, "score": 4.0},
        {"who": "u1", "what": "i1", "at": 10, "score": 1.0},
    ]
    GOODS = [
        {"what": "i1", "name": 'say "a, b"\nand c', "colour": None},
        {"what": "i2", "name": "NA", "colour": "red"},
    ]
    WORDS = ("--user", "who", "--item", "what", "--time", "at")
    ITEM = [["i1", 'say "a, b" and c', ""], ["i2", "NA", "red"]]

    def write(self, tmp_path, suffix):
        paths = []
        for name, records in (("events", self.ROWS), ("goods", self.GOODS)):
            path, table = tmp_path / f"{name}{suffix}", pd.DataFrame(records)
            if "jsonl" in suffix:
                write_json_lines(path, records)
            elif suffix == ".parquet":
                table.to_parquet(path)
            else:
                table.to_csv(path, index=False, sep="\t" if "tsv" in suffix else ",")
            paths.append(path)
        return paths

    @pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet", ".jsonl.gz"])
    def test_every_form_of_table(self, made, tmp_path, suffix):
        paths = self.write(tmp_path, suffix)
        words = ("generic", *paths, *self.WORDS)
        if "jsonl" in suffix:
            words += ("--attributes", "name,colour")
        assert made(*words)[:2] == (INTER, self.ITEM)
        liked = made(*words, "--rating", "score", "--min-rating", 2, out="liked")
        assert liked[0] == [["u1", "i2", "20"]]

    def test_one_file_holds_both(self, made, tmp_path):
        path = tmp_path / "all.csv"
        path.write_text("user_id,item_id,timestamp,name\nu1,i1,10,\nu1,i2,20,b\nu2,i1,5,a\n")
        inter, item, _ = made("generic", path, "--attributes", "name")
        assert inter == [*INTER, ["u2", "i1", "5"]]
        assert item == [["i2", "b"], ["i1", "a"]]
        assert made("generic", path, out="ids")[1] is None

    def test_order_stands_in_for_time(self, made, tmp_path):
        path = tmp_path / "x.csv"
        path.write_text("user_id,item_id\na,z\nb,y\na,x\n")
        assert made("generic", path, "--no-time")[0] == [
            ["a", "z", "0"], ["a", "x", "2"], ["b", "y", "1"],
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("written", "time"),
        [
            ("1.5e9", "1500000000"),
            ("1588687728.923", "1588687728.923"),
            ("9007199254740991", "9007199254740991"),
            ("1700000000000000051", "1700000000000000051"),
            ("-9223372036854775807", "-9223372036854775807"),
            ("1700000000.500000000", "1700000000.5"),
            ("2011-12-09T12:50:00.000001", "1323435000.000001"),
            ("2011-12-09T12:50:00", "1323435000"),
            ("2011-12-09 12:50:00+01:00", "1323431400"),
            ("2011-12-09", "1323388800"),
        ],
    )
    def test_times(self, made, tmp_path, written, time):
        path = tmp_path / "x.csv"
        path.write_text(f"user_id,item_id,timestamp\nu,i,{written}\n")
        assert made("generic", path)[0] == [["u", "i", time]]

    def test_parquet_times_and_number_ids(self, made, tmp_path):
        table = pd.DataFrame({"user_id": [1.0], "item_id": [7], "timestamp": ["2011-12-09"]})
        table["timestamp"] = pd.to_datetime(table["timestamp"])
        table.to_parquet(tmp_path / "x.parquet")
        assert made("generic", tmp_path / "x.parquet")[0] == [["1", "7", "1323388800"]]

    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_parquet_times_of_a_zone_that_nobody_knows_are_utc(self, made, tmp_path, unit):
        times = pa.array([1_323_435_000 * 1000 ** ("s", "ms", "us", "ns").index(unit)])
        table = pa.table({"user_id": ["u"], "item_id": ["i"]})
        times = times.cast(pa.timestamp(unit, "Mars/Phobos"))
        parquet.write_table(table.append_column("timestamp", times), tmp_path / "x.parquet")
        assert made("generic", tmp_path / "x.parquet")[0] == [["u", "i", "1323435000"]]

    def test_whole_times_are_compared_to_the_last_digit(self, made, tmp_path):
        path = tmp_path / "x.csv"
        rows = "".join(f"u,i{n},{1700000000000000050 - 10 * n}\n" for n in range(4))
        path.write_text(f"user_id,item_id,timestamp\n{rows}")
        assert [row[1] for row in made("generic", path)[0]] == ["i3", "i2", "i1", "i0"]

    def test_other_forms_of_dates_lead_to_the_option(self, made, run, tmp_path):
        path = tmp_path / "x.csv"
        path.write_text("user_id,item_id,timestamp\nu,i,13/01/2011\n")
        status, _, errors = run("generic", path)
        assert (
            status == 2 and "generic and online-retail read other forms by --time-format" in errors
        )
        assert made("generic", path, "--time-format", "%d/%m/%Y")[0] == [["u", "i", "1294876800"]]

    def test_quotes_can_be_plain_characters(self, made, tmp_path):
        path = tmp_path / "x.tsv"
        path.write_text('user_id\titem_id\ttimestamp\tname\nu\ti\t1\t"open\nu\tj\t2\t12" pan\n')
        words = ("generic", path, "--no-quotes", "--attributes", "name")
        assert made(*words)[1] == [["i", '"open'], ["j", '12" pan']]

    def test_encoding(self, made, run, tmp_path):
        path = tmp_path / "x.csv"
        path.write_bytes(b"user_id,item_id,timestamp,name\nu,i,1,caf\xe9\n")
        status, _, errors = run("generic", path, "--attributes", "name")
        assert status == 2 and "x.csv, line 2: expected utf-8 text" in errors
        words = ("generic", path, "--attributes", "name", "--encoding", "latin-1")
        assert made(*words)[1] == [["i", "café"]]


class TestFromRecbole:
    def write(self, tmp_path, inter, item=None):
        folder = tmp_path / "old"
        folder.mkdir()
        (folder / "old.inter").write_bytes(inter)
        if item is not None:
            (folder / "old.item").write_bytes(item)
        return folder

    def test_mends(self, made, run, tmp_path):
        folder = self.write(
            tmp_path,
            b"item_id:token\tuser_id:token\trating:float\ttimestamp:float\r\n"
            b"NA\tu\t1\t20\r\n\r\nb\tu\t1\t10\r\nb\tu\t1\t10\r\n",
            b"item_id:token\tprice:float\ttitle:token_seq\n"
            b'b\t1\tcaf\xe9 \0 "x\nb\t2\tagain\nunbought\t3\tt\n',
        )
        assert run("check", folder, out=None)[0] == 1
        inter, item, _ = made("--from-recbole", folder, "--duplicates", "exact")
        assert inter == [["u", "b", "10"], ["u", "NA", "20"]]
        assert item == [["b", 'café "x'], ["NA", ""]]
        status, listed, _ = run("check", tmp_path / "made", out=None)
        assert status == 1 and listed.count("\n") == 4  # NA is an id, twice, and has no text
        assert f"made.inter, line 1: error: {NOBODY_TESTED}\n" in listed

    def test_a_broken_row_is_counted(self, made, run, tmp_path):
        folder = self.write(
            tmp_path, b"user_id:token\titem_id:token\ttimestamp:float\nu\ti\nu\tj\t1\n"
        )
        status, _, errors = run("from-recbole", folder)
        assert status == 2 and "old.inter, line 2: expected 3 columns" in errors
        assert made("from-recbole", folder, "--max-bad", 1)[0] == [["u", "j", "1"]]

    def test_rows_with_lists_are_refused(self, run, tmp_path):
        head = b"user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n"
        status, _, errors = run("from-recbole", self.write(tmp_path, head + b"u\ta b\tc\t1\n"))
        assert status == 2 and "old.inter, line 1: column 'item_id_list' holds inter" in errors

    def test_the_toy_set_keeps_its_fingerprint(self, made, toy):
        from recbole_jepa4rec.config.config import Config
        from recbole_jepa4rec.data.dataset import SequentialTextDataset

        loaded = SequentialTextDataset(Config("Markov", "toy", config_dict=toy))
        _, item, statistics = made("from-recbole", f"{toy['data_path']}/toy", out="toy")
        assert statistics["fingerprint"] == loaded.fingerprint
        assert statistics["statistics"] == loaded.statistics()
        texts = loaded.item_text.to_numpy().tolist()[1:]
        ids = loaded.field2id_token["item_id"][1:].tolist()
        assert dict(zip(ids, texts, strict=True)) == {row[0]: row[1:] for row in item}


def test_gzip_is_known_by_its_content(made, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(gzip.compress(b"user_id,item_id,timestamp\nu,i,1\n"))
    assert made("generic", path)[0] == [["u", "i", "1"]]

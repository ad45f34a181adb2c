"""Broken input is one line with status 2; whatever happens, nothing half-written is left."""

import gzip
import os
import resource
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from recbole_jepa4rec.convert import command_line, conversion
from recbole_jepa4rec.convert.conversion import check_target, whole_folder
from recbole_jepa4rec.convert.source import Source
from recbole_jepa4rec.convert.tables import numbered_lines
from tests.convert.conftest import reviews, tables, write_json_lines

GOOD = reviews([("u", "i", 1), ("u", "j", 2), ("v", "i", 3)])
TEXT = [{"asin": "i", "title": "one"}, {"asin": "j", "title": "two"}]


@pytest.fixture
def refused(tmp_path, run):
    """Expect one line on standard error and nothing written."""

    def refused(*words, status=2):
        before = sorted(os.listdir(tmp_path))
        got, stdout, errors = run(*words)
        assert (got, stdout) == (status, "")
        assert errors.startswith("error: ") and errors.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == before
        return errors

    return refused


def write(tmp_path, records, name="r.json.gz"):
    return write_json_lines(tmp_path / name, records)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"reviewerID": "u", "asin": "i", "unixRev', "expected a JSON object, found Unterminated"),
        ("[1, 2]", "expected a JSON object, found '[1, 2]'"),
        ("NaN", "expected a JSON object, found 'nan'"),
        ("[" * 100_000, "expected a JSON object, found maximum recursion"),
        ("{}", "expected reviewerID to be an id, found none"),
        ('{"reviewerID": "u", "asin": {"a": 1}}', "expected asin to be an id, found {'a': 1}"),
        ('{"reviewerID": "u\\t", "asin": "i"}', "expected reviewerID without tabs"),
        ('{"reviewerID": "\\ud800", "asin": "i"}', "expected reviewerID without tabs"),
        ('{"reviewerID": "u", "asin": "i"}', "expected unixReviewTime to be a number, found none"),
        (
            '{"reviewerID": "u", "asin": "i", "unixReviewTime": "soon"}',
            "expected unixReviewTime to be a number or a date",
        ),
        (
            '{"reviewerID": "u", "asin": "i", "unixReviewTime": true}',
            "expected unixReviewTime to be a number, found True",
        ),
        (
            '{"reviewerID": "u", "asin": "i", "unixReviewTime": NaN}',
            "expected unixReviewTime to be a number, found nan",
        ),
        (
            f'{{"reviewerID": "u", "asin": "i", "unixReviewTime": {"9" * 400}}}',
            "expected unixReviewTime to be a number, found 999",
        ),
    ],
)
def test_a_broken_line_is_named_or_counted(tmp_path, made, refused, line, expected):
    path = write(tmp_path, [*GOOD[:2], "", line, GOOD[2]])
    assert f"r.json.gz, line 4: {expected}" in refused("amazon2018", path)
    inter, _, statistics = made("amazon2018", path, "--max-bad", 1)
    assert len(inter) == 3 and statistics["bad_lines"] == 1


def test_one_bad_line_too_many(tmp_path, refused):
    path = write(tmp_path, [GOOD[0], "x", GOOD[1], "y", "z"])
    error = refused("amazon2018", path, "--max-bad", 2)
    assert "r.json.gz, line 5: expected a JSON object" in error
    assert "(bad line number 3; --max-bad allows 2)" in error


def test_bad_metadata_is_counted_once_though_read_twice(tmp_path, made):
    files = write(tmp_path, GOOD), write(tmp_path, [TEXT[0], "x", TEXT[1]], "m.json.gz")
    words = ("amazon2018", *files, "--without-text", "before", "--max-bad", 1)
    _, item, statistics = made(*words)
    assert len(item) == 2 and statistics["bad_lines"] == 1


def test_bytes_that_are_no_text(tmp_path, refused):
    path = tmp_path / "r.json"
    path.write_bytes(b'{"reviewerID": "caf\xe9"}\n')
    assert "r.json, line 1: expected UTF-8 text" in refused("amazon2018", path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_truncated_gzip_file(tmp_path, refused, share):
    records = reviews([(f"u{n}", f"i{n * n}", n) for n in range(3000)])
    path = write(tmp_path, records)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(2, int(share * len(whole)))])
    error = refused("amazon2018", path, "--max-bad", 5000)
    assert (
        "r.json.gz, line " in error and "expected a whole gzip file, found it ends early" in error
    )


def test_a_truncated_gzip_file_is_named_with_the_line_it_breaks_in(tmp_path):
    content = b"".join(b"%d %s\n" % (n, os.urandom(40).hex().encode()) for n in range(5000))
    path = tmp_path / "x.gz"
    whole = gzip.compress(content)
    path.write_bytes(whole[: len(whole) // 2])
    read = []
    with pytest.raises(ValueError, match="expected a whole gzip file") as caught:
        read.extend(numbered_lines(path))
    assert read and all(line.startswith(b"%d " % (n - 1)) for n, line in read)
    assert f"line {len(read) + 1}:" in str(caught.value)


def test_a_damaged_gzip_file(tmp_path, refused):
    path = write(tmp_path, reviews([(f"u{n}", f"i{n * n}", n) for n in range(3000)]))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    assert "expected a whole gzip file" in refused("amazon2018", path, "--max-bad", 5000)


def test_an_endless_line(tmp_path, refused):
    path = tmp_path / "r.json.gz"
    path.write_bytes(gzip.compress(b"\n" + b" " * (17 << 20) + b"\n"))
    assert "r.json.gz, line 2: expected a line of at most 16 MiB" in refused("amazon2018", path)


def test_metadata_that_is_empty_or_something_else(tmp_path, refused):
    good, empty = write(tmp_path, GOOD), write(tmp_path, [], "m.json.gz")
    text = write(tmp_path, TEXT, "t.json.gz")
    error = refused("amazon2018", good, empty)
    assert "m.json.gz, line 1: expected a record with asin, found none" in error
    assert "t.json.gz, line 1: expected reviewerID" in refused("amazon2018", text, good)
    assert "no interaction is left after step «read»" in refused("amazon2018", empty)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "line 1: expected a header, found an empty file"),
        ("user_id,item\nu,i\n", "line 1: expected a column 'item_id' (there are: user_id, item)"),
        ("user_id,item_id,timestamp\nu,i\n", "line 2: expected 3 columns (user_id, item_id, times"),
        ("user_id,item_id,timestamp\nu,i,1\n,i,2\n", "line 3: expected user_id to be an id"),
        ('user_id,item_id,timestamp\n"u\n1",i,1\nu,i,x\n', "line 2: expected user_id without tabs"),
        ("user_id,item_id,timestamp\nu,i,\n", "line 2: expected timestamp to be a number"),
        ("user_id,item_id,timestamp\nu,i,inf\n", "line 2: expected timestamp to be a number"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, refused, content, expected):
    path = tmp_path / "x.csv"
    path.write_text(content)
    assert f"x.csv, {expected}" in refused("generic", path)


def test_lines_of_quoted_fields_are_counted(tmp_path, refused):
    path = tmp_path / "x.csv"
    path.write_text('user_id,item_id,timestamp,t\nu,i,1,"a\nb\n"\n\nu,i,no,c\n')
    assert "x.csv, line 6: expected timestamp" in refused("generic", path)


SECONDS, NANOSECONDS = pa.timestamp("s"), pa.timestamp("ns")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([1, 10**12], SECONDS), "that Python can hold in column 'timestamp', found: "),
        (pa.array([1, None], SECONDS), "line 2: expected timestamp to be a number, found none"),
        (pa.array([10**9, 10**9 + 50], NANOSECONDS), "line 2: expected timestamp to the microsec"),
        (pa.array([1, 2**31 - 1], pa.date32()), "that Python can hold in column 'timestamp'"),
        (
            pa.array([[1], [2]], pa.list_(pa.timestamp("s", "Mars/Phobos"))),
            "that Python can hold in column 'timestamp'",
        ),
        (pa.array(["2011-12-09", "2011-12-09T12:50:00.0000001"]), "line 2: expected timestamp to"),
        (pa.array(["1.5", "1700000000.000000050"]), "line 2: expected timestamp of at most 17 dig"),
        (pa.array(["1.5", "1700000000000000050"]), "whole numbers alone as times where one is bey"),
    ],
)
def test_times_of_parquet_that_cannot_be_used(tmp_path, refused, times, expected):
    columns = [pa.array(["u", "u"]), pa.array(["i", "j"]), times]
    table = pa.Table.from_arrays(columns, ["user_id", "item_id", "timestamp"])
    parquet.write_table(table, tmp_path / "x.parquet")
    assert expected in refused("generic", tmp_path / "x.parquet")


def test_doubled_columns(tmp_path, refused, made):
    columns = [pa.array(["u"])] * 3 + [pa.array([1])]
    table = pa.Table.from_arrays(columns, ["user_id", "item_id", "item_id", "timestamp"])
    parquet.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("user_id,item_id,item_id,timestamp\nu,u,u,1\n")
    for name in ("x.parquet", "x.csv"):
        expected = f"{name}, line 1: expected only one column 'item_id' (there are: user_id, item"
        assert expected in refused("generic", tmp_path / name)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing", "x"], "invalid choice: 'nothing'"),
        (["generic"], "required: FILE"),
        (["generic", "{}/none.csv"], "none.csv: expected a file to read, found: No such file"),
        (["generic", "{}"], "expected a file that ends in one of .csv"),
        (["generic", "{}/x.pdf"], "x.pdf: expected a file that ends in one of .csv"),
        (["generic", "{}/good.csv", "--attributes", "user_id,user_id"], "is named twice"),
        (["generic", "{}/good.csv", "--attributes", "a:b"], "attribute 'a:b' cannot be a column"),
        (["generic", "{}/good.csv", "--attributes", "colour"], "expected a column 'colour'"),
        (["generic", "{}/good.csv", "--min-rating", "3"], "name the column of the ratings"),
        (["generic", "{}/good.csv", "--rating", "r", "--min-rating", "nan"], "'nan' must be a num"),
        (["generic", "{}/good.csv", "--seed", "-1"], "--seed: '-1' must be a whole number from 0"),
        (["generic", "{}/good.csv", "--encoding", "utf-9"], "encoding 'utf-9'"),
        (["generic", "{}/good.csv", "--core", "-1"], "'-1' must be a whole number from 0"),
        (
            ["generic", "{}/good.csv", "--user-share", "2"],
            "share: '2' must be above 0 and at most 1",
        ),
        (["generic", "{}/good.csv", "--user-share", "0"], "share: '0' must be above 0"),
        (["generic", "{}/good.csv", "--user-share", "nan"], "share: 'nan' must be a number"),
        (["generic", "{}/good.csv", "--core-users", "-1"], "'-1' must be a whole number from 0"),
        (["generic", "{}/good.csv", "--duplicates", "all"], "invalid choice: 'all'"),
        (["generic", "{}/good.csv", "--without-text", "drop"], "invalid choice: 'drop'"),
        (["generic", "{}/good.csv", "--cor", "2"], "unrecognized arguments: --cor"),
        (["generic", "{}/good.csv", "--core", "9"], "no interaction is left after step «core 9"),
        (["generic", "{}/good.parquet"], "good.parquet: expected a Parquet file"),
        (["generic", "{}/good.xlsx"], "good.xlsx: expected a workbook"),
        (["generic", "{}/good.csv"] * 2, "found 3 files"),
        (["movielens", "{}"], "expected one of u.data, ratings.dat, ratings.csv"),
        (["movielens", "{}/good.csv"], "expected the folder of an edition"),
        (["from-recbole", "{}"], "expected a folder with"),
        (["amazon2018", "{}/good.csv", "--preset", "jepa4rec"], "expected a file with item text"),
    ],
)
def test_words_that_cannot_be_followed(tmp_path, refused, words, expected):
    for name in ("good.csv", "good.parquet", "good.xlsx"):
        (tmp_path / name).write_text("user_id,item_id,timestamp\nu,i,1\n")
    assert expected in refused(*(word.format(tmp_path) for word in words))


def test_no_words_at_all(capsys):
    assert command_line.main([]) == 2
    assert "arguments are required: SOURCE" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a,b", "a+b", ".hidden", "a:b"])
def test_names_that_no_data_set_can_have(tmp_path, run, name):
    status, _, errors = run("amazon2018", write(tmp_path, GOOD), out=name)
    assert status == 2 and "expected a folder whose name can name a data set" in errors


class TestTarget:
    def test_an_existing_one_is_replaced_by_force_alone(self, tmp_path, run, made):
        path = write(tmp_path, GOOD)
        made("amazon2018", path)
        first = (tmp_path / "made" / "made.inter").read_bytes()
        status, _, errors = run("amazon2018", path, "--core", 2)
        assert status == 2 and "it is there already (--force replaces it)" in errors
        assert (tmp_path / "made" / "made.inter").read_bytes() == first
        inter, _, _ = made("amazon2018", path, "--core-users", 2, "--force")
        assert len(inter) == 2
        assert sorted(os.listdir(tmp_path)) == ["made", "r.json.gz"]

    @pytest.mark.parametrize("name", ["thesis.tex", "made.tex", "made.user", "made.inter/a"])
    def test_force_deletes_no_other_files(self, tmp_path, refused, name):
        path = write(tmp_path, GOOD)
        foreign = tmp_path / "made" / name
        foreign.parent.mkdir(parents=True)
        foreign.write_text("precious")
        there = name.removesuffix("/a")
        assert f"holds '{there}', which" in refused("amazon2018", path, "--force")
        assert foreign.read_text() == "precious"

    def test_what_came_to_stand_there_meanwhile_stays(self, tmp_path):
        def write():
            with whole_folder(tmp_path / "made") as folder:
                (folder / "made.inter").write_text("ours")
                (tmp_path / "made").mkdir()

        with pytest.raises(ValueError, match="there already"):
            write()
        assert os.listdir(tmp_path) == ["made"] and not os.listdir(tmp_path / "made")

    def test_an_interrupted_one_is_taken_back(self, tmp_path):
        def write():
            with whole_folder(tmp_path / "made") as folder:
                (folder / "made.inter").write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write()
        assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path, run, monkeypatch):
    """Files may not grow past 64 kB here, as on a disk with so much room."""
    path = write(tmp_path, reviews([(f"u{n}", f"i{n}", n) for n in range(20_000)]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        status, stdout, errors = run("amazon2018", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (status, stdout) == (1, "")
    assert "cannot write: File too large" in errors and "made.inter" in errors
    assert os.listdir(tmp_path) == ["r.json.gz"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_conversion_leaves_nothing_under_the_name(tmp_path, monkeypatch, number):
    passes = []

    def texts(self):
        """Item text that takes a minute to come once it is written."""
        passes.append(self)
        yield "i", ["a title", "", "", ""]
        if len(passes) > 1:
            time.sleep(60)

    monkeypatch.setattr(Source, "texts", texts)
    files = [str(write(tmp_path, GOOD)), str(write(tmp_path, TEXT, "m.json"))]
    words = ["amazon2018", *files, "--out", str(tmp_path / "made")]
    child = get_context("fork").Process(target=command_line.main, args=(words,))
    child.start()
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".made.*/made.inter")):
            assert child.is_alive() and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child.pid, number)
        child.join(30)
        assert child.exitcode == (-9 if number == signal.SIGKILL else 143)
    finally:
        child.kill()
        child.join()
    assert not (tmp_path / "made").exists()
    assert len(list(tmp_path.glob(".made.*"))) == (number == signal.SIGKILL)
    with whole_folder(tmp_path / "made"), whole_folder(tmp_path / "other"):
        check_target(tmp_path / "made", False)
        assert len(list(tmp_path.glob(".made.*"))) == 1  # the one that is being written
    assert sorted(os.listdir(tmp_path)) == ["m.json", "made", "other", "r.json.gz"]


class TestKilledWhileReplacing:
    """Kills a conversion with ``--force`` right before or after the folders change names."""

    def kill(self, monkeypatch, words, place):
        """Convert in a child that dies at the first, second, ... change of a name."""
        changes = []

        def dying(change):
            def changed(*args):
                for moment in ("before", "after"):
                    if len(changes) == place:
                        os.kill(os.getpid(), signal.SIGKILL)
                    changes.append(moment)
                    if moment == "before":
                        result = change(*args)
                return result

            return changed

        def work():
            monkeypatch.setattr(conversion, "_exchanged", dying(conversion._exchanged))
            monkeypatch.setattr(Path, "rename", dying(Path.rename))
            command_line.main(words)

        child = get_context("fork").Process(target=work)
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL

    @pytest.mark.parametrize(
        ("exchanges", "place"), [(True, 0), (True, 1), *((False, n) for n in range(6))]
    )
    def test_a_data_set_is_there_and_the_same_command_ends_well(
        self, tmp_path, monkeypatch, made, exchanges, place
    ):
        old, _, _ = made("amazon2018", write(tmp_path, GOOD))
        words = ["amazon2018", str(write(tmp_path, GOOD[:2])), "--force"]
        words += ["--out", str(tmp_path / "made")]
        if not exchanges:
            monkeypatch.setattr(conversion, "_exchanged", lambda *_: False)
        with monkeypatch.context() as patch:
            self.kill(patch, words, place)
        with pytest.raises(ValueError, match="it is there already"):
            check_target(tmp_path / "made", False)
        inter, _, _ = tables(tmp_path / "made")
        assert inter == (old[:2] if place == (1 if exchanges else 5) else old)
        assert sorted(os.listdir(tmp_path)) == ["made", "r.json.gz"]
        assert command_line.main(words) == 0
        assert tables(tmp_path / "made")[0] == old[:2]
        assert sorted(os.listdir(tmp_path)) == ["made", "r.json.gz"]


def test_two_at_once_leave_each_other_alone(tmp_path):
    def write_both():
        with whole_folder(tmp_path / "made") as one, whole_folder(tmp_path / "made") as other:
            (one / "made.inter").write_text("one")
            (other / "made.inter").write_text("other")

    with pytest.raises(ValueError, match="there already"):
        write_both()
    assert os.listdir(tmp_path) == ["made"]
    assert (tmp_path / "made" / "made.inter").read_text() == "other"

"""``check`` lists every problem by file and line."""

import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES

from recbole_jepa4rec.convert.checks import PANDAS_MISSING
from recbole_jepa4rec.convert.command_line import main
from tests.conftest import ROOT

INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
ITEM = "item_id:token\ttitle:token_seq\tprice:float\n"

LONG = "".join(f"u\t{item}\t{time}\n" for time, item in enumerate("abab"))
"""Rows of a user who trains, is validated and tested."""


@pytest.fixture
def check(tmp_path, capsys):
    """Write files, check them, and give status and lines (file and line without the folder)."""

    def check(**files):
        folder = tmp_path / "x"
        folder.mkdir()
        for suffix, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / f"x.{suffix}").write_bytes(data)
        status = main(["check", str(folder)])
        listed = capsys.readouterr().out.splitlines()
        return status, [line.removeprefix(f"{folder}/") for line in listed]

    return check


def test_a_clean_data_set(check):
    item = ITEM + "a\tone\t1\nb\ttwo\t\n"
    assert check(inter=INTER + LONG, item=item) == (0, [])


def test_everything_at_once_in_order_of_the_lines(check):
    status, listed = check(
        inter=(INTER + "u\ta\t5\nu\ta\t1\nu\ta\t5\nNA\tb\t1\n\t").encode()
        + b'a\t1\nv\tcaf\xe9\t1\nv\ta\nv\ta\tx\nv\ta\tnan\nv\t"q\t1\nv\0\ta\t1\n',
        item=ITEM + "a\t \t1\na\tt\t1\ncold\tt\t1\nb\tt\tcheap\nb\tt\t2\n",
    )
    assert status == 1
    assert listed == [
        "x.inter, line 3: warning: user 'u' is not sorted by time from here",
        "x.inter, line 4: warning: same user, item and time as line 2",
        "x.inter, line 5: warning: pandas takes user_id 'NA' for a missing value",
        "x.inter, line 6: error: expected a user_id, found none",
        "x.inter, line 7: error: expected utf-8 text",
        "x.inter, line 8: error: expected 3 columns (user_id, item_id, timestamp), found 2",
        "x.inter, line 9: error: expected a number for 'timestamp', found 'x'",
        "x.inter, line 10: error: expected a finite timestamp, found 'nan'",
        "x.inter, line 11: warning: pandas takes the quote of item_id '\"q' for its own",
        "x.inter, line 11: warning: item '\"q' has no row in x.item, so no text",
        "x.inter, line 12: error: expected text without NUL bytes",
        "x.item, line 2: warning: item 'a' has no text",
        "x.item, line 3: error: item 'a' stands in line 2 already",
        "x.item, line 4: warning: item 'cold' has no interaction",
        "x.item, line 5: warning: expected a number for 'price', found 'cheap'",
        "x.item, line 6: error: item 'b' stands in line 5 already",
    ]


def test_duplicates_are_set_beside_the_first(check):
    rows = ["u\ta\t1\n", "v\ta\t1\n", "u\ta\t1.0\n", "u\ta\t1\n", "v\ta\t1\n"]
    _, listed = check(inter=INTER + "".join(rows))
    assert [line.split("warning: ")[1][-6:] for line in listed] == ["line 2", "line 2", "line 3"]
    assert [line.split(":")[0] for line in listed] == [f"x.inter, line {n}" for n in (4, 5, 6)]


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("", "expected a header of name:type columns, found none"),
        ("user_id\titem_id\n", "expected name:type, found 'user_id'"),
        ("user_id:token\titem_id:token\n", "no column 'timestamp' (there are: user_id, item_id)"),
        (INTER.replace("float", "token"), "expected column 'timestamp' of type float, found token"),
    ],
)
def test_headers(check, header, what):
    status, listed = check(inter=f"{header}u\ti\t1\n" if header else "")
    assert status == 1 and listed[0] == f"x.inter, line 1: error: {what}"


def test_other_files_are_read_as_well(check):
    _, listed = check(inter=INTER + LONG, user="user_id:token\tages:float_seq\nu\t1 x\n")
    assert listed == ["x.user, line 2: warning: expected a number for 'ages', found 'x'"]


def test_a_folder_without_interactions(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "expected a folder with" in capsys.readouterr().err


def test_what_is_fatal_cannot_be_loaded_and_the_rest_can(capsys):
    assert main(["check", str(ROOT / "dataset" / "toy")]) == 1
    listed = capsys.readouterr().out
    assert ": error: " not in listed and "not sorted by time" in listed


def test_pandas_words_for_missing_are_known(tmp_path):
    assert PANDAS_MISSING | {""} == set(STR_NA_VALUES)
    path = tmp_path / "ids"
    path.write_text("\n".join(["id", *sorted(PANDAS_MISSING)]), encoding="utf-8")
    assert pd.read_csv(path, dtype=str)["id"].isna().all()

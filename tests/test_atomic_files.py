"""Atomic files are read as written, and a malformed one is named with its line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_jepa4rec.data.atomic_files import (
    AtomicFileError,
    Column,
    line_number,
    read_atomic,
    read_header,
    refuse_repeated,
)

HEADER = b"item_id:token\ttitle:token_seq\tprice:float\n"
characters = st.characters(exclude_characters="\0\t\n\r", exclude_categories=["Cs"])
cells = st.text(characters, max_size=20)


def write(tmp_path, content: bytes, name: str = "x.item"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@settings(max_examples=200)
@given(rows=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6))
def test_text_comes_back_exactly(tmp_path_factory, rows):
    lines = "".join("\t".join(row) + "\n" for row in rows)
    content = "a:token\tb:token_seq\tc:float_seq\n" + lines
    frame = read_atomic(write(tmp_path_factory.mktemp("text"), content.encode()))
    assert frame.to_numpy().tolist() == [list(row) for row in rows]


@pytest.mark.parametrize(
    "title", ["NA", "null", "None", "nan", '"', '""', '"open', 'clo"sed"', "\\", "", "🔪", "a  b "]
)
def test_no_word_is_missing_and_no_quote_special(tmp_path, title):
    path = write(tmp_path, HEADER + f"NA\t{title}\t1\nb\t{title}\t2\n".encode())
    frame = read_atomic(path)
    assert frame["item_id"].tolist() == ["NA", "b"]
    assert frame["title"].tolist() == [title, title]


def test_numbers(tmp_path):
    path = write(tmp_path, HEADER + b"a\tt\t9007199254740991\nb\tt\t\nc\tt\t-2.5e1\n")
    prices = read_atomic(path)["price"]
    assert prices.dtype == np.float64
    np.testing.assert_array_equal(prices, [9007199254740991, np.nan, -25])
    assert read_atomic(path, as_text=True)["price"].tolist() == ["9007199254740991", "", "-2.5e1"]


def test_tokens_are_categories_in_the_order_of_their_first_rows(tmp_path):
    path = write(tmp_path, HEADER + b"b\tt\t1\n\tt\t1\na\tt\t1\nb\tt\t1\n")
    ids = read_atomic(path)["item_id"]
    assert ids.cat.categories.tolist() == ["b", "", "a"]
    assert ids.cat.codes.tolist() == [0, 1, 2, 0]
    assert read_atomic(path, as_text=True)["item_id"].tolist() == ["b", "", "a", "b"]


def test_line_ends_blank_lines_and_byte_order_mark(tmp_path):
    content = b"\xef\xbb\xbf" + HEADER[:-1] + b"\r\na\tone\rline\t1\r\n\r\n\nb\ttwo\t2"
    path = write(tmp_path, content)
    assert read_header(path)[0] == Column("item_id", "token")
    assert read_atomic(path)["title"].tolist() == ["one line", "two"]
    assert [line_number(path, row) for row in (0, 1)] == [2, 5]
    with pytest.raises(IndexError):
        line_number(path, 2)


def test_columns_are_chosen_in_file_order(tmp_path):
    path = write(tmp_path, HEADER + b"a\tt\t1\n")
    assert list(read_atomic(path, ["price", "item_id"])) == ["item_id", "price"]
    with pytest.raises(AtomicFileError, match=r"no column 'brand' \(there are: item_id, title"):
        read_atomic(path, ["brand"])


def test_a_header_alone_is_an_empty_table(tmp_path):
    frame = read_atomic(write(tmp_path, HEADER + b"\n"))
    assert frame.shape == (0, 3)
    assert frame["price"].dtype == np.float64


def test_many_blocks_and_a_long_line(tmp_path):
    titles = [f"title {n % 97}" for n in range(100_000)]
    titles[777] = "word " * 2_000_000
    lines = "".join(f"{n}\t{title}\t{n}\n" for n, title in enumerate(titles))
    path = write(tmp_path, HEADER + lines.encode() * 5)
    assert path.stat().st_size > 1 << 25
    frame = read_atomic(path)
    assert frame["title"].tolist() == titles * 5
    assert frame["item_id"].iloc[-1] == "99999"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected a header"),
        (b"\n\n", "line 1: expected a header"),
        (b"item_id\ttitle:token\n", "line 1: expected name:type, found 'item_id'"),
        (b":token\n", "line 1: expected name:type, found ':token'"),
        (b"item_id:string\n", "line 1: type 'string' of 'item_id' is not in token"),
        (b"a:token\tb:float\ta:token\n", "line 1: column 'a' stands there twice"),
        (b"\xff\xfea:token\n", "line 1: not UTF-8"),
        (
            HEADER + b"a\tt\t1\nb\tt\n",
            "line 3: expected 3 columns (item_id, title, price), found 2",
        ),
        (HEADER + b"a\tt\t1\n\nb\tt\t1\t2\n", "line 4: expected 3 columns"),
        (
            HEADER + b"a\tt\t1\nb\tt\tcheap\n",
            "line 3: expected a number for 'price', found 'cheap'",
        ),
        (HEADER + b"a\tt\t1_000\n", "line 2: expected a number for 'price', found '1_000'"),
        (HEADER + b"a\tcaf\xe9\t1\n", "line 2: not UTF-8 text"),
        (HEADER + b"\na\tt\t1\r\nb\0c\tt\t1\n", "line 4: expected text without NUL bytes"),
        (b"a\0:token\n", "line 1: expected text without NUL bytes"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(AtomicFileError) as error:
        read_atomic(path)
    assert str(error.value).startswith(f"{path}, line ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AtomicFileError, match=r"gone\.item: No such file"):
        read_atomic(tmp_path / "gone.item")


def test_repeated_ids_are_named_with_both_lines(tmp_path):
    path = write(tmp_path, HEADER + b"a\tt\t1\n\nb\tt\t1\na\tu\t1\n")
    with pytest.raises(AtomicFileError, match="lines 2 and 5: both have item_id 'a'"):
        refuse_repeated(path, read_atomic(path)["item_id"])

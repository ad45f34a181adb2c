"""Amazon's three editions, and the rules that papers prepare them by."""

import gzip

import pytest

from tests.convert.conftest import reviews, write_json_lines

META_2018 = {
    "asin": "B1",
    "title": "Red  &amp; blue\tpen",
    "category": ["Office", "Pens"],
    "brand": "Acme",
    "description": ["One.", "Two."],
    "price": "$9.99",
}


@pytest.fixture
def dumps(tmp_path):
    """Write reviews and metadata of the 2018 edition."""

    def dumps(rows, metadata):
        return (
            write_json_lines(tmp_path / "reviews.json.gz", reviews(rows)),
            write_json_lines(tmp_path / "meta.json.gz", metadata),
        )

    return dumps


def test_2018_in_order_of_users_and_time(made, dumps):
    rows = [("u2", "B1", 30), ("u1", "B2", 5), ("u2", "B3", 10), ("u2", "B2", 30)]
    inter, item, statistics = made("amazon2018", *dumps(rows, [META_2018, {"asin": "Bx"}]))
    assert inter == [
        ["u2", "B3", "10"],
        ["u2", "B1", "30"],
        ["u2", "B2", "30"],
        ["u1", "B2", "5"],
    ]
    assert item == [
        ["B1", "Red &amp; blue pen", "Office, Pens", "Acme", "One. Two."],
        ["B2", "", "", "", ""],
        ["B3", "", "", "", ""],
    ]
    assert statistics["statistics"]["interactions"] == 4
    assert statistics["text_coverage"]["title"] == pytest.approx(1 / 3)
    assert statistics["items_without_text"] == 2
    assert statistics["bad_lines"] == 0
    assert statistics["steps"] == [{"step": "read", "users": 2, "items": 3, "interactions": 4}]


def test_attributes_and_html(made, dumps):
    files = dumps([("u", "B1", 1)], [META_2018, {**META_2018, "title": "second line of it"}])
    _, item, _ = made("amazon2018", *files, "--attributes", "price,title", "--decode-html")
    assert item == [["B1", "$9.99", "Red & blue pen"]]
    _, item, _ = made("amazon2018", files[0], out="ids")
    assert item is None


def test_2014_literals_are_parsed_and_never_evaluated(made, tmp_path, run):
    metadata = [
        "{'asin': 'B1', 'title': \"Rose's pen\", 'categories': [['A', 'B'], ['A', 'C']]}",
        "{'asin': 'B2', 'title': __import__('os').getcwd()}",
    ]
    files = (
        write_json_lines(tmp_path / "r.json.gz", reviews([("u", "B1", 1), ("u", "B2", 2)])),
        write_json_lines(tmp_path / "m.json.gz", metadata),
    )
    assert run("amazon2014", *files)[0] == 2
    _, item, statistics = made("amazon2014", *files, "--max-bad", 1)
    assert item == [["B1", "Rose's pen", "A, B, C", "", ""], ["B2", "", "", "", ""]]
    assert statistics["bad_lines"] == 1


def test_2023(made, tmp_path):
    rows = [{"user_id": "u", "parent_asin": "P", "asin": "x", "timestamp": 1588687728923}]
    metadata = [
        {"parent_asin": "P", "title": "T", "main_category": "M", "categories": [], "store": "S"}
    ]
    inter, item, _ = made(
        "amazon2023",
        write_json_lines(tmp_path / "r.jsonl.gz", rows),
        write_json_lines(tmp_path / "m.jsonl.gz", metadata),
    )
    assert inter == [["u", "P", "1588687728923"]]
    assert item == [["P", "T", "M", "S", ""]]


@pytest.mark.parametrize(
    ("edition", "content"),
    [
        ("amazon2014", "u,i,5.0,10\nv,i,1.0,20\n"),
        ("amazon2018", "i,u,5.0,10\ni,v,1.0,20\n"),
        ("amazon2023", "user_id,parent_asin,rating,timestamp\nu,i,5.0,10\nv,i,1.0,20\n"),
        ("amazon2023", "parent_asin,user_id,timestamp,rating,history\ni,u,10,5.0,\ni,v,20,1.0,i\n"),
    ],
)
def test_ratings_only(made, tmp_path, edition, content):
    path = tmp_path / "ratings.csv.gz"
    path.write_bytes(gzip.compress(content.encode()))
    assert made(edition, path)[0] == [["u", "i", "10"], ["v", "i", "20"]]
    assert made(edition, path, "--min-rating", 3, out="liked")[0] == [["u", "i", "10"]]


def five_core():
    """Five users and six items; item B5 and, through it, no user's core hang on metadata.

    Each of five users bought each of B0 .. B4, and B5 as well; a sixth user bought B0 five times.
    """
    rows = [(f"u{u}", f"B{i}", 10 * i + u) for u in range(5) for i in range(5)]
    rows += [(f"u{u}", "B5", 90 + u) for u in range(5)]
    return rows + [("u5", f"B{i}", 70) for i in (0, 1, 2, 3, 5)]


def described(*items):
    return [{"asin": f"B{i}", "title": f"t{i}"} for i in items]


def test_unisrec_drops_items_without_text_before_the_core(made, dumps):
    """User u5 has four described items then: out. RecFormer's order keeps the user, with four."""
    files = dumps(five_core(), described(0, 1, 2, 3, 4))
    inter, item, statistics = made("amazon2018", *files, "--preset", "unisrec")
    assert {row[0] for row in inter} == {f"u{u}" for u in range(5)}
    assert sorted(row[0] for row in item) == [f"B{i}" for i in range(5)]
    assert [step["interactions"] for step in statistics["steps"]] == [35, 35, 29, 25]
    inter, item, _ = made("amazon2018", *files, "--preset", "recformer", out="after")
    assert {row[0] for row in inter} == {f"u{u}" for u in range(6)} and len(inter) == 29
    assert len(item[0]) == 2 + 2  # title, categories, brand


def test_options_change_a_preset(made, dumps):
    files = dumps(five_core(), described(0, 1, 2, 3, 4))
    words = ("amazon2018", *files, "--preset", "recformer", "--min-length", 5)
    inter, _, statistics = made(*words)
    assert {row[0] for row in inter} == {f"u{u}" for u in range(5)}
    assert statistics["rule"]["min_length"] == 5 and statistics["rule"]["core_users"] == 5
    assert statistics["preset"] == "recformer"


def test_a_preset_needs_its_metadata(run, dumps):
    files = dumps(five_core(), [])
    status, _, errors = run("amazon2018", files[0], "--preset", "unisrec")
    assert status == 2 and "expected a file with item text" in errors
    status, _, errors = run("amazon2018", *files, "--preset", "unisrec")
    assert status == 2 and "meta.json.gz, line 1: expected a record with asin" in errors

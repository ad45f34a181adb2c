"""Variants of Online Retail: the order of an invoice's lines, repeats, one target an invoice."""

import runpy
import sys

import pandas as pd
import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "results" / "online-retail" / "variants.py"
LINES = [("u", *line) for line in ("a1", "b1", "a2", "c2", "d2", "b3", "e3")] + [("v", *"a1")]


@pytest.fixture
def variants(tmp_path, monkeypatch):
    """Lines of each variant, as ``item + moment``, by user."""
    (tmp_path / "shop").mkdir()
    header = ["user_id:token", "item_id:token", "timestamp:float"]
    pd.DataFrame(LINES, columns=header).to_csv(tmp_path / "shop/shop.inter", sep="\t", index=False)
    (tmp_path / "shop" / "shop.item").write_text("item_id:token\ttitle:token_seq\na\tA\n")
    words = [f"--data_path={tmp_path}", "--dataset=shop", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = {}
    for file in (tmp_path / "out").glob("*/*.inter"):
        assert file.with_suffix(".item").is_file()
        rows = pd.read_csv(file, sep="\t", dtype=str)
        assert [*rows] == header
        rows["line"] = rows["item_id:token"] + rows["timestamp:float"]
        found[file.stem.removeprefix("shop-")] = rows.groupby("user_id:token")["line"].agg(list)
    return found


def test_lines_of_an_invoice_are_shuffled_and_invoices_stay(variants):
    lines = variants["shuffled"]["u"]
    assert [line[1] for line in lines] == [*"1122233"]
    assert sorted(lines) == sorted(item + moment for user, item, moment in LINES if user == "u")


def test_a_first_purchase_alone_stays(variants):
    assert variants["without-repeats"]["u"] == ["a1", "b1", "c2", "d2", "e3"]


def test_the_last_two_invoices_have_a_line_each(variants):
    for kind in ("one-target", "fair"):
        assert [line[1] for line in variants[kind]["u"]] == [*"1123"]
        assert variants[kind]["v"] == ["a1"]
    assert variants["fair"]["u"][2] in ("c2", "d2") and variants["fair"]["u"][3] == "e3"

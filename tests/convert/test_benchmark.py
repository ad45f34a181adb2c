"""The dumps that ``benchmarks/converting.py`` makes up can be converted."""

import pytest

from tests.conftest import ROOT


def test_made_up_dumps_convert(tmp_path, made, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    converting = pytest.importorskip("converting")
    paths = converting.write_dumps(tmp_path, 3000)
    inter, item, statistics = made("amazon2018", *paths, "--preset", "unisrec")
    assert statistics["steps"][0] == {
        "step": "read",
        "users": 375,
        "items": 295,  # of 300 that are described
        "interactions": 3000,
    }
    assert statistics["text_coverage"] == {"title": 1, "categories": 1, "brand": 1}
    assert len(item) > 150 and len(inter) > 2000

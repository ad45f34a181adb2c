"""Running the command, writing raw files, and reading what came of them."""

import gzip
import json
import os
from pathlib import Path

import pytest

from recbole_jepa4rec.convert.command_line import main
from recbole_jepa4rec.data.atomic_files import read_atomic
from tests.conftest import ROOT

REAL_DATA = Path(os.environ.get("REAL_DATA", ROOT / "dataset"))
"""Where data sets lie that are not in the repository."""


@pytest.fixture
def run(tmp_path, capsys):
    """Convert into ``made`` and give status, standard output, errors."""

    def run(*words, out="made"):
        out_words = () if out is None else ("--out", str(tmp_path / out))
        status = main([str(word) for word in (*words, *out_words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def made(tmp_path, run):
    """Convert, and give rows of .inter, of .item and the statistics."""

    def made(*words, out="made"):
        status, stdout, errors = run(*words, out=out)
        assert status == 0, errors
        assert stdout == f"{tmp_path / out}\n"
        return tables(tmp_path / out)

    return made


def tables(folder):
    """Rows of both files as text, and the statistics."""
    name = folder.name
    inter = read_atomic(folder / f"{name}.inter", as_text=True).to_numpy().tolist()
    path = folder / f"{name}.item"
    item = read_atomic(path, as_text=True).to_numpy().tolist() if path.exists() else None
    return inter, item, json.loads((folder / f"{name}.stats.json").read_text(encoding="utf-8"))


def write_json_lines(path, records):
    """Write one object a line, compressed if the name says so; strings are written as lines."""
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def reviews(rows):
    """Amazon 2018 reviews of (user, item, time)."""
    return [
        {"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": 5.0}
        for user, item, time in rows
    ]

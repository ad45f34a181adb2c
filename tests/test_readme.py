"""The README names what is there: every key with its default, every file and symbol."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def yaml_keys(path):
    """Key and written default of each top-level line, without its comment."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    found = (re.match(r"^(\w+): ([^#]*?)\s*(#.*)?$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("path", ["properties/model/JEPA4Rec.yaml", "properties/overall.yaml"])
def test_key_tables_have_every_key_and_default(path):
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", README, re.MULTILINE))
    keys = yaml_keys(path)
    assert keys and {key: rows.get(key) for key in keys} == {
        key: value or "…" for key, value in keys.items()
    }


def test_code_locations_exist():
    section = README.split("## Locating the code")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 8
    for row in rows:
        files = re.findall(r"`([^`]+)`", row[2])
        names = set()
        for file in files:
            tree = ast.parse((ROOT / "recbole_jepa4rec" / file).read_text(encoding="utf-8"))
            names |= {node.name for node in ast.walk(tree) if hasattr(node, "name")}
        for symbol in re.findall(r"`([^`]+)`", row[3]):
            assert set(symbol.split(".")) <= names, (files, symbol)


def test_links_inside_the_repository_exist():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)

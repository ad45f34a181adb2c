"""README and docs say what is there: every key, every file and symbol, every link."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from recbole_jepa4rec.config.registry import MODELS
from recbole_jepa4rec.config.syntax import known_keys
from recbole_jepa4rec.convert.command_line import SOURCES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += ["dataset/README.md", "benchmarks/README.md", "benchmarks/peers.md"]
PAGES += sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("docs/**/*.md"))
MAP = "docs/paper.md"
"""Where «Locating the code» leads from the paper's words to files and symbols."""


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page):
    """What a link may name behind ``#``: headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def located():
    section = read(MAP).split("## Locating the code")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")]
    return [row for row in rows if len(row) == 3][2:]


def test_the_page_of_keys_is_what_the_settings_say():
    made = runpy.run_path(str(ROOT / "docs" / "keys.py"))["page"]()
    assert made == read("docs/keys.md"), "docs/keys.md is stale; mend it by: python docs/keys.py"


@pytest.mark.parametrize("row", located(), ids=lambda row: row[0].strip())
def test_code_locations_exist(row):
    mend = f"{MAP}, «Locating the code»: mend this row where the code has moved"
    names = set()
    for file in re.findall(r"`([^`]+)`", row[1]):
        path = ROOT / "recbole_jepa4rec" / file
        assert path.is_file(), f"there is no {file}; {mend}"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {node.name for node in ast.walk(tree) if hasattr(node, "name")}
    symbols = re.findall(r"`([^`]+)`", row[2])
    missing = [symbol for symbol in symbols if not {*symbol.split(".")} <= names]
    assert symbols and not missing, f"{row[1].strip()} lacks {missing}; {mend}"


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_exist(page):
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", read(page)):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page} links to {link}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_a_page_names_exist(page):
    for file in re.findall(r"`([\w/]+/\w+\.(?:py|yaml))`", read(page)):
        if page == "CONTRIBUTING.md" and "textrec" in file.lower():
            continue  # which a reader is to write
        places = ROOT / file, ROOT / "recbole_jepa4rec" / file
        assert any(place.is_file() for place in places), f"{page} names {file}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_known_keys(page):
    text = read(page).replace("\\\n", " ")
    for command in re.findall(r"python run_recbole\.py (.+)", text):
        for key in re.findall(r"--(\w+)", command):
            assert key in known_keys(), f"{page}: --{key}"


def test_readme_is_short_and_leads_to_every_page():
    readme = read("README.md")
    assert readme.count("\n") <= 180
    for file in ROOT.glob("docs/*.md"):
        assert f"](docs/{file.name})" in readme


def test_every_model_and_source_of_ours_stands_on_its_page():
    table = read("docs/models.md").split("\n## ")[0]
    assert [name for name in MODELS if f"| `{name}` |" not in table] == []
    table = read("docs/data.md").split("\n## Converting")[1]
    assert [name for name in SOURCES if f"`{name}`" not in table] == []


def test_models_that_train_on_several_processes_are_those_trained_in_phases():
    head, row = (
        re.search(f"^\\| {start}.*$", read("docs/models.md"), re.MULTILINE)[0].split(" | ")
        for start in (r"\| JEPA4Rec", "trains on several processes")
    )
    said = dict(zip((cell.strip("| ") for cell in head), row, strict=True))
    for name, entry in MODELS.items():
        assert said.get(name, said["others"]).startswith("yes") == entry.in_phases, name

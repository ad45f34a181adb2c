"""Writes ``docs/keys.md`` from the settings classes: ``python docs/keys.py``."""

import re
from pathlib import Path

from recbole_jepa4rec.base.yaml_files import find_properties
from recbole_jepa4rec.config.registry import SETTINGS
from recbole_jepa4rec.config.run_settings import RecBoleSettings, RunSettings
from recbole_jepa4rec.config.settings import Settings
from recbole_jepa4rec.study.group import GroupKeys
from recbole_jepa4rec.study.search.request import SearchKeys

PAGE = Path(__file__).with_name("keys.md")

INTRODUCTION = """# Keys

Made by `python docs/keys.py` from the settings classes of the code, in the order of the files in
[properties/](../properties/); change those, not this page.

A key is set on the command line (`--key=value`, `--key.part=value` for an entry of a mapping), in
a file (`--config_files="a.yaml b.yaml"`) or in Python (`config_dict`). Of these, what comes later
wins: RecBole's defaults, [properties/overall.yaml](../properties/overall.yaml), the model's file in
[properties/model/](../properties/model/), your files, `config_dict`, the command line. Values are
read as Python literals, `true`, `false`, `null` or yaml lists, and never evaluated. A key that
nothing reads is refused with the nearest spelling, a value that is not allowed in a line that says
what is.

RecBole's other keys, for its models and for data, work as its
[documentation](https://recbole.io/docs/user_guide/config_settings.html) says; one that
no run here reads is refused.
"""

CLASSES = {
    "RecBole's": (
        RecBoleSettings,
        "Keys of RecBole's that we read or check as well; a model's file may set another default.",
    ),
    "A comparison": (
        GroupKeys,
        "Of `run_recbole_group.py` itself ([page](comparison.md)); a run is given all others that "
        "its model reads.",
    ),
    "A search": (
        SearchKeys,
        "Of `run_hyper.py` itself ([page](search.md)); all others go to every trial.",
    ),
}
"""Titles of sections, their classes, and what is said of them."""

HEAD = "| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n"

GROUP = re.compile(r"# --- (.+)")
KEY = re.compile(r"(\w+):.* # \(\w+\) .*")
"""A line of a yaml file."""


def page() -> str:
    """The page, whole."""
    models = [section(name, f"model/{name}.yaml", kind) for name, kind in SETTINGS.items()]
    others = [
        f"## {title}\n\n{words}\n\n{HEAD}{''.join(lines_of(kind).values())}"
        for title, (kind, words) in CLASSES.items()
    ]
    every_run = section("Every run", "overall.yaml", RunSettings)
    return "\n".join([INTRODUCTION, every_run, *others, *models])


def section(title: str, file: str, kind: type[Settings]) -> str:
    """The keys that a yaml file has, in its order and groups."""
    text, table = (find_properties() / file).read_text(encoding="utf-8"), ""
    lines = lines_of(kind)
    for line in text.splitlines():
        if group := GROUP.fullmatch(line):
            table += f"| **{group[1]}** | | | |\n"
        elif found := KEY.fullmatch(line):
            table += lines[found[1]]
    return f"## {title}\n\n[properties/{file}](../properties/{file})\n\n{HEAD}{table}"


def lines_of(kind: type[Settings]) -> dict[str, str]:
    """A line of a table for each key."""
    found = {}
    for key, said in kind.keys().items():
        default = said.default
        if isinstance(default, tuple):  # of a study, whose lists are written with commas
            default = ",".join(map(str, default))
        default = "null" if default is None else default
        shown = f"`{default}`" if default != "" else "–"
        meaning = said.meaning.replace("<", r"\<")
        found[key] = f"| `{key}` | {shown} | {said.allowed} | {meaning} |\n"
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

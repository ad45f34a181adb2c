"""``python -m recbole_jepa4rec.convert``: from its words to what they ask for.

What takes a while to import stands inside the functions, after the words are understood.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from recbole_jepa4rec.base.command import Parser, run_command, say_last
from recbole_jepa4rec.convert.download import FOLDER, download, name_of, public_data
from recbole_jepa4rec.convert.settings import (
    EXPLANATION,
    PRESETS,
    READ_BY,
    Preset,
    Reading,
    Rule,
    Split,
    whole,
)

PROGRAM = "python -m recbole_jepa4rec.convert"

_EXAMPLES = f"""examples:
  {PROGRAM} amazon2018 Industrial_and_Scientific.json.gz meta_Industrial_and_Scientific.json.gz \\
      --core 5 --out dataset/amazon2018-scientific
  {PROGRAM} amazon2023 Industrial_and_Scientific --download --out dataset/amazon2023-scientific
  {PROGRAM} online-retail data.csv --preset jepa4rec --out dataset/online-retail
  {PROGRAM} movielens ml-1m/ --core 5 --out dataset/ml-1m
  {PROGRAM} generic events.parquet goods.csv --user uid --item sku --time at --out dataset/shop
  {PROGRAM} --from-recbole old/steam --out dataset/steam
  {PROGRAM} from-recbole dataset/steam --split cold_items --out dataset/steam-cold
  {PROGRAM} check dataset/online-retail

It writes dataset/NAME/NAME.inter, NAME.item and NAME.stats.json, whole or not at all; the last line
on standard output is the folder. Exit status: 0, 1 for a failure, 2 for wrong input; of check, 1 if
it found a problem.
"""


class Kind(NamedTuple):
    """A source: what it takes, how many files at most, and what it is."""

    files: str
    most: int
    meaning: str


_REVIEWS = "REVIEWS [METADATA]"
_AMAZON = (
    "Amazon reviews {0}: reviews {1} or ratings .csv, metadata {1}; item text: title, categories, "
    "brand, description"
)
SOURCES = {
    "amazon2014": Kind(_REVIEWS, 2, _AMAZON.format(2014, ".json.gz")),
    "amazon2018": Kind(_REVIEWS, 2, _AMAZON.format(2018, ".json.gz")),
    "amazon2023": Kind(_REVIEWS, 2, _AMAZON.format(2023, ".jsonl.gz")),
    "online-retail": Kind("TABLE", 1, "UCI Online Retail: .xlsx or .csv, all rows"),
    "movielens": Kind(
        "FOLDER | RATINGS MOVIES",
        2,
        "MovieLens 100K, 1M, 10M, 20M, 25M, 32M: its folder, or u.data u.item, or so on; item "
        "text: title, genres",
    ),
    "yelp": Kind(
        "REVIEWS [BUSINESSES]",
        2,
        "Yelp's open data set: review.json and business.json; item text: title, categories, city",
    ),
    "steam": Kind(
        "REVIEWS [GAMES]",
        2,
        "Steam: steam_reviews.json.gz and steam_games.json.gz; item text: title, genres, tags, "
        "developer",
    ),
    "generic": Kind(
        "INTERACTIONS [ITEMS]",
        2,
        "your own: .csv, .tsv, .parquet, .jsonl, .xlsx with named columns (--user, --item, --time)",
    ),
    "from-recbole": Kind(
        "FOLDER",
        1,
        "atomic files made elsewhere: mends encoding, order, missing and repeated items; of .inter "
        "user, item and time are kept",
    ),
}
"""By the names under which ``sources.OPENERS`` opens them."""


def main(words: Sequence[str]) -> int:
    """Do what the words say.

    Returns:
        Exit status; see ``--help``.
    """
    return run_command(lambda: _run(words))


def _run(words: Sequence[str]) -> int:
    given = _given(words)
    name = given["source"]
    if name == "check":
        return _check(given["folder"])
    kind, files, origins = SOURCES[name], given["files"], {}
    wanted = name_of(name, files) if given.get("download") else None
    if not wanted and not 0 < len(files) <= kind.most:
        raise ValueError(f"{name}: expected {kind.files}, found {len(files)} files")
    split = _split(given)

    from recbole_jepa4rec.convert.conversion import check_target, convert
    from recbole_jepa4rec.convert.sources import OPENERS
    from recbole_jepa4rec.convert.statistics import summary
    from recbole_jepa4rec.convert.tables import BadLines

    target = check_target(given["out"], given["force"])
    preset = PRESETS.get(name, {}).get(given.get("preset", ""), Preset(""))
    reading = _changed(preset.reading, given)
    core = {field: given["core"] for field in ("core_users", "core_items") if "core" in given}
    rule = _changed(preset.rule, {**core, **given})
    if wanted:
        files, origins["downloads"] = download(name, wanted, given.get("download_to", FOLDER))
    source = OPENERS[name](files, reading, BadLines(reading.max_bad))
    about = {
        "source": name,
        "files": [path.name for path in files],
        **origins,
        "preset": given.get("preset"),
        "rule": vars(rule),
        "command": shlex.join([*PROGRAM.split(), *words]),
    }
    content = convert(source, rule, target, given["force"], about, split)
    print(summary(content), file=sys.stderr)
    say_last(given["out"])
    return 0


def _check(folder: Path) -> int:
    from recbole_jepa4rec.convert.checks import problems

    found = problems(folder)
    for problem in found:
        print(problem)
    fatal = Counter(problem.fatal for problem in found)
    print(f"{folder}: {fatal[True]} errors, {fatal[False]} warnings", file=sys.stderr)
    return 1 if found else 0


def _split(given: Mapping[str, Any]) -> Split | None:
    """The split that the words ask for.

    Raises:
        ValueError: for an option that the split does not read, or that leaves nothing to train on.
    """
    kind = given.get("split")
    for name, kinds in READ_BY.items():
        if name in given and kind not in kinds:
            needed = " or ".join(f"--split {one}" for one in kinds)
            raise ValueError(f"--{name.replace('_', '-')} needs {needed}")
    return _changed(Split(), given) if kind else None


Settings = TypeVar("Settings", Reading, Rule, Split)
_GROUPS: Mapping[type, str] = {
    Reading: "how the files are read",
    Rule: "which interactions stay, in this order (default: all)",
    Split: "a split written as files, see below (default: none)",
}


def _changed(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """The settings, with what was given in place of what they hold."""
    names = [field.name for field in fields(settings)]
    return replace(settings, **{name: given[name] for name in names if name in given})


def _given(words: Sequence[str]) -> dict[str, Any]:
    """Values of the words, those alone that are there; ``--from-recbole`` may stand for its source.

    Raises:
        ValueError: for words that mean nothing here.
        SystemExit: after ``--help``.
    """
    if "--from-recbole" in words:
        words = ["from-recbole", *(word for word in words if word != "--from-recbole")]
    return {"force": False, "files": [], **vars(_parser().parse_args(words))}


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Make atomic files of public dumps and own tables.",
        epilog=_EXAMPLES,
    )
    sources = parser.add_subparsers(
        dest="source", required=True, metavar="SOURCE", title="sources",
        description="SOURCE --help lists the options of each", parser_class=Parser,
    )  # fmt: skip
    downloads = public_data()
    for name, kind in SOURCES.items():
        names = downloads.get(name, {}).get("names", ())
        presets = [f"  {key}: {preset.meaning}" for key, preset in PRESETS.get(name, {}).items()]
        one = sources.add_parser(
            name,
            help=f"{kind.files}: {kind.meaning}",
            description=f"{name} {kind.files}: {kind.meaning}.",
            epilog="\n".join(
                [
                    *(["presets:", *presets, ""] if presets else []),
                    *([textwrap.fill(f"names: {', '.join(names)}", 100), ""] if names else []),
                    EXPLANATION,
                ]
            ),
        )
        _add_options(one, name, kind, bool(names))
    check = sources.add_parser(
        "check",
        help="FOLDER: list every problem of a data set by file and line",
        description="List every problem of a data set of atomic files by file and line.",
    )
    check.add_argument("folder", type=Path, metavar="FOLDER", help="dataset/NAME")
    return parser


def _add_options(parser: Parser, name: str, kind: Kind, has_names: bool) -> None:
    number = "*" if has_names else "+"
    parser.add_argument("files", nargs=number, type=Path, metavar="FILE", help=kind.files)
    if has_names:
        meaning = "fetch the data set whose name stands in place of FILE, see names below"
        parser.add_argument("--download", action="store_true", help=meaning)
        meaning = f"where downloads are kept (default {FOLDER}/)"
        parser.add_argument("--download-to", type=Path, metavar="FOLDER", help=meaning)
    parser.add_argument("--out", type=Path, required=True, metavar="dataset/NAME", help="to write")
    parser.add_argument("--force", action="store_true", help="replace a data set of that name")
    for settings, title in _GROUPS.items():
        group = parser.add_argument_group(title)
        if settings is Rule and name in PRESETS:
            meaning = "a paper's rule, see below; other options change it"
            group.add_argument("--preset", choices=list(PRESETS[name]), help=meaning)
        if settings is Rule:
            meaning = "both --core-users and --core-items"
            group.add_argument("--core", type=whole, metavar="K", help=meaning)
        for field in fields(settings):
            known = set(field.metadata["only"] or SOURCES) - set(field.metadata["but"])
            if name in known:
                flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
                group.add_argument(flag, dest=field.name, **field.metadata["words"])

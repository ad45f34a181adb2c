"""What the words of the command line may be."""

from __future__ import annotations

import argparse
import codecs
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from recbole_jepa4rec.convert.json_source import LAYOUTS
from recbole_jepa4rec.convert.online_retail import ITEMS, USERS
from recbole_jepa4rec.convert.rules import AMAZON, DUPLICATES, ONLINE_RETAIL, WITHOUT_TEXT, Preset
from recbole_jepa4rec.convert.split import EXPLANATION, KINDS, Split
from recbole_jepa4rec.data.atomic_files import is_number

PROGRAM = "python -m recbole_jepa4rec.convert"

_EXAMPLES = f"""examples:
  {PROGRAM} amazon2018 Industrial_and_Scientific.json.gz meta_Industrial_and_Scientific.json.gz \\
      --core 5 --out dataset/amazon2018-scientific
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

SOURCES = {
    "amazon2014": (
        "REVIEWS [METADATA]",
        "Amazon reviews 2014: reviews .json.gz or ratings .csv, metadata .json.gz",
    ),
    "amazon2018": (
        "REVIEWS [METADATA]",
        "Amazon reviews 2018: reviews .json.gz or ratings .csv, metadata .json.gz",
    ),
    "amazon2023": (
        "REVIEWS [METADATA]",
        "Amazon reviews 2023: reviews .jsonl.gz or ratings .csv, metadata .jsonl.gz",
    ),
    "online-retail": ("TABLE", "UCI Online Retail: .xlsx or .csv, all rows"),
    "movielens": (
        "FOLDER | RATINGS MOVIES",
        "MovieLens 100K, 1M, 10M, 20M, 25M, 32M: its folder, or u.data u.item, or so on",
    ),
    "yelp": ("REVIEWS [BUSINESSES]", "Yelp's open data set: review.json and business.json"),
    "steam": ("REVIEWS [GAMES]", "Steam: steam_reviews.json.gz and steam_games.json.gz"),
    "generic": (
        "INTERACTIONS [ITEMS]",
        "your own: .csv, .tsv, .parquet, .jsonl, .xlsx with named columns (--user, --item, --time)",
    ),
    "from-recbole": (
        "FOLDER",
        "atomic files made elsewhere: mends encoding, order, missing and repeated items; of .inter "
        "user, item and time are kept",
    ),
}
"""What each takes, and what it is."""

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    **dict.fromkeys(["amazon2014", "amazon2018", "amazon2023"], AMAZON),
    "online-retail": ONLINE_RETAIL,
}
_RATED = ("amazon2014", "amazon2018", "amazon2023", "movielens", "yelp", "generic")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the words; ``--from-recbole`` may stand for the source of that name.

    Raises:
        ValueError: for words that mean nothing here.
        SystemExit: after ``--help``.
    """
    if "--from-recbole" in words:
        words = ["from-recbole", *(word for word in words if word != "--from-recbole")]
    return _parser().parse_args(words)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog=PROGRAM, description="Make atomic files of public dumps and own tables.",
        epilog=_EXAMPLES, formatter_class=form, allow_abbrev=False,
    )  # fmt: skip
    sources = parser.add_subparsers(
        dest="source", required=True, metavar="SOURCE", title="sources",
        description="SOURCE --help lists the options of each", parser_class=_Parser,
    )  # fmt: skip
    for name, (files, explanation) in SOURCES.items():
        one = sources.add_parser(
            name, help=f"{files}: {explanation}", description=f"{name} {files}: {explanation}.",
            formatter_class=form, allow_abbrev=False, epilog=_epilog(name),
        )  # fmt: skip
        one.add_argument("files", nargs="+", type=Path, metavar="FILE", help=files)
        _add_output(one)
        _add_rule(one, name)
        _add_split(one)
        _add_text(one, name)
        if name == "generic":
            _add_columns(one)
        if name == "online-retail":
            _add_retail(one)
    check = sources.add_parser(
        "check", help="FOLDER: list every problem of a data set by file and line",
        description="List every problem of a data set of atomic files by file and line.",
    )  # fmt: skip
    check.add_argument("folder", type=Path, metavar="FOLDER", help="dataset/NAME")
    return parser


def _epilog(name: str) -> str:
    lines = [f"  {key}: {preset.explanation}" for key, preset in PRESETS.get(name, {}).items()]
    presets = "\n".join(["presets:", *lines, "", ""]) if lines else ""
    return presets + EXPLANATION


def split_of(options: argparse.Namespace, seed: int) -> Split | None:
    """The split that the words ask for.

    Raises:
        ValueError: for shares that the split does not read, or that leave nothing to train on.
    """
    shares = {
        name: value
        for name in ("valid_share", "test_share")
        if (value := getattr(options, name)) is not None
    }
    if shares and options.split in (None, "loo"):
        option = f"--{min(shares).replace('_', '-')}"
        raise ValueError(f"{option} needs --split temporal or --split cold_items")
    return Split(options.split, seed=seed, **shares) if options.split else None


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="dataset/NAME", help="to write")
    parser.add_argument("--force", action="store_true", help="replace a data set of that name")
    parser.add_argument(
        "--max-bad", type=_count, default=0, metavar="N",
        help="broken lines to leave out before giving up (default 0)",
    )  # fmt: skip


def _add_rule(parser: argparse.ArgumentParser, source: str) -> None:
    group = parser.add_argument_group("which interactions stay, in this order (default: all)")
    if source in PRESETS:
        group.add_argument(
            "--preset", choices=list(PRESETS[source]),
            help="a paper's rule, see below; other options change it",
        )  # fmt: skip
    else:
        parser.set_defaults(preset=None)
    if source in _RATED:
        group.add_argument(
            "--min-rating", type=_finite, metavar="R", help="leave out lower ratings"
        )
    group.add_argument(
        "--duplicates", choices=DUPLICATES,
        help="exact: one of the same user, item and time; pair: the earliest of a user and an item",
    )  # fmt: skip
    group.add_argument(
        "--without-text", choices=WITHOUT_TEXT,
        help="items without any attribute stay, or leave before or after the core",
    )  # fmt: skip
    group.add_argument(
        "--core", type=_count, metavar="K", help="both of the next, until all have K"
    )
    group.add_argument("--core-users", type=_count, metavar="K", help="interactions of each user")
    group.add_argument("--core-items", type=_count, metavar="K", help="interactions of each item")
    group.add_argument(
        "--cold-users", action="store_true",
        help="add users outside the core again, with what they did with items of the core",
    )  # fmt: skip
    group.add_argument(
        "--min-length", type=_count, metavar="K", help="drop shorter users in the end"
    )
    group.add_argument("--user-share", type=float, metavar="S", help="draw this share of the users")
    group.add_argument(
        "--seed", type=int, metavar="N", help="of that draw and of cold items (default 2020)"
    )


def _add_split(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a split written as files, see below (default: none)")
    group.add_argument("--split", choices=KINDS, help="which")
    of_what = "of the interactions (temporal) or items (cold_items), default 0.1"
    group.add_argument("--valid-share", type=float, metavar="S", help=f"validated share {of_what}")
    group.add_argument("--test-share", type=float, metavar="S", help=f"tested share {of_what}")


def _add_text(parser: argparse.ArgumentParser, source: str) -> None:
    group = parser.add_argument_group("item text")
    parser.set_defaults(attributes=None, decode_html=None)
    if source == "online-retail":
        return
    known = ", ".join(LAYOUTS[source].attributes) if source in LAYOUTS else ""
    group.add_argument(
        "--attributes", type=lambda words: words.split(","), metavar="A,B",
        help=f"to write, in order (default: all{' of ' + known if known else ''})",
    )  # fmt: skip
    if source != "movielens":
        group.add_argument(
            "--decode-html", action=argparse.BooleanOptionalAction,
            help="write entities as characters and drop tags",
        )  # fmt: skip


def _add_columns(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns")
    group.add_argument("--user", default="user_id", metavar="COLUMN", help="(default user_id)")
    group.add_argument("--item", default="item_id", metavar="COLUMN", help="(default item_id)")
    group.add_argument("--time", default="timestamp", metavar="COLUMN", help="(default timestamp)")
    group.add_argument("--no-time", action="store_true", help="rows are in order of time")
    group.add_argument("--rating", metavar="COLUMN", help="for --min-rating")
    group.add_argument(
        "--time-format", metavar="FORM", help="strptime's, such as %%d/%%m/%%Y %%H:%%M"
    )
    group.add_argument(
        "--encoding", type=_encoding, default="utf-8", help="of .csv and .tsv (default utf-8)"
    )  # fmt: skip
    group.add_argument("--no-quotes", action="store_true", help='" is a character like any other')


def _add_retail(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what a user and an item is")
    group.add_argument("--user", choices=list(USERS), help="(default customer)")
    group.add_argument("--item", choices=list(ITEMS), help="(default description)")
    group.add_argument("--time-format", metavar="FORM", help="of InvoiceDate, strptime's")


def _finite(word: str) -> float:
    if not is_number(word) or not math.isfinite(float(word)):
        raise argparse.ArgumentTypeError(f"{word!r} must be a number")
    return float(word)


def _encoding(word: str) -> str:
    try:
        return codecs.lookup(word).name
    except LookupError:
        raise argparse.ArgumentTypeError(f"encoding {word!r} is not known to Python") from None


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number from 0")
    return int(word)

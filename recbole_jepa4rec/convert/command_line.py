"""``python -m recbole_jepa4rec.convert``: from its words to what they ask for."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from recbole_jepa4rec.base.stopping import ending_on_sigterm
from recbole_jepa4rec.convert.checks import problems
from recbole_jepa4rec.convert.conversion import convert
from recbole_jepa4rec.convert.folder import check_target
from recbole_jepa4rec.convert.generic import Columns, GenericTables
from recbole_jepa4rec.convert.json_source import LAYOUTS, JsonSource
from recbole_jepa4rec.convert.lines import BadLines
from recbole_jepa4rec.convert.movielens import MovieLens
from recbole_jepa4rec.convert.online_retail import OnlineRetail
from recbole_jepa4rec.convert.options import PRESETS, PROGRAM, SOURCES, parse, split_of
from recbole_jepa4rec.convert.recbole_files import AtomicFiles
from recbole_jepa4rec.convert.rules import PLAIN, Preset, rule_with
from recbole_jepa4rec.convert.source import Source
from recbole_jepa4rec.convert.summary import summary


def main(words: Sequence[str]) -> int:
    """Do what the words say.

    Returns:
        Exit status; see ``--help``.
    """
    try:
        with ending_on_sigterm():
            return _run(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _run(words: Sequence[str]) -> int:
    options = parse(words)
    if options.source == "check":
        return _check(options.folder)
    check_target(options.out, options.force)
    preset = PRESETS.get(options.source, {}).get(options.preset, PLAIN)
    rule = rule_with(
        preset,
        duplicates=options.duplicates,
        without_text=options.without_text,
        core_users=options.core if options.core_users is None else options.core_users,
        core_items=options.core if options.core_items is None else options.core_items,
        cold_users=options.cold_users or None,
        min_length=options.min_length,
        user_share=options.user_share,
        seed=options.seed,
    )
    split = split_of(options, rule.seed)
    source = _source(options, preset, BadLines(options.max_bad))
    about = {
        "source": options.source,
        "files": [path.name for path in options.files],
        "preset": options.preset,
        "rule": vars(rule),
        "command": shlex.join(PROGRAM.split() + list(words)),
    }
    content = convert(source, rule, options.out, options.force, about, split)
    print(summary(content), file=sys.stderr)
    print(options.out)
    return 0


def _check(folder: Path) -> int:
    found = problems(folder)
    for problem in found:
        print(problem)
    fatal = Counter(problem.fatal for problem in found)
    print(f"{folder}: {fatal[True]} errors, {fatal[False]} warnings", file=sys.stderr)
    return 1 if found else 0


def _source(options: argparse.Namespace, preset: Preset, bad: BadLines) -> Source:
    name, files = options.source, options.files
    attributes = options.attributes if options.attributes is not None else preset.attributes
    decode_html = preset.decode_html if options.decode_html is None else options.decode_html
    allowed = 1 if name in ("online-retail", "from-recbole") else 2
    if len(files) > allowed:
        raise ValueError(f"{name}: expected {SOURCES[name][0]}, found {len(files)} files")
    if name == "online-retail":
        user, item = preset.keys or ("customer", "description")
        return OnlineRetail(
            files[0], bad, options.user or user, options.item or item, options.time_format
        )
    if name == "from-recbole":
        return AtomicFiles(files[0], bad, attributes, decode_html)
    if name == "movielens":
        return MovieLens(files, bad, attributes, options.min_rating)
    second = files[1] if len(files) == 2 else None
    if name == "generic":
        columns = Columns(
            options.user,
            options.item,
            None if options.no_time else options.time,
            options.rating,
            options.time_format,
        )
        return GenericTables(
            files[0], second, columns, bad, attributes,
            options.encoding, not options.no_quotes, decode_html, options.min_rating,
        )  # fmt: skip
    rating = getattr(options, "min_rating", None)
    return JsonSource(LAYOUTS[name], files[0], second, bad, attributes, decode_html, rating)

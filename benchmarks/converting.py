"""Seconds and memory to convert made-up Amazon reviews of several sizes.

    python benchmarks/converting.py [--reviews 1000000 3000000 10000000] [--json PATH]

Reviews and metadata are gzip files in the form of the 2018 edition, a tenth as many items as
reviews, an eighth as many users, with review texts of 0 to 80 words. Each size is converted in a
process of its own by ``convert amazon2018 ... --preset unisrec`` (both passes over the metadata,
exact duplicates, 5-core), once by default (``--repeats``). Seconds and peak hold the imports.
"""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import arguments, exponent, report

REVIEWS_PER_ITEM, REVIEWS_PER_USER = 10, 8
FIRST_DAY, LAST_DAY, SECONDS_OF_A_DAY = 11_000, 17_800, 86_400
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
WORDS = [
    "the", "a", "and", "works", "great", "for", "this", "was", "good", "printer", "very", "well",
    "not", "quality", "price", "fits", "perfectly", "arrived", "broken", "sturdy", "small", "size",
]  # fmt: skip
LINES_AT_ONCE = 100_000


def main() -> None:
    """Write the files of each size, convert them, report medians and how time grows."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--reviews", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000],
        help="(default 1000000 3000000 10000000)",
    )  # fmt: skip
    parser.set_defaults(repeats=1)
    options = parser.parse_args()
    rows = []
    for reviews in options.reviews:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_dumps(Path(folder), reviews)
            runs = [convert_in_child(Path(folder), *paths) for _ in range(options.repeats)]
            rows.append(row(reviews, runs, sum(path.stat().st_size for path in paths)))
    sizes = [row["reviews"] for row in rows]
    ratio = {}
    if len(rows) > 1:
        seconds = [row["processor seconds"] for row in rows]
        ratio["exponent of processor seconds in reviews"] = exponent(sizes, seconds)
    report(options, rows, ratio, peak={})


def row(reviews: int, runs: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """A line of the table."""
    processor = statistics.median(run["processor seconds"] for run in runs)
    return {
        "reviews": reviews,
        "items described": max(1, reviews // REVIEWS_PER_ITEM),
        "gzip MiB": size / 2**20,
        "seconds": statistics.median(run["seconds"] for run in runs),
        "processor seconds": processor,
        "µs of it a review": processor / reviews * 1e6,
        "peak GiB": statistics.median(run["peak GiB"] for run in runs),
        "interactions kept": runs[0]["interactions"],
        "items kept": runs[0]["items"],
    }


def write_dumps(folder: Path, reviews: int) -> tuple[Path, Path]:
    """Write reviews and metadata; popular and rare items, days in no order.

    Args:
        folder: to write into.
        reviews: lines; the metadata has a line for each item, bought or not.
    """
    random = np.random.default_rng(0)
    items = max(1, reviews // REVIEWS_PER_ITEM)
    popularity = np.cumsum(1 / np.arange(10, 10 + items))
    paths = folder / "reviews.json.gz", folder / "meta.json.gz"
    with gzip.open(paths[0], "wt", compresslevel=1) as file:
        for begin in range(0, reviews, LINES_AT_ONCE):
            count = min(LINES_AT_ONCE, reviews - begin)
            bought = np.searchsorted(popularity / popularity[-1], random.random(count))
            users = random.integers(max(1, reviews // REVIEWS_PER_USER), size=count)
            days = random.integers(FIRST_DAY, LAST_DAY, size=count) * SECONDS_OF_A_DAY
            lengths = random.integers(80, size=count)
            file.writelines(map(review, bought.tolist(), users.tolist(), days, lengths))
    with gzip.open(paths[1], "wt", compresslevel=1) as file:
        file.writelines(metadata(item) for item in range(items))
    return paths


def review(item: int, user: int, day: int, length: int) -> str:
    """A line as the 2018 edition writes it."""
    return (
        '{"overall": 5.0, "verified": true, "reviewTime": "10 20, 2014", "reviewerID": "'
        f'{code("A", user)}", "asin": "{code("B", item)}", "style": {{"Color:": " black"}}, '
        f'"reviewerName": "{WORDS[user % 22]} {WORDS[item % 22]}", "reviewText": "'
        f'{" ".join(WORDS[(item * 7 + user * n) % 22] for n in range(length))}", '
        f'"summary": "{WORDS[length % 22]}", "unixReviewTime": {day}}}\n'
    )


def metadata(item: int) -> str:
    """A line as the 2018 edition writes it."""
    words = [WORDS[(item * n + n) % 22] for n in range(60)]
    return json.dumps(
        {
            "category": ["Industrial & Scientific", words[0], words[1]],
            "tech1": "",
            "description": [" ".join(words)],
            "title": f"{' '.join(words[:9])} {item}",
            "also_buy": [code("B", item + n) for n in range(10)],
            "brand": words[2],
            "rank": f"{item:,} in Industrial & Scientific",
            "price": "$9.99",
            "asin": code("B", item),
        }
    ) + "\n"  # fmt: skip


def code(first: str, number: int) -> str:
    """Ten letters and digits."""
    rest = ""
    for _ in range(9):
        number, place = divmod(number, 36)
        rest += LETTERS[place]
    return first + rest


def convert_in_child(folder: Path, reviews: Path, meta: Path) -> dict[str, Any]:
    """Seconds and peak of one conversion in a process of its own, and what it kept.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    target = folder / "made-up"
    command = [
        sys.executable, "-W", "ignore", "-c", _CHILD,
        "amazon2018", str(reviews), str(meta), "--preset", "unisrec",
        "--out", str(target), "--force",
    ]  # fmt: skip
    begun = time.perf_counter()
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - begun
    kept = json.loads((target / "made-up.stats.json").read_text(encoding="utf-8"))["statistics"]
    return {"seconds": seconds, **json.loads(child.stdout.splitlines()[-1]), **kept}


_CHILD = """
import json, resource, sys
from recbole_jepa4rec.convert.command_line import main
status = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
processor = used.ru_utime + used.ru_stime
print(json.dumps({"processor seconds": processor, "peak GiB": used.ru_maxrss / 2**20}))
sys.exit(status)
"""

if __name__ == "__main__":
    main()

"""Memory and seconds of every stage of pre-training on a corpus too large to hold twice.

    python benchmarks/out_of_core.py [--tokens 100000000] [--tokens_per_item 40] [--json PATH]

A made-up catalogue in atomic files, about so many tokens in all, each item bought once, by users of
25,000 purchases (so that ranking them does not outlast the training). A process of its own
pre-trains JEPA4Rec on it through the runner, with an empty cache, for at most ``--seconds``, and
ranks the test items. The high-water mark of its resident memory (``VmHWM``, which counts pages of
mapped files) starts anew with every stage; the imports are in all of them. Once: ``--repeats`` is
not read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAME = "synthetic"
PURCHASES_PER_USER = 25_000
TOKENS_PER_WORD = 1.35  # of the made-up words, in the vocabulary trained on them
TOKENS_BESIDE_WORDS = 5  # three names and a brand
WORDS, BRANDS = 40_000, 20_000
ROWS_AT_ONCE = 100_000
SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "or")]
SETTINGS = {"tokens_per_batch": 8192, "score_memory_mib": 64}
"""Where they differ from the defaults; a step's activations take about 40 kB a token."""

WANTED_GIB = 4.0


def main() -> None:
    """Write the data set, pre-train in a fresh process, report each stage."""
    from measure import arguments, report

    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000_000, help="(default 100000000)")
    parser.add_argument("--tokens_per_item", type=int, default=40, help="(default 40)")
    parser.add_argument("--seconds", type=float, default=120, help="of training (default 120)")
    options = parser.parse_args()
    items = max(1, options.tokens // options.tokens_per_item)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder, NAME), items, options.tokens_per_item)
        figures = train_in_child(folder, options.seconds)
    rows = [{"stage": name, **row} for name, row in figures["stages"].items()]
    peak = max(row["peak GiB"] for row in rows)
    tokenise = figures["stages"]["tokenise"]
    ratio = {
        "peak GiB": peak,
        "peak over wanted": peak / WANTED_GIB,
        "items": figures["items"],
        "tokens": figures["tokens"],
        "tokens tokenised a second": figures["tokens"] / tokenise["seconds"],
        "tokens pre-trained on a second": figures["tokens_per_second"],
    }
    report(options, rows, ratio, peak={})


def write_data(folder: Path, items: int, tokens_per_item: int) -> None:
    """Write ``.item`` and ``.inter`` files, some rows at a time.

    Args:
        folder: made; its name is the data set's.
        items: rows of both files.
        tokens_per_item: about so many, from half to one and a half times.
    """
    random = np.random.default_rng(0)
    words, brands = (lexicon(random, count) for count in (WORDS, BRANDS))
    mean = max(1.0, (tokens_per_item - TOKENS_BESIDE_WORDS) / TOKENS_PER_WORD)
    frequency = np.cumsum(1 / np.arange(10, 10 + WORDS))
    folder.mkdir()
    with open(folder / f"{NAME}.item", "w", encoding="utf-8") as file:
        file.write("item_id:token\ttitle:token_seq\tdescription:token_seq\tbrand:token\n")
        for first in range(0, items, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, items - first)
            sizes = np.maximum(1, np.rint(random.uniform(0.5, 1.5, count) * mean).astype(int))
            drawn = words[np.searchsorted(frequency / frequency[-1], random.random(sizes.sum()))]
            ends = sizes.cumsum()
            middles = ends - sizes // 2  # an attribute has max_attribute_tokens, the rest is cut
            brand = brands[random.integers(BRANDS, size=count)]
            file.writelines(
                f"i{first + row}\t{' '.join(drawn[ends[row] - sizes[row] : middles[row]])}\t"
                f"{' '.join(drawn[middles[row] : ends[row]])}\t{brand[row]}\n"
                for row in range(count)
            )
    bought = random.permutation(items)
    with open(folder / f"{NAME}.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for first in range(0, items, ROWS_AT_ONCE):
            file.writelines(
                f"u{(first + row) // PURCHASES_PER_USER}\ti{item}\t{first + row}\n"
                for row, item in enumerate(bought[first : first + ROWS_AT_ONCE])
            )


def lexicon(random: np.random.Generator, count: int) -> np.ndarray:
    """Made-up words of one to four syllables, ``[count]``."""
    drawn = random.integers(len(SYLLABLES), size=(count, 4))
    sizes = random.integers(1, 5, size=count)
    pairs = zip(drawn, sizes, strict=True)
    return np.array(["".join(SYLLABLES[s] for s in row[:size]) for row, size in pairs], object)


def train_in_child(folder: str, seconds: float) -> dict[str, Any]:
    """What ``child`` prints in a process of its own.

    Raises:
        subprocess.CalledProcessError: if the process fails.
    """
    script = str(Path(__file__).resolve())
    command = [sys.executable, "-W", "ignore", script, "--child", str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(Path(script).parents[1])}
    child = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(child.stdout.splitlines()[-1])


class Stages:
    """Seconds and peak resident memory of stages that follow each other; they are not nested."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._begun, self._name = time.perf_counter(), ""

    def enter(self, name: str) -> None:
        """End the stage under way and begin another, or go on with one of that name."""
        now = time.perf_counter()
        if self._name:
            row = self.rows.setdefault(self._name, {"seconds": 0.0, "peak GiB": 0.0})
            row["seconds"] += now - self._begun
            row["peak GiB"] = max(row["peak GiB"], gib("VmHWM"))
            row["held GiB"], row["of it files GiB"] = gib("VmRSS"), gib("RssFile")
            print(self._name, row, file=sys.stderr, flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._begun, self._name = now, name

    def wrap(self, owner: Any, attribute: str, name: str, after: str) -> None:
        """Have a function of a module or class be a stage."""
        inner: Callable[..., Any] = getattr(owner, attribute)

        def staged(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return inner(*args, **kwargs)
            finally:
                self.enter(after)

        setattr(owner, attribute, staged)


def gib(name: str) -> float:
    """An entry of ``/proc/self/status``, kept in kB there."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**20


def child(seconds: str) -> None:
    """Pre-train on the data set in the working directory and print the figures."""
    sys.argv = sys.argv[:1]  # RecBole's Config reads it
    from recbole_jepa4rec.data import dataset
    from recbole_jepa4rec.model import jepa4rec, starting_point
    from recbole_jepa4rec.runner.quick_start import run
    from recbole_jepa4rec.text.sentences import ItemSentences
    from recbole_jepa4rec.training.phase_trainer import PhaseTrainer

    stages, found = Stages(), {}
    build = ItemSentences.build

    def remembered(*args: Any, **kwargs: Any) -> ItemSentences:
        store = build(*args, **kwargs)
        found.update(items=store.num_items - 1, tokens=len(store.input_ids) - 1)
        return store

    jepa4rec.ItemSentences = type("", (), {"build": staticmethod(remembered)})
    stages.wrap(dataset, "read_item_text", "item text", "model")
    stages.wrap(starting_point, "train_wordpiece", "vocabulary", "model")
    stages.wrap(jepa4rec.ItemSentences, "build", "tokenise", "model")
    stages.wrap(PhaseTrainer, "_run_epoch", "pre-train", "model")
    stages.wrap(PhaseTrainer, "_validate", "validate", "save and load weights")
    stages.wrap(PhaseTrainer, "rank", "test", "write result")
    stages.enter("load")
    figures = run(
        "JEPA4Rec",
        NAME,
        config_dict={
            "data_path": str(Path.cwd()),
            "run_dir": str(Path.cwd() / "run"),
            "cache_dir": str(Path.cwd() / "cache"),
            "train_stage": "pretrain",
            "max_train_seconds": float(seconds),
            **SETTINGS,
        },
    )
    stages.enter("")
    rate = figures["tokens_per_second"]
    print(json.dumps({"stages": stages.rows, "tokens_per_second": rate, **found}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main()

"""Seconds and memory to load and split one large synthetic data set, here and in stock RecBole.

    python benchmarks/loading.py [--interactions 5000000] [--json PATH]

Each system reads the same file with the same settings in a process of its own, ours and RecBole's
in turn; the peak is that of the process, its imports included, which are not timed. Once each by
default (``--repeats``). RecBole has a few more training rows: it validates nobody who has three
interactions, ours does.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# This package is imported where it is measured alone, so that RecBole's process never holds it.

NAME = "synthetic"
INTERACTIONS_PER_USER = 10
INTERACTIONS_PER_ITEM = 50
FIRST_SECOND, LAST_SECOND = 1_500_000_000, 1_700_000_000
SYSTEMS = ("ours", "RecBole")


def main() -> None:
    """Write the data set, load it in one fresh process after another, report medians."""
    from measure import arguments, report

    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=int, default=5_000_000, help="(default 5000000)")
    parser.set_defaults(repeats=1)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    with tempfile.TemporaryDirectory() as folder:
        write_interactions(Path(folder, NAME, f"{NAME}.inter"), options.interactions)
        for _ in range(options.repeats):
            for system in SYSTEMS:
                runs[system].append(load_in_child(system, folder))
    rows = [
        {
            "system": system,
            "interactions": options.interactions,
            "seconds": statistics.median(run["seconds"] for run in runs[system]),
            "peak GiB": statistics.median(run["peak GiB"] for run in runs[system]),
            "train rows": runs[system][0]["train rows"],
        }
        for system in SYSTEMS
    ]
    ours, stock = rows
    ratio = {
        "seconds": stock["seconds"] / ours["seconds"],
        "memory": ours["peak GiB"] / stock["peak GiB"],
    }
    report(options, rows, ratio, peak={})


def write_interactions(path: Path, count: int) -> None:
    """Write an ``.inter`` file: users alike, popular and rare items, whole seconds in no order.

    Args:
        path: the file; its folder is made.
        count: interactions.
    """
    random = np.random.default_rng(0)
    popularity = 1 / np.arange(10, 10 + max(1, count // INTERACTIONS_PER_ITEM))
    items = np.searchsorted(np.cumsum(popularity / popularity.sum())[:-1], random.random(count))
    table = pd.DataFrame(
        {
            "user_id:token": random.integers(max(1, count // INTERACTIONS_PER_USER), size=count),
            "item_id:token": items,
            "timestamp:float": random.integers(FIRST_SECOND, LAST_SECOND, size=count),
        }
    )
    for column, letter in (("user_id:token", "u"), ("item_id:token", "i")):
        table[column] = letter + table[column].astype(str)
    path.parent.mkdir()
    table.to_csv(path, sep="\t", index=False)


def load_in_child(system: str, folder: str) -> dict[str, Any]:
    """What ``child`` prints in a process of its own, which starts without any of this one's memory.

    Raises:
        subprocess.CalledProcessError: if the process fails.
    """
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--child", system]
    child = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def child(system: str) -> None:
    """Load the data set in the working directory and print the figures; imports are not timed."""
    sys.argv = sys.argv[:1]  # RecBole's Config reads it
    settings = {
        "data_path": str(Path.cwd()),
        "checkpoint_dir": str(Path.cwd()),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 50,
        "train_neg_sample_args": None,
    }
    if system == "ours":
        from recbole_jepa4rec.config.config import Config
        from recbole_jepa4rec.data.dataset import SequentialTextDataset

        create_dataset = SequentialTextDataset
    else:
        from recbole.config import Config
        from recbole.data import create_dataset
    begun = time.perf_counter()
    train, _, _ = create_dataset(Config("SASRec", NAME, config_dict=settings)).build()
    seconds = time.perf_counter() - begun
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    print(
        json.dumps({"seconds": seconds, "peak GiB": int(peak[1]) / 2**20, "train rows": len(train)})
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main()

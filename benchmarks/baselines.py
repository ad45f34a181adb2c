"""Processor seconds of an epoch, and memory, of RecBole's models: in its own loop and here.

    python benchmarks/baselines.py [--data FOLDER ...] [--models SASRec-CE ...] [--json PATH]

Both train the same model with the same settings on the same number of targets a step; in every
round each does ``--steps`` steps of a shuffled epoch, in turn, with one thread. An epoch is as many
times that as it has steps. Memory is what the steps hold beyond the model. By default all four data
sets are measured, as far as they lie in ``dataset/``; ``ratio`` has the geometric mean over them.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from measure import arguments, interleaved, peak_memory_mib, report
from recbole.utils import get_trainer, init_seed

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.model.recbole_models import SharedPass, sparing
from recbole_jepa4rec.runner.single_run import loaders
from recbole_jepa4rec.training.pretrained_chain import BYTES_PER_ATTRIBUTE
from recbole_jepa4rec.training.shared_pass import PrefixBatches

DATA = ("amazon-scientific", "amazon-beauty", "amazon-toys", "ml-100k")
MODELS = ("SASRec-CE", "SASRec-BPR", "GRU4Rec", "FDSA", "BERT4Rec", "S3Rec")
SYSTEMS = ("RecBole", "ours")


class FirstBatches:
    """A loader that gives so many batches of a new epoch; its other attributes shine through."""

    def __init__(self, loader: Any, count: int) -> None:
        self._loader, self._count = loader, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._loader), self._count)


def main() -> None:
    """Measure every model on every data set."""
    parser = arguments(__doc__.splitlines()[0])
    there = [
        Path("dataset", name) for name in DATA if name == "ml-100k" or is_data("dataset", name)
    ]
    parser.add_argument("--data", type=Path, nargs="+", default=there, help="folders of data sets")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"(default {' '.join(MODELS)})")
    parser.add_argument("--steps", type=int, default=3, help="of a round (default 3)")
    parser.set_defaults(repeats=3, device="cpu")
    options = parser.parse_args()
    rows, ratios = [], {}
    for folder, model in itertools.product(options.data, options.models):
        two = measured(folder, model, options.steps, options.repeats, options.device)
        rows += two
        theirs, ours = two
        found = ratios.setdefault(model.removesuffix("-CE"), ([], []))
        found[0].append(theirs["seconds an epoch"] / ours["seconds an epoch"])
        found[1].append(ours["peak MiB"] / theirs["peak MiB"])
        print(f"{folder.name} {model}: {found[0][-1]:.1f} times, {found[1][-1]:.2f} of the memory")
    ratio = {}
    for name, (speeds, memories) in ratios.items():
        ratio[name] = statistics.geometric_mean(speeds)
        ratio[f"{name} memory"] = statistics.geometric_mean(memories)
    report(options, rows, ratio, peak={})


def is_data(path: str, name: str) -> bool:
    """Whether a folder holds a data set."""
    return Path(path, name, f"{name}.inter").is_file()


def measured(
    folder: Path, entry: str, steps: int, repeats: int, device: str
) -> list[dict[str, Any]]:
    """The rows of RecBole's loop and of ours."""
    settings: dict[str, Any] = {
        "data_path": str(folder.parent),
        "use_gpu": device != "cpu",
        "show_progress": False,
        "train_stage": "pretrain" if entry == "S3Rec" else None,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    config = Config(entry, folder.name, config_dict=given)
    data = find_dataset(config.model_class)(config)
    if entry == "S3Rec":  # as many rows as a run takes
        row = BYTES_PER_ATTRIBUTE * config["MAX_ITEM_LIST_LENGTH"]
        rows = int(config["pretrain_memory_mib"] * 2**20 / row / data.num(config["item_attribute"]))
        batch = max(1, min(rows, config["pretrain_batch_size"]))
        config = config.with_settings({"train_batch_size": batch})
    config, train, _, _ = loaders(config, data)
    of_epoch = len(train)
    count = min(steps, of_epoch)
    runs = {system: steps_of(system, config, train, count) for system in SYSTEMS}
    seconds = interleaved(runs, repeats, device, clock=time.process_time)
    return [
        {
            "data": folder.name,
            "model": entry,
            "loop": system,
            "seconds an epoch": seconds[system] * of_epoch / count,
            "peak MiB": peak_memory_mib(runs[system], device),
            "targets": len(train._dataset.inter_feat),
        }
        for system in SYSTEMS
    ]


def steps_of(system: str, config: Config, loader: Any, count: int) -> Callable[[], Any]:
    """What does so many training steps with a model of its own."""
    init_seed(config["seed"], config["reproducibility"])
    model_class, loss = config.model_class, None
    if system == "ours":
        targets, stage = config["training_targets"] or "rows", config["train_stage"]
        model_class = sparing(model_class, targets, config["loss_type"], stage)
    model = model_class(config, loader._dataset).to(config["device"])
    if isinstance(model, SharedPass):
        loader, loss = PrefixBatches(loader, model.device), model.loss_of_prefixes
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    torch.autograd.set_detect_anomaly(False)  # RecBole's sine.py turns it on for every model
    return lambda: trainer._train_epoch(FirstBatches(loader, count), 0, loss)


if __name__ == "__main__":
    main()

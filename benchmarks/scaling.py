"""How cost grows with sequence length, catalogue and users: seconds, memory, fitted exponents.

    python benchmarks/scaling.py [--json PATH]

- tokens: forward and backward pass of a small encoder (2 layers, 128 wide, window 64) over 16 real
  histories cut to so many tokens each.
- catalogue: the item table of that encoder, and a finetuning step with a softmax over all of it, 64
  histories, the table made before. Items past the real ones are made up (``corpus.enlarged``).
- users: ranking the test item of every user through the runner's trainer and loader, with the
  default model on 1,000 real items, the item table made before.

An exponent is the slope of log seconds over log size, by least squares: 1 is linear growth, 0 none.
``memory_users`` is the peak memory with the last of ``--users`` over that with the first. Peak MiB
is the most memory held beyond what was there before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from corpus import (
    MAX_ITEMS,
    SEED,
    Corpus,
    add_data_option,
    joint_model,
    small_encoder,
)
from measure import (
    arguments,
    exponent,
    interleaved,
    matmul_peak,
    matmuls,
    peak_memory_mib,
    report,
)
from recbole.data.utils import create_samplers, get_dataloader
from torch import Tensor

from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset, find_trainer
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.encoder import SentenceEncoder
from recbole_jepa4rec.model.jepa import JointEmbeddingModel
from recbole_jepa4rec.text.token_batch import TokenBatch

SEQUENCES, STEP_HISTORIES, STEP_ITEMS = 16, 64, 5
SHOP_ITEMS, USER_ITEMS = 1000, 10

Runs = dict[str, Callable[[], Any]]


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    add_data_option(parser)
    for name, sizes in (
        ("tokens", [64, 128, 256, 512, 1024]),
        ("catalogue", [1000, 2000, 4000, 8000]),
        ("users", [1000, 2000, 4000, 8000]),
    ):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=sizes, help=f"{sizes}")
    options = parser.parse_args()
    device, corpus = options.device, Corpus.load(options.data)
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, tuple[Sequence[int], Runs]] = {
            "tokens": (options.tokens, token_runs(corpus, options.tokens, device)),
            **catalogue_runs(corpus, options.catalogue, device),
            "users": (options.users, user_runs(corpus, options.users, Path(folder), device)),
        }
        runs = {name: run for _, part in parts.values() for name, run in part.items()}
        seconds = interleaved(runs | matmuls(device), options.repeats, device)
        peaks = {name: peak_memory_mib(run, device) for name, run in runs.items()}
    rows = [
        {"of": of, "size": size, "seconds": seconds[name], "peak MiB": peaks[name]}
        for of, (sizes, part) in parts.items()
        for size, name in zip(sizes, part, strict=True)
    ]
    ratio = {
        f"exponent_{of}": exponent(sizes, [seconds[name] for name in part])
        for of, (sizes, part) in parts.items()
    }
    of_users = [peaks[name] for name in parts["users"][1]]
    ratio["memory_users"] = of_users[-1] / of_users[0]
    report(options, rows, ratio, matmul_peak(seconds))


def token_runs(corpus: Corpus, lengths: Sequence[int], device: str) -> Runs:
    """A forward and backward pass at each number of tokens a sequence."""
    encoder = small_encoder(corpus.sentences.vocab_size).to(device)
    items = random_items(corpus.sentences.num_items, SEQUENCES * MAX_ITEMS)
    of_each = torch.full((SEQUENCES,), MAX_ITEMS)
    runs: Runs = {}
    for length in lengths:
        batch = corpus.sentences.histories(items, of_each, length)
        if int(batch.lengths.min()) < length:
            raise SystemExit(f"{MAX_ITEMS} items have fewer than {length} tokens")
        runs[f"{length} tokens"] = partial(both_passes, encoder, batch)
    return runs


def both_passes(encoder: SentenceEncoder, batch: TokenBatch) -> None:
    """A forward and a backward pass."""
    encoder.zero_grad()
    encoder(batch).sum().backward()


def catalogue_runs(
    corpus: Corpus, sizes: Sequence[int], device: str
) -> dict[str, tuple[Sequence[int], Runs]]:
    """The item table and a finetuning step at each number of items."""
    items = random_items(min(sizes) + 1, STEP_HISTORIES * STEP_ITEMS)
    lengths, users = torch.full((STEP_HISTORIES,), STEP_ITEMS), torch.arange(STEP_HISTORIES)
    histories = PackedHistories(items, lengths, users, items[:STEP_HISTORIES])
    tables: Runs = {}
    steps: Runs = {}
    for size in sizes:
        sentences = corpus.catalogue(size)
        model = joint_model(sentences, small_encoder(sentences.vocab_size)).to(device)
        tables[f"table of {size} items"] = partial(make_table, model)
        steps[f"softmax over {size} items"] = partial(finetuning_step, model, histories)
    return {"catalogue": (sizes, tables), "softmax": (sizes, steps)}


def make_table(model: JointEmbeddingModel) -> None:
    """Encode the whole catalogue."""
    model.item_table.is_old = True
    model.item_vectors()


def finetuning_step(model: JointEmbeddingModel, histories: PackedHistories) -> None:
    """L_FT against the table as it is, and its gradient."""
    model.zero_grad()
    losses = model.finetune_losses(histories, histories.users, derive(SEED, 0))
    losses["finetune"].backward()


def user_runs(corpus: Corpus, counts: Sequence[int], folder: Path, device: str) -> Runs:
    """The evaluation of so many users, in a shop of real items and random purchases."""
    runs: Runs = {}
    for count in counts:
        write_shop(corpus, count, folder / f"shop{count}")
        runs[f"{count} users"] = evaluation(f"shop{count}", folder, device)
    return runs


def write_shop(corpus: Corpus, users: int, folder: Path) -> None:
    """Atomic files of a data set in which every user bought ten random items."""
    folder.mkdir()
    bought = random_items(SHOP_ITEMS + 1, users * USER_ITEMS).view(users, USER_ITEMS).tolist()
    lines = [
        f"{user}\t{item}\t{time}"
        for user, items in enumerate(bought)
        for time, item in enumerate(items)
    ]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / f"{folder.name}.inter").write_text("\n".join([header, *lines]))
    text = corpus.item_text.iloc[1 : SHOP_ITEMS + 1].reset_index(drop=True)
    text.insert(0, "item_id:token", range(1, len(text) + 1))
    text = text.rename(columns={name: f"{name}:token_seq" for name in corpus.item_text})
    rows = ["\t".join(map(str, row)) for row in [text.columns, *text.to_numpy()]]
    (folder / f"{folder.name}.item").write_text("\n".join(rows))


def evaluation(dataset: str, folder: Path, device: str) -> Callable[[], Any]:
    """What ranks every user's test item."""
    settings = {
        "data_path": str(folder),
        "run_dir": str(folder),
        "cache_dir": str(folder),
        "checkpoint_dir": str(folder),
        "use_gpu": device.startswith("cuda"),
        "show_progress": False,
    }
    config = Config("JEPA4Rec", dataset, config_dict=settings)
    data = find_dataset(config.model_class)(config)
    parts = data.build()
    sampler = create_samplers(config, data, parts)[2]
    test = get_dataloader(config, "test")(config, parts[2], sampler, shuffle=False)
    model = config.model_class(config, parts[0]).to(config["device"])
    trainer = find_trainer(config.model_class, config)(config, model)
    return lambda: trainer.rank_targets(test)


def random_items(num_items: int, count: int) -> Tensor:
    """Item ids below ``num_items``, drawn uniformly, always the same ones, ``[count]``."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(1, num_items, (count,), generator=generator)


if __name__ == "__main__":
    main()

"""Run folders written by hand, so that what a comparison says of them is known."""

import json

import pandas as pd
import yaml

from recbole_jepa4rec.evaluation.metrics import mean_metrics
from recbole_jepa4rec.study.comparison import Row
from recbole_jepa4rec.study.finished_run import read_run

PROTOCOL = {
    "split": {"LS": "valid_and_test"},
    "order": "TO",
    "group_by": "user",
    "mode": {"valid": "full", "test": "full"},
    "filter_history": False,
    "candidates": "all items",
    "ties": "mean rank",
    "users": "at least 3 interactions",
}
SETTINGS = {"metrics": ["Recall", "NDCG"], "topk": [10], "valid_metric": "NDCG@10"}


def write_run(folder, ranks, *, label="Model", seed=1, valid=0.5, users=None, **changes):
    """A finished run whose users have these ranks.

    Args:
        folder: where to write.
        ranks: of the users' targets.
        label: of the row.
        seed: of the run.
        valid: every metric on validation.
        users: names; ``u0``, ``u1`` ... by default. Their targets are ``i0``, ``i1`` ...
        changes: fields of ``result.json``, ``settings``, ``counts`` (of targets in training) and
            ``lists`` (metrics of what is recommended, in the validation too).
    """
    folder.mkdir(parents=True)
    settings = {**SETTINGS, "model": label, "seed": seed, **changes.pop("settings", {})}
    counts = changes.pop("counts", [9] * len(ranks))
    lists = changes.pop("lists", {})
    test = {**mean_metrics(ranks, settings["metrics"], settings["topk"]), **lists}
    result = {
        "label": label,
        "model": label,
        "dataset": "toy",
        "seed": seed,
        "stage": "finetune",
        "status": "finished",
        "protocol": PROTOCOL,
        "data_fingerprint": "0123456789abcdef",
        "text_fingerprint": None,
        "checkpoint_from": None,
        "pretrain_datasets": [],
        "statistics": {
            "users": len(ranks),
            "items": 100,
            "interactions": 1000,
            "average_length": 1000 / len(ranks),
            "density": 10 / len(ranks),
        },
        "epochs": 2,
        "best_epoch": 1,
        "valid": {**dict.fromkeys(test, valid), **lists},
        "test": test,
        "seconds": {"load": 1, "pretrain": 2, "finetune": 3, "evaluate": 4, "total": 10},
        "tokens_per_second": None,
        "peak_memory_gib": 0.5,
        "parameters": 1000,
        "hardware": {"device": "cpu"},
        "versions": {"torch": "2"},
        "learning_curve": [
            {"stage": "finetune", "epoch": e, "seconds": e + 1.5, "valid": valid * e}
            for e in (0, 1)
        ],
        "starts": 1,
        "command": "python run_recbole.py",
        **changes,
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    pd.DataFrame(
        {
            "user_id": users or [f"u{i}" for i in range(len(ranks))],
            "target_item": [f"i{i}" for i in range(len(ranks))],
            "history_length": 5,
            "rank": [float(rank) for rank in ranks],
            "target_train_count": counts,
        }
    ).to_parquet(folder / "per_user.parquet")
    return read_run(folder)


def row(folder, entry, *ranks_of_seeds, errors=(), **options):
    """A row whose runs, with seeds 1, 2 ..., have these ranks; ``errors`` of the seeds after."""
    runs = {
        seed: write_run(folder / entry / f"seed-{seed}", ranks, seed=seed, **options)
        for seed, ranks in enumerate(ranks_of_seeds, start=1)
    }
    failed = dict(enumerate(errors, start=len(runs) + 1))
    return Row(entry, [*runs, *failed], runs, failed)

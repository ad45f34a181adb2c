"""Users a second whose target is ranked among all items, here and by RecBole's collector.

    python benchmarks/ranking.py [--users 100000] [--items 100000] [--json PATH]

Scores are products of user and item vectors, made a batch at a time within the default
``score_memory_mib``; both ways pay for them, and "scores alone" says how much that is. RecBole
sorts every row for ``rec.meanrank`` and marks the targets in whole matrices for ``rec.topk``; being
slower it ranks one batch of the same users. Its ranks of some users are compared with ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from measure import arguments, interleaved, matmul_peak, matmuls, peak_memory_mib, report
from recbole.evaluator.collector import Collector
from torch import Tensor

from recbole_jepa4rec.evaluation.metrics import target_ranks
from recbole_jepa4rec.runner.single_run import SCORE_BYTES

HIDDEN_SIZE = 64
SCORE_MEMORY_MIB = 256
EVAL_BATCH_SIZE = 256
COMPARED_USERS = 32

Rank = Callable[[Tensor, Tensor], Tensor]
"""From scores ``[B, N]`` and target items ``[B]`` to ranks ``[B]``."""


@dataclass(frozen=True)
class Vectors:
    """What is scored.

    Attributes:
        users: ``[U, D]``.
        items: ``[N, D]``; row 0 is the padding item.
        target: internal item id that each user took, ``[U]``.
    """

    users: Tensor
    items: Tensor
    target: Tensor

    @classmethod
    def random(cls, users: int, items: int, device: str) -> Vectors:
        """Normal vectors; every item is as likely to be a target."""
        vectors = (torch.randn(count, HIDDEN_SIZE, device=device) for count in (users, items))
        return cls(*vectors, torch.randint(1, items, (users,), device=device))

    def scores(self, rows: slice) -> Tensor:
        """Scores ``[B, N]`` as RecBole's trainer hands them on."""
        scores = self.users[rows] @ self.items.T
        scores[:, 0] = -torch.inf
        return scores


def main() -> None:
    """Measure the memory of each way, compare the ranks of some users, time the ways in turn."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000, help="(default 100000)")
    parser.add_argument("--items", type=int, default=100_000, help="(default 100000)")
    options = parser.parse_args()
    torch.manual_seed(0)
    vectors = Vectors.random(options.users, options.items, options.device)
    limit = SCORE_MEMORY_MIB * 2**20 // (SCORE_BYTES * options.items)
    batch = max(1, min(EVAL_BATCH_SIZE, limit))
    by_sorting = recbole_ranks(options.device)
    ways: dict[str, Rank] = {
        "ours": target_ranks,
        "scores alone": lambda _, target: target,
        "RecBole": by_sorting,
    }
    users = dict.fromkeys(ways, options.users) | {"RecBole": min(batch, options.users)}
    runs = {way: partial(rank_users, vectors, users[way], batch, ways[way]) for way in ways}
    memory = {way: peak_memory_mib(run, options.device) for way, run in runs.items()}
    compare(vectors, by_sorting)
    timed = {**runs, **matmuls(options.device)}
    seconds = interleaved(timed, options.repeats, options.device, warm_up=False)
    rows = [
        {
            "way": way,
            "users": users[way],
            "items": options.items,
            "users/s": users[way] / seconds[way],
            "peak MiB": memory[way],
        }
        for way in ways
    ]
    ours, _, recbole = rows
    ratio = {
        "users_per_second": ours["users/s"] / recbole["users/s"],
        "memory": ours["peak MiB"] / recbole["peak MiB"],
    }
    peak = matmul_peak(seconds)
    flops = 2 * HIDDEN_SIZE * options.items * ours["users/s"]
    report(options, rows, ratio, peak, flops / peak["fp32"])


def rank_users(vectors: Vectors, users: int, batch: int, rank: Rank) -> Tensor:
    """Ranks of the first users, ``[users]`` on the CPU, a batch at a time."""
    parts = [slice(i, min(i + batch, users)) for i in range(0, users, batch)]
    ranks = [rank(vectors.scores(rows), vectors.target[rows]) for rows in parts]
    return torch.cat(ranks).cpu()


def recbole_ranks(device: str) -> Rank:
    """Ranks by RecBole's collector of what metrics on the top k and on the whole ranking need."""
    collector = Collector(
        {
            "metrics": ["Recall", "NDCG", "MRR", "GAUC"],
            "topk": [10],
            "eval_args": {"mode": {"valid": "full", "test": "full"}},
            "device": torch.device(device),
        }
    )

    def rank(scores: Tensor, target: Tensor) -> Tensor:
        rows = torch.arange(len(target), device=target.device)
        collector.eval_batch_collect(scores, None, rows, target)
        return collector.get_data_struct().get("rec.meanrank")[:, 0].double()

    return rank


def compare(vectors: Vectors, by_sorting: Rank) -> None:
    """Rank some users both ways.

    Raises:
        RuntimeError: if a rank differs.
    """
    count = min(COMPARED_USERS, len(vectors.users))
    ours, theirs = (rank_users(vectors, count, count, way) for way in (target_ranks, by_sorting))
    if not torch.equal(ours, theirs):
        raise RuntimeError(f"{int((ours != theirs).sum())} of {count} ranks differ from RecBole's")


if __name__ == "__main__":
    main()

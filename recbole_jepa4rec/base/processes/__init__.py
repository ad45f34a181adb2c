"""Several processes of one run: what they exchange, and how they start and end together."""

from recbole_jepa4rec.base.processes.collectives import (
    LostProcessError,
    all_gather,
    all_reduce,
    all_reduce_gradients,
    any_rank,
    barrier,
    broadcast,
    is_main,
    main_first,
    rank,
    refuse_difference,
    shard,
    shard_of_mean,
    shard_weight,
    world_size,
)
from recbole_jepa4rec.base.processes.launcher import launch
from recbole_jepa4rec.base.processes.membership import is_alone_or_main, is_launched, joined

__all__ = [
    "LostProcessError",
    "all_gather",
    "all_reduce",
    "all_reduce_gradients",
    "any_rank",
    "barrier",
    "broadcast",
    "is_alone_or_main",
    "is_launched",
    "is_main",
    "joined",
    "launch",
    "main_first",
    "rank",
    "refuse_difference",
    "shard",
    "shard_of_mean",
    "shard_weight",
    "world_size",
]

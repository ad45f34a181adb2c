"""Several processes of one run: what they exchange, and how they start and end together."""

from recbole_jepa4rec.base.processes.collectives import (
    LostProcessError,
    add_up,
    any_of,
    count,
    first_goes_first,
    gather,
    is_first,
    number,
    own,
    part,
    refuse_difference,
    share,
    sum_gradients,
    tell,
    wait,
)
from recbole_jepa4rec.base.processes.launcher import launch
from recbole_jepa4rec.base.processes.membership import is_alone_or_first, is_placed, joined

__all__ = [
    "LostProcessError",
    "add_up",
    "any_of",
    "count",
    "first_goes_first",
    "gather",
    "is_alone_or_first",
    "is_first",
    "is_placed",
    "joined",
    "launch",
    "number",
    "own",
    "part",
    "refuse_difference",
    "share",
    "sum_gradients",
    "tell",
    "wait",
]

"""Settings that validation chooses, for models that leave some open and train nothing."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.evaluation.metrics import target_ranks
from recbole_jepa4rec.evaluation.ranking import drop_history
from recbole_jepa4rec.model.base import Model

SCORES_AT_ONCE = 2**22
"""Of one choice, so that a model may hold several terms of them."""

SCORES_IN_ALL = 2**28
"""Of one choice; more users than these stand for are a sample, of ``USERS_AT_LEAST`` or more."""

USERS_AT_LEAST = 1000


@torch.no_grad()
def choose_on_validation(
    model: Model,
    rows: HistoryRows,
    max_items: int,
    filter_history: bool,
    value_of: Callable[[Tensor], float],
) -> None:
    """Have a model take the best of its choices; of equally good ones the first.

    Of a large data set it ranks a sample of the users, always the same.

    Args:
        model: that has choices.
        rows: of validation.
        max_items: longest history.
        filter_history: whether items of the history leave the ranking.
        value_of: the metric that chooses, of ranks ``[R]``; more is better.
    """
    rows = rows.with_targets(rows.target[_sample(rows.user_id, model.n_items)])
    ranks = torch.zeros(len(model.choices), len(rows), dtype=torch.float64)
    size = max(1, SCORES_AT_ONCE // model.n_items)
    for number, row in enumerate(torch.arange(len(rows)).split(size)):
        if number % processes.world_size() != processes.rank():
            continue
        histories = rows.histories.packed(rows.target[row], max_items).to(model.device)
        batch = slice(int(row[0]), int(row[-1]) + 1)
        for choice, scores in enumerate(model.scores_of_choices(histories)):
            scores[:, 0] = -torch.inf
            if filter_history:
                drop_history(scores, histories.targets, rows, batch)
            ranks[choice, row] = target_ranks(scores, histories.targets)
    ranks = processes.all_reduce(ranks)
    values = [value_of(of_choice) for of_choice in ranks]
    best = max(range(len(values)), key=values.__getitem__)
    model.choose(best)
    getLogger().info(
        f"{len(rows)} validated users chose {model.label} among {len(values)}: {values[best]:.4f}"
    )


def _sample(users: Tensor, num_items: int) -> Tensor:
    """Which rows are ranked, ascending, ``[R]``."""
    most = max(USERS_AT_LEAST, SCORES_IN_ALL // num_items)
    order = uniform(derive(0, users, Draw.CHOICE)).argsort()
    return order[:most].sort().values

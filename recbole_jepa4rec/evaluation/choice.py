"""Settings that validation chooses, for models that leave some open."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.data.histories import HistoryRows
from recbole_jepa4rec.evaluation.metrics import numbers_alone, target_ranks
from recbole_jepa4rec.evaluation.ranking import history_places
from recbole_jepa4rec.model.base import Model

SCORES_AT_ONCE = 2**22
"""Of one choice, so that a model may hold several terms of them."""

USERS_AT_LEAST = 1000
"""In a sample of the users."""


@torch.no_grad()
def choose_on_validation(
    model: Model,
    rows: HistoryRows,
    max_items: int,
    filter_history: bool,
    scores_in_all: int,
    value_of: Callable[[Tensor], float],
) -> str:
    """Have a model take the best of its choices; of equally good ones the first. A collective.

    Of a large data set it ranks a sample of the users, always the same.

    Args:
        model: that has choices, in the mode in which it ranks.
        rows: of validation.
        max_items: longest history.
        filter_history: whether items of the history leave the ranking.
        scores_in_all: of one choice; more users than these stand for are a sample.
        value_of: the metric that chooses, of ranks ``[R]``; more is better.

    Returns:
        What was chosen, in words.
    """
    rows = of_some_users(rows, max(USERS_AT_LEAST, scores_in_all // model.n_items))
    if model.has_item_vectors:
        model.item_vectors()  # together, before each process ranks users of its own
    ranks = torch.zeros(len(model.choices), len(rows), dtype=torch.float64)
    size = max(1, SCORES_AT_ONCE // model.n_items)
    for number, row in enumerate(torch.arange(len(rows)).split(size)):
        if number % processes.world_size() != processes.rank():
            continue
        histories = rows.histories.packed(rows.target[row], max_items, model.reads_whole_history)
        batch = slice(int(row[0]), int(row[-1]) + 1)
        had = history_places(rows, batch) if filter_history else ()
        target, had = sent((histories.targets, had), model.device)
        of_choices = []
        for scores in model.scores_of_choices(histories):
            scores[:, 0] = -torch.inf
            if filter_history:
                scores[had] = -torch.inf
            of_choices.append(target_ranks(scores, target))
        ranks[:, row] = torch.stack(of_choices).cpu()
    ranks = numbers_alone(processes.all_reduce(ranks).flatten()).view_as(ranks)
    values = [value_of(of_choice) for of_choice in ranks]
    best = max(range(len(values)), key=values.__getitem__)
    model.choose(best)
    return f"{len(rows)} users chose {model.choices[best]} of {len(values)}: {values[best]:.4f}"


def of_some_users(rows: HistoryRows, most: int) -> HistoryRows:
    """Rows of at most so many users, in their order."""
    return rows.with_targets(rows.target[sample_of(rows.user_id, most)])


def sample_of(users: Tensor, most: int) -> Tensor:
    """Which of the users are ranked, ascending, at most so many; always the same ones."""
    order = uniform(derive(0, users, Draw.CHOICE)).argsort(stable=True)
    return order[:most].sort().values

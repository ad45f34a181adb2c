"""A trained model at work: top-k items for histories of item ids or raw text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recbole.data.interaction import Interaction

from recbole_jepa4rec.checkpoint import WEIGHTS_NAME, load_weights
from recbole_jepa4rec.config import Config
from recbole_jepa4rec.registry import did_you_mean, find_dataset

Item = str | Mapping[str, str]
"""An item id, or the attributes of an item that has none: ``{"title": ...}``."""


def load(run_dir: str | Path, **settings: Any) -> Recommender:
    """The recommender that a run left behind.

    Args:
        run_dir: folder with ``config.yaml`` and ``model.safetensors``; its data set must still be
            where it was, or where ``data_path`` says.
        **settings: keys that differ on this machine, such as ``data_path`` or ``use_gpu``.

    Raises:
        ValueError: if the folder is no run's, or the weights do not fit the data set.
    """
    folder = Path(run_dir)
    for name in ("config.yaml", WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no run folder: it has no {name}")
    config = Config(
        config_file_list=[folder / "config.yaml"],
        config_dict={"checkpoint": str(folder), "encoder_checkpoint": None, **settings},
    )
    dataset = find_dataset(config.model_class)(config)
    train = dataset.build()[0]
    model = config.model_class(config, train).to(config["device"])
    load_weights(model, folder / WEIGHTS_NAME)
    return Recommender(model, train)


class Recommender:
    """Ranks a catalogue for histories.

    Args:
        model: a trained sequential model.
        dataset: the data set that names its items.
    """

    def __init__(self, model: Any, dataset: Any) -> None:
        self.model = model.eval()
        self.fields = model.ITEM_SEQ, model.ITEM_SEQ_LEN, model.USER_ID
        self.max_length = model.max_seq_length
        ids = dataset.field2id_token[dataset.iid_field]
        self.item_ids: list[str | None] = [None, *map(str, ids[1:])]  # None: never recommended
        self.row_of_id = {item: row for row, item in enumerate(self.item_ids) if item is not None}
        self.row_of_text: dict[tuple[tuple[str, str], ...], int] = {}
        self.item_text = dataset.item_text.copy() if self.reads_text else None

    @property
    def reads_text(self) -> bool:
        """Whether the model knows items by their text, so that new ones can be added."""
        return hasattr(self.model, "add_items")

    def recommend(
        self, histories: Sequence[Sequence[Item]], k: int = 10, filter_history: bool = False
    ) -> pd.DataFrame:
        """The ``k`` best items for each history.

        Args:
            histories: items of each user, oldest first: ids, or the attributes of items that are
                not in the catalogue; those are understood but never recommended.
            k: items to return, at least 1; fewer where the catalogue is smaller.
            filter_history: whether items of the history are left out.

        Returns:
            Columns ``history`` (its number), ``rank`` (from 1), ``item_id``, ``score``, and the
            item's attributes where the model reads text.

        Raises:
            ValueError: for an unknown item id or attribute, raw text for a model that does not
                read text, or a ``k`` below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}; allowed: at least 1")
        rows = [[self._row(item) for item in history] for history in histories]
        scores = self._scores(rows)
        scores[:, [row for row, item in enumerate(self.item_ids) if item is None]] = -torch.inf
        if filter_history:
            for row, history in enumerate(rows):
                scores[row, history] = -torch.inf
        best, items = scores.topk(min(k, scores.shape[1]), dim=1)
        number, place = (best > -torch.inf).nonzero(as_tuple=True)
        chosen = items[number, place].tolist()
        found = pd.DataFrame(
            {
                "history": number.numpy(),
                "rank": place.numpy() + 1,
                "item_id": [self.item_ids[row] for row in chosen],
                "score": best[number, place].numpy(),
            }
        )
        if self.item_text is None:
            return found
        return pd.concat([found, self.item_text.iloc[chosen].reset_index(drop=True)], axis=1)

    def add_items(self, items: Mapping[str, Mapping[str, str]]) -> None:
        """Make new items known; they are ranked at once, without training.

        Args:
            items: attributes of each new item id; an attribute may be missing.

        Raises:
            ValueError: if an id is in the catalogue already, an attribute is unknown, or the
                model does not read text.
        """
        for item in items:
            if item in self.row_of_id:
                raise ValueError(f"item {item!r} is in the catalogue already")
        rows = self._append(list(items.values()))
        self.item_ids.extend(items)
        self.row_of_id.update(zip(items, rows, strict=True))

    def _row(self, item: Item) -> int:
        """Internal id of an item; one given by its text joins the model's store unnamed."""
        if isinstance(item, str):
            if item not in self.row_of_id:
                raise ValueError(f"unknown item {item!r}{did_you_mean(item, self.row_of_id)}")
            return self.row_of_id[item]
        key = tuple(sorted(item.items()))
        if key not in self.row_of_text:
            self.row_of_text[key] = self._append([item])[0]
            self.item_ids.append(None)
        return self.row_of_text[key]

    def _append(self, attributes: list[Mapping[str, str]]) -> list[int]:
        """Give the model items by their text; returns their internal ids."""
        if self.item_text is None:
            raise ValueError(
                f"{type(self.model).__name__} does not read text: it knows the items of its "
                "training data alone"
            )
        text = pd.DataFrame(attributes, dtype=object).fillna("").astype(str)
        text = text.map(lambda value: " ".join(value.split()))
        rows = self.model.add_items(text)
        known = text.reindex(columns=self.item_text.columns, fill_value="")
        self.item_text = pd.concat([self.item_text, known], ignore_index=True)
        return rows.tolist()

    @torch.no_grad()
    def _scores(self, rows: list[list[int]]) -> torch.Tensor:
        """Scores of all items for histories of internal ids, ``[B, N]`` on the CPU."""
        recent = [history[-self.max_length :] for history in rows]
        item_seq = torch.zeros(len(rows), self.max_length, dtype=torch.int64)
        for number, history in enumerate(recent):
            item_seq[number, : len(history)] = torch.tensor(history, dtype=torch.int64)
        lengths = torch.tensor([len(history) for history in recent])
        values = item_seq, lengths, torch.zeros(len(rows), dtype=torch.int64)
        interaction = Interaction(dict(zip(self.fields, values, strict=True)))
        scores = self.model.full_sort_predict(interaction.to(self.model.device))
        return scores.reshape(len(rows), -1).float().cpu()

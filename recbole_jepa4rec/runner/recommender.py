"""A trained model at work: top-k items for histories of item ids or raw text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from recbole_jepa4rec.base.command import did_you_mean
from recbole_jepa4rec.base.device import autocast
from recbole_jepa4rec.data.histories import Histories, PackedHistories
from recbole_jepa4rec.model.base import Model, offered_by
from recbole_jepa4rec.model.rollout import PROJECTIONS
from recbole_jepa4rec.runner.retriever import load_model

Item = str | Mapping[str, str]
"""An item id, or the attributes of an item that has none: ``{"title": ...}``."""


def load(run_dir: str | Path, model: type | None = None, **settings: Any) -> Recommender:
    """The recommender that a run left behind.

    Args:
        run_dir: folder with ``config.yaml`` and ``model.safetensors``; its data set must still be
            where it was, or where ``data_path`` says.
        model: its class, where that is your own.
        **settings: keys that differ on this machine, such as ``data_path`` or ``use_gpu``.

    Raises:
        ValueError: if the folder is no run's, or the weights do not fit the data set.
    """
    return Recommender(*load_model(Path(run_dir), model, **settings))


class Recommender:
    """Ranks a catalogue for histories.

    Args:
        model: a trained sequential model.
        dataset: the data set that names its items and users.

    Attributes:
        item_ids: of the catalogue, by internal id; the first is padding.
        item_text: attributes of every item, in the same order; ``None`` where none are read.
    """

    def __init__(self, model: Any, dataset: Any) -> None:
        self.model = model.eval()
        self.offer = offered_by(model, type(model).__name__)
        self.max_length = model.max_seq_length
        self.item_ids = [str(item) for item in dataset.field2id_token[dataset.iid_field]]
        self.row_of_id = {item: row for row, item in enumerate(self.item_ids) if row}
        self.histories: Histories = dataset.histories
        users = (str(user) for user in dataset.field2id_token[dataset.uid_field])
        self.row_of_user = {user: row for row, user in enumerate(users) if row}
        self.precision = dataset.config["precision"]
        self.projection = dataset.config["rollout_projection"] or "none"
        known_by_text = self.offer.fits_any_catalogue
        self.item_text: Any = dataset.item_text.astype(object) if known_by_text else None

    def recommend(
        self,
        histories: Sequence[Sequence[Item]] | None = None,
        k: int = 10,
        filter_history: bool = False,
        *,
        users: str | Sequence[str] | None = None,
        attributes: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The ``k`` best items for each history, or for each of the users.

        Args:
            histories: items of each user, oldest first: ids, or the attributes of items that are
                not in the catalogue; those are understood but never recommended. Where all
                attributes are a known item's, it is that item.
            k: items to return, at least 1; fewer where the catalogue is smaller.
            filter_history: whether items of the history are left out.
            users: a user id, or several, instead of histories: theirs hold all that is known of
                them, the interactions included that validation and test are measured on.
            attributes: of the items, to be shown where the model reads text; by default the title,
                or the first there is.

        Returns:
            Columns ``history`` (its number) or ``user``, ``rank`` (from 1), ``item_id``, the
            attributes, ``score``.

        Raises:
            ValueError: for an unknown user, item id or attribute, an item that is neither an id nor
                attributes, raw text for a model that does not read text, an empty history for a
                model of RecBole's, or a ``k`` below 1.
        """
        if not isinstance(k, Integral) or k < 1:
            raise ValueError(f"k is {k!r}; allowed: a whole number, at least 1")
        if (histories is None) == (users is None):
            raise ValueError("recommend needs histories or users, one of the two")
        if users is not None:
            users = [users] if isinstance(users, str) else list(users)
            histories = [self.history_of(user) for user in users]
        shown = self._shown(attributes)
        known = len(self.item_ids)
        with self._read(histories or ()) as rows:
            scores = self._scores(rows)[:, :known] if rows else torch.empty(0, known)
        scores[:, 0] = -torch.inf
        if filter_history:
            for row, history in enumerate(rows):
                scores[row, [item for item in history if item < known]] = -torch.inf
        best, items = scores.topk(min(k, known), dim=1)
        number, place = (best > -torch.inf).nonzero(as_tuple=True)
        chosen = items[number, place].tolist()
        whose = {"history": number.numpy()}
        if users is not None:
            whose = {"user": [users[each] for each in number.tolist()]}
        return pd.DataFrame(
            {
                **whose,
                "rank": place.numpy() + 1,
                "item_id": [self.item_ids[row] for row in chosen],
                **{name: self.item_text[name].iloc[chosen].to_numpy() for name in shown},
                "score": best[number, place].numpy(),
            }
        )

    def rollout(
        self,
        histories: Sequence[Sequence[Item]],
        steps: int,
        projection: str | None = None,
    ) -> list[list[str]]:
        """What each history goes on with, by the model's own predictions.

        Args:
            histories: as in :meth:`recommend`.
            steps: items to predict for each, one after the other.
            projection: of what re-enters: ``"none"``, ``"nearest"`` or ``"top_k"``; ``None`` is the
                run's ``rollout_projection``, whose values these are.

        Returns:
            Ids of the items that stand first at each step, for each history.

        Raises:
            ValueError: as :meth:`recommend`; for a model without a predictor, for more steps than
                it has room for, or for another projection.
        """
        if not self.offer.rolls_out:
            name = type(self.model).__name__
            raise ValueError(f"{name} has no predictor to roll out with (JEPA4Rec has)")
        most = self.offer.most_steps
        if not isinstance(steps, Integral) or not 1 <= steps <= most:
            raise ValueError(f"steps is {steps!r}; allowed: a whole number from 1 to {most}")
        projection = self.projection if projection is None else projection
        if projection not in PROJECTIONS:
            allowed = (
                f"{did_you_mean(str(projection), PROJECTIONS)}; allowed: {', '.join(PROJECTIONS)}"
            )
            raise ValueError(f"projection is {projection!r}{allowed}")
        known = len(self.item_ids)
        with self._read(histories) as rows, torch.no_grad():
            if not rows:
                return []
            packed = PackedHistories.of_lists(rows, self.max_length)
            with autocast(self.model.device, self.precision):
                made = self.offer.rollout(packed, int(steps), projection, known)
                best = torch.stack([step.best for step in made], dim=1)
        return [[self.item_ids[row] for row in path] for path in best.tolist()]

    def history_of(self, user: str) -> list[str]:
        """Ids of a user's items, oldest first; of a split in files, those of the training part.

        Raises:
            ValueError: if there is no such user.
        """
        if user not in self.row_of_user:
            near = did_you_mean(str(user), self.row_of_user)
            raise ValueError(f"unknown user {user!r}{near}; user ids are text (a str)")
        first, end = self.histories.offsets[self.row_of_user[user] :][:2].tolist()
        return [self.item_ids[row] for row in self.histories.items[first:end].tolist()]

    def _shown(self, attributes: Sequence[str] | None) -> list[str]:
        """The attributes that a frame shows: those asked for, else the title or the first."""
        there = [] if self.item_text is None else [str(name) for name in self.item_text.columns]
        if attributes is None:
            return [name for name in there if name == "title"] or there[:1]
        for name in attributes:
            if name not in there:
                raise ValueError(f"attribute {name!r} is unknown{did_you_mean(name, there)}")
        return list(attributes)

    def add_items(self, items: Mapping[str, Mapping[str, str]]) -> None:
        """Make new items known; they are ranked at once, without training.

        Args:
            items: attributes of each new item id; an attribute may be missing.

        Raises:
            ValueError: if an id is no text or in the catalogue already, an attribute is unknown or
                no text, or the model does not read text.
        """
        if not isinstance(items, Mapping):
            raise ValueError(f"items are {items!r}; allowed: a mapping of ids to attributes")
        for item in items:
            if not isinstance(item, str):
                raise ValueError(f"item id {item!r} is no text (a str)")
            if item in self.row_of_id:
                raise ValueError(f"item {item!r} is in the catalogue already")
        text, rows = self._append(list(items.values()))
        self.item_text = pd.concat([self.item_text, text], ignore_index=True)
        self.item_ids.extend(items)
        self.row_of_id.update(zip(items, rows, strict=True))

    def update_items(self, items: Mapping[str, Mapping[str, str]]) -> None:
        """Change attributes of known items; only these items are encoded again.

        Args:
            items: the attributes that change, of each item id; the others stay.

        Raises:
            ValueError: if an item is unknown, an attribute is unknown or no text, or the model does
                not read text.
        """
        if not isinstance(items, Mapping):
            raise ValueError(f"items are {items!r}; allowed: a mapping of ids to attributes")
        rows = [self._row(item) for item in items]
        changes = self._normalised(list(items.values()))
        kept = self.item_text.iloc[rows].reset_index(drop=True)
        text = changes.combine_first(kept)
        try:
            self.offer.replace_items(torch.tensor(rows, dtype=torch.int64), text)
        except BaseException:
            self.offer.drop_items(len(self.item_ids))
            raise
        self.item_text.iloc[rows] = text[self.item_text.columns].to_numpy()

    @contextmanager
    def _read(self, histories: Sequence[Sequence[Item]]) -> Iterator[list[list[int]]]:
        """Histories of internal ids; items given by their text are known meanwhile, after all."""
        known = len(self.item_ids)
        rows, texts = self._rows(histories)
        try:
            if texts:
                self._recognise(rows, self._append(texts)[0])
            yield rows
        finally:
            if texts and self.item_text is not None:
                self.offer.drop_items(known)

    def _rows(
        self, histories: Sequence[Sequence[Item]]
    ) -> tuple[list[list[int]], list[Mapping[str, str]]]:
        """Histories of internal ids, and the items given by their text, numbered after all."""
        rows: list[list[int]] = []
        texts: list[Mapping[str, str]] = []
        for number, history in enumerate(histories):
            if isinstance(history, (str, bytes, Mapping)) or not isinstance(history, Iterable):
                raise ValueError(
                    f"history {number} is {history!r}; a history is a list of items, oldest first"
                )
            row = []
            for item in history:
                if isinstance(item, Mapping):
                    row.append(len(self.item_ids) + len(texts))
                    texts.append(item)
                else:
                    row.append(self._row(item))
            if not row and not isinstance(self.offer, Model):
                raise ValueError(
                    f"history {number} is empty; {type(self.model).__name__} needs an item at least"
                )
            rows.append(row)
        return rows, texts

    def _row(self, item: str) -> int:
        """The internal id of an item."""
        if not isinstance(item, str):
            raise ValueError(
                f"item {item!r} is neither an id, which is text ({str(item)!r}), nor attributes"
            )
        if item not in self.row_of_id:
            raise ValueError(f"unknown item {item!r}{did_you_mean(item, self.row_of_id)}")
        return self.row_of_id[item]

    def _append(self, items: list[Mapping[str, str]]) -> tuple[pd.DataFrame, list[int]]:
        """Give the model items by their text; returns the text and the items' internal ids.

        If that fails, the model is as it was.
        """
        text = self._normalised(items).fillna("")
        try:
            with autocast(self.model.device, self.precision):
                rows = self.offer.add_items(text).tolist()
        except BaseException:
            self.offer.drop_items(len(self.item_ids))
            raise
        return text.reindex(columns=self.item_text.columns, fill_value=""), rows

    def _normalised(self, items: list[Mapping[str, str]]) -> pd.DataFrame:
        """Attributes in rows, white space folded; missing where an item does not name one."""
        if self.item_text is None:
            raise ValueError(
                f"{type(self.model).__name__} does not read text: it knows the items of its "
                "training data alone"
            )
        for attributes in items:
            if not isinstance(attributes, Mapping):
                raise ValueError(f"attributes {attributes!r} are no mapping of names to text")
            for name, value in attributes.items():
                if not isinstance(value, str):
                    raise ValueError(f"attribute {name!r} is {value!r}; allowed: text (a str)")
        text = pd.DataFrame([dict(attributes) for attributes in items], dtype=object)
        for column in text.columns:
            given = text[column].notna()
            text.loc[given, column] = [" ".join(v.split()) for v in text[column][given]]
        return text

    def _recognise(self, rows: list[list[int]], texts: pd.DataFrame) -> None:
        """Let items that were given by a known item's text, ``[T]`` of them, be that item."""
        known = len(self.item_ids)
        wanted = {values for values in texts.itertuples(index=False, name=None) if any(values)}
        of_text: dict[tuple[Any, ...], int] = {}
        for row, values in enumerate(self.item_text.itertuples(index=False, name=None)):
            if values in wanted:
                of_text.setdefault(values, row)
        same = {
            known + number: of_text[values]
            for number, values in enumerate(texts.itertuples(index=False, name=None))
            if values in of_text
        }
        for history in rows:
            history[:] = [same.get(item, item) for item in history]

    @torch.no_grad()
    def _scores(self, rows: list[list[int]]) -> torch.Tensor:
        """Scores of all items for histories of internal ids, ``[B, N]`` on the CPU."""
        histories = PackedHistories.of_lists(rows, self.max_length)
        with autocast(self.model.device, self.precision):
            return self.offer.scores(histories).float().cpu()

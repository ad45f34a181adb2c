"""What a model offers to those who train, rank and keep it; who calls what, and when.

====================  =====================================================================
who                   what it calls
====================  =====================================================================
the run               ``refuse_settings`` before it trains a retriever, where ``needs_retriever``;
                      ``prepare_run_folder`` once, before training; ``label`` for its tables
validation            where there are ``choices``, ``scores_of_choices`` and then ``choose``: once,
                      before training, or in phases before each validation
training in phases    ``kept_from_start`` where it starts from a checkpoint, then for each of
                      ``phases``: ``begin_phase``, for each epoch ``begin_epoch``, for each
                      step ``begin_step`` and ``losses``; ``weights_moved`` after it
checkpoints           ``resumable_state`` between two steps, ``load_resumable_state`` in the
                      same phase
ranking               ``item_vectors`` first, in all processes together, where
                      ``has_item_vectors``; then ``scores``
rollouts              ``rollout``, of at most ``most_steps``, where ``rolls_out``
a catalogue that      ``add_items``, ``replace_items``, ``drop_items``, where
grows                 ``fits_any_catalogue``
====================  =====================================================================

A model of ours is a :class:`Model`, or a :class:`PhasedModel` where it is trained in phases. One of
RecBole's, or a user's own, is seen through :class:`RecBoleModel`; :func:`offered_by` gives either.
What a model can do is declared here and never probed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.data.histories import PackedHistories

PRETRAIN, FINETUNE, FINETUNE_FROZEN_ITEMS = "pretrain", "finetune", "finetune_frozen_items"
PERMUTATION = "permutation"
"""Names of phases."""


class RolloutStep(NamedTuple):
    """What a step of a rollout says of ``B`` histories.

    Attributes:
        cosines: with every item, padding item included, ``[B, N]``.
        scores: of every item, by which it ranks, ``[B, N]``.
        best: the item that stands first, on the CPU, ``[B]``.
    """

    cosines: Tensor
    scores: Tensor
    best: Tensor


class Offer:
    """What every model offers, with the defaults of one that has nothing of its own to say.

    Attributes:
        has_item_vectors: whether ``item_vectors`` and ``cosines`` give something, whose collapse is
            watched.
        fits_any_catalogue: whether items can be added, replaced and dropped.
    """

    has_item_vectors: ClassVar[bool] = False

    @property
    def net(self) -> nn.Module:
        """The module that holds the weights."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What tables call the model: its name, and what tells two rows of it apart."""
        raise NotImplementedError

    @property
    def fits_any_catalogue(self) -> bool:
        """Whether the model knows items by their text alone."""
        return False

    @property
    def knows_items(self) -> bool:
        """Whether the weights know items by their number, and fit one catalogue alone."""
        return not self.fits_any_catalogue

    @property
    def choices(self) -> Sequence[Any]:
        """Settings that validation chooses among; empty where all are given."""
        return ()

    def choose(self, number: int) -> None:
        """Take the setting of that number among ``choices``."""
        raise NotImplementedError(f"{self.label} has no choices")

    def scores_of_choices(self, histories: PackedHistories) -> Iterator[Tensor]:
        """Scores of all items under each of ``choices``, ``[B, N]`` each, in their order."""
        raise NotImplementedError(f"{self.label} has no choices")

    def scores(self, histories: PackedHistories) -> Tensor:
        """Scores of all items, padding item included, ``[B, N]``."""
        raise NotImplementedError

    @property
    def rolls_out(self) -> bool:
        """Whether ``rollout`` predicts the items after the next one."""
        return False

    @property
    def most_steps(self) -> int:
        """Steps of a rollout, at most."""
        return 0

    def rollout(
        self, histories: PackedHistories, steps: int, projection: str, items: int | None = None
    ) -> Iterator[RolloutStep]:
        """What each of so many steps predicts."""
        raise NotImplementedError(f"{self.label} has no predictor to roll out with")

    def prepare_run_folder(self, folder: Path) -> None:
        """Write beside the weights what is needed to load them again; the first process calls."""

    def kept_from_start(
        self, weights: Mapping[str, Tensor], same_items: bool
    ) -> tuple[str, ...] | None:
        """Names (shell patterns) of weights that a checkpoint to start from does not replace.

        Args:
            weights: what the checkpoint holds.
            same_items: whether it is for the items of this catalogue, in this order.

        Returns:
            ``None`` where all are replaced, and items must be the same if the weights know them by
            number.
        """
        return None

    def resumable_state(self) -> dict[str, Any]:
        """What training goes on from, as plain values and tensors."""
        return dict(self.net.state_dict())

    def load_resumable_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``resumable_state`` returned, in the same phase."""
        self.net.load_state_dict(state)

    def item_vectors(self) -> Tensor:
        """Vectors that the catalogue's items have, each once, ``[C, D]``; a collective."""
        raise NotImplementedError(f"{self.label} has no item vectors")

    def cosines(self, histories: PackedHistories) -> Tensor:
        """Cosine of each history with every item, padding item included, ``[B, N]``."""
        raise NotImplementedError(f"{self.label} has no item vectors")

    def add_items(self, item_text: pd.DataFrame) -> Tensor:
        """Append items, one row of attributes each; returns their internal ids.

        Raises:
            ValueError: for an unknown attribute, or where nothing makes vectors of new text.
        """
        raise NotImplementedError(f"{self.label} knows items by their number")

    def replace_items(self, item_ids: Tensor, item_text: pd.DataFrame) -> None:
        """Give items other texts, one row of attributes each."""
        raise NotImplementedError(f"{self.label} knows items by their number")

    def drop_items(self, first: int) -> None:
        """Forget the items from internal id ``first`` on, which were the last to be added."""
        raise NotImplementedError(f"{self.label} knows items by their number")


class Model(Offer, SequentialRecommender):
    """A model of ours: RecBole's shell, which builds the parts and hands them to a core.

    A subclass gives ``scores`` and a loss: ``calculate_loss``, or ``losses`` of a ``PhasedModel``.
    Our own loops hand it packed histories; RecBole's methods pack theirs.

    Args:
        config: a RecBole config with the keys of the model's yaml file.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.

    Attributes:
        needs_retriever: whether it is made with a third argument, a trained model whose best items
            it orders anew (``reranking.py``).
    """

    input_type = InputType.POINTWISE
    n_items: int
    needs_retriever: ClassVar[bool] = False

    def __init__(self, config: Any, dataset: Any) -> None:
        SequentialRecommender.__init__(self, config, dataset)

    @property
    def net(self) -> nn.Module:
        """The model itself."""
        return self

    @property
    def label(self) -> str:
        """The name of the class, unless a subclass has more to say."""
        return type(self).__name__

    @property
    def reads_whole_history(self) -> bool:
        """Whether the items that a window cuts off are wanted too, as ``PackedHistories.older``."""
        return False

    def calculate_loss(self, interaction: Any) -> Any:
        """What training lowers, of the rows of a batch."""
        raise NotImplementedError

    @classmethod
    def refuse_settings(cls, config: Any, dataset: Any) -> None:
        """Refuse what the model could not be made with, before its retriever is trained."""

    @torch.no_grad()
    def full_sort_predict(self, interaction: Any) -> Tensor:
        """``scores``, as RecBole asks for them."""
        return self.scores(self.packed(interaction))

    def packed(self, interaction: Any) -> PackedHistories:
        """The histories of RecBole's rows; a row without target or user has 0 there."""
        known = {name: column.cpu() for name, column in interaction.interaction.items()}
        item_seq, lengths = known[self.ITEM_SEQ], known[self.ITEM_SEQ_LEN]
        users, targets = (
            known.get(name, torch.zeros_like(lengths)) for name in (self.USER_ID, self.POS_ITEM_ID)
        )
        return PackedHistories.of_padded(item_seq, lengths, users, targets)

    def predict(self, interaction: Any) -> Tensor:
        """Score of each row's item, ``[B]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None])[:, 0]


class PhasedModel(Model):
    """A model that is trained in phases, each with its own optimizer and schedule.

    Attributes:
        training_targets: ``"random"`` where a history trains on its next item alone,
            ``"all_prefixes"`` where it trains on the item after each item.
        learns_permutation: whether a phase ``PERMUTATION`` comes before finetuning.
        phase: name of the current one; before any has begun a model is as in ``FINETUNE``.
        epoch: number that keys the epoch's random draws and differs in every phase.
        step: within its epoch.
    """

    training_targets: str
    learns_permutation: bool = False
    phase: str = FINETUNE
    epoch: int = 0
    step: int = 0

    @property
    def weights_by_pace(self) -> Mapping[float, Sequence[nn.Parameter]]:
        """Weights that train, by the factor of the learning rate that they move at."""
        return {1.0: [*self.parameters()]}

    @property
    def item_tokens(self) -> Tensor | None:
        """Tokens that each item takes in a history, ``[N]`` on the CPU; ``None``: none are read."""
        return None

    @property
    def tokens_seen(self) -> int:
        """Tokens that training has read so far in this process."""
        return 0

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The loss terms of the current phase, in the order of ``losses``."""
        raise NotImplementedError

    def begin_phase(self, phase: str, steps: int) -> None:
        """Enter the phase of that name, of so many steps."""
        self.phase = phase

    def begin_epoch(self, key: int) -> None:
        """Begin an epoch, whose random draws this keys."""
        self.epoch = key

    def begin_step(self, step: int) -> None:
        """Begin the step of that number within its epoch."""
        self.step = step

    def weights_moved(self) -> None:
        """The optimizer has made a step."""

    def losses(self, histories: PackedHistories) -> tuple[Tensor, ...]:
        """Weighted terms of the phase's loss, this process's part of each; see ``loss_weights``."""
        raise NotImplementedError

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """``losses``, as RecBole asks for them."""
        return self.losses(self.packed(interaction))


class RecBoleModel(Offer):
    """A model of RecBole's, or a user's own, seen as others are.

    Args:
        model: it.
        label: what tables call it.
    """

    def __init__(self, model: nn.Module, label: str) -> None:
        self._model: Any = model
        self._label = label

    @property
    def net(self) -> nn.Module:
        """RecBole's model."""
        return self._model

    @property
    def label(self) -> str:
        """Its name and, where it can be chosen, its loss."""
        return self._label

    def scores(self, histories: PackedHistories) -> Tensor:
        """Those of ``full_sort_predict``, for windows of the width that it is trained with."""
        model, windows = self._model, histories.padded()
        missing = model.max_seq_length - windows.shape[1]
        columns = {
            model.ITEM_SEQ: nn.functional.pad(windows, (0, missing)),
            model.ITEM_SEQ_LEN: histories.lengths,
            model.USER_ID: histories.users,
        }
        columns = sent(columns, model.device)
        return model.full_sort_predict(Interaction(columns)).reshape(len(histories), -1)


def offered_by(model: nn.Module, label: str) -> Offer:
    """What a model offers.

    Args:
        model: ours or RecBole's.
        label: what tables call it, if it does not say so itself.
    """
    return model if isinstance(model, Offer) else RecBoleModel(model, label)

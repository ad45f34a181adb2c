"""VQRec as a RecBole sequential model (Hou et al., WWW 2023, arXiv 2210.12316)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.keyed_random import derive
from recbole_jepa4rec.config.vector_settings import VQRecSettings
from recbole_jepa4rec.model.base import PERMUTATION
from recbole_jepa4rec.model.item_codes import (
    CodePermutation,
    ProductQuantiser,
    mean_of_codes,
    replaced_digits,
)
from recbole_jepa4rec.model.item_vector_model import ItemVectorModel, Windows
from recbole_jepa4rec.model.loss import cosine_similarity, zero_of
from recbole_jepa4rec.text.tensor_cache import content_key, default_cache_dir


class VQRec(ItemVectorModel):
    """Item text to code, code to embeddings, their mean under SASRec's encoder.

    Codes are those of optimised product quantisation, learnt from text vectors of the catalogue, or
    of those items that are trained on (``codebook_items``); the quantiser is saved with the
    weights. Pre-training tells the next item from the batch's, which are of all data sets, and from
    a half-synthetic one (:meth:`pretrain_losses`). On another catalogue a quantiser is learnt anew,
    so that its codes mean other things: at first only the permutation is learnt that gives each new
    code its embedding (``permutation_epochs``), then this stays and everything else is finetuned.
    Departs from the paper in that every prefix of a window trains at once. Nothing in the weights
    depends on the number of items.

    Args:
        config: a RecBole config with the keys of ``properties/model/VQRec.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.

    Raises:
        ValueError: for a setting that cannot be used.
    """

    pretrain_weights = {"sequence_item": 1.0}
    catalogue: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        settings = VQRecSettings.of(config)
        super().__init__(config, dataset, settings)
        self.digits, self.values = settings.code_digits, settings.code_values
        self.replaced_share = settings.code_replacement_ratio
        self.sinkhorn_iterations = settings.sinkhorn_iterations
        items = torch.arange(1, self.n_items)
        if settings.codebook_items == "training":
            items = dataset.histories.items[dataset.histories.in_training]
        rows = torch.unique(self.text.row_of_item[items])
        self.quantiser = ProductQuantiser.cached(
            self.text.table[rows],
            self.digits,
            self.values,
            content_key([self.text.key, *map(str, rows.tolist())]),
            Path(settings.cache_dir or default_cache_dir()),
        )
        catalogue = torch.tensor([*bytes.fromhex(self.text.key)], dtype=torch.uint8)
        self.register_buffer("catalogue", catalogue)  # whose codes the embeddings are for
        self.code_embedding = nn.Parameter(
            torch.empty(self.digits, self.values, settings.hidden_size)
        )
        nn.init.normal_(self.code_embedding, std=settings.initializer_range)
        self.permutation: CodePermutation | None = None
        self._codes: tuple[Tensor, Tensor] | None = None

    @property
    def label(self) -> str:
        """What tables call the model."""
        return f"VQRec ({self.text.source}{self.head_label})"

    @property
    def row_of_item(self) -> Tensor:
        """Row of every item, ``[N]`` on the CPU; items of one code share it."""
        return self._coded()[1]

    @property
    def codes(self) -> Tensor:
        """The different codes of the catalogue, ``[R, D]``."""
        return self._coded()[0]

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Item vectors of rows, ``[R]`` to ``[R, H]``."""
        return mean_of_codes(self._embeddings(), self.codes[rows])

    def pretrain_losses(self, windows: Windows, keys: Tensor) -> tuple[Tensor, ...]:
        """The enhanced contrastive task, at every position of the windows (VQRec 2.2.2).

        Negatives of a position are the next items of the whole batch, each once, and its own next
        item with a share of the code's digits replaced at random.
        """
        inside, batch = windows.inside, self.in_batch(windows)
        sequences = self.encoder(batch.items).flatten(0, 1)[batch.places]
        if len(batch.positive) == 0:
            return (processes.shard_of_mean(zero_of(sequences, batch.candidates), 0),)
        positions = torch.arange(inside.shape[1])
        rows = self.row_of_item[windows.next_items[inside]]
        rows, own_keys = self._sent((rows, derive(keys[:, None], positions)[inside]))
        codes = replaced_digits(self.codes[rows], self.values, self.replaced_share, own_keys)
        synthetic = mean_of_codes(self._embeddings(), codes)
        logits = torch.cat(
            [
                cosine_similarity(sequences, batch.candidates),
                F.cosine_similarity(sequences.float(), synthetic.float())[:, None],
            ],
            dim=1,
        )
        loss = F.cross_entropy(logits / self.temperature, batch.positive)
        return (processes.shard_of_mean(loss, len(batch.positive)),)

    def kept_from_start(self, weights: Mapping[str, Tensor], same_items: bool) -> tuple[str, ...]:
        """The codebooks stay, if the checkpoint is of other texts; its codes mean other things."""
        theirs = weights.get("catalogue")
        self.learns_permutation = theirs is None or not torch.equal(theirs, self.catalogue.cpu())
        of_head = super().kept_from_start(weights, same_items)
        return (*of_head, "quantiser.*", "catalogue") if self.learns_permutation else of_head

    def begin_phase(self, phase: str, steps: int) -> None:
        """Enter the phase; while the permutation is learnt, all else stands still."""
        if phase == PERMUTATION:
            permutation = CodePermutation(self.digits, self.values, self.sinkhorn_iterations)
            self.permutation = permutation.to(self.code_embedding.device)
        elif self.permutation is not None:
            self.code_embedding.data = self._embeddings().detach()
            self.permutation = None
        self.requires_grad_(True)
        super().begin_phase(phase, steps)
        if self.permutation is not None:
            self.requires_grad_(False)
            self.permutation.requires_grad_(True)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """RecBole's, with the code embeddings in the order that the permutation gives them."""
        state = super().state_dict(*args, **kwargs)
        if self.permutation is not None:
            state["code_embedding"] = self._embeddings().detach()
            del state["permutation.logits"]
        return state

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """RecBole's; the embeddings that are loaded have their order already."""
        self.permutation = None
        self.requires_grad_(True)  # again, where the permutation alone was learnt
        return super().load_state_dict(*args, **kwargs)

    def resumable_state(self) -> Any:
        """What training goes on from: while the permutation is learnt, embeddings without it."""
        return nn.Module.state_dict(self)

    def load_resumable_state(self, state: Any) -> None:
        """Go on from what ``resumable_state`` returned, in the same phase."""
        nn.Module.load_state_dict(self, state)

    def forget_table(self) -> None:
        """Codes as well are to be computed anew."""
        super().forget_table()
        self._codes = None

    def _embeddings(self) -> Tensor:
        """The table E of code embeddings, ``[D, M, H]``."""
        if self.permutation is None:
            return self.code_embedding
        return self.permutation(self.code_embedding)

    def _coded(self) -> tuple[Tensor, Tensor]:
        if self._codes is None or self._codes[0].device != self.text.table.device:
            of_row, code_of_row = torch.unique(
                self.quantiser.encode(self.text.table), dim=0, return_inverse=True
            )
            self._codes = of_row, code_of_row.cpu()[self.text.row_of_item]
        return self._codes

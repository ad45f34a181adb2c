"""UniSRec as a RecBole sequential model (Hou et al., KDD 2022, arXiv 2206.05941)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import refuse_misfits
from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.base.keyed_random import Draw, derive, uniform
from recbole_jepa4rec.base.weight_files import read_tensors
from recbole_jepa4rec.config.vector_settings import UniSRecSettings
from recbole_jepa4rec.model.base import PRETRAIN
from recbole_jepa4rec.model.item_vector_model import ItemVectorModel, Windows, last_output
from recbole_jepa4rec.model.loss import contrastive_loss, cosine_similarity, zero_of

PUBLISHED = {
    "moe_adaptor.": "adaptor.",
    **{name: f"encoder.{name}" for name in ("position_embedding.", "trm_encoder.", "LayerNorm.")},
}
"""How the authors' weights begin, and ours; those of ids (``item_embedding``) are left out."""


class ParametricWhitening(nn.Module):
    """x~ = (x - b) W1 (UniSRec, Eq. 3): a learned mean and rotation.

    Args:
        width: dimensions ``W`` of a text vector.
        hidden_size: dimensions ``D`` of the result.
        initializer_range: standard deviation of the first W1; b starts at zero.
    """

    def __init__(self, width: int, hidden_size: int, initializer_range: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.lin = nn.Linear(width, hidden_size, bias=False)
        nn.init.normal_(self.lin.weight, std=initializer_range)

    def forward(self, vectors: Tensor) -> Tensor:
        """``[..., W]`` to ``[..., D]``."""
        return self.lin(vectors - self.bias)


class MixtureOfExperts(nn.Module):
    """v = sum over experts of g_k x~_k (UniSRec, Eq. 4 and 5).

    The gate is g = softmax(x W2 + delta), in training with the noise delta = N(0, 1) *
    (softplus(x W3) + floor), which keeps the experts in use balanced; the paper has no floor, its
    authors' code one of 0.01.

    Args:
        width: dimensions ``W`` of a text vector.
        hidden_size: dimensions ``D`` of the result.
        experts: whitenings ``G``.
        dropout: of the text vectors that the whitenings read, the same for all of them.
        initializer_range: standard deviation of the first weights; the gate's start at zero.
        noise_floor: least standard deviation of the noise.
    """

    def __init__(
        self,
        width: int,
        hidden_size: int,
        experts: int,
        dropout: float,
        initializer_range: float,
        noise_floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.noise_floor = noise_floor
        self.dropout = nn.Dropout(dropout)
        self.experts = nn.ModuleList(
            ParametricWhitening(width, hidden_size, initializer_range) for _ in range(experts)
        )
        self.w_gate = nn.Parameter(torch.zeros(width, experts))
        self.w_noise = nn.Parameter(torch.zeros(width, experts))

    @torch.no_grad()
    def centre_on(self, mean: Tensor) -> None:
        """Let every b start as the mean text vector ``[W]``, where whitening has it."""
        for name, parameter in self.experts.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(mean)

    def forward(self, vectors: Tensor) -> Tensor:
        """``[..., W]`` to ``[..., D]``."""
        logits = vectors @ self.w_gate
        if self.training:
            spread = F.softplus(vectors @ self.w_noise) + self.noise_floor
            logits = logits + torch.randn_like(logits) * spread
        gates = logits.softmax(dim=-1)
        dropped = self.dropout(vectors)
        experts = torch.stack([expert(dropped) for expert in self.experts], dim=-1)
        return (experts @ gates[..., None])[..., 0]


class UniSRec(ItemVectorModel):
    """Item text vectors, whitened by a mixture of experts, under SASRec's encoder.

    Pre-training: L_PT = L_S-I + lambda L_S-S (Eq. 8 to 10), negatives from the whole batch and so
    from every data set. Finetuning: softmax of cosine / tau over all items, by text alone
    (inductive, Eq. 11) or with a learnable id embedding added to every item vector (transductive,
    Eq. 12). Departs from the paper in that every prefix of a window trains at once, the last one
    alone in L_S-S, and in that b of Eq. 3 starts as the catalogue's mean: the first epoch of
    pre-training on ml-100k then reaches a validation ndcg@10 of .035 instead of .011.

    Args:
        config: a RecBole config with the keys of ``properties/model/UniSRec.yaml``.
        dataset: a :class:`~recbole_jepa4rec.data.dataset.SequentialTextDataset`.

    Raises:
        ValueError: for a setting that cannot be used, or published weights that do not fit.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        settings = UniSRecSettings.of(config)
        super().__init__(config, dataset, settings)
        self.mode = settings.finetune_mode
        self.pretrain_weights = {
            "sequence_item": 1.0,
            "sequence_sequence": settings.sequence_sequence_weight,
        }
        self.item_drop_ratio = settings.item_drop_ratio
        self.item_drop_share = settings.item_drop_share
        self.word_drop_items = settings.word_drop_items
        self.adaptor = MixtureOfExperts(
            self.text.width,
            settings.hidden_size,
            settings.n_experts,
            settings.adaptor_dropout_prob,
            settings.initializer_range,
            settings.gate_noise_floor,
        )
        self.adaptor.centre_on(self.text.table[1:].mean(dim=0))
        self.id_embedding: nn.Embedding | None = None
        if self.mode == "transductive" and settings.train_stage != "pretrain":
            self.id_embedding = nn.Embedding(self.n_items, settings.hidden_size)
            nn.init.normal_(self.id_embedding.weight, std=settings.initializer_range)
        ratio = settings.word_drop_ratio
        dropped = self.text.word_dropped(ratio) if settings.pretrains else None
        self.register_buffer("word_dropped", dropped, persistent=False)
        if settings.encoder_checkpoint:
            self._load_published(Path(settings.encoder_checkpoint))

    @property
    def label(self) -> str:
        """What tables call the model."""
        return f"UniSRec ({self.text.source}, {self.mode}{self.head_label})"

    @property
    def fits_any_catalogue(self) -> bool:
        """Whether items are known by their text alone, and not by number as well."""
        return self.id_embedding is None

    def kept_from_start(self, weights: Mapping[str, Tensor], same_items: bool) -> tuple[str, ...]:
        """Id embeddings of another catalogue are not taken over."""
        of_head = super().kept_from_start(weights, same_items)
        same = same_items and "id_embedding.weight" in weights
        return of_head if same else (*of_head, "id_embedding.*")

    @property
    def row_of_item(self) -> Tensor:
        """Row of every item, ``[N]``: of its text, or its own where it has an id vector too."""
        return torch.arange(self.n_items) if self._uses_ids else self.text.row_of_item

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Vectors v (Eq. 4), or v + e with an id embedding (Eq. 12), ``[R]`` to ``[R, D]``."""
        if self.id_embedding is None or not self._uses_ids:
            return self.adaptor(self.text.table[rows])
        of_text = self.there("texts", self.text.row_of_item)[rows]
        return self.adaptor(self.text.table[of_text]) + self.id_embedding(rows)

    def pretrain_losses(self, windows: Windows, keys: Tensor) -> tuple[Tensor, ...]:
        """L_S-I at every position and L_S-S at the last (Eq. 8, 9)."""
        batch = self.in_batch(windows)
        hidden = self.encoder(batch.items)
        sequence_item = contrastive_loss(
            hidden.flatten(0, 1)[batch.places], batch.candidates, batch.positive, self.temperature
        )
        augmented = self._augmented(batch.items, windows, keys)
        sequences = last_output(hidden, batch.lengths)
        sequence_sequence = sequence_sequence_loss(
            sequences, augmented, batch.last, self.temperature
        )
        return (
            processes.shard_of_mean(sequence_item, len(batch.positive)),
            processes.shard_of_mean(sequence_sequence, len(sequences)),
        )

    @property
    def _uses_ids(self) -> bool:
        return self.id_embedding is not None and self.phase != PRETRAIN

    def _augmented(self, items: Tensor, windows: Windows, keys: Tensor) -> Tensor:
        """s~: vectors of the windows after item drop or word drop, one of them each, ``[B, D]``."""
        drops_items = uniform(derive(keys, Draw.AUGMENTATION)) < self.item_drop_share
        if self.word_dropped is None:
            drops_items = torch.ones_like(drops_items)
        kept = kept_items(windows.inside, self.item_drop_ratio, keys)
        kept |= windows.inside & ~drops_items[:, None]  # word drop leaves all items
        order, lengths = self._sent((kept_first(kept), kept.sum(dim=1)))
        if self.word_dropped is not None:
            rows, place = torch.unique(self.text.row_of_item[windows.items], return_inverse=True)
            positions = torch.arange(items.shape[1])
            draws = uniform(derive(keys[:, None], Draw.WORD_DROP, positions))
            worded = ~drops_items[:, None] & (draws < self.word_drop_items)
            rows, place, worded = self._sent((rows, place, worded))
            without_words = F.embedding(place, self.adaptor(self.word_dropped[rows]))
            items = torch.where(worded[:, :, None], without_words, items)
        items = items.gather(1, order[:, :, None].expand_as(items))
        return last_output(self.encoder(items), lengths)

    def _load_published(self, file: Path) -> None:
        """Start from the authors' state dict; parts that know items by number are left out."""
        if not file.is_file():
            raise ValueError(f"encoder_checkpoint {str(file)!r} does not exist")
        found = {}
        for name, tensor in read_tensors(file).items():
            prefix = next((prefix for prefix in PUBLISHED if name.startswith(prefix)), "")
            if not name.startswith("item_embedding."):
                found[PUBLISHED.get(prefix, "") + name.removeprefix(prefix)] = tensor
        shapes = {name: list(tensor.shape) for name, tensor in self.state_dict().items()}
        what = f"encoder_checkpoint {str(file)!r} does not fit UniSRec"
        refuse_misfits(what, found, shapes, optional=("id_embedding.*", "ranking_head.*"))
        self.load_state_dict(found, strict=False)


def kept_items(inside: Tensor, ratio: float, keys: Tensor) -> Tensor:
    """Which positions item drop leaves, bool ``[B, L]``; one of a sequence stays at least.

    Args:
        inside: which positions hold items, one in each sequence at least, bool ``[B, L]``.
        ratio: probability that an item is dropped.
        keys: one random key for each sequence, ``[B]``.
    """
    positions = torch.arange(inside.shape[1], device=inside.device)
    draws = uniform(derive(keys[:, None], Draw.ITEM_DROP, positions)).masked_fill(~inside, -1.0)
    best = positions == draws.argmax(dim=1)[:, None]
    return inside & ((draws >= ratio) | best)


def kept_first(kept: Tensor) -> Tensor:
    """Order of positions in which kept ones come first, in their own order, ``[B, L]``.

    Args:
        kept: bool ``[B, L]``.
    """
    return torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)


def sequence_sequence_loss(
    sequences: Tensor, augmented: Tensor, next_items: Tensor, temperature: float
) -> Tensor:
    """L_S-S: the sequence's own augmented version among those of the batch (UniSRec, Eq. 9).

    A collective: the batch is that of all processes.

    Args:
        sequences: s, ``[B, D]``.
        augmented: s~, ``[B, D]``.
        next_items: what follows each sequence, on the CPU; those before the same item are no
            negatives of each other, ``[B]``.
        temperature: tau.

    Returns:
        Mean over the sequences given; scalar >= 0; zero where there is none.
    """
    augmented = processes.all_gather(augmented)
    whose = torch.full_like(next_items, processes.rank())
    others, whose = processes.all_gather(torch.stack([next_items, whose], dim=1)).unbind(1)
    if len(sequences) == 0:
        return zero_of(sequences, augmented)
    logits = cosine_similarity(sequences, augmented) / temperature
    place = torch.arange(len(others))
    own = place[whose == processes.rank()]
    alike = (next_items[:, None] == others) & (own[:, None] != place)
    own, alike = sent((own, alike), logits.device)
    return F.cross_entropy(logits.masked_fill(alike, -torch.inf), own)

"""Training steps of JEPA4Rec here against RecFormer's procedure rebuilt from transformers' parts.

    python benchmarks/training.py [--sequences 64] [--json PATH]

A run trains on the same real users: losses (weighted 1, 0.1, 0.1), backward, clipping, AdamW,
moving average. All start from MiniLM's weights and have a window of 64 unless said otherwise.

- ours: one packed pass over the masked history, the masked next item and the next item; no dropout;
  batches under a budget of tokens (``--tokens-per-step``).
- RecFormer's way, as its code does it: Longformer on batches of 16, padded to the longest and to a
  multiple of 64; a clean pass of histories and next items for the contrastive task and a masked
  pass of both for the masked tokens, whose head scores the vocabulary in every slot; dropout 0.1 of
  hidden states and attention. To have the same loss terms it also pays for JEPA4Rec's mapping loss:
  a target encoder's padded passes over the next item and one history item, and the predictor.
- RecFormer's way, masked slots: the same, but the head scores the masked tokens alone.
- ours, all prefixes: dense attention, every item of a history is a target as well.

A target is one supervised next item of the contrastive task. Tokens/s are what the trained encoder
reads, over all passes, without padding. The ratios are ours over RecFormer's way, of sequences a
second and of targets a second. The share of the peak is that of the products a run executes, in a
matrix product's speed measured among the runs; a product of padding counts, so multiply by what is
not padding to compare procedures. Attention counts as buckets execute it: one call a layer, as on a
GPU, cannot be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from corpus import (
    MAX_TOKENS,
    OBJECTIVE,
    WINDOW,
    Corpus,
    Examples,
    add_data_option,
    joint_model,
    minilm_encoder,
)
from flop import executed_flop
from measure import (
    PRECISIONS,
    arguments,
    autocast,
    interleaved,
    matmul_peak,
    matmuls,
    report,
)
from reference import PaddedBatch, PaddedEncoder, longformer, spread
from torch import Tensor, nn

from recbole_jepa4rec.base.device import sent
from recbole_jepa4rec.base.keyed_random import Draw, derive
from recbole_jepa4rec.data.histories import PackedHistories
from recbole_jepa4rec.model.loss import contrastive_loss, mapping_loss
from recbole_jepa4rec.model.moving_average import ExponentialMovingAverage
from recbole_jepa4rec.model.objective import Predictor
from recbole_jepa4rec.text.masking import draw_masked_item, mask_tokens
from recbole_jepa4rec.text.sentences import ItemSentences
from recbole_jepa4rec.text.token_batch import ALL_PREFIXES, TokenBatch, fill_batches

OURS, PREFIXES = "ours", "ours, all prefixes"
RECFORMER, RECFORMER_MASKED = "RecFormer's way", "RecFormer's way, masked slots"
RECFORMER_BATCH, RECFORMER_DROPOUT = 16, 0.1
MAX_SEQUENCES = 256  # of one of our steps
WEIGHTS = {"sequence_item": 1.0, "mlm": OBJECTIVE.mlm_weight, "mapping": OBJECTIVE.mapping_weight}
IGNORED = -100  # by cross-entropy


class RecFormerProcedure(nn.Module):
    """RecFormer's pre-training passes with JEPA4Rec's loss terms, on padded batches.

    Args:
        sentences: the items' token store.
        ordinary_ids: token ids that masking replaces tokens by, ``[V']``.
        head_everywhere: whether the masked-token head scores every slot or the masked ones.
    """

    def __init__(
        self, sentences: ItemSentences, ordinary_ids: Tensor, head_everywhere: bool
    ) -> None:
        super().__init__()
        source = minilm_encoder(WINDOW)
        model = longformer(source, RECFORMER_DROPOUT)
        self.sentences, self.ordinary_ids = sentences, ordinary_ids
        self.encoder, self.mlm_head = PaddedEncoder(model.longformer, source), model.lm_head
        self.target_encoder = ExponentialMovingAverage(self.encoder, 0.99)
        self.predictor = Predictor(source.config.hidden_size)
        self.head_everywhere = head_everywhere
        self.tokens_seen = 0

    def share_of_padding(self, batches: list[Examples]) -> float:
        """Slots of histories and next items that hold no token."""
        packed = [
            part
            for batch in batches
            for part in (
                batch.read(self.sentences),
                self._single(batch.histories.targets),
            )
        ]
        slots = sum(self.encoder.padded(part).real.numel() for part in packed)
        return 1 - sum(part.num_tokens for part in packed) / slots

    def pretrain_losses(self, packed: PackedHistories, keys: Tensor) -> dict[str, Tensor]:
        """The terms of L_PT; see ``SentenceRanker.pretrain_losses`` for the arguments."""
        next_items = packed.targets
        histories = Examples(packed, keys).read(self.sentences)
        following = self._single(next_items)
        positive = torch.arange(len(next_items), device=self.device)
        contrastive = contrastive_loss(
            self._read(histories)[0][:, 0],
            self._read(following)[0][:, 0],
            positive,
            OBJECTIVE.temperature,
        )
        sequences, selected, history_mlm = self._masked_pass(
            histories, OBJECTIVE.history_mask_ratio, derive(keys, Draw.HISTORY_MASK)
        )
        hidden_next, _, next_mlm = self._masked_pass(
            following, OBJECTIVE.next_item_mask_ratio, derive(keys, Draw.NEXT_ITEM_MASK)
        )
        place, was_masked = draw_masked_item(
            histories, selected, derive(keys, Draw.MASKED_ITEM), OBJECTIVE.unmasked_target
        )
        masked_items = packed.items[packed.lengths.cumsum(0) - place]
        place, was_masked = sent((place, was_masked), self.device)
        positions = self.encoder.item_positions(place)
        mapping = self._mapping_loss(
            self.predictor.predict_history(sequences, positions, was_masked), masked_items
        ) + self._mapping_loss(self.predictor.predict_next(sequences, hidden_next), next_items)
        return {"sequence_item": contrastive, "mlm": history_mlm + next_mlm, "mapping": mapping}

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.encoder.item_positions.weight.device

    def weights_moved(self) -> None:
        """Move the target encoder."""
        self.target_encoder.update(self.encoder)

    def _single(self, item_ids: Tensor) -> TokenBatch:
        return self.sentences.single(self.sentences.sentence_of_item[item_ids], MAX_TOKENS)

    def _read(self, batch: TokenBatch) -> tuple[Tensor, PaddedBatch]:
        """Hidden states of all slots ``[B, L, D]``, and the slots."""
        padded = self.encoder.padded(batch)
        self.tokens_seen += batch.num_tokens
        return self.encoder(padded), padded

    def _masked_pass(
        self, clean: TokenBatch, rate: float, keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[CLS] vectors ``[B, D]`` of masked sequences, tokens selected ``[T]``, and L_MLM."""
        masked, selected = mask_tokens(
            clean, rate, keys, self.sentences.special.mask, self.ordinary_ids
        )
        hidden, padded = self._read(masked)
        labels = sent(clean.input_ids.masked_fill(~selected, IGNORED), self.device)
        labels = spread(labels, padded.real, IGNORED).flatten()
        states = hidden.flatten(0, 1)
        if not self.head_everywhere:
            chosen = (labels != IGNORED).nonzero()[:, 0]
            states, labels = states[chosen], labels[chosen]
        loss = F.cross_entropy(self.mlm_head(states).float(), labels, ignore_index=IGNORED)
        return hidden[:, 0], selected, loss

    def _mapping_loss(self, predicted: Tensor, items: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.target_encoder.module(self.encoder.padded(self._single(items)))[:, 0]
        return mapping_loss(predicted, target, OBJECTIVE.mapping_reduction)


@dataclass(frozen=True, eq=False)
class Procedure:
    """A way to train, and what it trains on.

    Attributes:
        model: with ``pretrain_losses``, ``weights_moved`` and ``tokens_seen``.
        optimizer: of the model's parameters.
        batches: what one run trains on, a step each.
        targets: supervised next items of one run.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    batches: list[Examples]
    targets: int

    @classmethod
    def of(cls, model: Any, batches: list[Examples], targets: int) -> Procedure:
        """Train a model on batches with AdamW."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.01, fused=True)
        return cls(model.train(), optimizer, batches, targets)

    def run(self, precision: str, device: str) -> None:
        """Train on all batches at a precision, a key of ``PRECISIONS``."""
        self.model.tokens_seen = 0
        for batch in self.batches:
            with autocast(precision, device):
                losses = self.model.pretrain_losses(batch.histories, batch.keys)
                loss = sum(WEIGHTS[name] * term for name, term in losses.items())
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
            self.optimizer.step()
            self.model.weights_moved()


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.set_defaults(repeats=3)
    add_data_option(parser)
    parser.add_argument("--sequences", type=int, default=64, help="of one timed run (default 64)")
    parser.add_argument(
        "--tokens-per-step", type=int, default=8192, help="history tokens of our steps"
    )
    options = parser.parse_args()
    device = options.device
    corpus = Corpus.load(options.data)
    examples = corpus.examples.sample(options.sequences)
    procedures = build_procedures(corpus, examples, options.tokens_per_step, device)
    runs: dict[str, Callable[[], Any]] = {
        f"{name}, {precision}": partial(procedure.run, precision, device)
        for name, procedure in procedures.items()
        for precision in PRECISIONS
        if (name, precision) != (RECFORMER_MASKED, "bf16")
    }
    seconds = interleaved(runs | matmuls(device), options.repeats, device)
    given = corpus, examples, options.tokens_per_step, device
    countable = build_procedures(*given, attention="buckets")
    peak, rows = matmul_peak(seconds), []
    for name in runs:
        procedure_name, _, precision = name.rpartition(", ")
        count = executed_flop(partial(countable[procedure_name].run, precision, device))
        speed = count / seconds[name]
        line = row(name, procedures[procedure_name], len(examples), seconds[name])
        rows.append(line | {"share of peak": speed / peak[precision]})
    main_row = next(line for line in rows if line["name"] == f"{PREFIXES}, bf16")
    report(options, rows, ratios(rows), peak, main_row["share of peak"])


def build_procedures(
    corpus: Corpus, examples: Examples, tokens_per_step: int, device: str, **settings: Any
) -> dict[str, Procedure]:
    """Every way to train by name; ``settings`` are further ones of our encoders."""
    histories = examples.read(corpus.sentences)
    sizes = fill_batches(histories.lengths, tokens_per_step, MAX_SEQUENCES)
    index = torch.arange(len(examples)).split(sizes)
    ours = [examples.rows(rows) for rows in index]
    padded = [*examples.batches(RECFORMER_BATCH)]
    model = joint_model(corpus.sentences, minilm_encoder(WINDOW, **settings)).to(device)
    procedures = {OURS: Procedure.of(model, ours, len(examples))}
    for name, everywhere in ((RECFORMER, True), (RECFORMER_MASKED, False)):
        recformer = RecFormerProcedure(corpus.sentences, model.masking.ordinary_ids, everywhere)
        procedures[name] = Procedure.of(recformer.to(device), padded, len(examples))
    encoder = minilm_encoder(None, training_targets=ALL_PREFIXES, **settings)
    model = joint_model(corpus.sentences, encoder).to(device)
    prefixes = examples.read(corpus.sentences, ALL_PREFIXES)
    procedures[PREFIXES] = Procedure.of(model, ours, len(prefixes.cls_index))
    return procedures


def row(name: str, procedure: Procedure, sequences: int, seconds: float) -> dict[str, Any]:
    """A line of the table."""
    model = procedure.model
    is_padded = isinstance(model, RecFormerProcedure)
    return {
        "name": name,
        "sequences": sequences,
        "steps": len(procedure.batches),
        "seconds": seconds,
        "sequences/s": sequences / seconds,
        "targets/s": procedure.targets / seconds,
        "tokens/s": model.tokens_seen / seconds,
        "padding": model.share_of_padding(procedure.batches) if is_padded else None,
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Sequences and targets a second of ours over RecFormer's way."""
    by_name: Mapping[str, dict[str, Any]] = {line["name"]: line for line in rows}

    def of(unit: str, ours: str, theirs: str) -> float:
        return by_name[ours][unit] / by_name[theirs][unit]

    found = {
        "sequences_fp32": of("sequences/s", f"{OURS}, fp32", f"{RECFORMER}, fp32"),
        "sequences_bf16": of("sequences/s", f"{OURS}, bf16", f"{RECFORMER}, fp32"),
        "sequences_bf16_both": of("sequences/s", f"{OURS}, bf16", f"{RECFORMER}, bf16"),
        "sequences_fp32_masked_slots": of(
            "sequences/s", f"{OURS}, fp32", f"{RECFORMER_MASKED}, fp32"
        ),
    }
    for precision in PRECISIONS if f"{PREFIXES}, fp32" in by_name else ():
        found[f"targets_all_prefixes_{precision}"] = of(
            "targets/s", f"{PREFIXES}, {precision}", f"{RECFORMER}, fp32"
        )
    return found


if __name__ == "__main__":
    main()

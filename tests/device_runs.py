"""Runs of every model on a device: for test_gpu, and test_device in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.model import packed_attention
from recbole_jepa4rec.model.rollout import PROJECTIONS
from recbole_jepa4rec.runner.quick_start import run
from recbole_jepa4rec.runner.recommender import load
from recbole_jepa4rec.training.checkpoints import CheckpointFolder
from recbole_jepa4rec.training.protocol import ProtocolTrainer
from tests.contract import SMALL
from tests.pretended_device import LOG, NAME, Log, pretend
from tests.tiny_encoder import save_tiny_bert
from tests.tiny_llama import save_tiny_llama

RUN = {
    **SMALL,
    "use_gpu": True,
    "dataset": "toy",
    "state": "error",
    "train_batch_size": 20,  # two steps an epoch
    "eval_batch_size": 16,
    "epochs": 1,
}
SENTENCES = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "vocab_size": 300},
    **{"pretrain_batch_size": 20, "pretrain_epochs": 1, "frozen_items_epochs": 0},
}
VIEWS = {
    **{"hidden_size": 16, "intermediate_size": 32, "vocab_size": 300, "max_attribute_tokens": 8},
    **{"pretrain_batch_size": 20, "pretrain_epochs": 1, "items_per_step": 20},
}
VECTORS = {
    **{"hidden_size": 16, "inner_size": 16, "n_layers": 2, "text_encoder": "tiny-bert"},
    **{"pretrain_batch_size": 20, "pretrain_epochs": 1, "max_text_tokens": 32},
}
PAPER = {
    **{"training_targets": "random", "attention_window": 8, "history_bias": False},
    **{"items_per_step": 0, "frozen_items_epochs": 1},
}
HEAD = {"history_bias": True, "neighbour_prior": True, "item_id_residual": True}
SIGREG = {"collapse_prevention": "sigreg", "contrastive_weight": 0.0, "mask_unit": "item"}
FROZEN = {"item_local_layers": 1, "frozen_layers": 1, "pooling": "mean", "whitening": True}
ONE_CALL = {"attention": "flex", "num_heads": 1, "tokens_per_batch": 2000}
IDS = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 2, "train_batch_size": 160}
LLAMA = {
    **{"language_model": "tiny-llama", "num_candidates": 4, "lora_r": 4},
    **{"retriever": "SASRec", "retriever_settings": {**IDS, "epochs": 1}},
}
LORA = {"language_model": "tiny-llama", "lora_r": 4, "predictor_tokens": 2, "items_per_step": 0}
LORA |= {"pretrain_batch_size": 20, "max_attribute_tokens": 8}

RUNS: dict[str, dict[str, Any]] = {
    "JEPA4Rec": SENTENCES,
    "JEPA4Rec, as in the paper": {**SENTENCES, **PAPER},
    "JEPA4Rec, bf16": {**SENTENCES, "precision": "bf16", "items_per_step": 20},
    "JEPA4Rec, whole head": {**SENTENCES, **HEAD},
    "JEPA4Rec, frozen layers": {**SENTENCES, **FROZEN},
    "JEPA4Rec, SIGReg": {**SENTENCES, **SIGREG},
    "JEPA4Rec, one attention call": {**SENTENCES, **ONE_CALL},
    "JEPA4Rec, as in the paper, one attention call": {**SENTENCES, **PAPER, **ONE_CALL},
    "JEPA4Rec, rollouts": {**SENTENCES, "rollout_steps": 3},
    "RecFormer": SENTENCES,
    "LLMJEPA": {**VIEWS, "jepa_dropout": 0.5},
    "LLMJEPA, among negatives, whole head": {**VIEWS, **HEAD, "jepa_distance": "infonce"},
    "UniSRec": VECTORS,
    "UniSRec, whole head": {**VECTORS, **HEAD},
    "VQRec": {**VECTORS, "code_digits": 4, "code_values": 8},
    "SASRec": IDS,
    "STAR": {},
    "Popularity": {},
    "Markov": {},
}
if find_spec("peft"):
    RUNS["LlamaRec"] = LLAMA
    RUNS["LLMJEPA, a language model"] = LORA


def attention_by_definition(query: Any, key: Any, value: Any, block_mask: Any) -> Any:
    """What FlexAttention computes, which knows no other devices than its own."""
    rows, columns = (torch.arange(size, device=query.device) for size in block_mask.shape[2:])
    sees = block_mask.mask_mod(None, None, rows[:, None], columns)
    return F.scaled_dot_product_attention(query, key, value, sees)


class KilledError(Exception):
    """Ends a run that another goes on with."""


class Marks:
    """What came between two places where a trainer looks whether it is to end, by what it does.

    Attributes:
        most: waits and copies of a step or a ranking batch, of the one that had most of them.
        at: the lines that asked for these.
    """

    def __init__(self) -> None:
        self.most: dict[str, list[int]] = {}
        self.at: dict[str, list[str]] = {}
        self._last: tuple[str, Log] | None = None

    def forget(self) -> None:
        """What comes next does not belong to what came before."""
        self._last = None

    def mark(self, doing: str) -> None:
        """A step or a batch begins or ends here."""
        last, self._last = self._last, (doing, LOG.copy())
        if last is None or last[0] != doing:
            return
        came = LOG.since(last[1])
        counts = [came.waits.total(), came.copies.total(), came.operators]
        if doing not in self.most or counts[:2] > self.most[doing][:2]:
            self.most[doing] = counts
            kinds = {"wait": came.waits, "copy": came.copies}
            self.at[doing] = [f"{k} {n}x {w}" for k, c in kinds.items() for w, n in c.items()]


@contextmanager
def marked(marks: Marks) -> Iterator[None]:
    """Count what the runs of the block do."""
    end_if_asked, rank = ProtocolTrainer.end_if_asked, ProtocolTrainer._rank

    def mark_and_end(self: Any) -> None:
        phase = getattr(self, "optimisation", None)
        trains = "step" if phase is None else f"{', '.join(phase.model.loss_weights)} step"
        marks.mark(trains if self.model.training else "ranking batch")
        end_if_asked(self)

    def rank_anew(self: Any, *args: Any) -> Any:
        marks.forget()
        return rank(self, *args)

    with mock.patch.multiple(ProtocolTrainer, end_if_asked=mark_and_end, _rank=rank_anew):
        yield


def go_through(name: str, watched: AbstractContextManager[Any]) -> dict[str, Any]:
    """Train and rank, watched; recommend; resume what was killed. Both tests, and items found."""
    given = {"model": name.partition(",")[0], **RUN, **RUNS[name]}
    folder = name.replace(" ", "-")
    with watched:
        whole = run(config_dict={**given, "run_dir": folder})
    recommender = load(folder)
    recommended = recommender.recommend([recommender.item_ids[1:3]], k=3)
    if recommender.offer.rolls_out:
        for projection in PROJECTIONS:
            recommender.rollout([recommender.item_ids[1:3]], 3, projection)
    resumed = whole
    if RUNS[name] and "," not in name:
        write, written = CheckpointFolder.write, []

        def write_and_die(self: Any, state: Any) -> Any:
            written.append(write(self, state))
            if len(written) == 2:
                raise KilledError
            return written[-1]

        again = f"{folder}-again"
        with mock.patch.object(CheckpointFolder, "write", write_and_die), suppress(KilledError):
            run(config_dict={**given, "run_dir": again, "checkpoint_steps": 1})
        resumed = run(config_dict={"resume": again})
    return {"test": whole["test"], "resumed": resumed["test"], "recommended": len(recommended)}


def prepare(folder: Path) -> None:
    """Make what the runs read, and go there."""
    RUN.update(data_path=str(Path("dataset").resolve()), cache_dir=str(folder / "cache"))
    save_tiny_bert(folder / "tiny-bert")
    text = Path("dataset/toy/toy.item").read_text(encoding="utf-8").split("\n")
    save_tiny_llama(folder / "tiny-llama", text)
    os.chdir(folder)


def main(folder: Path, names: list[str]) -> None:
    """Write what was counted to a file beside the runs."""
    prepare(folder)
    pretend()

    def on_device(self: Any) -> None:
        self.final_config_dict["device"] = torch.device(NAME, 0)
        self.final_config_dict.update(gpu_id="0", single_spec=True, local_rank=0)

    found = {}
    with (
        mock.patch.object(Config, "_init_device", on_device),
        mock.patch.object(packed_attention, "_kernel", return_value=attention_by_definition),
    ):
        for name in names or RUNS:
            marks = Marks()
            found[name] = go_through(name, marked(marks)) | {"most": marks.most, "at": marks.at}
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""What test_processes has one or several processes compute: steps of every model, and more."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.launch import joined
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.runner.quick_start import run
from tests.contract import SMALL, made, training_batch
from tests.process_ends import call_named_function
from tests.tiny_encoder import TEXTS, save_tiny_bert, write_data_sets
from tests.tiny_llama import save_tiny_llama

SENTENCES = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 300, "tokens_per_batch": 100}
VIEWS = {**SENTENCES, "max_attribute_tokens": 8, "jepa_weight": 1.0}
VECTORS = {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "inner_size": 16, "max_text_tokens": 32}
CODES = {**VECTORS, "code_digits": 4, "code_values": 8}
RANDOM = {"training_targets": "random"}
HEAD = {"history_bias": True, "neighbour_prior": True}
FROZEN = {"num_layers": 2, "item_local_layers": 1, "frozen_layers": 1, "whitening": True}
SIGREG = {"collapse_prevention": "sigreg", "mapping_weight": 1.0, "mask_unit": "item"}
ROLLOUTS = {"rollout_steps": 3}
TARGET = {"positive_encoder": "target", "sequence_pass": "clean"}

STEPS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jepa4rec": ("JEPA4Rec", "pretrain", SENTENCES),
    "jepa4rec, random": ("JEPA4Rec", "pretrain", {**SENTENCES, **RANDOM}),
    "jepa4rec, target and clean": ("JEPA4Rec", "pretrain", {**SENTENCES, **TARGET}),
    "jepa4rec, random, both": ("JEPA4Rec", "pretrain", {**SENTENCES, **RANDOM, **TARGET}),
    "jepa4rec, sigreg": ("JEPA4Rec", "pretrain", {**SENTENCES, **SIGREG}),
    "jepa4rec, random, sigreg": (
        "JEPA4Rec",
        "pretrain",
        {**SENTENCES, **RANDOM, **SIGREG, "contrastive_weight": 0.0},
    ),
    "jepa4rec, items without text": ("JEPA4Rec", "pretrain", {**SENTENCES, "dataset": "gaps"}),
    "jepa4rec, sampled": ("JEPA4Rec", "finetune", {**SENTENCES, "items_per_step": 20}),
    "jepa4rec, all items": ("JEPA4Rec", "finetune", {**SENTENCES, **RANDOM}),
    "jepa4rec, table": ("JEPA4Rec", "finetune", {**SENTENCES, **RANDOM, "items_per_step": 0}),
    "jepa4rec, head": ("JEPA4Rec", "pretrain", {**SENTENCES, **HEAD}),
    "jepa4rec, head, sampled": (
        "JEPA4Rec",
        "finetune",
        {**SENTENCES, **HEAD, "items_per_step": 20},
    ),
    "jepa4rec, rollouts": ("JEPA4Rec", "pretrain", {**SENTENCES, **ROLLOUTS}),
    "jepa4rec, random, rollouts": (
        "JEPA4Rec",
        "finetune",
        {**SENTENCES, **RANDOM, **ROLLOUTS, "items_per_step": 20},
    ),
    "jepa4rec, frozen layers": ("JEPA4Rec", "pretrain", {**SENTENCES, **FROZEN}),
    "recformer": ("RecFormer", "pretrain", SENTENCES),
    "recformer, random": ("RecFormer", "pretrain", {**SENTENCES, **RANDOM}),
    "recformer, sampled": ("RecFormer", "finetune", {**SENTENCES, **RANDOM, "items_per_step": 20}),
    "llmjepa": ("LLMJEPA", "pretrain", VIEWS),
    "llmjepa, stop-gradient": ("LLMJEPA", "pretrain", {**VIEWS, "stop_gradient": True}),
    "llmjepa, squared": ("LLMJEPA", "pretrain", {**VIEWS, "jepa_distance": "squared"}),
    "llmjepa, among negatives, head": (
        "LLMJEPA",
        "pretrain",
        {**VIEWS, **HEAD, "jepa_distance": "infonce", "predictor_tokens": 0},
    ),
    "llmjepa, finetuned": ("LLMJEPA", "finetune", {**VIEWS, "items_per_step": 20}),
    "unisrec": ("UniSRec", "pretrain", VECTORS),
    "unisrec, finetuned": ("UniSRec", "finetune", VECTORS),
    "unisrec, head": ("UniSRec", "finetune", {**VECTORS, **HEAD}),
    "unisrec, ids": ("UniSRec", "finetune", {**VECTORS, "finetune_mode": "transductive"}),
    "vqrec": ("VQRec", "pretrain", CODES),
    "vqrec, permutation": ("VQRec", "permutation", CODES),
    "vqrec, finetuned": ("VQRec", "finetune", CODES),
}
"""A model, its phase and its settings; dropout is off."""
if find_spec("peft"):
    LLAMA = {"num_candidates": 5, "lora_r": 4, "train_stage": "finetune"}
    STEPS["llamarec"] = ("LlamaRec", "finetune", LLAMA)


def write_inputs(folder: Path) -> None:
    """Models and data that the steps start from."""
    save_tiny_bert(folder / "tiny-bert")
    titles = ["" if item % 2 else f"rose {item} of kind {item % 3}" for item in range(12)]
    write_data_sets(folder / "data", gaps=titles)  # every second user has items without text alone
    if "llamarec" in STEPS:
        save_tiny_llama(folder / "tiny-llama", [*TEXTS, *titles])
        given = {**SMALL, **SENTENCES, "cache_dir": str(folder / "cache"), "epochs": 0}
        given |= {"train_stage": "finetune", "run_dir": str(folder / "retriever")}
        run("RecFormer", "toy", config_dict=given)


def steps(folder: Path, rows: int) -> dict[str, dict[str, Any]]:
    """A step of each on a batch of so many rows, and the item vectors that follow from it."""
    return {name: _step(folder, rows, *what) for name, what in STEPS.items()}


def _step(folder: Path, rows: int, model: str, phase: str, settings: dict) -> dict[str, Any]:
    given = {**SMALL, "dataset": "toy", **settings, "cache_dir": str(folder / "cache")}
    if "n_heads" in settings:
        given["text_encoder"] = str(folder / "tiny-bert")
    if given["dataset"] == "gaps":
        given["data_path"] = str(folder / "data")
    if model == "LlamaRec":
        given["language_model"] = str(folder / "tiny-llama")
        given["retriever"] = str(folder / "retriever")
    config = Config(model, config_dict=given)
    train = find_dataset(config.model_class)(config).build()[0]
    batch = training_batch(train)
    torch.manual_seed(5)
    net = made(config, train)
    for parameter in net.parameters():  # so that target and context encoder differ
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    net.begin_phase(phase, 4)
    net.begin_epoch(0)
    net.begin_step(0)
    terms = net.calculate_loss(batch[processes.shard(torch.arange(rows) * 5)])
    sum(terms).backward()
    processes.all_reduce_gradients(net.parameters())
    encoder = net.retriever.offer if model == "LlamaRec" else net
    if model == "LlamaRec" and processes.is_main():  # the retriever's table is there for it
        net.full_sort_predict(batch[torch.arange(2)])
    return {
        "terms": processes.all_reduce(torch.stack(terms).detach()),
        "gradients": {name: parameter.grad for name, parameter in net.named_parameters()},
        "items": encoder.item_vectors(),
    }


def exchanges() -> dict[str, Any]:
    """The collectives on rows whose number differs from process to process, some none."""
    number, found = processes.rank(), {}
    everybody = torch.arange(5 * 3, dtype=torch.float32).view(5, 3).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        rows = everybody.detach().to(dtype)
        assert torch.equal(processes.all_gather(processes.shard(rows)), rows)
        assert processes.all_gather(rows[:0]).shape == (0, 3)
    only_second = everybody[: 4 if number == 1 else 0]
    gathered = processes.all_gather(only_second)
    assert torch.equal(gathered, everybody[:4])
    (gathered * (number + 1)).sum().backward()
    found["gradient of one's rows"] = everybody.grad

    vectors = everybody.detach().clone().requires_grad_()
    first = processes.all_gather(processes.shard(vectors * 2))
    second = processes.all_gather(processes.shard(first * 3))  # one behind the other
    weights = torch.arange(1.0, 16.0).view(5, 3) if number else torch.zeros(5, 3)
    (second * weights).sum().backward()
    found["gradient through two"] = processes.all_reduce(vectors.grad)
    found["share"] = [float(processes.shard_of_mean(torch.tensor(3.0), n)) for n in (number + 1, 0)]
    found["any"] = [processes.any_rank(number == 1), processes.any_rank(False)]
    found["told"] = [processes.broadcast(f"text {turn} of {number}") for turn in range(2)]
    processes.barrier()
    return found


def gradients() -> dict[str, Any]:
    """Summed where one process has none, in several buckets, and of two dtypes."""
    wide, here, nowhere = (nn.Parameter(torch.zeros(n)) for n in (40, 3, 2))
    half = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    wide.grad = torch.arange(40.0)
    half.grad = torch.full((3,), 1.0, dtype=torch.bfloat16)
    if processes.rank() == 1:
        here.grad = torch.full((3,), 7.0)
    processes.BUCKET_BYTES = 100
    processes.all_reduce_gradients([wide, here, nowhere, half])
    return {"wide": wide.grad, "here": here.grad, "nowhere": nowhere.grad, "half": half.grad}


def differences() -> list[str]:
    """What ``refuse_difference`` says of one bit, of two values exchanged, and of equal modules."""
    said = []
    for change in ("nothing", "bit", "order"):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        if processes.rank() == 1 and change == "bit":
            module[1].running_var[2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
        if processes.rank() == 1 and change == "order":
            module[0].weight.data = module[0].weight.data.flip(0)
        try:
            processes.refuse_difference(module)
            said.append("")
        except RuntimeError as error:
            said.append(str(error))
    return said


def order_of_the_first(folder: Path) -> bool:
    """Whether what the first process wrote was there for the others."""
    file = folder / "cache.txt"
    with processes.main_first():
        if processes.is_main():
            time.sleep(0.3)
            file.write_text("made")
        return file.read_text() == "made"


def compare(folder: Path, *sizes: str) -> None:
    """Everything above, into a file for each process."""
    with joined(on_gpu=False, given={}):
        found = {
            "exchanges": exchanges(),
            "gradients": gradients(),
            "differences": differences(),
            "order": order_of_the_first(folder),
            "steps": {int(rows): steps(folder, int(rows)) for rows in sizes},
        }
        torch.save(found, folder / f"{processes.rank()}.pt")


def flat(tree: Any, prefix: str = "") -> dict[str, Tensor | None]:
    """Tensors of nested dictionaries by their path."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key in tree for k, v in flat(tree[key], f"{prefix}/{key}").items()}


if __name__ == "__main__":
    call_named_function(globals())

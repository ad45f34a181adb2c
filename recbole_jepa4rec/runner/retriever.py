"""The first of two stages: a trained sequential model whose best items a ranker orders anew."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import recbole
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_jepa4rec.base.checkpoint import WEIGHTS_NAME
from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_entry
from recbole_jepa4rec.data.item_files import settle_attributes
from recbole_jepa4rec.runner import quick_start
from recbole_jepa4rec.runner.recommender import load
from recbole_jepa4rec.runner.run_folder import RunFolder

MACHINE = ("seed", "data_path", "use_gpu", "gpu_id", "state", "reproducibility", "show_progress")
"""Keys beside data and protocol that a retriever has from its ranker."""


class Retriever:
    """A frozen model out of a run folder.

    No ``nn.Module``, so that its weights are neither trained nor saved with the ranker's.

    Args:
        folder: of a finished run.
        config: the ranker's.
        dataset: the ranker's; the run must have had the same histories and items.

    Raises:
        ValueError: if the folder is no finished run's, the run had other data, or its model reads
            more of a history than there will be.

    Attributes:
        label: what tables call the run.
        digest: SHA-256 of the weights file, ``[32]`` bytes.
    """

    def __init__(self, folder: Path, config: Any, dataset: Any) -> None:
        _check_fingerprint(folder, dataset)
        with torch.random.fork_rng():  # what is drawn later must not depend on it
            recommender = load(
                folder, data_path=str(Path(config["data_path"]).parent), use_gpu=config["use_gpu"]
            )
        if recommender.item_ids != [*map(str, dataset.field2id_token[dataset.iid_field])]:
            raise ValueError(f"retriever {str(folder)!r} numbers the items in another order")
        if recommender.max_length > config["MAX_ITEM_LIST_LENGTH"]:
            raise ValueError(
                f"retriever {str(folder)!r} reads {recommender.max_length} items of a history, "
                f"more than MAX_ITEM_LIST_LENGTH={config['MAX_ITEM_LIST_LENGTH']}; allowed: "
                f"--MAX_ITEM_LIST_LENGTH={recommender.max_length} or more"
            )
        self.folder, self.model = folder, recommender.model
        self.label = _read_result(folder)["label"]
        weights = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes())
        self.digest = torch.tensor(list(weights.digest()), dtype=torch.uint8)

    @torch.no_grad()
    def scores(self, interaction: Any) -> Tensor:
        """Scores of all items by its own model, float32 ``[B, N]``; the padding item has -inf.

        Raises:
            ValueError: if a score is not a finite number.
        """
        rows = len(interaction)
        scores = self.model.full_sort_predict(self._own_window(interaction)).view(rows, -1)
        scores = scores.float().clone()
        if not scores[:, 1:].isfinite().all():
            raise ValueError(f"retriever {str(self.folder)!r} gives scores that are not finite")
        scores[:, 0] = -torch.inf
        return scores

    def _own_window(self, interaction: Any) -> Any:
        """The rows with histories cut to what the model was trained to read."""
        item_seq, lengths = (interaction[n] for n in (self.model.ITEM_SEQ, self.model.ITEM_SEQ_LEN))
        width = self.model.max_seq_length
        if item_seq.shape[1] <= width:
            return interaction
        kept = lengths.clamp(max=width)
        place = torch.arange(width, device=item_seq.device)
        window = item_seq.gather(1, (lengths - kept)[:, None] + place)
        window = window.masked_fill(place >= kept[:, None], 0)
        cut = {self.model.ITEM_SEQ: window, self.model.ITEM_SEQ_LEN: kept}
        return Interaction({**interaction.interaction, **cut})


def is_folder(retriever: str) -> bool:
    """Whether the key ``retriever`` names a run folder, not a model.

    Raises:
        ValueError: if it names neither.
    """
    try:
        name, _ = find_entry(retriever)
    except ValueError as error:
        if Path(retriever).is_dir():
            return True
        raise ValueError(
            f"retriever {retriever!r} is neither a run folder nor a model: {error}"
        ) from None
    if name == "LlamaRec":
        raise ValueError("retriever 'LlamaRec' would need a retriever itself; name another model")
    return False


def retriever_config(config: Any) -> Config:
    """Settings of a retriever to be trained: the ranker's data, seed and protocol.

    How it is trained is its own defaults' matter, and ``retriever_settings``'.

    Args:
        config: the ranker's; ``retriever_time_ratio`` is the share of ``max_train_seconds``.

    Raises:
        ValueError: if ``retriever_settings`` cannot be used.
    """
    name, settings = find_entry(config["retriever"])
    external, limit = config.external(), config["max_train_seconds"]
    dataset = external["dataset"]
    shared = {*MACHINE, *read_yaml(find_properties() / "overall.yaml"), *_data_keys()}
    given = {key: value for key, value in external.items() if key in shared}
    given |= {
        "model": name,
        "MAX_ITEM_LIST_LENGTH": config["MAX_ITEM_LIST_LENGTH"],
        "max_train_seconds": limit and limit * config["retriever_time_ratio"],
        "checkpoint": None,
        **settings,
    }
    Config(name, dataset, config_dict=given)  # so that what is wrong beyond it is told apart
    try:
        asked = Config(name, dataset, config_dict={**given, **config["retriever_settings"]})
    except ValueError as error:
        raise ValueError(f"retriever_settings: {error}") from error
    settle_attributes(asked)
    return asked


def train_retriever(settings: Config, folder: Path) -> None:
    """Train a model for the ranker, unless an interrupted run has done so already.

    Args:
        settings: of ``retriever_config``.
        folder: its run folder.

    Raises:
        ValueError: as ``quick_start.run``, or if the folder holds a model of other settings.
    """
    given = settings.external()
    if not (folder / "result.json").is_file():
        key = "resume" if RunFolder(folder).is_unfinished else "run_dir"
        with torch.random.fork_rng(), torch.enable_grad():  # maybe amid an evaluation
            quick_start.run(config_dict={**given, key: str(folder)})
    elif read_yaml(folder / "config.yaml") != given:
        raise ValueError(f"{folder} holds a retriever that was trained with other settings")


def _data_keys() -> set[str]:
    """Keys that say what is loaded and how it is filtered: those of RecBole's ``sample.yaml``."""
    return set(read_yaml(Path(recbole.__file__).parent / "properties" / "dataset" / "sample.yaml"))


def _read_result(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself.

    Raises:
        ValueError: if the folder is no finished run's.
    """
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return {key: result[key] for key in ("label", "data_fingerprint", "dataset")}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"retriever {str(folder)!r} is no finished run's folder: no result.json that names data"
        ) from None


def _check_fingerprint(folder: Path, dataset: Any) -> None:
    """Refuse a run on other data before its model is loaded."""
    result = _read_result(folder)
    if result["data_fingerprint"] != dataset.fingerprint:
        raise ValueError(
            f"retriever {str(folder)!r} was trained on other data: {result['dataset']} "
            f"({result['data_fingerprint']}) instead of {dataset.dataset_name} "
            f"({dataset.fingerprint})"
        )

"""Trained models out of their run folders, and the retriever that the run of a ranker needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import recbole
import torch

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.base.checkpoint import WEIGHTS_NAME, item_ids_digest, load_weights
from recbole_jepa4rec.base.yaml_files import find_properties, read_yaml
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import find_dataset, find_entry, find_model, is_known
from recbole_jepa4rec.data.item_files import settle_attributes
from recbole_jepa4rec.model.base import Model, offered_by
from recbole_jepa4rec.model.recbole_models import sparing
from recbole_jepa4rec.model.reranking import Retriever
from recbole_jepa4rec.runner.inputs import LASTING_KEYS, input_digests, refuse_other_inputs
from recbole_jepa4rec.runner.result import asking_command
from recbole_jepa4rec.runner.resume import asked_config, settle_missing
from recbole_jepa4rec.runner.run_folder import RunFolder
from recbole_jepa4rec.training.pretrained_chain import is_chained

MACHINE = ("seed", "data_path", "use_gpu", "gpu_id", "state", "reproducibility", "show_progress")
"""Keys beside data and protocol that a retriever has from its ranker."""

Train = Callable[[Config, RunFolder, str], Any]
"""Makes a run, by its settings, in its folder, for the command that asks for it."""


def load_model(folder: Path, model: type | None = None, **settings: Any) -> tuple[Any, Any]:
    """The model that a run left behind, and the training part of its data set.

    Args:
        folder: of the run.
        model: its class, where that is a user's own.
        **settings: keys that differ on this machine.

    Raises:
        ValueError: if the folder is no run's, or the weights do not fit the data set or what
            settings name.
    """
    for name in ("config.yaml", WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no run folder: it has no {name}")
    named = str(read_yaml(folder / "config.yaml").get("model", ""))
    if model is None and named and not is_known(named):
        raise ValueError(f"{folder}: hand in the class of {named!r}: load(run_dir, model={named})")
    config = Config(
        model,
        config_file_list=[folder / "config.yaml"],
        config_dict={"checkpoint": str(folder), "encoder_checkpoint": None, **settings},
    )
    settle_missing(config)
    if is_chained(config):  # the other stage would read the file of the first
        config = config.with_settings({"train_stage": "pretrain"})
    dataset = find_dataset(config.model_class)(config).build()[0]
    made = make_model(config, dataset, retriever_for(config, folder, dataset))
    knows_items = offered_by(made, config["model"]).knows_items
    said = load_weights(made, folder / WEIGHTS_NAME, item_ids=item_ids_digest(dataset, knows_items))
    then = json.loads(said.get("inputs", "{}"))
    refuse_other_inputs(folder, then, input_digests(config, LASTING_KEYS), config)
    return made.eval(), dataset


def make_model(config: Config, dataset: Any, retriever: Retriever | None) -> Any:
    """A new model on its device, with the retriever if it needs one."""
    parts = (config, dataset) if retriever is None else (config, dataset, retriever)
    return _model_class(config)(*parts).to(config["device"])


def _model_class(config: Config) -> type:
    """The class of the model; one of RecBole's is made to do less for the same loss."""
    targets, negatives = config["training_targets"] or "rows", config["train_neg_sample_args"] or {}
    if targets == "all_prefixes" and negatives.get("dynamic"):
        getLogger().info("train_neg_sample_args.dynamic ranks rows: training_targets is rows")
        targets = "rows"
    return sparing(config.model_class, targets, config["loss_type"], config["train_stage"])


def retriever_for(
    config: Config, folder: Path, dataset: Any, train: Train | None = None
) -> Retriever | None:
    """The retriever that the model of a run needs; ``None`` for a model that needs none.

    It lies in a folder of its own that the key ``retriever`` names, or in the run's. There it is
    trained first, unless an earlier start of the run has done so.

    Args:
        config: of the run.
        folder: of the run.
        dataset: the training part of its data.
        train: makes the retriever's run; ``None`` where there must be one already.

    Raises:
        ValueError: if there is none, it does not fit, or its settings cannot be used.
    """
    if not _needs_retriever(config.model_class):
        return None
    trained = is_folder(config["retriever"])
    folder = Path(config["retriever"]) if trained else folder / "retriever"
    if train and not trained:
        _train(config, folder, dataset, train)
    with processes.main_first():
        retriever = read_retriever(folder, config, dataset)
    if processes.world_size() > 1 and retriever.offer.has_item_vectors:
        retriever.offer.item_vectors()  # together, before each process ranks users of its own
    return retriever


def read_retriever(folder: Path, config: Config, dataset: Any) -> Retriever:
    """The model of a finished run, for a ranker.

    Args:
        folder: of the run.
        config: the ranker's.
        dataset: the ranker's; the run must have had the same histories and items.

    Raises:
        ValueError: if the folder is no finished run's, the run had other data, or its model reads
            more of a history than there will be.
    """
    label = _check_run(folder, dataset)
    with torch.random.fork_rng():  # what is drawn later must not depend on it
        data_path = str(Path(config["data_path"]).parent)
        model, own = load_model(folder, data_path=data_path, use_gpu=config["use_gpu"])
    field = dataset.iid_field
    if [*own.field2id_token[field]] != [*dataset.field2id_token[field]]:
        raise ValueError(f"retriever {str(folder)!r} numbers the items in another order")
    if model.max_seq_length > config["MAX_ITEM_LIST_LENGTH"]:
        raise ValueError(
            f"retriever {str(folder)!r} reads {model.max_seq_length} items of a history, "
            f"more than MAX_ITEM_LIST_LENGTH={config['MAX_ITEM_LIST_LENGTH']}; allowed: "
            f"--MAX_ITEM_LIST_LENGTH={model.max_seq_length} or more"
        )
    weights = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes())
    digest = torch.tensor(list(weights.digest()), dtype=torch.uint8)
    return Retriever(offered_by(model, label), str(folder), label, model.max_seq_length, digest)


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
    if _needs_retriever(find_model(name)):
        raise ValueError(f"retriever {name!r} would need a retriever itself; name another model")
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
    theirs = Path(recbole.__file__).parent / "properties" / "dataset" / "sample.yaml"
    protocol = find_properties() / "overall.yaml"
    shared = {*MACHINE, *read_yaml(protocol), *read_yaml(theirs)}  # theirs: what is loaded
    given = {key: value for key, value in external.items() if key in shared}
    given |= {
        "model": name,
        "MAX_ITEM_LIST_LENGTH": config["MAX_ITEM_LIST_LENGTH"],
        "max_train_seconds": limit and limit * config["retriever_time_ratio"],
        "checkpoint": None,
        "log_mlflow": False,
        **settings,
    }
    Config(name, dataset, config_dict=given)  # so that what is wrong beyond it is told apart
    try:
        asked = Config(name, dataset, config_dict={**given, **config["retriever_settings"]})
    except ValueError as error:
        raise ValueError(f"retriever_settings: {error}") from error
    settle_attributes(asked)
    return asked


def _train(config: Config, folder: Path, dataset: Any, train: Train) -> None:
    """Train a model for the ranker into a folder, unless an interrupted run has done so already."""
    if processes.world_size() > 1:
        raise ValueError(
            f"retriever {config['retriever']!r} would be trained first, by one process; allowed "
            f"with {processes.world_size()}: the run folder of a trained one"
        )
    given = retriever_config(config).external()
    if (folder / "result.json").is_file():
        if read_yaml(folder / "config.yaml") != given:
            raise ValueError(f"{folder} holds a retriever that was trained with other settings")
        return
    config.model_class.refuse_settings(config, dataset)
    key = "resume" if RunFolder(folder).is_unfinished else "run_dir"
    asked: dict[str, Any] = {**given, key: str(folder)}
    settings = asked_config(config_dict=asked)
    train(settings, RunFolder.of(settings), asking_command(None, None, (), asked, ()))


def _needs_retriever(model_class: type) -> bool:
    return issubclass(model_class, Model) and model_class.needs_retriever


def _check_run(folder: Path, dataset: Any) -> str:
    """What tables call a finished run; refuse one on other data before its model is loaded."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        label, fingerprint, name = (result[k] for k in ("label", "data_fingerprint", "dataset"))
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"retriever {str(folder)!r} is no finished run's folder: no result.json that names data"
        ) from None
    if fingerprint != dataset.fingerprint:
        raise ValueError(
            f"retriever {str(folder)!r} was trained on other data: {name} ({fingerprint}) instead "
            f"of {dataset.dataset_name} ({dataset.fingerprint})"
        )
    return label

"""Where the ``.item`` files of a run lie, and whether they hold the text that its model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recbole

from recbole_jepa4rec.config.registry import TEXT_MODELS
from recbole_jepa4rec.data.atomic_files import read_header, read_text
from recbole_jepa4rec.data.item_attribute import KEYS as ATTRIBUTE_KEYS
from recbole_jepa4rec.data.item_text import holds_text


def source_folders(config: Any) -> dict[str, Path]:
    """Folder of each data set that a run reads, by name.

    Args:
        config: RecBole's, or ours.
    """
    path, names = Path(config["data_path"]), config["source_datasets"]
    if not names:
        return {config["dataset"]: path}
    folders = {name: path.parent / name for name in names}
    if "ml-100k" in folders and not folders["ml-100k"].is_dir():
        folders["ml-100k"] = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    return folders


def item_files(config: Any) -> dict[str, Path]:
    """The ``.item`` file of each data set, there or not, by the data set's name."""
    return {name: folder / f"{name}.item" for name, folder in source_folders(config).items()}


def reads_text(config: Any) -> bool:
    """Whether the model reads what ``.item`` says of the items: text, or an attribute column."""
    keys = config.internal_config_dict
    return reads_item_text(config) or any(key in keys for key in ATTRIBUTE_KEYS)


def reads_item_text(config: Any) -> bool:
    """Whether the model reads the text that ``.item`` has of the items."""
    return config["model"] in TEXT_MODELS and config["text_weight"] != 0


def refuse_without_text(config: Any) -> None:
    """Refuse a model that reads item text where a data set has none; other models pass.

    It reads no interactions, so that a list of runs can be checked before the first begins.

    Args:
        config: ours, of the run.

    Raises:
        ValueError: in one line, naming the model and the data set; or as ``read_header``.
    """
    model, fields = config["model"], config["item_text_fields"]
    if not reads_item_text(config):
        return
    weighed = " (with text_weight=0 none)" if "text_weight" in config.internal_config_dict else ""
    for name, path in item_files(config).items():
        if not path.parent.is_dir():
            return  # loading says so, and which data sets there are
        lacks = f"model {model!r} reads item text{weighed}, which data set {name!r} lacks"
        if not path.is_file():
            raise ValueError(f"{lacks}: there is no file {path}")
        wanted = [fields] if isinstance(fields, str) else fields
        columns = [
            column.name
            for column in read_header(path)
            if column.name != config["ITEM_ID_FIELD"]
            and (column.name in wanted if wanted else column.type.startswith("token"))
        ]
        if not columns:
            asked = f"column {', '.join(wanted)}" if wanted else "token or token_seq column"
            raise ValueError(f"{lacks}: {path} has no {asked} beside the id")
        if not holds_text(read_text(path, columns)):
            raise ValueError(f"{lacks}: {', '.join(columns)} of {path} is empty for every item")

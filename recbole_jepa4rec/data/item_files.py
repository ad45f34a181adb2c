"""Where the ``.item`` files of a run lie, and whether they hold what its model reads.

Text models read the items' texts; S3Rec, FDSA, SASRecF and GRU4RecF an attribute column, chosen
from whatever the data has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import recbole
from recbole.config import Config as RecBoleConfig

from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import TEXT_MODELS
from recbole_jepa4rec.config.run_settings import ATTRIBUTE_KEYS
from recbole_jepa4rec.config.settings import Keys
from recbole_jepa4rec.data.atomic_files import Column, read_atomic, read_header, read_text
from recbole_jepa4rec.data.item_text import holds_text


def source_folders(config: Keys) -> dict[str, Path]:
    """Folder of each data set that a run reads, by name."""
    path, names = Path(config["data_path"]), config["source_datasets"]
    if not names:
        return {config["dataset"]: path}
    folders = {name: path.parent / name for name in names}
    if "ml-100k" in folders and not folders["ml-100k"].is_dir():
        folders["ml-100k"] = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    return folders


def item_files(config: Keys) -> dict[str, Path]:
    """The ``.item`` file of each data set, there or not, by the data set's name."""
    return {name: folder / f"{name}.item" for name, folder in source_folders(config).items()}


def reads_text(config: RecBoleConfig) -> bool:
    """Whether the model reads what ``.item`` says of the items: text, or an attribute column."""
    keys = config.internal_config_dict
    return reads_item_text(config) or any(key in keys for key in ATTRIBUTE_KEYS)


def reads_item_text(config: RecBoleConfig) -> bool:
    """Whether the model reads the text that ``.item`` has of the items."""
    weighs_none = "text_weight" in config.internal_config_dict and config["text_weight"] == 0
    return config["model"] in TEXT_MODELS and not weighs_none


def refuse_without_text(config: Config) -> None:
    """Refuse a model where a data set lacks what it reads of items; settle attribute columns.

    It reads no interactions, so that a list of runs can be checked before the first begins.

    Raises:
        ValueError: in one line, naming the model and the data set; or as ``read_header``.
    """
    settle_attributes(config)
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


def settle_attributes(config: Config) -> dict[str, Any]:
    """Settle which item attributes the model reads, and have them loaded.

    A folder that is not there is left to the data set, which says so.

    Returns:
        The settings that were found.

    Raises:
        ValueError: as ``find_attributes``.
    """
    found: dict[str, Any] = {}
    for key in ATTRIBUTE_KEYS:
        if key not in config.internal_config_dict or not Path(config["data_path"]).is_dir():
            continue
        names = find_attributes(config, key)
        load_col = config["load_col"]
        if not config.given("load_col"):
            load_col = {**load_col, "item": []}
        columns = [config["ITEM_ID_FIELD"], *names]
        found |= {
            key: names[0] if key == "item_attribute" else names,
            "load_col": with_item_columns(load_col, columns),
        }
    config.settle(found)
    return found


def find_attributes(config: Keys, key: str) -> list[str]:
    """The columns that a setting names, or the one to take where it names none.

    By default that is the ``token`` or ``token_seq`` column with the fewest distinct values (words,
    for ``token_seq``), of those with two or more: genres and categories rather than titles.

    Args:
        config: of a run on one data set.
        key: one of ``ATTRIBUTE_KEYS``.

    Returns:
        Names of columns, one at least.

    Raises:
        ValueError: if there is no such file or column, or nothing to choose; names what there is.
    """
    ((dataset, path),) = item_files(config).items()
    needs = f"{key}: model {config['model']!r} needs an item attribute, and"
    if not path.is_file():
        raise ValueError(f"{needs} data set {dataset!r} has no file {path}")
    columns = _attribute_columns(path, config["ITEM_ID_FIELD"])
    if (given := config[key]) is not None:
        named = [given] if isinstance(given, str) else list(given)
        _refuse_missing(key, named, columns, path)
        return named
    counts = _distinct(path, columns, config["seq_separator"])
    usable = {name: count for name, count in counts.items() if count >= 2}
    if not usable:
        raise ValueError(
            f"{needs} {path} has no token or token_seq column with at least 2 values beside the id"
        )
    return [min(usable, key=usable.__getitem__)]  # the first of equals


def with_item_columns(load_col: Mapping[str, Any] | None, names: list[str]) -> dict | None:
    """``load_col`` that loads these item columns as well; None, which loads everything, stays."""
    if load_col is None:
        return None
    loaded = load_col.get("item") or []
    if loaded == "*":
        return dict(load_col)
    return {**load_col, "item": list(dict.fromkeys([*loaded, *names]))}


def _attribute_columns(path: Path, item_field: str) -> list[Column]:
    """Columns of text beside the id, in file order."""
    return [
        column
        for column in read_header(path)
        if column.type.startswith("token") and column.name != item_field
    ]


def _refuse_missing(key: str, named: list[str], columns: list[Column], path: Path) -> None:
    there = [column.name for column in columns]
    for name in named:
        if name not in there:
            raise ValueError(
                f"{key} {name!r} is no token or token_seq column of {path} "
                f"(there are: {', '.join(there) or 'none'})"
            )
    if not named:
        raise ValueError(f"{key} names no column of {path} (there are: {', '.join(there)})")


def _distinct(path: Path, columns: list[Column], separator: str) -> dict[str, int]:
    """Distinct values or words of each column, the empty one not counted."""
    table = read_atomic(path, [column.name for column in columns], as_text=True)
    counts = {}
    for name, kind in columns:
        values = pd.Series(table[name].unique())
        if kind == "token_seq":
            values = values.str.split(separator).explode()
        counts[name] = int(values[values != ""].nunique())
    return counts

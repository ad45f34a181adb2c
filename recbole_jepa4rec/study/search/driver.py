"""From a command line to the best settings: check, run what is missing, test the winner.

What takes seconds to import stands inside the functions, after the words are understood.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_jepa4rec.base.command import run_command, say_last
from recbole_jepa4rec.base.files import atomic_write, locked
from recbole_jepa4rec.config.help import asks_for_help, help_of
from recbole_jepa4rec.config.registry import find_dataset
from recbole_jepa4rec.config.syntax import first_difference
from recbole_jepa4rec.study.search.request import Request, SearchKeys, read_request
from recbole_jepa4rec.study.study import PATIENCE, Board, refuse_foreign

if TYPE_CHECKING:
    from recbole_jepa4rec.study.grid import Outcome
    from recbole_jepa4rec.study.search.trials import Record

IDENTITY_NAME = "search.json"

OUTPUTS = (
    *("trials", "ray", "best", "trials.csv", "search.html"),
    *("best.yaml", "best.output.log"),
)
"""What a search writes afterwards."""


def main(command_line: Sequence[str]) -> int:
    """Search as a script does; the last line on standard output is the winner's ``result.json``.

    Args:
        command_line: the words after the script's name.

    Returns:
        Exit status; see ``run_command``, 1 too if no trial finished or the winner failed.

    Raises:
        SystemExit: as ``run_command``.
    """
    if asks_for_help(command_line):
        usage = "search --model=NAME --dataset=NAME [--params_file=FILE] [--key=value ...]"
        print(help_of(usage, "Search for settings on validation, and test the best.", SearchKeys))
        return 0

    def search_and_print() -> None:
        say_last(find_best(read_request(command_line)))

    return run_command(
        search_and_print, after_interrupt="the same command with --resume goes on", quiet=["ray"]
    )


def find_best(request: Request) -> Path:
    """Run the search; returns the path of the winner's ``result.json``.

    Raises:
        ValueError: for data that cannot be used, a folder that holds something else, or without
            Ray.
        RuntimeError: if no trial finished, or the winner's run fails.
    """
    if not find_spec("ray"):
        raise ValueError("the search needs Ray: pip install '.[tune]'")
    from recbole_jepa4rec.study.search.report import write_report
    from recbole_jepa4rec.study.search.trials import clear_unfinished

    _refuse_state(request)
    data, fingerprint = read_data(request)
    folder = request.folder
    with locked(folder, "search", PATIENCE) as lock:
        identity = {
            **request.identity(),
            "data_fingerprint": fingerprint,
            **_read_beside(request, data),
        }
        identity = json.loads(json.dumps(identity, default=str))  # as the file gives it back
        done = _ended_before(request, identity)
        clear_unfinished(folder, done)
        board = Board(done, request.num_samples, lambda ended: write_report(request, ended))
        says = f"{request.num_samples} trials in {folder}, {len(done)} of them ended before"
        print(says, file=sys.stderr)
        if done:
            board.write()
        if len(done) < request.num_samples:
            _run_missing(request, data, board, identity)
        del data  # it may be large, and the winner reads its own
        return _run_winner(request, board, lock)


def _run_missing(
    request: Request,
    data: Mapping[str, Any],
    board: Board[str, Record],
    identity: Mapping[str, Any],
) -> None:
    from recbole_jepa4rec.study.search.tuning import cluster, tune_trials

    with cluster(request) as gpus:  # one that is not there leaves no search behind
        _write_identity(request.folder, identity)
        tune_trials(request, data, gpus, board)


def _run_winner(request: Request, board: Board[str, Record], lock: int) -> Path:
    """Train and test the best settings in the folder ``best``, unless that is done.

    Raises:
        RuntimeError: if no trial finished, or the run fails.
    """
    from recbole_jepa4rec.runner.run_folder import RunFolder
    from recbole_jepa4rec.study.grid import Grid
    from recbole_jepa4rec.study.search.trials import best_of

    if not (best := best_of(board.ended)):
        errors = [each.error for each in board.ended.values() if each.error]
        raise RuntimeError(f"no trial finished; the last error: {errors[-1] if errors else None}")
    cell = request.winner(best.point)
    if not cell.run_asked_for():
        once_best = [request.winner(each.point).settings for each in board.ended.values()]
        cell = replace(cell, before=tuple(once_best))
        print(f"trial {best.name} is best; it is trained again and tested", file=sys.stderr)
        ends: list[Outcome] = []
        Grid([cell], 1, lock).run(ends.append)
        if ends[0].error:
            raise RuntimeError(str(ends[0]))
        print(ends[0], file=sys.stderr)
        board.write()
    return RunFolder(cell.folder).result_file


def read_data(request: Request) -> tuple[dict[str, Any], str]:
    """Read the data once for each combination of the settings that shape them.

    Returns:
        The data sets by ``Request.data_name``, and the fingerprint that all of them have.

    Raises:
        ValueError: if they cannot be read, if the model cannot run on them, or if trials would be
            measured on different interactions.
    """
    from recbole_jepa4rec.base.checkpoint import weights_file
    from recbole_jepa4rec.data.item_files import refuse_without_text
    from recbole_jepa4rec.training.pretrained_chain import asked_stage, is_chained

    config = request.config
    if config["checkpoint"]:
        weights_file(config["checkpoint"])
    refuse_without_text(config)
    if is_chained(config):
        asked_stage(config)
    keys = [each.key for each in request.data_dimensions]
    found: dict[str, Any] = {}
    for values in itertools.product(*(each.points or [] for each in request.data_dimensions)):
        point = dict(zip(keys, values, strict=True))
        found[request.data_name(point)] = _read(request, point)
    prints = {data.fingerprint for data in found.values()}
    if len(prints) > 1:
        raise ValueError(
            f"{', '.join(keys)} cannot be searched: trials would be measured on different "
            "interactions"
        )
    return found, prints.pop()


def _read(request: Request, point: Mapping[str, Any]) -> Any:
    """One data set, with all that is read of files later already in memory."""
    from recbole_jepa4rec.data.item_files import reads_item_text, reads_text

    config = request.trial_config(point)
    data = find_dataset(config.model_class)(config)
    data.refuse_untested()
    if reads_item_text(config):
        data.item_text  # noqa: B018 (read here, since a trial may run where there are no files)
        config.model_class(config, data)  # leaves tokens and item vectors in the cache
    if reads_text(config):
        data.text_fingerprint  # noqa: B018 (as above)
    data.config = None  # each trial has its own
    return data


def _read_beside(request: Request, data: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of what trials read beside the interactions: item text, and what settings name.

    What is not read has no key, as in files of searches that know of none.
    """
    from recbole_jepa4rec.data.item_files import reads_text
    from recbole_jepa4rec.runner.inputs import LASTING_KEYS, START_KEYS, input_digests

    found: dict[str, Any] = {}
    if reads_text(request.config):
        found["text_fingerprint"] = [each.text_fingerprint for each in data.values()]
    inputs = input_digests(request.config)
    for each in request.space:
        if each.key in (*START_KEYS, *LASTING_KEYS):
            for value in each.values:
                of_trial = input_digests(request.trial_config({each.key: value}), (each.key,))
                inputs |= {f"{each.key}={value}": digest for digest in of_trial.values()}
    return {**found, "inputs": inputs} if inputs else found


def _refuse_state(request: Request) -> None:
    """Refuse to start where a search stands, to go on where none does, or what cannot go on."""
    folder, there = request.folder, (request.folder / IDENTITY_NAME).exists()
    if there and not request.keys.resume:
        raise ValueError(f"{folder} holds a search (write --resume, or another --run_dir)")
    refuse_foreign(folder, OUTPUTS, proof=IDENTITY_NAME)
    if request.keys.resume and not there:
        raise ValueError(f"nothing to resume in {folder}: there is no {IDENTITY_NAME}")
    if request.keys.resume and request.keys.algorithm == "hyperopt":
        raise ValueError("algorithm 'hyperopt' cannot go on with --resume (optuna can)")


def _write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    with atomic_write(folder / IDENTITY_NAME, "w") as file:
        json.dump(identity, file, indent=2)


def _ended_before(request: Request, identity: Mapping[str, Any]) -> dict[str, Record]:
    """Records of an earlier start that count, by name; failed trials are run anew.

    Raises:
        ValueError: if the folder holds another search.
    """
    from recbole_jepa4rec.study.search.trials import FAILED, read_records

    path = request.folder / IDENTITY_NAME
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not describe a search")
    if different := first_difference({key: found.get(key) for key in identity}, identity):
        key, old, new = different
        raise ValueError(f"{path} is of another search: {key} is {old!r} there and {new!r} here")
    known = request.points
    done = {}
    for each in read_records(request.folder / "trials"):
        if each.status == FAILED or (known and each.name not in known):
            continue
        if known and each.point != known[each.name]:
            raise ValueError(f"{request.folder}/trials/{each.name} is not of this search")
        done[each.name] = each
    return done

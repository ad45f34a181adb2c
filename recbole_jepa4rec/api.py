"""The commands as Python functions: settings are keywords, results are objects that show tables.

They say nothing but warnings, and show progress in a notebook. What takes seconds to import stands
inside the functions.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_jepa4rec.base.progress import in_notebook

if TYPE_CHECKING:
    from recbole_jepa4rec.runner.run_result import RunResult
    from recbole_jepa4rec.study.study_result import Comparison, Search


def run(
    model: str | type | None = None,
    dataset: str | Sequence[str] | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Sequence[str] = (),
    **settings: Any,
) -> RunResult:
    """Train a model, select its best epoch on validation and test it once.

    ``run("JEPA4Rec", "shop", epochs=3)`` is ``recbole-jepa4rec run --model=JEPA4Rec --dataset=shop
    --epochs=3``; docs/keys.md has every key.

    Args:
        model: name or class.
        dataset: name, or several.
        config_files: yaml files.
        config_dict: settings; for keys that are no Python names.
        command_line: ``--key=value`` words.
        **settings: win over ``config_dict``.

    Returns:
        A mapping that holds what ``result.json`` does, shown as a table.

    Raises:
        ValueError: for input that cannot be used.
        OSError: if a file cannot be written.
    """
    from recbole_jepa4rec.runner.quick_start import run as run_here

    given = {"show_progress": in_notebook(), **(config_dict or {}), **settings}
    if given.get("resume"):
        del given["show_progress"]  # the run has its own
    with _warnings_alone():
        return run_here(model, dataset, config_files, given, command_line)


def compare(
    models: Sequence[str],
    dataset: str,
    *,
    seeds: Sequence[int] = (2020,),
    jobs: int = 1,
    reference: str | None = None,
    config_files: Sequence[str | Path] = (),
    **settings: Any,
) -> Comparison:
    """Train and test models side by side, each in a process of its own; what is there is kept.

    Args:
        models: names; ``JEPA4Rec:jepa4rec-strong`` has the settings of a preset.
        dataset: name.
        seeds: with which every model is trained.
        jobs: runs at once.
        reference: what the others are compared with; the first JEPA4Rec, else the first of all.
        config_files: yaml files.
        **settings: keys of every run, or ``run_dir``.

    Returns:
        Means, tests and the runs; a run that failed is named in it.

    Raises:
        ValueError: for input that cannot be used.
    """
    from recbole_jepa4rec.study.group import compare_models, read_request
    from recbole_jepa4rec.study.study_result import Comparison

    own = {"model_list": models, "seeds": seeds, "jobs": jobs}
    own |= {"reference": reference} if reference else {}
    request = read_request(_words({**own, "dataset": dataset, **settings}, config_files))
    with _progress_alone():
        compare_models(request)
    return Comparison(request.folder)


def search(
    model: str,
    dataset: str,
    *,
    num_samples: int = 10,
    config_files: Sequence[str | Path] = (),
    **settings: Any,
) -> Search:
    """Try settings on validation with Ray Tune, and test the best once.

    Args:
        model: name.
        dataset: name.
        num_samples: trials, at most.
        config_files: yaml files.
        **settings: keys of the search (docs/keys.md), such as ``search`` or ``max_concurrent``, and
            of every trial.

    Returns:
        The best settings, every trial, and the result of the best.

    Raises:
        ValueError: for input that cannot be used.
        RuntimeError: if no trial finished.
    """
    from recbole_jepa4rec.runner.run_result import RunResult
    from recbole_jepa4rec.study.search.driver import find_best
    from recbole_jepa4rec.study.search.request import read_request
    from recbole_jepa4rec.study.study_result import Search

    own = {"model": model, "dataset": dataset, "num_samples": num_samples}
    request = read_request(_words({**own, **settings}, config_files))
    with _progress_alone():
        result = find_best(request)
    return Search(request.folder, RunResult.read(result))


def _words(settings: Mapping[str, Any], config_files: Sequence[str | Path]) -> list[str]:
    """Settings as the words of a command line, which are read as literals."""
    import shlex

    words = [f"--config_files={shlex.join(map(str, config_files))}"] if config_files else []
    for key, value in settings.items():
        if key in ("model_list", "seeds") and not isinstance(value, str):
            value = ",".join(map(str, value))
        words.append(f"--{key}={value}")
    return words


@contextmanager
def _warnings_alone() -> Iterator[None]:
    """Show no more than warnings of a run's log, unless the program logs on its own."""
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def _progress_alone() -> Iterator[None]:
    """Show how a study goes on in a notebook, and nothing elsewhere."""
    with redirect_stdout(io.StringIO()):
        if in_notebook():
            yield
        else:
            with redirect_stderr(io.StringIO()):
                yield

"""The one command, ``recbole-jepa4rec``; also ``python -m recbole_jepa4rec``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from recbole_jepa4rec.base.command import WRONG_INPUT, Parser, did_you_mean, run_command, say_all
from recbole_jepa4rec.config.registry import recbole_folder

COMMANDS = {
    "run": ("train and test one model", "runner.quick_start:main"),
    "compare": ("compare models side by side", "study.group:main"),
    "search": ("search for hyper-parameters", "study.search.driver:main"),
    "report": ("the page of a comparison over finished runs", "study.report_command:report"),
    "runs": ("list finished runs with their metrics", "study.run_list:main"),
    "convert": ("make atomic files of public dumps or own tables", "convert.command_line:main"),
    "models": ("list the models, or the keys of one", "__main__:list_models"),
    "doctor": ("what this machine has and lacks", "__main__:diagnose"),
}
"""What each does, and where; ``--help`` after one says more."""

WITHOUT_RECBOLE = ("convert", "doctor")
"""The commands that do without RecBole; the others name what brings it."""

INTERNAL = {"child": "runner.quick_start:run_as_child", "worker": "__main__:work"}
"""What other commands start in processes of their own."""


def main(words: Sequence[str] | None = None) -> int:
    """Do what the first word says; returns the exit status."""
    words = sys.argv[1:] if words is None else words
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    targets = {**{known: target for known, (_, target) in COMMANDS.items()}, **INTERNAL}
    if name not in targets:
        wrong = f"error: unknown command {name!r}{did_you_mean(name, COMMANDS)}" if name else ""
        print("\n".join(filter(None, [_usage(), wrong])), file=sys.stderr)
        return WRONG_INPUT
    if name not in WITHOUT_RECBOLE and (status := run_command(_refuse_without_recbole)):
        return status
    module, function = targets[name].split(":")
    return getattr(import_module(f"recbole_jepa4rec.{module}"), function)(words[1:])


def list_models(words: Sequence[str]) -> int:
    """Print all models, or what is known of those named."""
    from recbole_jepa4rec.config import help

    if help.asks_for_help(words):
        print("usage: recbole-jepa4rec models [NAME ...]")
        return 0
    return run_command(
        lambda: say_all("\n".join(map(help.describe_model, words)) if words else help.list_models())
    )


def diagnose(words: Sequence[str]) -> int:
    """Print what this machine has; 1 if something is missing."""
    parser = Parser(prog="recbole-jepa4rec doctor", description="What this machine has and lacks.")

    def report() -> int:
        parser.parse_args(words)

        from recbole_jepa4rec.runner import doctor

        return 1 if doctor.diagnose() else 0

    return run_command(report)


def work(words: Sequence[str]) -> int:
    """Be one of several processes of a run."""
    from recbole_jepa4rec.runner import quick_start

    return quick_start.work(words[0])


def _refuse_without_recbole() -> None:
    recbole_folder()


def _usage() -> str:
    lines = [f"  {name:<9} {what}" for name, (what, _) in COMMANDS.items()]
    return "\n".join(["usage: recbole-jepa4rec COMMAND [--help] ...", "", *lines])


if __name__ == "__main__":
    sys.exit(main())

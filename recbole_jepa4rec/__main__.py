"""``python -m recbole_jepa4rec doctor | report | runs``, and the runs that a comparison starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Do what the first word says; returns the exit status."""
    if list(words) == ["doctor"]:
        from recbole_jepa4rec.runner.doctor import diagnose

        return 1 if diagnose() else 0
    if words and words[0] in ("report", "runs"):
        from recbole_jepa4rec.study.report_command import list_runs, report

        return (report if words[0] == "report" else list_runs)(words[1:])
    if words and words[0] == "run":
        from recbole_jepa4rec.runner.quick_start import run_as_child

        return run_as_child(words[1:])
    if len(words) == 2 and words[0] == "worker":
        from recbole_jepa4rec.runner.quick_start import work

        return work(words[1])
    print("usage: python -m recbole_jepa4rec doctor | report | runs", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

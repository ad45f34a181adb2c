"""``python -m recbole_jepa4rec doctor``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:] != ["doctor"]:
        print("usage: python -m recbole_jepa4rec doctor", file=sys.stderr)
        sys.exit(2)
    from recbole_jepa4rec.doctor import diagnose

    sys.exit(1 if diagnose() else 0)

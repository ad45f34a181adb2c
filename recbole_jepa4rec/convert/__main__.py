"""``python -m recbole_jepa4rec.convert``."""

import sys

from recbole_jepa4rec.convert.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

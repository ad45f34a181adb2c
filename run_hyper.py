"""Search for hyper-parameters: `python run_hyper.py --model=JEPA4Rec --dataset=ml-100k`."""

import sys

from recbole_jepa4rec.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))

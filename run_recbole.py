"""Train and test one model: `python run_recbole.py --model=JEPA4Rec --dataset=ml-100k`."""

import sys

from recbole_jepa4rec.runner.quick_start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

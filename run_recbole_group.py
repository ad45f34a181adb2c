"""Compare models: `python run_recbole_group.py --model_list=Markov,JEPA4Rec --dataset=ml-100k`."""

import sys

from recbole_jepa4rec.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))

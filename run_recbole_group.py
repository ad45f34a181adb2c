"""Compare models: `python run_recbole_group.py --model_list=Markov,JEPA4Rec --dataset=ml-100k`."""

import sys

from recbole_jepa4rec.study.group import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Preference pairs: sample SQL from a weak model, execute it, pair it with gold.

The same as `sense-trl pairs --config ...`.

python recipes/build_pairs.py --config recipes/spider-smollm2/pairs.yaml
"""

import sys

from sense_trl.cli import main as command_line
from sense_trl.cli.stages import PAIRS

make_parser = PAIRS.make_parser
main = PAIRS.main

if __name__ == "__main__":
    sys.exit(command_line.main([PAIRS.name, *sys.argv[1:]]))

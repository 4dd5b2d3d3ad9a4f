"""Execution accuracy of a model: predict, execute, compare, report.

The same as `sense-trl evaluate --config ...`.

python recipes/evaluate.py --config recipes/spider-smollm2/evaluate.yaml
"""

import sys

from sense_trl.cli import main as command_line
from sense_trl.cli.stages import EVALUATE

make_parser = EVALUATE.make_parser
main = EVALUATE.main

if __name__ == "__main__":
    sys.exit(command_line.main([EVALUATE.name, *sys.argv[1:]]))

"""Distillation from imperfect data (KID); the same as `sense-trl kd`.

accelerate launch recipes/train_kid.py --config recipes/spider-smollm2-4bit-cpu/kd.yaml
"""

import sys

from sense_trl.cli import main as command_line
from sense_trl.cli.stages import KD

make_parser = KD.make_parser
main = KD.main

if __name__ == "__main__":
    sys.exit(command_line.main([KD.name, *sys.argv[1:]]))

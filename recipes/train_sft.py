"""Supervised fine-tuning on gold SQL; the same as `sense-trl sft`.

accelerate launch recipes/train_sft.py --config recipes/spider-smollm2/sft.yaml
"""

import sys

from sense_trl.cli import main as command_line
from sense_trl.cli.stages import SFT

make_parser = SFT.make_parser
main = SFT.main

if __name__ == "__main__":
    sys.exit(command_line.main([SFT.name, *sys.argv[1:]]))

"""SENSE preference training (cDPO with an SFT anchor); the same as `sense-trl dpo`.

accelerate launch recipes/train_dpo.py --config recipes/spider-smollm2/dpo.yaml
"""

import sys

from sense_trl.cli import main as command_line
from sense_trl.cli.stages import DPO

make_parser = DPO.make_parser
main = DPO.main

if __name__ == "__main__":
    sys.exit(command_line.main([DPO.name, *sys.argv[1:]]))

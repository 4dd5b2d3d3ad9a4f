"""Online training on what execution says (GRPO); the same as `sense-trl grpo`.

accelerate launch recipes/train_grpo.py --config recipes/qwen2.5-coder-0.5b-8gb/grpo.yaml
"""

import sys

from sense_trl.cli import main as command_line
from sense_trl.cli.stages import GRPO

make_parser = GRPO.make_parser
main = GRPO.main

if __name__ == "__main__":
    sys.exit(command_line.main([GRPO.name, *sys.argv[1:]]))

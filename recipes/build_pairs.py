"""Preference pairs: sample SQL from a weak model, execute it, pair it with gold.

The same as `sense-trl pairs --config ...`.

python recipes/build_pairs.py --config recipes/spider-smollm2/pairs.yaml
"""

from sense_trl.cli.stages import PAIRS

make_parser = PAIRS.make_parser
main = PAIRS.main

if __name__ == "__main__":
    PAIRS.run_script()

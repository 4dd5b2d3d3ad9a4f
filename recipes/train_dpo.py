"""SENSE preference training (cDPO with an SFT anchor); the same as `sense-trl dpo`.

accelerate launch recipes/train_dpo.py --config recipes/spider-smollm2/dpo.yaml
"""

from sense_trl.cli.stages import DPO

make_parser = DPO.make_parser
main = DPO.main

if __name__ == "__main__":
    DPO.run_script()

"""Supervised fine-tuning on gold SQL; the same as `sense-trl sft`.

accelerate launch recipes/train_sft.py --config recipes/spider-smollm2/sft.yaml
"""

from sense_trl.cli.stages import SFT

make_parser = SFT.make_parser
main = SFT.main

if __name__ == "__main__":
    SFT.run_script()

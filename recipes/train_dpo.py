"""SENSE preference training (cDPO with an SFT anchor) on pairs from build_pairs.py.

accelerate launch recipes/train_dpo.py --config recipes/spider-smollm2/dpo.yaml
"""

from dataclasses import dataclass, field

from rich.console import Console
from trl import ModelConfig, TrlParser, get_peft_config

from sense_trl.pipeline.stages import dpo, run_recipe
from sense_trl.trainers import SenseDPOConfig


@dataclass
class PairsFile:
    """Where the pairs are."""

    pairs: str = field(metadata={"help": "pairs.parquet as build_pairs.py writes it."})


def make_parser() -> TrlParser:
    """The arguments of this recipe; every one may stand in the YAML file or on the command line."""
    return TrlParser((PairsFile, SenseDPOConfig, ModelConfig), description=__doc__)


def main(file: PairsFile, training: SenseDPOConfig, model: ModelConfig) -> None:
    """Train, save the adapter and the merged model to `output_dir`."""
    peft_config = get_peft_config(model)
    name = model.model_name_or_path
    dpo(file.pairs, name, training, Console(stderr=True), peft_config=peft_config)


if __name__ == "__main__":
    run_recipe(make_parser(), main)

"""Supervised fine-tuning on gold SQL, with SenseSFTTrainer.

accelerate launch recipes/train_sft.py --config recipes/spider-smollm2/sft.yaml
"""

from rich.console import Console
from trl import ModelConfig, TrlParser, get_peft_config

from sense_trl.pipeline.stages import run_recipe, sft
from sense_trl.pipeline.task import DataArguments
from sense_trl.trainers import SenseSFTConfig


def make_parser() -> TrlParser:
    """The arguments of this recipe; every one may stand in the YAML file or on the command line."""
    return TrlParser((DataArguments, SenseSFTConfig, ModelConfig), description=__doc__)


def main(data: DataArguments, training: SenseSFTConfig, model: ModelConfig) -> None:
    """Train and save to `output_dir`."""
    peft_config = get_peft_config(model)
    sft(data, model.model_name_or_path, training, Console(stderr=True), peft_config=peft_config)


if __name__ == "__main__":
    run_recipe(make_parser(), main)

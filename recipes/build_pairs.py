"""Preference pairs: sample SQL from a weak model, execute it, pair it with gold.

python recipes/build_pairs.py --config recipes/spider-smollm2/pairs.yaml
"""

from rich.console import Console
from trl import TrlParser

from sense_trl.pipeline.stages import GenerationArguments, PairArguments, build_pairs, run_recipe
from sense_trl.pipeline.task import DataArguments


def make_parser() -> TrlParser:
    """The arguments of this recipe; every one may stand in the YAML file or on the command line."""
    return TrlParser((DataArguments, GenerationArguments, PairArguments), description=__doc__)


def main(data: DataArguments, generation: GenerationArguments, pairs: PairArguments) -> None:
    """Write candidates.jsonl, pairs.parquet and pairs.json to `output_dir`."""
    print(build_pairs(data, generation, pairs, Console(stderr=True)))


if __name__ == "__main__":
    run_recipe(make_parser(), main)

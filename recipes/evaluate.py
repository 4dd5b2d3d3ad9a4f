"""Execution accuracy of a model: predict, execute, compare, report.

python recipes/evaluate.py --config recipes/spider-smollm2/evaluate.yaml
"""

from rich.console import Console
from trl import TrlParser

from sense_trl.pipeline.stages import EvaluationArguments, GenerationArguments, evaluate, run_recipe
from sense_trl.pipeline.task import DataArguments


def make_parser() -> TrlParser:
    """The arguments of this recipe; every one may stand in the YAML file or on the command line."""
    return TrlParser((DataArguments, GenerationArguments, EvaluationArguments), description=__doc__)


def main(
    data: DataArguments, generation: GenerationArguments, evaluation: EvaluationArguments
) -> None:
    """Write predictions.jsonl, evaluation.json and report.html to `output_dir`."""
    evaluate(data, generation, evaluation, Console(stderr=True))


if __name__ == "__main__":
    run_recipe(make_parser(), main)

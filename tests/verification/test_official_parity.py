"""Verdicts equal the official evaluators' on predictions of real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.verification.comparison import Verdict
from sense_trl.verification.verifier import SQLVerifier, VerificationRequest

SPIDER_MODELS = (
    "chatgpt_zero_shot",
    "codes_1b_sft",
    "codex_few_shot",
    "dail_sql_gpt4",
    "dbgpt_codellama13b_lora",
)


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


# Every line of the first model is compared by tests/evaluation/test_evaluate.py, too.
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", SPIDER_MODELS)
def test_spider_verdicts_are_the_official_ones(
    model: str, step: int, shared_data: Path, spider_databases: Path
) -> None:
    folder = shared_data / "predictions" / model
    predictions = _read_lines(folder / "spider_dev.sql")
    official = json.loads((folder / "spider_dev.verdicts.json").read_text())
    examples = [json.loads(line) for line in _read_lines(shared_data / "spider" / "dev.jsonl")]
    assert len(predictions) == len(official) == len(examples) == 1_034
    predictions, official, examples = predictions[::step], official[::step], examples[::step]
    requests = [
        # The script reads a prediction up to its first tab.
        VerificationRequest(example["db_id"], prediction.split("\t")[0], example["query"])
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    with DatabaseCatalog.from_path(spider_databases) as catalog:
        ours = SQLVerifier(catalog, semantics="spider").verify(requests)
    different = [
        (step * position, str(verification.reason), verdict)
        for position, (verification, verdict) in enumerate(zip(ours, official, strict=True))
        if (verification.verdict is Verdict.CORRECT) != (verdict == "ok")
        or (verification.verdict is Verdict.WRONG) == (verdict == "ok")
    ]
    assert different == []
    not_executed = [v.predicted_status != "ok" for v in ours]
    assert not_executed == [verdict == "error" for verdict in official]


@pytest.mark.parametrize(
    ("model", "num_correct"), [("gpt4", 40), ("llama3_8b", 26), ("mixtral_8x7b", 12)]
)
def test_bird_totals_are_the_official_ones(model: str, num_correct: int, shared_data: Path) -> None:
    folder = shared_data / "bird_superhero"
    examples = [json.loads(line) for line in _read_lines(folder / "mini_dev.jsonl")]
    predictions = _read_lines(folder / "predictions" / f"{model}.sql")
    requests = [
        VerificationRequest(example["db_id"], prediction, example["SQL"])
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    with DatabaseCatalog.from_path(folder / "superhero.sqlite") as catalog:
        ours = SQLVerifier(catalog, semantics="bird").verify(requests)
    assert len(ours) == 52
    assert sum(v.verdict is Verdict.CORRECT for v in ours) == num_correct
    assert not any(v.verdict is Verdict.UNDETERMINED for v in ours)

"""A recipe on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml

SCRIPT = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5), (3, 'Zoe', 9);
"""


@pytest.fixture
def recipe(fresh_db: Any, tmp_path: Path) -> Path:
    """A folder with one YAML file per stage."""
    questions = [
        {
            "question": f"Older than {i}{' years' * i}?",
            "gold_sql": f"SELECT name FROM pet WHERE age > {i}",
        }
        for i in range(6)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    model = Path(tiny_models.save_tiny_model(tmp_path / "model", "llama"))
    # An untrained model hardly ever ends an answer; with many end tokens it does.
    settings = json.loads((model / "generation_config.json").read_text())
    settings["eos_token_id"] = [2, *range(100, 200)]
    (model / "generation_config.json").write_text(json.dumps(settings))
    data = {
        "database": str(fresh_db(SCRIPT, name="pets")),
        "questions": str(tmp_path / "q.jsonl"),
    }
    training = {
        "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False,
        "report_to": "none", "disable_tqdm": True, "learning_rate": 0.01, "load_in_4bit": True,
        "use_bnb_nested_quant": True, "gradient_checkpointing": False,
    }  # fmt: skip
    generation = {"max_new_tokens": 6, "generation_dtype": "float32"}
    configs = {
        "sft": data | training | {"model_name_or_path": str(model), "use_peft": True, "lora_r": 2},
        "pairs": data
        | generation
        | {"model_name_or_path": "sft", "num_generations": 4, "temperature": 1.0},
        "dpo": training | {"model_name_or_path": "sft", "pairs": "pairs/pairs.parquet"},
        "kd": data
        | training
        | {
            "model_name_or_path": "dpo",
            "teacher_model_name_or_path": str(model),
            "mask_unit": "schema_item",
        },
        "evaluate": data | generation | {"model_name_or_path": "kd"},
    }
    for stage, config in configs.items():
        text = yaml.safe_dump(config | {"output_dir": stage})
        (tmp_path / f"{stage}.yaml").write_text(text)
    return tmp_path

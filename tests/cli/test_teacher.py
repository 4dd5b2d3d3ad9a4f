"""`sense-trl teacher`: a cache that the trainers find their rows in."""

from __future__ import annotations

import json

import pytest
import tiny_models
from datasets import Dataset
from tiny_models import PAIRS, build_tiny_tokenizer

from sense_trl.cli.main import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_OK, main
from sense_trl.trainers import KIDConfig, KIDTrainer
from sense_trl.trainers.rows.token_rows import get_token_row
from sense_trl.trainers.teachers import cache_builder as teacher_cache_builder
from sense_trl.trainers.teachers.cache import TeacherCache

QUESTIONS = [
    {"question_id": "q1", "question": "names?", "gold_sql": "SELECT name FROM pet"},
    {"question_id": "q2", "question": "ages?", "gold_sql": "SELECT age FROM pet"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save_tiny_model(tmp_path_factory.mktemp("models"), "llama")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return str(path)


@pytest.fixture
def cache(model, tmp_path):
    def run(*flags):
        return main(["teacher", "cache", "--model", model, "--output", f"{tmp_path}/cache", *flags])

    return run


def test_the_rows_of_a_dataset_are_found_again(cache, rows, tmp_path, capsys):
    assert cache("--rows", rows) == EXIT_OK
    printed = capsys.readouterr().out
    built = TeacherCache(tmp_path / "cache")
    tokenizer = build_tiny_tokenizer()
    assert all(get_token_row(row, tokenizer) in built for row in PAIRS)
    assert main(["teacher", "info", f"{tmp_path}/cache"]) == EXIT_OK
    assert capsys.readouterr().out == printed
    facts = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert facts["answers"] == "8"
    assert facts["kept"] == "16 likeliest tokens and the rest"
    assert facts["tokens"] == str(built.num_completion_tokens)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_student_learns_from_the_folder(cache, rows, model, tmp_path):
    assert cache("--rows", rows) == EXIT_OK
    trainer = KIDTrainer(
        model=model,
        args=KIDConfig(
            output_dir=str(tmp_path / "out"),
            teacher_cache=str(tmp_path / "cache"),
            imperfect_data=False,
            kd_loss_type="forward_kl",
            max_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
        ),
        processing_class=build_tiny_tokenizer(),
    )
    trainer.train()
    # The student still is its teacher; its distribution over 17 events was rounded to 16 bits.
    assert trainer.state.log_history[0]["losses/kd"] == pytest.approx(0, abs=1e-5)


def test_the_gold_answers_of_questions_are_asked_about(cache, fresh_db, tmp_path):
    database = fresh_db("CREATE TABLE pet (name TEXT, age INT); INSERT INTO pet VALUES ('Rex', 3);")
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    flags = ["--questions", str(questions), "--database", str(database), "--num-samples", "4"]
    assert cache(*flags) == EXIT_OK
    built = TeacherCache(tmp_path / "cache")
    assert len(built) == 2
    assert built.settings.num_samples == 4


def test_an_interrupted_command_continues(cache, rows, tmp_path, monkeypatch):
    ask, batches = teacher_cache_builder._ask, []

    def ask_twice(*args):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(args[2])
        return ask(*args)

    monkeypatch.setattr(teacher_cache_builder, "_ask", ask_twice)
    assert cache("--rows", rows, "--batch-size", "2") == EXIT_INTERRUPTED
    assert len(TeacherCache(tmp_path / "cache")) == 4
    batches.clear()
    assert cache("--rows", rows, "--batch-size", "2") == EXIT_OK
    assert len(batches) == 2
    assert len(TeacherCache(tmp_path / "cache")) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either `--rows`"),
        (["--questions", "q.jsonl"], "`--database` is missing"),
        (["--rows", "missing.jsonl"], "'missing.jsonl', which cannot be read"),
        (["--rows", "empty.jsonl"], "holds no rows"),
        (["--rows", "rows.jsonl", "--top-k", "0"], "`top_k` is 0"),
    ],
)
def test_what_is_missing_is_said(cache, rows, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    assert cache(*flags) == EXIT_INPUT
    assert message in capsys.readouterr().err


def test_a_tokenizer_with_other_tokens_is_refused(cache, rows, tmp_path, capsys):
    other = build_tiny_tokenizer()
    other.add_tokens(["<added>"])
    other.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "config.json").write_text("{}")
    assert cache("--rows", rows, "--tokenizer", f"{tmp_path}/student") == EXIT_INPUT
    assert "'<added>'" in capsys.readouterr().err

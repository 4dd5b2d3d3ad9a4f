"""Chat templates without a system role: refused by every command, or folded by all of them alike."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import tiny_models
from chat_server import answer_well, serve
from datasets import Dataset
from peft import LoraConfig
from tiny_models import CHAT_TEMPLATE, OPTIONS, build_tiny_model, build_tiny_tokenizer
from transformers import AutoTokenizer

from sense_trl import chat_template as module
from sense_trl.chat_template import (
    check_chat_template,
    fold_messages,
    fold_system_message,
    naming_template_errors,
)
from sense_trl.cli.main import main
from sense_trl.errors import InputError, ModelError, SenseTRLError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.openai_generator import OpenAIGenerator
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.steps.dry_run import describe_training
from sense_trl.steps.teacher import cache_teacher
from sense_trl.trainers import (
    KIDConfig,
    KIDTrainer,
    SenseDPOConfig,
    SenseDPOTrainer,
    SenseSFTConfig,
    SenseSFTTrainer,
)

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHAT_TEMPLATE
)
DROPS = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
ALTERNATES = (
    "  {% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}\n"
    + CHAT_TEMPLATE
)
TEMPLATES = {"refuses": REFUSES, "drops": DROPS, "alternates": ALTERNATES, "none": None}

SYSTEM = {"role": "system", "content": "CREATE TABLE singer (id, name)"}
USER = {"role": "user", "content": "How many singers?"}
GOOD = {"role": "assistant", "content": "SELECT COUNT(*) FROM singer"}
BAD = {"role": "assistant", "content": "SELECT name FROM singer"}
ROW = {"prompt": [SYSTEM, USER], "completion": [GOOD]}
PAIR = {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}
FOLDED = {"role": "user", "content": "CREATE TABLE singer (id, name)\n\nHow many singers?"}


def build_tokenizer(template):
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def save(folder, template):
    path = tiny_models.save_tiny_model(folder, "llama")
    build_tokenizer(template).save_pretrained(path)
    if template is None:
        (Path(path) / "chat_template.jinja").unlink(missing_ok=True)
    return path


def build(kind, tmp_path, template, rows=None, **options):
    trainer_class, config_class, row = {
        "sft": (SenseSFTTrainer, SenseSFTConfig, ROW),
        "messages": (
            SenseSFTTrainer,
            SenseSFTConfig,
            {"messages": ROW["prompt"] + ROW["completion"]},
        ),
        "dpo": (SenseDPOTrainer, SenseDPOConfig, PAIR),
        "kid": (KIDTrainer, KIDConfig, ROW),
    }[kind]
    teacher = {"teacher_model": build_tiny_model("llama", seed=1)} if kind == "kid" else {}
    return trainer_class(
        model=build_tiny_model("llama"),
        args=config_class(output_dir=str(tmp_path / "out"), **{**OPTIONS, **options}),
        train_dataset=Dataset.from_list(rows or [row] * 4),
        processing_class=build_tokenizer(template),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        **teacher,
    )


# ------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize(
    "messages, expected",
    [
        ([SYSTEM, USER], [FOLDED]),
        ([SYSTEM, USER, GOOD, USER], [FOLDED, GOOD, USER]),
        ([SYSTEM, GOOD], [{**SYSTEM, "role": "user"}, GOOD]),
        ([SYSTEM], [{**SYSTEM, "role": "user"}]),
        ([USER, GOOD], [USER, GOOD]),
    ],
)
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, "\n  " + CHAT_TEMPLATE, ALTERNATES])
def test_a_folded_template_writes_the_folded_messages(messages, expected, template):
    assert fold_messages(messages) == expected
    plain, folded = build_tokenizer(template), build_tokenizer(fold_system_message(template))
    for options in ({}, {"add_generation_prompt": True}):
        if template is not ALTERNATES or messages != [SYSTEM, GOOD]:
            assert folded.apply_chat_template(
                messages, tokenize=False, **options
            ) == plain.apply_chat_template(expected, tokenize=False, **options)


def test_folding_twice_changes_nothing_and_several_templates_are_all_folded():
    folded = fold_system_message(CHAT_TEMPLATE)
    assert fold_system_message(folded) == folded != CHAT_TEMPLATE
    assert fold_system_message({"default": CHAT_TEMPLATE, "x": folded}) == dict.fromkeys(
        ("default", "x"), folded
    )
    assert fold_system_message(None) is None


def test_a_template_is_checked_by_what_it_is_to_hold():
    for template in (REFUSES, DROPS, ALTERNATES):
        check_chat_template(build_tokenizer(template), "m", has_system=False)
        check_chat_template(build_tokenizer(fold_system_message(template)), "m")
        with pytest.raises(ModelError, match="`fold_system_message`"):
            check_chat_template(build_tokenizer(template), "m")
    with pytest.raises(ModelError, match="leaves out the user message: it gave"):
        check_chat_template(build_tokenizer("x"), "m", has_system=False)


def test_errors_of_a_template_are_named():
    with (
        pytest.raises(InputError, match=r"refuses a conversation of the eval dataset .*alternate"),
        naming_template_errors("the eval dataset"),
    ):
        build_tokenizer(ALTERNATES).apply_chat_template([USER, USER])


# ------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("kind", ["sft", "messages", "dpo", "kid"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_trainers_refuse_a_template_that_cannot_hold_the_rows(tmp_path, kind, name):
    options = {"assistant_only_loss": True} if kind == "messages" else {}
    expected = "has no chat template" if name == "none" else "the system"
    with pytest.raises(ModelError, match=expected):
        build(kind, tmp_path, TEMPLATES[name], **options)


@pytest.mark.parametrize("kind", ["sft", "messages", "dpo", "kid"])
@pytest.mark.parametrize("name", ["refuses", "drops", "alternates"])
def test_trainers_fold_and_so_does_the_tokenizer_that_they_save(tmp_path, kind, name):
    options = {"assistant_only_loss": True} if kind == "messages" else {}
    trainer = build(kind, tmp_path, TEMPLATES[name], fold_system_message=True, **options)
    row = trainer.train_dataset[0]
    ids = row["prompt_ids"] if kind == "dpo" else row["input_ids"]
    plain = build_tokenizer(TEMPLATES[name])
    prompt = plain.apply_chat_template([FOLDED], add_generation_prompt=True)["input_ids"]
    assert ids[: len(prompt)] == prompt
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    asked = saved.apply_chat_template([SYSTEM, USER], add_generation_prompt=True)["input_ids"]
    assert asked == prompt


def test_a_later_row_that_the_template_refuses_is_no_traceback(tmp_path):
    rows = [{"messages": [USER, GOOD]}, {"messages": [USER, USER, GOOD]}]
    with pytest.raises(InputError, match=r"a conversation of the train dataset .*alternate"):
        build("sft", tmp_path, ALTERNATES, rows)


def test_text_needs_no_template(tmp_path):
    rows = [{"prompt": "How many?", "completion": "SELECT 1"}]
    assert len(build("sft", tmp_path, None, rows).train_dataset) == 1


# ------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("stage, rows", [("sft", [ROW]), ("dpo", [PAIR])])
def test_a_dry_run_and_a_teacher_refuse_and_fold_as_training_does(tmp_path, name, stage, rows):
    from trl import ModelConfig

    path = save(tmp_path, TEMPLATES[name])
    config_class = {"sft": SenseSFTConfig, "dpo": SenseDPOConfig}[stage]

    def describe(**options):
        config = config_class(output_dir=str(tmp_path / "out"), **{**OPTIONS, **options})
        dataset = Dataset.from_list(rows)
        return describe_training(stage, dataset, ModelConfig(model_name_or_path=path), config)

    for run in (describe, lambda: cache_teacher(path, rows, tmp_path / "cache")):
        with pytest.raises(ModelError, match="chat template"):
            run()
    if name == "none":
        return
    plain = build_tokenizer(TEMPLATES[name])
    answers = [row for row in (GOOD, BAD) if stage == "dpo" or row is GOOD]
    lengths = [len(plain.apply_chat_template([FOLDED, a])["input_ids"]) for a in answers]
    assert f"{max(lengths)} at most" in describe(fold_system_message=True)
    cache = cache_teacher(path, rows, tmp_path / "cache", fold_system_message=True)
    assert len(cache) == 1


@pytest.mark.parametrize("name", ["refuses", "drops", "none"])
@pytest.mark.parametrize("command", ["sft", "kd", "pairs", "evaluate"])
@pytest.mark.parametrize("is_dry", [True, False])
def test_every_stage_says_what_is_missing(fresh_db, tmp_path, capsys, name, command, is_dry):
    path = save(tmp_path / "model", TEMPLATES[name])
    database = fresh_db("CREATE TABLE singer (id INTEGER); INSERT INTO singer VALUES (1)")
    questions = tmp_path / "questions.jsonl"
    row = {"question": "How many?", "gold_sql": "SELECT COUNT(*) FROM singer", "question_id": "q"}
    questions.write_text(json.dumps(row))
    settings = {
        **{"database": str(database), "questions": str(questions), "model_name_or_path": path},
        "output_dir": str(tmp_path / "out"),
    }
    if command in ("sft", "kd"):
        settings |= {name: OPTIONS[name] for name in ("use_cpu", "bf16", "max_steps", "report_to")}
    if command == "kd":
        settings["teacher_model_name_or_path"] = path
    file = tmp_path / "stage.yaml"
    file.write_text(json.dumps(settings))
    arguments = [command, "--config", str(file), *(["--dry-run"] if is_dry else [])]
    assert main(arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert ("has no chat template" if name == "none" else "fold_system_message") in error
    if name != "none" and is_dry:
        assert main([*arguments, "--fold_system_message"]) == 0


def test_ask_folds_where_it_is_told_to(fresh_db, tmp_path, capsys):
    path = save(tmp_path / "model", REFUSES)
    database = str(fresh_db("CREATE TABLE singer (id INTEGER)"))
    command = ["ask", "How many?", "--model", path, "--database", database]
    assert main(command) == 2
    assert "fold_system_message" in " ".join(capsys.readouterr().err.split())
    # A model of random weights writes no query that runs.
    assert main([*command, "--fold-system-message", "--max-new-tokens", "4"]) == 1


def test_generators_fold_alike():
    sampling = SamplingConfig(max_new_tokens=8)
    model = build_tiny_model("llama")
    folding = TransformersGenerator(model, build_tokenizer(REFUSES), fold_system_message=True)
    trained = TransformersGenerator(model, build_tokenizer(fold_system_message(REFUSES)))
    plain = TransformersGenerator(model, build_tokenizer(CHAT_TEMPLATE))
    expected = plain.generate([[FOLDED]], sampling)
    assert folding.generate([[SYSTEM, USER]], sampling) == expected
    assert trained.generate([[SYSTEM, USER]], sampling) == expected
    with serve(answer_well) as server:
        generator = OpenAIGenerator("m", server.url, fold_system_message=True)
        generator.generate([[SYSTEM, USER]], sampling)
        assert server.seen[0].body["messages"] == [FOLDED]


def test_examples_of_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert issubclass(ModelError, SenseTRLError)

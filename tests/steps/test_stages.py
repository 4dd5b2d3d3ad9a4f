"""The stages that recipes call, on a tiny model: they finish, continue, and never mix runs."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import chat_server
import datasets
import pytest
import tiny_models
from rich.console import Console

from sense_trl.errors import InputError, ModelError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.options import DataArguments
from sense_trl.pairs import PreferencePairConfig
from sense_trl.run_folder import RunFolder, fingerprint_model
from sense_trl.steps.arguments import EvaluationArguments, GenerationArguments
from sense_trl.steps.stages import (
    _identify,
    build_pairs,
    dpo,
    evaluate,
    kd,
    load_pairs,
    load_rows,
    sft,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SCRIPT = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5), (3, 'Zoe', 9);
"""
QUIET = Console(file=io.StringIO())


@pytest.fixture
def data(fresh_db: Any, tmp_path: Path) -> DataArguments:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "question": f"Older than {i}?",
                    "gold_sql": f"SELECT name FROM pet WHERE age > {i}",
                }
            )
            + "\n"
            for i in range(6)
        )
    )
    return DataArguments(str(fresh_db(SCRIPT, name="pets")), str(path))


def test_rows_are_identified_by_the_json_of_their_list() -> None:
    texts = [{"input_ids": [1, 2], "likeness": [[0.5, 0.1]], "places": []}]
    rows = [
        {"prompt": [{"role": "user", "content": "é?"}], "linked_texts": texts},
        {"prompt": [], "linked_texts": None},
    ]
    for own in (rows, rows[:1]):
        dataset = datasets.Dataset.from_list(own)
        whole = json.dumps(dataset.to_list()).encode()
        assert _identify(dataset) == {"rows": hashlib.sha256(whole).hexdigest()}


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = Path(tiny_models.save_tiny_model(tmp_path / "model", "qwen2"))
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [2, *range(100, 200)]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return str(folder)


def _training(config_class: Any, folder: Path, **changes: Any) -> Any:
    options = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True,
        "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", **changes,
    }  # fmt: skip
    return config_class(**options)


def _model(path: str, **options: Any) -> Any:
    from trl import ModelConfig

    return ModelConfig(model_name_or_path=path, **options)


def test_sft_finishes_once_and_refuses_other_settings_and_other_questions(
    data: DataArguments, model: str, tmp_path: Path
) -> None:
    from sense_trl.trainers import SenseSFTConfig

    folder = tmp_path / "sft"
    console = Console(file=io.StringIO(), record=True, width=60)
    sft(data, _model(model), _training(SenseSFTConfig, folder), console)
    assert f"model: {folder}\n" in console.export_text()
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    sft(data, _model(model), _training(SenseSFTConfig, folder, logging_steps=1), QUIET)
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(InputError, match=r"learning_rate was .*, now 0\.1"):
        sft(data, _model(model), _training(SenseSFTConfig, folder, learning_rate=0.1), QUIET)
    with pytest.raises(InputError, match=r"adam_beta2 was 0\.999, now 0\.9"):
        sft(data, _model(model), _training(SenseSFTConfig, folder, adam_beta2=0.9), QUIET)
    questions = Path(data.questions)
    questions.write_text(questions.read_text().replace("Older", "Elder"))
    with pytest.raises(InputError, match="rows was"):
        sft(data, _model(model), _training(SenseSFTConfig, folder), QUIET)


def test_pairs_dpo_and_evaluation_follow_each_other(
    data: DataArguments, model: str, tmp_path: Path
) -> None:
    from sense_trl.trainers import SenseDPOConfig

    generation = GenerationArguments(
        model, str(tmp_path / "pairs"), num_generations=4, temperature=1.0, max_new_tokens=6
    )
    pairs = build_pairs(data, generation, PreferencePairConfig(), QUIET)
    first = pairs.read_bytes()
    assert build_pairs(data, generation, PreferencePairConfig(), QUIET).read_bytes() == first
    with pytest.raises(InputError, match="limit was 1, now 2"):
        build_pairs(data, generation, PreferencePairConfig(limit=2), QUIET)

    folder = tmp_path / "dpo"
    dpo(
        str(pairs),
        _model(model),
        _training(SenseDPOConfig, folder, loss_type=["cdpo", "sft"], logging_steps=1),
        QUIET,
    )
    runs = []
    for name, path in (("before", model), ("after", str(folder))):
        arguments = GenerationArguments(path, str(tmp_path / name), max_new_tokens=6)
        earlier = [str(tmp_path / "before" / "evaluation.json")] if runs else []
        runs.append(evaluate(data, arguments, EvaluationArguments([name], earlier), QUIET))
    assert [len(run.records) for run in runs] == [6, 6]
    page = (tmp_path / "after" / "report.html").read_text()
    assert "before" in page
    # The training that made the model is shown beside its scores.
    assert "Reward margin" in page
    assert "log π(chosen) - log π of the reference, nats" in page
    assert "Reward margin" not in (tmp_path / "before" / "report.html").read_text()
    # The label belongs to the report: changing it predicts nothing again and refuses nothing.
    console = Console(file=io.StringIO(), record=True, width=60)
    evaluate(data, arguments, EvaluationArguments(["renamed"]), console)
    assert f"report: {tmp_path / 'after' / 'report.html'}\n" in console.export_text()

    # The same weights, copied anew, are the same model; others at the same path are another.
    weights = Path(model) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content)
    build_pairs(data, generation, PreferencePairConfig(), QUIET)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="model_name_or_path was"):
        build_pairs(data, generation, PreferencePairConfig(), QUIET)


def test_distillation_finishes_once_and_refuses_another_teacher(
    data: DataArguments, model: str, tmp_path: Path
) -> None:
    from sense_trl.trainers import KIDConfig

    teacher = Path(tiny_models.save_tiny_model(tmp_path / "teacher", "qwen2", seed=1))
    config = _training(
        KIDConfig, tmp_path / "kd", teacher_model_name_or_path=str(teacher), mask_unit="schema_item"
    )
    kd(data, _model(model), config, QUIET)
    weights = (tmp_path / "kd" / "model.safetensors").stat().st_mtime_ns
    kd(data, _model(model), config, QUIET)
    assert (tmp_path / "kd" / "model.safetensors").stat().st_mtime_ns == weights
    content = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="teacher_model_name_or_path was"):
        kd(data, _model(model), config, QUIET)


def test_rows_for_distillation_mark_schema_items(data: DataArguments) -> None:
    rows = load_rows(data, mask_spans=True)
    for row in rows:
        sql = row["completion"][0]["content"]
        words = [sql[start:end] for start, end in row["mask_spans"]]
        assert words == ["name", "pet", "age", sql.split()[-1]]


def test_unusable_arguments_are_refused(data: DataArguments, model: str, tmp_path: Path) -> None:
    from sense_trl.trainers import SenseDPOConfig

    with pytest.raises(InputError, match="writes the same answer each time"):
        generation = GenerationArguments(model, str(tmp_path / "e"), num_generations=2)
        evaluate(data, generation, EvaluationArguments(), QUIET)
    with pytest.raises(InputError, match="which is not a file"):
        dpo("nowhere.parquet", _model(model), _training(SenseDPOConfig, tmp_path / "d"), QUIET)


def test_an_evaluation_may_sample_several_answers(
    data: DataArguments, model: str, tmp_path: Path
) -> None:
    generation = GenerationArguments(
        model, str(tmp_path / "e"), num_generations=3, temperature=0.7, max_new_tokens=6
    )
    with pytest.raises(InputError, match="a second turn is about one answer"):
        evaluate(data, generation, EvaluationArguments(revise=1), QUIET)
    report = evaluate(data, generation, EvaluationArguments(), QUIET)
    assert report is not None
    assert {len(record.sample_verdicts) for record in report.records} == {3}
    # What the prediction's own result is worth, whichever sample it was.
    assert all(record.verdict in record.sample_verdicts for record in report.records)
    assert {record.num_votes for record in report.records} <= {0, 1, 2, 3}
    score = report.get_score("sample_mean")
    assert score is not None
    assert (score.label, score.note) == (
        "Mean of 3 samples (strict)",
        "Sampled at temperature 0.7.",
    )
    strict = report.get_score("strict")
    assert strict is not None
    assert strict.note == "Of the answer whose result most of 3 samples at temperature 0.7 have."
    assert "pass@3 (strict)" in (tmp_path / "e" / "report.html").read_text()


def test_a_file_of_something_else_than_pairs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    path.write_text("{}")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load_pairs(str(path))
    datasets.Dataset.from_list([{"prompt": "a", "chosen": "b"}]).to_parquet(path)
    with pytest.raises(InputError, match=r"lacks the columns \['rejected'\]"):
        load_pairs(str(path))


def test_pairs_of_several_files_are_trained_on_together(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, object]]) -> str:
        path = str(tmp_path / f"{name}.parquet")
        datasets.Dataset.from_list(rows).to_parquet(path)
        return path

    first = write("first", [{"prompt": "a", "chosen": "b", "rejected": "c", "pair_weight": 1.0}])
    again = write("again", [{"rejected": "f", "chosen": "e", "prompt": "d", "turn": 2}])
    rows = load_pairs([first, again])
    assert list(rows) == [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "d", "chosen": "e", "rejected": "f"},
    ]
    assert list(load_pairs([first])) == list(load_pairs(first))
    messages = [{"role": "user", "content": "a"}]
    chats = write("chats", [{"prompt": messages, "chosen": messages, "rejected": messages}])
    with pytest.raises(InputError, match=r"first\.parquet'.*chats.*differ in kind"):
        load_pairs([first, chats])


@pytest.mark.parametrize(
    ("training", "model_options", "message"),
    [
        ({"eval_strategy": "steps"}, {}, "`args.eval_strategy`"),
        ({"report_to": "nowhere"}, {}, "nowhere is not supported"),
        ({}, {"use_peft": True, "lora_r": 0}, "`r` should be a positive integer"),
    ],
)
def test_options_that_libraries_refuse_are_unusable_input_and_may_be_mended(
    training: dict[str, Any],
    model_options: dict[str, Any],
    message: str,
    data: DataArguments,
    model: str,
    tmp_path: Path,
) -> None:
    from sense_trl.trainers import SenseSFTConfig

    folder = tmp_path / "sft"
    config = _training(SenseSFTConfig, folder, **training)
    with pytest.raises(InputError, match=f"SenseSFTTrainer refuses .*{message}"):
        sft(data, _model(model, **model_options), config, QUIET)
    sft(data, _model(model), _training(SenseSFTConfig, folder), QUIET)
    assert (folder / "model.safetensors").exists()


def test_a_marker_that_a_crash_cut_short_does_not_lock_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "sft", {"a": 1})
    (tmp_path / "settings.json.tmp").write_text('{"to')
    folder.claim()
    folder.claim()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="holds a run of 'sft', not of 'dpo'"):
        RunFolder(tmp_path, "dpo", {"a": 1}).claim()
    RunFolder(tmp_path, "sft", {"a": 2}).clear([])
    assert not tmp_path.exists()
    RunFolder(tmp_path, "sft", {}).clear([])


@pytest.mark.parametrize("kept", [0, 1, 60])
def test_a_claim_that_was_interrupted_is_finished(
    tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "settings.json"
    RunFolder(tmp_path, "sft", {"a": 1}).claim()
    whole = marker.read_bytes()
    (tmp_path / "candidates.jsonl").write_text("[]")
    marker.write_bytes(whole[:kept])
    RunFolder(tmp_path, "sft", {"a": 1}).claim()
    assert "was interrupted. What it finished (candidates.jsonl) is taken" in caplog.text
    assert json.loads(marker.read_bytes())["settings"] == {"a": 1}
    caplog.clear()
    RunFolder(tmp_path, "sft", {"a": 1}).claim()
    assert not caplog.text
    # It may be somebody else's file.
    with pytest.raises(InputError, match="Nothing was deleted"):
        RunFolder(tmp_path, "sft", {"a": 1}).clear([])
    assert (tmp_path / "candidates.jsonl").exists()


@pytest.mark.parametrize(
    "content",
    [
        b'{"tool": "sense_trl"}', b'{\n "tool": "sense_trl",\n "kind": "dpo', b"\xff", b"[" * 99_999,
        b'{"tool": "sense_trl", "kind": "sft", "settings": 3}', b"{\n \"tool\": \"other",
    ],
)  # fmt: skip
def test_a_damaged_marker_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no run of sense_trl"):
        RunFolder(tmp_path, "sft", {"a": 1}).claim()
    assert (tmp_path / "settings.json").read_bytes() == content


def test_facts_may_change_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    for port in (8000, 8001):
        RunFolder(tmp_path, "pairs", {"a": 1}, facts={"base_url": f"http://h:{port}"}).claim()
        (tmp_path / "candidates.jsonl").touch()
        marker = json.loads((tmp_path / "settings.json").read_bytes())
        assert marker["facts"] == {"base_url": f"http://h:{port}"}
    # A folder that has it among its settings was written by an earlier version.
    marker["settings"]["base_url"] = "http://h:7999"
    (tmp_path / "settings.json").write_text(json.dumps(marker))
    RunFolder(tmp_path, "pairs", {"a": 1}, facts={"base_url": "http://h:1"}).claim()
    with pytest.raises(InputError, match="a was 1, now 2"):
        RunFolder(tmp_path, "pairs", {"a": 2}, facts={"base_url": "http://h:1"}).claim()


def test_a_run_that_wrote_nothing_keeps_nobody_out_of_its_folder(tmp_path: Path) -> None:
    RunFolder(tmp_path, "sft", {"a": 1}).claim()
    RunFolder(tmp_path, "dpo", {"a": 2}).claim()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="a was 2, now 3"):
        RunFolder(tmp_path, "dpo", {"a": 3}).claim()


def test_how_to_build_pairs_is_checked_before_anything_is_sampled(
    data: DataArguments, model: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    generation = GenerationArguments(model, str(folder))
    with pytest.raises(InputError, match="`policy` is 'nearer'"):
        build_pairs(data, generation, PreferencePairConfig(policy="nearer"), QUIET)
    generation.max_new_tokens = 0
    with pytest.raises(InputError, match="`max_new_tokens` is 0"):
        build_pairs(data, generation, PreferencePairConfig(), QUIET)
    assert not folder.exists()


def test_a_hub_id_is_its_own_fingerprint() -> None:
    assert fingerprint_model("owner/name") == "owner/name"


OVER = chat_server.Reply(chat_server.error("All used", "insufficient_quota"), status=429)


def test_pairs_come_from_a_server_too(data: DataArguments, tmp_path: Path) -> None:
    def reply(request: chat_server.Seen) -> chat_server.Reply:
        # The question stands at the end of the prompt; every second sample counts one too many.
        asked = request.body["messages"][-1]["content"]
        age = int(asked.split("Older than ")[1].split("?")[0])
        texts = [f"SELECT name FROM pet WHERE age > {age + 2 * (i % 2)}" for i in range(4)]
        return chat_server.Reply(
            chat_server.completion(*((text, "stop") for text in texts), num_tokens=40)
        )

    with chat_server.serve(reply) as server:
        generation = GenerationArguments(
            "big-model", str(tmp_path / "pairs"), num_generations=4, temperature=0.5,
            base_url=server.url,
        )  # fmt: skip
        path = build_pairs(data, generation, PreferencePairConfig(), QUIET)
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).to_list()
    assert rows
    assert {row["rejected_source"] for row in rows} == {"weak"}
    candidates = (tmp_path / "pairs" / "candidates.jsonl").read_text()
    assert candidates.count("big-model") == 24


def test_an_interrupted_sampling_continues_at_another_address_and_pays_nothing_twice(
    data: DataArguments, tmp_path: Path
) -> None:
    paid: list[chat_server.Seen] = []

    def count(request: chat_server.Seen) -> chat_server.Reply:
        paid.append(request)
        return chat_server.Reply(chat_server.completion(("SELECT 1", "stop"), num_tokens=4))

    def arguments(server: chat_server.ChatServer, **changes: Any) -> GenerationArguments:
        options = {"batch_size": 8, "num_generations": 2, "temperature": 0.5, **changes}
        return GenerationArguments(
            "big-model", str(tmp_path / "pairs"), base_url=server.url, **options
        )

    with (
        chat_server.serve(lambda r: count(r) if len(first.seen) < 6 else OVER) as first,
        pytest.raises(ModelError, match="quota"),
    ):
        build_pairs(data, arguments(first, batch_size=2), PreferencePairConfig(), QUIET)
    with chat_server.serve(count) as second:
        with pytest.raises(InputError, match=r"temperature was 0\.5, now 0\.6"):
            build_pairs(data, arguments(second, temperature=0.6), PreferencePairConfig(), QUIET)
        build_pairs(data, arguments(second), PreferencePairConfig(), QUIET)
        patient = arguments(second, request_timeout_s=900.0)
        assert build_pairs(data, patient, PreferencePairConfig(), QUIET).exists()
        # Of two samples a request gives one: the server does not know `n`.
        assert len(paid) == 2 * 6
    marker = json.loads((tmp_path / "pairs" / "settings.json").read_text())
    assert marker["facts"] == {"base_url": second.url, "api_key_env": None, "batch_size": 8}
    assert "base_url" not in marker["settings"]


def test_a_server_gets_as_long_as_was_said(tmp_path: Path) -> None:
    slow = chat_server.Reply(chat_server.completion(("SELECT 1", "stop")), delay_s=0.6)
    with chat_server.serve(lambda _: slow if len(server.seen) < 2 else OVER) as server:
        generation = GenerationArguments(
            "m", str(tmp_path), base_url=server.url, request_timeout_s=0.2
        )
        # The first request is given up and sent again.
        with pytest.raises(ModelError, match="quota"):
            generation.get_generator().generate(
                [[{"role": "user", "content": "Which?"}]], SamplingConfig()
            )


def test_a_generator_is_one_of_three(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use_vllm"):
        GenerationArguments("m", str(tmp_path), use_vllm=True, base_url="http://localhost:1/v1")
    with pytest.raises(InputError, match="candidate_source"):
        GenerationArguments("m", str(tmp_path), candidate_source="gold")

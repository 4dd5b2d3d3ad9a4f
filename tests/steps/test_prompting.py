"""One style of prompts, from training to use, wherever the model goes."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from chat_server import Reply, Seen, completion, serve
from rich.console import Console

from sense_trl.cli.main import main
from sense_trl.errors import InputError
from sense_trl.options import DataArguments
from sense_trl.prompts.style import PromptStyle, check_server, get_style
from sense_trl.steps.prompting import identify_style, load_styled_task, replace_prompt_options

SCRIPT = """
CREATE TABLE pet (name TEXT, kind TEXT, age INTEGER);
INSERT INTO pet VALUES ('Rex', 'dog', 4), ('Tom', 'cat', 2), ('Bo', 'dog', 9);
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataArguments:
    monkeypatch.setenv("SENSE_TRL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "pets.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(SCRIPT)
    connection.close()
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"How many dogs are older than {n}?", "gold_sql": f"SELECT count(*) FROM pet WHERE age > {n}"}
        for n in range(4)
    ]  # fmt: skip
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(str(path), str(questions))


def test_options_come_on_top_of_what_the_model_was_trained_with(tmp_path: Path) -> None:
    trained = PromptStyle(schema_style="codes", num_values=2)
    trained.save(tmp_path)
    options = DataArguments("d", "q")
    assert get_style(options) == PromptStyle()
    assert get_style(options, tmp_path) == trained
    assert get_style(options, "some/hub-id", None, tmp_path) == trained
    assert get_style(DataArguments("d", "q", num_values=2), tmp_path) == trained
    assert get_style(DataArguments("d", "q", prompt_style=str(tmp_path))) == trained
    with pytest.raises(InputError, match="`num_values` is 3, the model's is 2"):
        get_style(DataArguments("d", "q", num_values=3), tmp_path)
    forced = get_style(DataArguments("d", "q", num_values=3, force_style=True), tmp_path)
    assert forced == PromptStyle(schema_style="codes", num_values=3)
    with pytest.raises(InputError, match=r"holds no sense_prompt\.json"):
        get_style(DataArguments("d", "q", prompt_style=str(tmp_path / "gone")))


def test_two_models_of_other_styles_do_not_go_together(tmp_path: Path) -> None:
    for name, style in (("student", PromptStyle()), ("teacher", PromptStyle(num_values=1))):
        (tmp_path / name).mkdir()
        style.save(tmp_path / name)
    with pytest.raises(InputError, match="teacher"):
        get_style(DataArguments("d", "q"), tmp_path / "student", tmp_path / "teacher")


@pytest.mark.parametrize("inner", ["adapter", "checkpoint-12"])
def test_what_lies_in_the_folder_of_a_model_has_its_style(tmp_path: Path, inner: str) -> None:
    PromptStyle(num_values=2).save(tmp_path)
    (tmp_path / inner).mkdir()
    assert PromptStyle.find(tmp_path / inner) == PromptStyle(num_values=2)
    assert PromptStyle.find(tmp_path / "other") is None


def test_values_go_to_another_machine_only_where_that_is_asked_for(tmp_path: Path) -> None:
    PromptStyle(num_values=2, num_matched_values=0).save(tmp_path)
    options = DataArguments("d", "q", prompt_style=str(tmp_path))
    style = get_style(options)
    for allowed in (None, "http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80"):
        check_server(style, options, allowed)
    with pytest.raises(InputError, match=r"`num_values`.*https://api\.example\.org.*--send_values"):
        check_server(style, options, "https://api.example.org/v1")
    options.send_values = True
    check_server(style, options, "https://api.example.org/v1")
    asked = DataArguments("d", "q", num_values=2)
    get_style(asked, base_url="https://api.example.org/v1")
    plain = PromptStyle(num_matched_values=0)
    check_server(plain, DataArguments("d", "q"), "https://api.example.org/v1")


@pytest.mark.parametrize(
    ("url", "given", "shown"),
    [
        (None, {}, 5),
        ("http://localhost:8000/v1", {}, 5),
        ("https://api.example.org/v1", {}, 0),
        ("https://api.example.org/v1", {"num_values": 2}, 0),
        ("https://api.example.org/v1", {"num_matched_values": 3}, 3),
        ("https://api.example.org/v1", {"send_values": True}, 5),
    ],
)
def test_values_of_the_default_stay_on_this_machine_and_that_is_said(
    caplog: pytest.LogCaptureFixture, url: str | None, given: dict[str, Any], shown: int
) -> None:
    style = get_style(DataArguments("d", "q", **given), "some/model", base_url=url)
    assert style.num_matched_values == shown
    is_said = "https://api.example.org/v1 is not this machine" in caplog.text
    assert is_said == (shown == 0) == bool(caplog.records)


def test_values_of_a_model_are_not_left_out_in_silence(tmp_path: Path) -> None:
    PromptStyle().save(tmp_path)
    options = DataArguments("d", "q", prompt_style=str(tmp_path))
    assert get_style(options, base_url="http://localhost/v1") == PromptStyle()
    with pytest.raises(InputError, match=r"`num_matched_values`.*--send_values"):
        get_style(options, base_url="https://api.example.org/v1")
    # One that was trained without is asked without, wherever it is.
    PromptStyle(num_matched_values=0).save(tmp_path)
    for url in ("http://localhost/v1", "https://api.example.org/v1"):
        assert get_style(options, base_url=url) == PromptStyle(num_matched_values=0)


def test_what_a_run_depends_on_names_what_is_not_left_at_its_default(tmp_path: Path) -> None:
    # Folders of runs without values that questions name were made before these were the default.
    plain = PromptStyle(num_matched_values=0)
    assert identify_style(plain, None) == {"schema_style": "compact"}
    assert identify_style(PromptStyle(), None) == {
        "schema_style": "compact",
        "num_matched_values": 5,
    }
    given = {"num_values": None, "tables_json": "t", "description_source": None, "seed": 1}
    assert replace_prompt_options(given, plain) == {
        "tables_json": "t",
        "seed": 1,
        "schema_style": "compact",
    }
    file = tmp_path / "d.yaml"
    file.write_text("tables: {}")
    found = identify_style(PromptStyle(descriptions=True), str(file))
    assert found["descriptions"] is True
    file.write_text("tables: {pet: an animal}")
    assert identify_style(PromptStyle(descriptions=True), str(file)) != found


def test_a_wide_schema_is_counted_with_the_tokenizer_of_the_model(
    data: DataArguments, tmp_path: Path
) -> None:
    data.max_schema_tokens = 4
    with pytest.raises(InputError, match="`prompt_tokenizer`"):
        load_styled_task(data, None)
    model = tiny_models.save_tiny_model(tmp_path / "tiny", "llama")
    task = load_styled_task(data, str(model))
    question = task.questions[0]
    # What gold uses is shown in training.
    assert "age" in task.get_training_messages(question)[0]["content"]


def test_a_model_is_asked_as_it_was_trained_wherever_it_goes(
    data: DataArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training, evaluation, `ask`, a merged adapter and a server: one prompt."""
    from trl import ModelConfig

    from sense_trl.checkpoints.merge import merge_adapter
    from sense_trl.steps.stages import EvaluationArguments, GenerationArguments, evaluate, sft
    from sense_trl.trainers import SenseSFTConfig

    data.num_values, data.num_matched_values = 2, 3
    base = tiny_models.save_tiny_model(tmp_path / "tiny", "llama")
    model = ModelConfig(model_name_or_path=str(base), use_peft=True, lora_r=2, dtype="float32")
    folder = tmp_path / "sft"
    config = SenseSFTConfig(
        str(folder), max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to="none",
        use_cpu=True, bf16=False, max_length=4096,
    )  # fmt: skip
    console = Console(quiet=True)
    sft(data, model, config, console)
    merged = tmp_path / "merged"
    merge_adapter(folder / "adapter", merged, dtype="float32")
    style = PromptStyle(num_values=2, num_matched_values=3)
    places = (folder, folder / "adapter", folder / "checkpoint-1", folder / "checkpoint-2", merged)
    for place in places:
        assert PromptStyle.load(place) == style, place

    asked = DataArguments(data.database, data.questions)
    expected = load_styled_task(data).get_messages(load_styled_task(data).questions[0])
    assert "pet.kind = 'dog'" in expected[1]["content"]
    for place in places:
        task = load_styled_task(asked, str(place))
        assert task.get_messages(task.questions[0]) == expected
    generation = GenerationArguments(
        str(merged), output_dir=str(tmp_path / "eval"), max_new_tokens=2
    )
    assert evaluate(asked, generation, EvaluationArguments(), console) is not None
    settings = json.loads((tmp_path / "eval" / "settings.json").read_text())["settings"]
    assert (settings["num_values"], settings["num_matched_values"]) == (2, 3)

    command = ["--database", data.database, task.questions[0].question]
    capsys.readouterr()
    assert main(["prompt", "--as_json", "--model", str(merged), *command]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    seen: list[Any] = []

    def reply(request: Seen) -> Reply:
        seen.append(request.body["messages"])
        return Reply(completion(("SELECT 1", "stop")))

    with serve(reply) as server:
        options = ["--model", "served", "--base_url", server.url, "--prompt_style", str(merged)]
        assert main(["ask", *options, *command]) == 0
    assert seen == [expected]


@pytest.mark.parametrize(
    ("queries", "shown", "code", "stands"),
    [
        (["SELECT nme FROM pet", "SELECT name FROM pet"], "no such column: nme", 0, 1),
        (["SELECT name FROM pet WHERE kind = 'Dog'", "SELECT 1"], "finds no rows", 0, 1),
        (["SELECT nme FROM pet", "SELECT nam FROM pet"], "no such column: nme", 1, 0),
        (["SELECT name FROM pet WHERE 0", "SELECT nam FROM pet"], "finds no rows", 0, 0),
    ],
)
def test_ask_gives_a_second_turn(
    data: DataArguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    queries: list[str],
    shown: str,
    code: int,
    stands: int,
) -> None:
    from sense_trl.generation.generator import Completion

    asked: list[Any] = []

    class Fake:
        def generate(self, prompts: list[Any], sampling: Any) -> list[list[Completion]]:
            asked.extend(prompts)
            return [[Completion(queries[len(asked) - 1], 9, True)] for _ in prompts]

    monkeypatch.setattr("sense_trl.steps.generator.load_generator", lambda *a, **o: Fake())
    command = ["ask", "--model", "m", "--database", data.database, "Who?"]
    assert main([*command, "--revise", "1"]) == code
    first, second = asked
    assert second[: len(first)] == first
    assert [m["role"] for m in second[len(first) :]] == ["assistant", "user"]
    assert shown in second[-1]["content"]
    printed = capsys.readouterr()
    # What stands is the result, what was tried before is told beside it.
    assert printed.out.startswith(f"{queries[stands]}\n")
    assert queries[1 - stands] not in printed.out
    assert queries[0] in printed.err and shown in printed.err
    said = ["in vain: this is the first answer", "Revised: this is answer 2 of 2"][stands]
    assert said in printed.err
    asked.clear()
    main(command)
    assert len(asked) == 1
    assert main([*command, "--revise", "-1"]) == 2

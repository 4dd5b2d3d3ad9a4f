"""A linker of a tiny model, from training to prompts."""

import gc
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from sense_trl.cli.main import main
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError, ModelError
from sense_trl.linking import get_linking_labels
from sense_trl.linking.names import FEATURES, KINDS
from sense_trl.linking.pooling import draw_pools
from sense_trl.linking.reading import repeat_items, split_question, write_blocks
from sense_trl.options import GeneratorOptions, PromptOptions
from sense_trl.prompts import PromptStyle
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.prompts.style import NAME_LINKER, get_style
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.prompts.writer import PromptWriter
from sense_trl.questions import Question, load_questions
from sense_trl.schema import DatabaseSchema, get_schema
from sense_trl.sql.parsing import SQLParseError
from sense_trl.steps import linking
from sense_trl.steps.generator import load_generator
from sense_trl.steps.linking import (
    TEACHINGS_FILE,
    WEIGHTS_FILE,
    TrainedLinker,
    label_questions,
    load_teachings,
    measure_linking,
    open_linker,
    read_examples,
    score_examples,
    score_questions,
)
from sense_trl.steps.prompting import get_linker, identify_style
from sense_trl.task import TextToSQLTask
from sense_trl.trainers.linking import LinkerHead, StateReader
from sense_trl.trainers.linking.training import LinkerTrainingConfig, train_linker_head

TABLES = {
    "pet": ["name", "weight", "colour", "kind"],
    "song": ["title", "singer", "length", "language"],
    "city": ["area", "mayor", "river", "country"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of three wide tables, questions on it, and a tiny model."""
    path = tmp_path_factory.mktemp("link")
    connection = sqlite3.connect(path / "town.sqlite")
    for table, columns in TABLES.items():
        filler = ", ".join(f"{table}_{i} TEXT" for i in range(8))
        connection.execute(f"CREATE TABLE {table} ({', '.join(columns)}, {filler})")
    connection.close()
    rows = [
        {"question": f"Which {column} of each {table}?", "query": f"SELECT {column} FROM {table}"}
        for table, columns in TABLES.items()
        for column in columns
    ]
    (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_models.save_tiny_model(path, "llama")
    tiny_models.save_tiny_model(path, "qwen2")
    return path


def link(folder: Path, *arguments: str) -> int:
    data = ["--database", str(folder / "town.sqlite"), "--questions", str(folder / "named.jsonl")]
    return main(["link", *arguments, *data])


def fine_tune(folder: Path, **options: Any) -> int:
    """`sense-trl sft` of the model of the folder, on its database."""
    options |= {"model_name_or_path": folder / "llama", "database": folder / "town.sqlite"}
    options |= {"use_cpu": "true", "bf16": "false", "report_to": "none"}
    return main(
        ["sft", *(text for name, own in options.items() for text in (f"--{name}", str(own)))]
    )


def get_town(folder: Path) -> DatabaseSchema:
    with DatabaseCatalog.from_path(folder / "town.sqlite") as catalog:
        return get_schema(catalog.engine("town"), "town")


@pytest.fixture(scope="module")
def linker(folder: Path) -> Path:
    """A linker that learned the questions by heart."""
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    named = "".join(json.dumps({**row, "db_id": "town"}) + "\n" for row in rows)
    (folder / "named.jsonl").write_text(named)
    options = ["--num-epochs", "150", "--batch-size", "4", "--dropout", "0"]
    options += ["--weight-decay", "0", "--learning-rate", "0.005"]
    where = ["--model-name-or-path", str(folder / "llama"), "--output-dir", str(folder / "linker")]
    assert link(folder, "train", *where, *options, "--save-teachings") == 0
    return folder / "linker"


def test_a_linker_scores_what_it_learned_and_its_prompts_show_it(
    folder: Path, linker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = TrainedLinker.load(linker)
    with DatabaseCatalog.from_path(folder / "town.sqlite") as catalog:
        schema = get_schema(catalog.engine("town"), "town")
        questions = load_questions(folder / "named.jsonl")
        scored = list(score_questions(loaded.of, questions, {"town": schema}))
        report = measure_linking(scored, max_tables=1, max_columns=3)
        assert report.pr_auc > 0.9
        assert report.strict_recall == 1.0
        assert report.kept_columns < 0.1
        # The words of a question add up to the probabilities that were scored.
        words, maps, rests = loaded.of(schema).explain(questions[0].question)
        assert words[-1] == "(end)"
        for item, score in scored[0][2].items():
            logit = sum(maps[item]) + rests[item]
            assert torch.sigmoid(torch.tensor(logit)).item() == pytest.approx(score, abs=1e-4)
        style = PromptStyle(linker=str(linker), linked_tables=1, linked_columns=2)
        with PromptWriter(catalog, style, make_linker=get_linker(style)) as writer:
            parts = writer.get_parts("town", questions[5].question)
            assert parts.schema.startswith("song(")
            assert "singer" in parts.schema
            assert parts.schema.count(",") == 1
            assert parts.left_out == "2 tables (pet, city) and 10 columns of the others"
            # What gold uses is shown in training.
            gold = writer.get_parts("town", "?", gold_sql="SELECT city_7 FROM city")
            assert "city_7" in gold.schema
        with pytest.raises(InputError, match="but it is not there"):
            PromptWriter(catalog, style)
    capsys.readouterr()
    assert link(folder, "evaluate", str(linker), "--linked-tables", "1") == 0
    assert "strict recall 1.000" in capsys.readouterr().out
    # Questions that name no database are about the only one.
    (folder / "named.jsonl").rename(folder / "kept.jsonl")
    (folder / "named.jsonl").write_text((folder / "questions.jsonl").read_text())
    assert link(folder, "evaluate", NAME_LINKER) == 0
    (folder / "kept.jsonl").replace(folder / "named.jsonl")
    assert "12 questions: column PR-AUC" in capsys.readouterr().out
    show = ["link", "show", str(linker), questions[0].question]
    assert main([*show, "--database", str(folder / "town.sqlite")]) == 0
    assert "pet.name " in capsys.readouterr().out


def test_another_training_on_the_same_questions_reads_nothing(
    folder: Path, linker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(StateReader, "read_prefix", read)
    where = ["--model-name-or-path", str(folder / "llama"), "--output-dir", str(folder / "again")]
    states = ["--state-cache", str(linker / "states")]
    assert link(folder, "train", *where, "--num-epochs", "1", *states) == 0
    assert not (folder / "again" / "states").exists()


def test_a_smaller_linker_learns_from_a_larger_one(folder: Path, linker: Path) -> None:
    teachings = load_teachings(linker)
    assert len(teachings) == 12
    where = ["--model-name-or-path", str(folder / "qwen2"), "--output-dir", str(folder / "student")]
    options = ["--num-epochs", "2", "--teacher", str(linker), "--distillation", "cam"]
    assert link(folder, "train", *where, *options) == 0
    assert TrainedLinker.load(folder / "student").reader.layer == 1
    # One of the two says nothing without the other.
    assert link(folder, "train", *where, "--distillation", "cam") == 2


def test_questions_are_asked_once_more_on_wide_schemas(
    folder: Path, linker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    town = get_town(folder)
    schemas = {name: replace(town, db_id=name) for name in ("town", "village")}
    questions = [
        Question(f"{name} {number}", name, f"Which {column}?", f"SELECT {column} FROM pet")
        for number, column in enumerate(TABLES["pet"])
        for name in schemas
    ]
    reader = linking.open_reader(str(folder / "llama"))
    done: list[int] = []
    examples = read_examples(
        reader, questions, schemas, pooled_databases=2, max_block_chars=300, on_progress=done.append
    )
    assert sum(done) == 2 * len(questions)
    by_key = {example.key: example for example in examples}
    assert len(by_key) == len(examples)
    assert int(by_key["village 2/0"].labels.sum()) == 2
    ((pool, _),) = draw_pools(schemas, 2)
    blocks = write_blocks(pool.schema, max_chars=300)
    assert len(blocks) > 1
    wide = [by_key[f"pool/village 2/{number}"] for number in range(len(blocks))]
    wanted = [
        item
        for block, example in zip(blocks, wide, strict=True)
        for item, is_wanted in zip(block.items, example.labels.tolist(), strict=True)
        if is_wanted
    ]
    assert wanted == [("pet_village", ""), ("pet_village", "colour")]
    # From the command line: one database alone has none to be joined with.
    command = [
        "train",
        "--model-name-or-path",
        str(folder / "llama"),
        "--output-dir",
        str(tmp_path),
    ]
    assert link(folder, *command, "--pooled-databases", "2") == 2
    assert "'town' is the only database for sqlite" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_items_that_are_read_again_behind_the_question(
    folder: Path, linker: Path, tmp_path: Path, architecture: str
) -> None:
    model, output = str(folder / architecture), str(tmp_path / "repeated")
    where = ["--model-name-or-path", model, "--readout", "repeated", "--num-epochs", "20"]
    assert link(folder, "train", *where, "--output-dir", output, "--save-teachings") == 0
    loaded = TrainedLinker.load(output)
    assert loaded.max_block_chars == 256
    town, questions = get_town(folder), load_questions(folder / "named.jsonl")[:2]
    scored = list(score_questions(loaded.of, questions, {"town": town}))
    # What it learned from are states of rows of their own, without a cache or a mask.
    examples = read_examples(loaded.reader, questions, {"town": town}, readout="repeated")
    network, tokenizer = loaded.reader._decoder, loaded.reader._tokenizer
    block, *_ = write_blocks(town, max_chars=256)
    for question, example in zip(questions, examples, strict=False):
        asked = f"\n{question.question}"
        (text, spans), *others = repeat_items(asked, block, max_chars=128)
        assert others
        rows = [tokenizer(part, add_special_tokens=False) for part in (block.text, text)]
        ids = torch.tensor([[token for row in rows for token in row["input_ids"]]])
        with torch.no_grad():
            states = network(ids).last_hidden_state[0][len(rows[0]["input_ids"]) :]
        marks = spans[len(split_question(asked)[1]) :]
        read = torch.stack([states[rows[1].char_to_token(start)] for start, _ in marks])
        read = read.view(len(marks) // 2, -1)
        torch.testing.assert_close(example.items[: len(read)].float(), read, atol=5e-3, rtol=5e-3)
    # They have read the question, and so differ by it.
    assert not torch.equal(examples[0].items, examples[1].items)
    again = score_examples(loaded.head, examples, questions, {"town": town}, max_block_chars=256)
    for (_, _, one), (_, _, other) in zip(scored, again, strict=True):
        assert one == pytest.approx(other, abs=0.02)
    # What it says teaches a linker that reads items once, and one that repeats them.
    taught = ["--teacher", output, "--distillation", "features", "--num-epochs", "1"]
    where[1:2] = [str(folder / "llama"), "--output-dir", str(tmp_path / "student")]
    assert link(folder, "train", *where, *taught) == 0
    once = read_examples(loaded.reader, questions, {"town": town}, max_block_chars=256)
    config = LinkerTrainingConfig(num_epochs=1, distillation="logits")
    train_linker_head(once, config, num_kinds=len(KINDS), teachings=load_teachings(output))


def test_blocks_of_a_schema_are_scored_one_by_one(folder: Path, linker: Path) -> None:
    loaded = TrainedLinker.load(linker)
    split = TrainedLinker(loaded.reader, loaded.head, loaded.base, max_block_chars=60)
    with DatabaseCatalog.from_path(folder / "town.sqlite") as catalog:
        schema = get_schema(catalog.engine("town"), "town")
    scores = split.of(schema).score("Which colour of each pet?")
    assert len(scores) == 3 + 36
    assert all(0 <= score <= 1 for score in scores.values())


def test_schemas_are_held_by_their_tokens(
    folder: Path, linker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, town = TrainedLinker.load(linker), get_town(folder)
    schemas = [replace(town, db_id=name) for name in "abc"]
    loaded.of(schemas[0]).score("Which name?")
    # Room for two.
    monkeypatch.setattr(linking, "_MAX_HELD_TOKENS", 2 * loaded.read(schemas[0]).num_tokens)
    for schema in schemas:
        loaded.of(schema).score("Which name?")
    assert [*loaded._held] == schemas
    loaded.of(schemas[0]).score("Which name?")
    assert [*loaded._held] == [schemas[2], schemas[0]]
    monkeypatch.setattr(linking, "_MAX_HELD_TOKENS", 1)
    assert loaded.of(schemas[1]).score("Which name?")
    assert [*loaded._held] == [schemas[1]]


def test_of_columns_with_equal_scores_the_first_of_the_schema_count(folder: Path) -> None:
    town = get_town(folder)
    names = [column.name for column in town.tables[0].columns]
    found = [measure_linking([(town, f"SELECT {name} FROM pet", {})]).recall_at_5 for name in names]
    assert found == [1.0] * 5 + [0.0] * (len(names) - 5)


def test_blocks_fit_into_a_short_context(folder: Path, linker: Path) -> None:
    loaded = TrainedLinker.load(linker)
    # The tiny model has 512 positions, where Qwen reads 12,000 characters at once.
    assert loaded.max_block_chars == 512
    columns = ", ".join(f"a_long_name_{i}" for i in range(60))
    path = folder / "wide.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE wide ({columns})")
    connection.close()
    with DatabaseCatalog.from_path(path) as catalog:
        schema = get_schema(catalog.engine("wide"), "wide")
    assert len(loaded.of(schema).score("Which long name is number 7?")) == 61
    head = LinkerHead(64, item_size=128, num_kinds=len(KINDS), num_features=len(FEATURES))
    repeated = TrainedLinker(loaded.reader, head, loaded.base, readout="repeated")
    assert len(repeated.of(schema).score("Which long name is number 7?")) == 61


def test_a_model_that_writes_sql_is_not_loaded_a_second_time(
    folder: Path, linker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GeneratorOptions(model_name_or_path=str(folder / "llama"))
    generator = load_generator(options, batch_size=1)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded again")

    expected = TrainedLinker.load(linker).of(get_town(folder)).score("Which colour?")
    monkeypatch.setattr(linking, "load_for_generation", load)
    shared = TrainedLinker.load(linker)
    assert shared.of(get_town(folder)).score("Which colour?") == expected
    # Once nobody writes with it any more, it is not kept for linkers.
    del generator, shared
    gc.collect()
    with pytest.raises(AssertionError, match="loaded again"):
        TrainedLinker.load(linker)


def test_a_linker_of_another_model_is_refused(
    folder: Path, linker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="trained on the states of another model"):
        TrainedLinker.load(linker, base=str(folder / "qwen2"))
    with pytest.raises(InputError, match="holds no sense_linker"):
        open_linker(str(tmp_path))
    # States are no part of a linker.
    assert list((linker / "states").iterdir())
    for file in linker.glob("sense_*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first = identify_style(PromptStyle(linker=str(tmp_path)), None)
    assert first == identify_style(PromptStyle(linker=str(linker)), None)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"no weights")
    assert identify_style(PromptStyle(linker=str(tmp_path)), None) != first
    with pytest.raises(InputError, match="cannot be read"):
        TrainedLinker.load(tmp_path)
    assert link(folder, "evaluate", str(tmp_path / "gone")) == 2
    assert "holds no sense_linker.json" in capsys.readouterr().err


def test_names_need_no_model(folder: Path) -> None:
    style = PromptStyle(linker=NAME_LINKER, linked_tables=1, linked_columns=1)
    assert get_linker(style) is None
    with (
        DatabaseCatalog.from_path(folder / "town.sqlite") as catalog,
        PromptWriter(catalog, style) as writer,
    ):
        assert writer.get_parts("town", "which river runs through a city?").schema == "city(river)"
        schema = writer.get_schema("town")
        report = measure_linking(
            [(schema, "SELECT river FROM city", NameLinker(schema).score("river of a city", ()))],
            max_tables=1,
            max_columns=1,
        )
    assert (report.strict_recall, report.precision) == (1.0, 1.0)
    assert get_linking_labels("SELECT river FROM city", schema).tables == {"city"}


def test_gold_that_cannot_be_read_is_told_before_anything_is_read(folder: Path) -> None:
    rows = [("How old?", "SELECT name FROM pet"), ("Who?", "SELEC ( FROM")]
    questions = [
        Question(question_id=f"q{i}", db_id="town", question=text, gold_sql=sql)
        for i, (text, sql) in enumerate(rows)
    ]
    schemas = {"town": get_town(folder)}

    def make(*_: object) -> NameLinker:
        raise AssertionError("read before gold was looked at")

    with pytest.raises(SQLParseError, match="gold of 'q1' cannot be read"):
        score_questions(make, questions, schemas)


def test_a_linker_is_found_by_models_of_other_types_and_from_other_folders(
    folder: Path, linker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.build_tiny_model("llama").to(torch.bfloat16)
    tokenizer = tiny_models.build_tiny_tokenizer()
    head = TrainedLinker.load(linker).head
    # As on a GPU, where weights keep the type they were saved in.
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    TrainedLinker(StateReader(model, tokenizer), head, "model").save("saved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert TrainedLinker.load("../saved").reader.layer == 1


def test_teachings_of_an_earlier_linker_do_not_stay(linker: Path, tmp_path: Path) -> None:
    (tmp_path / TEACHINGS_FILE).write_bytes((linker / TEACHINGS_FILE).read_bytes())
    TrainedLinker.load(linker).save(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_teachings(tmp_path)


def test_columns_of_named_values_score_as_much_as_the_best(folder: Path, linker: Path) -> None:
    scorer = TrainedLinker.load(linker).of(get_town(folder))
    match = ValueMatch("City", "City_7", "Rome", 1.0)
    alone = scorer.score("Which colour of each pet?")
    scores = scorer.score("Which colour of each pet?", [match])
    assert alone["city", "city_7"] < max(alone.values())
    assert scores == {**alone, ("city", "city_7"): max(alone.values())}


def test_gold_of_another_database_is_refused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schemas = {"town": get_town(folder)}
    foreign = Question(question_id="a", db_id="town", question="?", gold_sql="SELECT x FROM gone")
    own = Question(question_id="b", db_id="town", question="?", gold_sql="SELECT name FROM pet")
    with pytest.raises(InputError, match="'gone' in gold of 'a' is not in the schema"):
        label_questions([foreign], schemas)
    assert set(label_questions([foreign, own], schemas)) == {"a", "b"}
    assert "is not in the schema" in caplog.text


def test_a_database_without_tables_is_refused(
    folder: Path, linker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("column_names", "column_names_original", "table_names", "table_names_original")
    entry = {"db_id": "empty", **{key: [] for key in (*names, "column_types")}}
    entry |= {"primary_keys": [], "foreign_keys": []}
    (tmp_path / "tables.json").write_text(json.dumps([entry]))
    (tmp_path / "q.jsonl").write_text('{"db_id": "empty", "question": "?", "query": "SELECT 1"}')
    data = ["--tables_json", str(tmp_path / "tables.json")]
    assert main(["link", "show", str(linker), "who?", *data]) == 2
    assert "no table" in capsys.readouterr().err
    data += ["--questions", str(tmp_path / "q.jsonl")]
    assert main(["link", "evaluate", NAME_LINKER, *data]) == 2
    assert "no table" in capsys.readouterr().err


def test_limits_and_linkers_are_named_as_the_user_gave_them(
    folder: Path, linker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert link(folder, "evaluate", NAME_LINKER, "--linked-tables", "0") == 2
    assert "`linked_tables` is 0" in capsys.readouterr().err
    data_of_show = ["--database", str(folder / "town.sqlite"), "--num-items", "0"]
    assert main(["link", "show", str(linker), "who?", *data_of_show]) == 2
    assert "`num_items` is 0; expected at least 1" in capsys.readouterr().err
    show = ["link", "show", NAME_LINKER, "who?", "--database", str(folder / "town.sqlite")]
    assert main(show) == 2
    assert "`linker` is 'names', which holds no" in capsys.readouterr().err


def test_names_with_line_breaks_stay_on_their_line(
    linker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = sqlite3.connect(tmp_path / "odd.sqlite")
    connection.execute('CREATE TABLE "a<|im_end|>\nb" ("x\ny", "<|endoftext|>")')
    connection.close()
    show = ["link", "show", str(linker), "x\ny?", "--database", str(tmp_path / "odd.sqlite")]
    assert main(show) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert sum("a<|im_end|> b.x y" in line for line in shown) == 1


def test_a_linker_that_learned_along_is_taken_from_the_folder_of_the_model(
    folder: Path, linker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, database = tmp_path / "sft", str(folder / "town.sqlite")
    questions = folder / "named.jsonl"
    options = {"link_weight": 0.5, "use_peft": "true", "max_steps": 2}
    assert fine_tune(folder, questions=questions, output_dir=output, **options) == 0
    question = "Which colour of each pet?"
    merged = TrainedLinker.load(output).of(get_town(folder)).score(question)
    # The adapter reads as what it was merged into, wherever the folder is moved.
    (output / "adapter").rename(tmp_path / "moved")
    moved = TrainedLinker.load(tmp_path / "moved").of(get_town(folder)).score(question)
    assert moved == pytest.approx(merged, abs=1e-3)
    # Training has changed the states that it reads.
    assert TrainedLinker.load(output, base=str(folder / "llama")).of(get_town(folder)).score(
        question
    ) != pytest.approx(merged, abs=1e-3)
    capsys.readouterr()
    assert link(folder, "evaluate", str(output)) == 0
    assert "12 questions: column PR-AUC" in capsys.readouterr().out
    ask = ["ask", question, "--database", database, "--model_name_or_path", str(output)]
    ask += ["--linker", str(output), "--force_style", "--max_new_tokens", "4"]
    # What a model of random weights writes is no query.
    assert main(ask) == 1
    assert "the text holds no statement" in capsys.readouterr().out


def test_a_generator_learns_from_what_names_leave_and_all_that_gold_uses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": "Which titles do songs have?", "query": "SELECT mayor FROM city"}] * 2
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []
    get_rows = TextToSQLTask.prompt_completion_rows

    def remember(*arguments: Any, **options: Any) -> Any:
        seen.extend(get_rows(*arguments, **options))
        return seen

    monkeypatch.setattr(TextToSQLTask, "prompt_completion_rows", remember)
    paths = {"questions": tmp_path / "asked.jsonl", "output_dir": tmp_path / "sft"}
    options = {"linker": NAME_LINKER, "linked_tables": 1, "linked_columns": 2, "max_steps": 1}
    assert fine_tune(folder, **paths, **options) == 0
    schema = seen[0]["prompt"][0]["content"]
    shown = [line for line in schema.splitlines() if line.startswith(tuple(TABLES))]
    # What the linker chose is what distracts; of the table that it did not, gold's column is there.
    assert [line.split("(")[0] for line in shown] == ["song", "city"]
    assert "title" in shown[0]
    assert "mayor" in shown[1]
    assert sum(line.count(",") + 1 for line in shown) <= 5
    # The model is asked in the same way afterwards, without knowing gold.
    style = get_style(PromptOptions(), str(tmp_path / "sft"))
    assert (style.linker, style.linked_tables, style.linked_columns) == (NAME_LINKER, 1, 2)

"""The arms of the recipes on Spider: their commands parse, tables say what the results say."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
import yaml

from sense_trl.cli import stages
from sense_trl.cli.main import main, make_parser
from sense_trl.pairs.dataset import read_pairs

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FOLDER = RECIPES / "spider-smollm2"
PLANS = sorted(RECIPES.glob("*/arms.toml"))


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(RECIPES / "spider")
    return importlib.import_module("reproduce")


@pytest.fixture
def results(reproduce: ModuleType) -> ModuleType:
    return sys.modules["results"]


@pytest.fixture
def tables(reproduce: ModuleType) -> dict[str, Any]:
    return sys.modules["arms"].Plan(FOLDER / "arms.toml").tables


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    """Questions and folders as Spider names them, without rows."""
    folder = tmp_path / "spider"
    for db_id in ("pets", "shop", "held_out"):
        (folder / "database" / db_id).mkdir(parents=True)
    for name, db_ids in (("train_spider", ("pets", "shop")), ("dev", ("held_out",))):
        rows = [
            {"db_id": db_id, "question": f"Question {i}?", "query": f"SELECT {i}"}
            for db_id in db_ids
            for i in range(16)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "syn_dev.jsonl").write_text("")
    (folder / "tables.json").write_text("[]")
    return folder


SMALL = (
    *("--set", "sft", "max_questions=6", "--set", "short-dev", "max_questions=3"),
    *("--set", "student", "num_layers=1", "--set", "gold", "databases=2", "per_database=4"),
    *("--set", "grouped", "databases=2", "--set", "pairs", "max_questions=4"),
    *("--set", "sense", "max_steps=1", "--set", "anchor", "max_steps=1"),
)


@pytest.fixture
def arguments(reproduce: ModuleType, tmp_path: Path, spider: Path) -> Namespace:
    command = [
        *("--recipe", str(FOLDER), "--spider", str(spider), "--output", str(tmp_path / "runs")),
        *("--model", "model", "--seeds", "0", "1", *SMALL),
    ]
    return reproduce.make_parser().parse_args(command)


def _make_chain(reproduce: ModuleType, arguments: Namespace) -> Any:
    return reproduce.make_chain(arguments, reproduce.load_plan(arguments))


def _check(step: Any) -> None:
    found = stages.find_stage(step.command)
    if found is None:
        make_parser().parse_args(list(step.command))
    else:
        stage, flags = found
        stage.make_parser().parse_args_and_config(flags)


def test_every_command_parses_and_no_two_steps_share_a_result(
    reproduce: ModuleType, arguments: Namespace
) -> None:
    question = {"db_id": "pets", "question": "How many?", "gold_sql": "SELECT count(*) FROM pet"}
    for seed in arguments.seeds:
        explored = arguments.output / f"explored-{seed}"
        explored.mkdir(parents=True)
        (explored / "questions.jsonl").write_text(json.dumps(question))
    chain = _make_chain(reproduce, arguments)
    steps = [*reproduce.get_steps(arguments, chain)]
    for step in steps:
        _check(step)
    # What several arms need is the same step each time.
    by_name = {step.name: step for step in steps}
    assert all(by_name[step.name].command == step.command for step in steps)
    assert len({step.result for step in by_name.values()}) == len(by_name)
    trained = {step.evaluated for step in steps if step.evaluated is not None}
    methods = ("sft", "fkd", "rkd", "masking", "kid")
    assert trained == {
        *("sft", "sense-0", "sense-1", "anchor-0", "anchor-1"),
        *(f"student-{method}-{seed}" for method in methods for seed in (0, 1)),
        *(f"data-{data}-{seed}" for data in ("gold", "synthesised", "both") for seed in (0, 1)),
        *(f"groups-of-{size}-{seed}" for size in (4, 16) for seed in (0, 1)),
    }
    # The weak model of SENSE is the first one that was trained on a little gold.
    assert by_name["evaluate-sense-1"].needs == ("sft", "data-gold-0", "pairs", "sense-1")


def test_gold_is_drawn_by_database(reproduce: ModuleType, arguments: Namespace) -> None:
    chain = _make_chain(reproduce, arguments)
    files = [chain._get_questions("gold", seed) for seed in (0, 1)]
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert [row["db_id"] for row in rows].count("pets") == len(rows) / 2 == 4
    assert len({(row["db_id"], row["question"]) for row in rows}) == 8
    assert files[1].read_text() != files[0].read_text()


def test_groups_of_both_sizes_are_of_the_same_questions_and_fill_whole_steps(
    reproduce: ModuleType, arguments: Namespace
) -> None:
    trainings = [
        step.command
        for step in _make_chain(reproduce, arguments).get_part("grouping", [0, 1])
        if step.evaluated is None
    ]
    trainings.sort(key=lambda command: command[command.index("--seed") + 1])
    sizes = [command[command.index("--group_size") + 1] for command in trainings]
    files = [command[command.index("--questions") + 1] for command in trainings]
    assert sizes == ["16", "4"] * 2
    assert files[0] == files[1] != files[2] == files[3]
    rows = [json.loads(line) for line in Path(files[0]).read_text().splitlines()]
    assert [row["db_id"] for row in rows].count("pets") == len(rows) / 2 == 16


def test_no_question_is_synthesised_about_a_database_of_the_evaluation(
    reproduce: ModuleType, arguments: Namespace
) -> None:
    steps = _make_chain(reproduce, arguments).get_steps(["data-synthesised"], [0])
    explore = next(step for step in steps if step.name == "explored-0")
    start = explore.command.index("--db-ids") + 1
    assert explore.command[start : explore.command.index("--exclude")] == ("pets", "shop")


# ---------------------------------------------------------------------- what is drawn and defined


@pytest.fixture
def small_spider(tmp_path: Path) -> Path:
    """Six training databases with rows; every fourth gold query returns nothing."""
    folder = tmp_path / "small"
    rows = []
    for db_id in ("a", "b", "c", "d", "e", "f"):
        (folder / "database" / db_id).mkdir(parents=True)
        with closing(sqlite3.connect(folder / "database" / db_id / f"{db_id}.sqlite")) as database:
            database.execute("CREATE TABLE pet AS SELECT 1 AS age")
            database.commit()
        for number in range(8):
            condition = "age = 1" if number % 4 else "age = 2"
            sql = f"SELECT age + {number} FROM pet WHERE {condition}"
            rows.append({"db_id": db_id, "question": f"{db_id}{number}?", "query": sql})
    for name in ("train_spider", "dev", "syn_dev"):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "tables.json").write_text("[]")
    return folder


@pytest.fixture
def make_qwen(reproduce: ModuleType, small_spider: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(*flags: str) -> Any:
        paths = ("--spider", str(small_spider), "--output", str(tmp_path / "runs"))
        recipe = ("--recipe", str(RECIPES / "spider-qwen2.5-coder"))
        sizes = ("--set", "selection_questions", "databases=2", "per_database=3")
        sizes += ("--set", "train", "databases=4", "per_database=3")
        arguments = reproduce.make_parser().parse_args([*recipe, *paths, *sizes, *flags])
        chain = _make_chain(reproduce, arguments)
        return chain, [*reproduce.get_steps(arguments, chain)]

    return make


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_command_of_the_search_parses(make_qwen: Callable[..., Any]) -> None:
    _, steps = make_qwen("--parts", "trial", "--model", "here", "--seeds", "3", "4")
    for step in steps:
        _check(step)
    names = [step.name for step in steps]
    assert names == [
        *("evaluate-baseline-selection", "sft-3", "evaluate-sft-3-selection"),
        *("train_samples-3", "own-3", "rft-3", "evaluate-rft-3-selection"),
    ]
    baseline, sft = steps[0], steps[1]
    assert baseline.command[baseline.command.index("--model_name_or_path") + 1] == "here"
    assert "--learning_rate" not in sft.command
    rft = steps[-2].command
    assert Path(rft[rft.index("--questions") + 1]).name == "own-3.jsonl"


def test_training_and_sampling_are_in_bfloat16_and_evaluations_stay_comparable(
    make_qwen: Callable[..., Any],
) -> None:
    _, plain = make_qwen("--parts", "trial", "--seeds", "3")
    _, steps = make_qwen("--parts", "trial", "--seeds", "3", "--bf16")
    added = {}
    for before, step in zip(plain, steps, strict=True):
        _check(step)
        rest = [word for word in step.command if word not in before.command]
        assert len(step.command) == len(before.command) + len(rest)
        added[step.name] = rest
    assert {name: rest for name, rest in added.items() if rest} == {
        "sft-3": ["--bf16", "true"],
        "train_samples-3": ["--generation_dtype", "bfloat16"],
        "rft-3": ["--bf16", "true"],
    }


SIZES = (
    *("--set", "warm_questions", "databases=2", "per_database=3"),
    *("--set", "pair_questions", "databases=2", "per_database=3"),
)


def test_arms_that_learn_online_start_warm_and_ask_the_questions_of_the_pairs(
    make_qwen: Callable[..., Any], tmp_path: Path
) -> None:
    chain, steps = make_qwen("--parts", "online", "--seeds", "3", *SIZES)
    for step in steps:
        _check(step)
    by_name = {step.name: step for step in steps}
    commands = {name: by_name[f"{name}-3"].command for name in ("grpo", "online")}
    for name, flag in (("grpo", "--model_name_or_path"), ("online", "--model")):
        command = commands[name]
        assert command[command.index(flag) + 1] == str(tmp_path / "runs" / "warm-3")
        questions = command[command.index("--questions") + 1]
        assert Path(questions).name == "pair_questions-3.jsonl"
        evaluated = {step.evaluation for step in steps if step.arm == name}
        assert evaluated == {"selection", "dev", "sampled"}
    flag = commands["online"].index("--loss-type")
    assert commands["online"][flag + 1 : flag + 3] == ("cdpo", "sft")
    # As many answers: 60 steps of 8 prompts of 8 completions.
    grpo = yaml.safe_load((RECIPES / "spider-qwen2.5-coder" / "grpo.yaml").read_text())
    counts = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
    rounds = ("num_rounds", "questions_per_round", "num_samples")
    answers = math.prod(grpo[name] for name in counts)
    assert answers == math.prod(chain.plan["online"][name] for name in rounds) == 3840


def test_what_is_evaluated_is_the_model_that_the_last_round_left(
    make_qwen: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ("--arms", "online", "--on", "selection", "--seeds", "3", *SIZES)
    _, steps = make_qwen(*flags)
    where = steps[-1].command.index("--model_name_or_path") + 1
    folder = tmp_path / "runs" / "online-3"
    assert steps[-1].command[where] == str(folder / "round-3" / "model")
    folder.mkdir(parents=True)
    # The last round had no pair.
    rounds = [{"model": name} for name in ("round-1/model", "round-2/model", "round-2/model")]
    (folder / "rounds.json").write_text(json.dumps(rounds))
    _, steps = make_qwen(*flags)
    assert steps[-1].command[where] == "round-2/model"


def test_nothing_is_trained_on_databases_that_settings_are_chosen_on(
    make_qwen: Callable[..., Any],
) -> None:
    chain, _ = make_qwen("--arms", "baseline")
    held_out = {row["db_id"] for row in _read(chain._get_questions("selection_questions", 7))}
    assert len(held_out) == 2
    for seed in range(4):
        rows = _read(chain._get_questions("train", seed))
        assert len(rows) == 12
        assert not held_out & {row["db_id"] for row in rows}
        # Gold that returns nothing cannot tell a right answer from a wrong one.
        assert not [row for row in rows if "age = 2" in row["gold_sql"]]


def test_an_arm_is_defined_by_what_differs(make_qwen: Callable[..., Any]) -> None:
    flags = ("--define", "slow", "sft", "learning_rate=2e-5", "lora_target_modules=['q_proj']")
    flags += (
        "--define",
        "few",
        "train",
        "databases=1",
        "--define",
        "tiny",
        "slow",
        "questions=few",
    )
    chain, steps = make_qwen(*flags, "--arms", "tiny", "--on", "dev", "--seeds", "5")
    assert [step.name for step in steps] == ["tiny-5", "evaluate-tiny-5"]
    command = steps[0].command
    assert command[command.index("--learning_rate") + 1] == "2e-05"
    assert command[command.index("--lora_target_modules") + 1] == "q_proj"
    assert len(_read(chain._get_questions("few", 5))) == 3
    label = "SFT on gold; learning_rate=2e-5, lora_target_modules=['q_proj']; questions=few"
    assert chain.plan["tiny"]["label"] == label


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arms", "sfd"), "Nothing is called 'sfd'"),
        (("--parts", "trail"), "No part is called 'trail'"),
        (("--arms", "train"), "'train' is of the kind 'questions' and no arm"),
        (
            ("--arms", "sft", "--on", "train"),
            "'train' is of the kind 'questions' and no evaluation",
        ),
        (("--set", "sft", "learning_rate"), "expected KEY=VALUE"),
        (("--set", "sft", "kind=sff"), "'sft' has the kind 'sff'"),
        (("--define", "mine"), "names nothing that it is like"),
        (("--arms", "sft", "--set", "train", "databases=9"), "needs 9 databases, but there are 4"),
        (("--arms", "sft", "--set", "train", "per_database=8"), "4 databases; 0 have 8 questions"),
    ],
)
def test_bad_plans_are_refused_by_name(
    make_qwen: Callable[..., Any], flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        make_qwen(*flags)


def _write_own(folder: Path) -> list[str]:
    """A database of one's own and its questions; the flags that name both."""
    with closing(sqlite3.connect(folder / "my.sqlite")) as database:
        database.execute("CREATE TABLE pet AS SELECT 1 AS age")
        database.commit()
    rows = [
        {
            "question": f"Older by {number}?",
            "gold_sql": f"SELECT age + {number % 2} FROM pet",
            "split": "train" if number < 16 else "test",
        }
        for number in range(20)
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--recipe", str(RECIPES / "own-database-qwen2.5-coder"), "--seeds", "0"]
    paths = ("--questions", str(folder / "mine.jsonl"), "--database", str(folder / "my.sqlite"))
    return [*flags, *paths, "--output", str(folder / "runs")]


def test_a_database_of_ones_own_is_trained_on_by_its_splits(
    reproduce: ModuleType, tmp_path: Path
) -> None:
    flags = [*_write_own(tmp_path), "--set", "warm_questions", "number=10"]
    arguments = reproduce.make_parser().parse_args(flags)
    chain = _make_chain(reproduce, arguments)
    steps = [*reproduce.get_steps(arguments, chain)]
    for step in steps:
        _check(step)
        assert "--tables_json" not in step.command
        assert "--tables-json" not in step.command
    names = {step.name for step in steps}
    assert {"evaluate-sense-repair-0-revised", "repair_pairs-0", "evaluate-sft-0"} <= names
    sets = {
        name: {row["question"] for row in _read(chain._get_questions(name, 0))}
        for name in ("train", "test_questions", "warm_questions", "pair_questions")
    }
    assert [*map(len, sets.values())] == [16, 4, 10, 6]
    assert sets["warm_questions"] | sets["pair_questions"] == sets["train"]
    assert not sets["train"] & sets["test_questions"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--set", "warm_questions", "number=17"), "needs 17 questions, but there are 16 left"),
        (("--set", "test", "questions=dev"), "No questions are called 'dev'"),
        (("--database", "nowhere"), "`--database` is 'nowhere'"),
    ],
)
def test_bad_sets_of_ones_own_are_refused_by_name(
    reproduce: ModuleType, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    arguments = reproduce.make_parser().parse_args([*_write_own(tmp_path), *flags])
    with pytest.raises(SystemExit, match=message):
        [*reproduce.get_steps(arguments, _make_chain(reproduce, arguments))]


def test_tokens_are_those_of_all_micro_batches_of_all_steps(
    reproduce: ModuleType, tmp_path: Path
) -> None:
    log = [{"step": 2, "prefix_sharing/tokens_computed": n} for n in (100.0, 120.0)]
    metrics = json.dumps({"log_history": [*log, {"step": 4, "train_runtime": 1.0}]})
    (tmp_path / "metrics.json").write_text(metrics)
    assert reproduce.count_tokens(tmp_path) == 110 * 4
    settings = {"settings": {"gradient_accumulation_steps": 8}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert reproduce.count_tokens(tmp_path) == 110 * 4 * 8
    # A round's training has no marker of its own.
    (tmp_path / "round-1" / "model").mkdir(parents=True)
    (tmp_path / "round-1" / "model" / "metrics.json").write_text(metrics)
    assert reproduce.count_tokens(tmp_path) == 110 * 4 * 9
    assert reproduce.count_tokens(tmp_path / "round-1") == 0


# ---------------------------------------------------------------------- tables


def _write(folder: Path, name: str, verdicts: str, seconds: float) -> None:
    shares = {"value": verdicts.count("c") / len(verdicts), "interval_95": [0.0, 1.0]}
    content: dict[str, Any] = {
        "name": name,
        "costs": {
            key: {"wall_s": seconds, "cpu_s": 2 * seconds, "peak_memory_bytes": 2**30}
            for key in (name.removeprefix("evaluate-"), name)
        },
        "tokens_computed": 5000.0,
        "summary": {
            "num_questions": len(verdicts),
            "scores": {
                "strict": shares,
                "validity": {"value": 0.75},
                "undetermined": {"value": verdicts.count("u") / len(verdicts)},
            },
            "by_hardness": {"easy": [verdicts.count("c"), len(verdicts)]},
        },
        "verdicts": verdicts,
    }
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_tables_are_those_of_the_results(
    results: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    # The second seed of KID answers two more than SFT with that seed, the first one one less.
    _write(folder, "evaluate-student-sft-0", "cwww", 60)
    _write(folder, "evaluate-student-sft-1", "cwww", 60)
    _write(folder, "evaluate-student-kid-0", "wwwu", 120)
    _write(folder, "evaluate-student-kid-1", "cccw", 180)
    results.write_results(tmp_path, tables)
    text = (tmp_path / "RESULTS.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| student, KID")]
    methods, differences, hardness = (row.split(" | ") for row in rows)
    assert methods[1:3] == ["2", "0.0, 75.0"]
    # Shares of the questions 0.5 0.5 0.5 0 against 1 0 0 0.
    assert methods[3].startswith("37.5 (")
    # Two cores for 120 and 180 seconds.
    assert methods[4:] == ["5.0", "5 |"]
    assert differences[1:3] == ["student, SFT", "-25.0, +50.0"]
    assert differences[3].startswith("+12.5 (")
    assert differences[4:] == ["0/1, p 1; 2/0, p 0.5", " |"]
    # 3 of 8, a quarter does not execute, one of 8 is undetermined.
    assert hardness[1:] == ["37.5", "", "", "", "25", "12.5 |"]


def test_the_tables_in_the_recipe_are_those_of_its_results(
    results: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(FOLDER / "results", tmp_path / "results")
    results.write_results(tmp_path, tables)
    # The picture is named where matplotlib is installed.
    written, committed = (
        [
            line
            for line in (folder / "RESULTS.md").read_text().splitlines()
            if "results.svg" not in line
        ]
        for folder in (tmp_path, FOLDER)
    )
    assert [line for line in written if line] == [line for line in committed if line]


def test_runs_are_compared_on_the_questions_that_both_were_asked(
    results: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    _write(tmp_path, "evaluate-data-gold-0", "cwccw", 60)
    _write(tmp_path, "evaluate-data-both-0", "-cw-c", 60)
    runs = results.read_results(tmp_path, tables)
    comparison = results.compare(runs["data-gold-0"], runs["data-both-0"])
    assert (comparison.gained, comparison.lost) == (2, 1)
    assert runs["data-both-0"].accuracy == 2 / 3
    groups = results.group_by_method(runs, tables, "dev")
    mean = results.describe_methods(groups).splitlines()[-1].split(" | ")[3]
    assert mean.startswith("66.7 (")
    # (1 + 1 - 1) of three.
    difference = results.describe_differences(groups).splitlines()[-1].split(" | ")
    assert difference[2] == "+33.3"
    assert difference[3].startswith("+33.3 (")


def test_second_turns_are_shown_beside_the_first_answers(
    results: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    for seed, (first, then) in enumerate([("cwww", "ccww"), ("cwwc", "wccc")]):
        _write(tmp_path, f"evaluate-sense-{seed}", then, 60)
        path = tmp_path / f"evaluate-sense-{seed}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "first_verdicts": first}))
    _write(tmp_path, "evaluate-sft", "cwww", 60)
    groups = results.group_by_method(results.read_results(tmp_path, tables), tables, "dev")
    (row,) = results.describe_revisions(groups).splitlines()[2:]
    cells = row.split(" | ")
    # 3 of 8 and 5 of 8; the first question is lost by one run of two.
    assert [cell.split(" ")[0] for cell in cells[1:4]] == ["37.5", "62.5", "+25.0"]
    assert cells[4] == "1/0; 2/1 |"
    del groups["sense"]
    assert results.describe_revisions(groups) == ""


def test_the_vote_of_samples_is_shown_beside_their_mean(
    results: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    _write(tmp_path, "evaluate-sense-0", "ccw-", 60)
    path = tmp_path / "evaluate-sense-0.json"
    sampled = {"samples": "4 2 1 -", "num_samples": 4, "votes": "4 2 3 -"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **sampled}))
    _write(tmp_path, "evaluate-sft", "cwww", 60)
    groups = results.group_by_method(results.read_results(tmp_path, tables), tables, "dev")
    (row,) = results.describe_votes(groups).splitlines()[2:]
    cells = row.strip("| ").split(" | ")
    # (1 + 1/2 + 1/4) of three, two of three; one question without dissent, which is right.
    assert [cell.split(" ")[0] for cell in cells[1:]] == ["58.3", "66.7", "+8.3", "33", "100.0"]
    # Another run that was asked two of them leaves those alone.
    _write(tmp_path, "evaluate-sense-1", "cc--", 60)
    other = tmp_path / "evaluate-sense-1.json"
    sampled = {"samples": "2 2 - -", "num_samples": 2, "votes": "2 2 - -"}
    other.write_text(json.dumps({**json.loads(other.read_text()), **sampled}))
    groups = results.group_by_method(results.read_results(tmp_path, tables), tables, "dev")
    (row,) = results.describe_votes(groups).splitlines()[2:]
    assert row.strip("| ").split(" | ")[4:] == ["75", "100.0"]
    del groups["sense"]
    assert results.describe_votes(groups) == ""


def test_runs_are_paired_by_seed_or_with_the_only_one(
    results: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    _write(tmp_path, "evaluate-sft", "cwww", 60)
    _write(tmp_path, "evaluate-anchor-0", "ccww", 60)
    for seed in (0, 1):
        _write(tmp_path, f"evaluate-sense-{seed}", "cccw" if seed else "cwww", 60)
    runs = results.read_results(tmp_path, tables)
    groups = results.group_by_method(runs, tables, "dev")
    rows = results.describe_differences(groups).splitlines()[2:]
    cells = [row.split(" | ") for row in rows]
    assert [row[2] for row in cells] == ["+25.0", "+0.0, +50.0", "-25.0"]
    # The second seed of SENSE has no anchor to be compared with.
    assert [row[4] for row in cells] == ["1/0, p 1", "0/0, p 1; 2/0, p 0.5", "0/1, p 1"]
    # These files name no verdicts under Spider's comparison.
    assert {row[5] for row in cells} == {" |"}


def test_differences_are_told_under_both_comparisons_and_classes_only_where_they_are_known(
    results: ModuleType, tables: dict[str, Any], tmp_path: Path
) -> None:
    _write(tmp_path, "evaluate-sft", "cwww", 60)
    _write(tmp_path, "evaluate-sense-0", "ccww", 60)
    groups = results.group_by_method(results.read_results(tmp_path, tables), tables, "dev")
    assert results.describe_class_differences(groups) == ""
    for name, verdicts, classes in (
        ("sft", "cwcw", {"wrong_join": "1"}),
        ("sense-0", "ccww", {"wrong_join": "1 2 3"}),
    ):
        path = tmp_path / f"evaluate-{name}.json"
        more = {"spider_verdicts": verdicts, "error_classes": classes}
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    groups = results.group_by_method(results.read_results(tmp_path, tables), tables, "dev")
    (row,) = results.describe_differences(groups).splitlines()[2:]
    cells = row.split(" | ")
    # One more under ours; under Spider's one gained and one lost.
    assert cells[3].startswith("+25.0 (")
    assert cells[5].startswith("+0.0 (")
    (row,) = results.describe_class_differences(groups).splitlines()[2:]
    assert row.split(" | ")[2].startswith("+50.0 (")


@pytest.mark.slow
def test_a_small_chain_runs_and_continues(
    reproduce: ModuleType,
    shared_data: Path,
    spider_databases: Path,
    tmp_path: Path,
) -> None:
    """SFT, a student by KID and its evaluation on real Spider data, with a tiny model."""
    spider = tmp_path / "spider"
    spider.mkdir()
    (spider / "database").symlink_to(spider_databases)
    (spider / "tables.json").symlink_to(shared_data / "spider" / "tables.json")
    for target, source in (("train_spider", "train"), ("dev", "dev")):
        lines = (shared_data / "spider" / f"{source}.jsonl").read_text().splitlines()[:8]
        (spider / f"{target}.jsonl").write_text("\n".join(lines))
    model = tiny_models.save_tiny_model(tmp_path / "model", "llama")
    output = tmp_path / "runs"
    command = [
        *("--recipe", str(FOLDER), "--spider", str(spider), "--output", str(output)),
        *("--model", model, "--arms", "sft", "student-kid", "--seeds", "0"),
        *("--set", "student", "num_layers=1", "--set", "student-kid", "max_length=8192"),
        *("--set", "sft", "max_questions=8", "--set", "gold", "databases=1", "per_database=8"),
    ]
    reproduce.main(command)
    found = {path.name for path in (output / "results").iterdir()}
    assert found == {"evaluate-sft.json", "evaluate-student-kid-0.json"}
    costs = {path: path.stat().st_mtime_ns for path in (output / "costs").iterdir()}
    reproduce.main(command)
    assert costs == {path: path.stat().st_mtime_ns for path in (output / "costs").iterdir()}


def _run_here(step: Any, output: Path, environment: dict[str, str]) -> None:
    """A step in this process, which has imported everything already."""
    file = output / "costs" / f"{step.name}.json"
    if not file.exists():
        assert main([*step.command]) == 0, step.command
        file.parent.mkdir(parents=True, exist_ok=True)
        cost = {"wall_s": 1.0, "cpu_s": 2.0, "peak_memory_bytes": 1, "command": step.name}
        file.write_text(json.dumps(cost))


@pytest.mark.slow
def test_a_database_of_ones_own_is_trained_on(
    reproduce: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warm start, pairs of first and second turns, and an evaluation that asks again."""
    monkeypatch.setattr(reproduce, "run_step", _run_here)
    model = tiny_models.save_tiny_model(tmp_path / "model", "qwen2")
    warm = ("num_train_epochs=30", "learning_rate=5e-3", "warmup_steps=0", "use_peft=false")
    command = [
        *(*_write_own(tmp_path), "--model", model, "--arms", "sense-repair"),
        *("--on", "test-revised", "--set", "warm_questions", "number=8"),
        *("--set", "warm", *warm, "per_device_train_batch_size=4"),
        *("--set", "samples", "num_generations=8", "max_new_tokens=24"),
        *("--set", "sense-repair", "max_steps=2", "per_device_train_batch_size=4"),
    ]
    reproduce.main(command)
    (path,) = (tmp_path / "runs" / "results").iterdir()
    assert len(json.loads(path.read_text())["first_verdicts"]) == 4


def _check_repair(reproduce: ModuleType, command: list[str], output: Path) -> None:
    """Pairs of second turns are trained on with others, and an evaluation asks again."""
    on = ("--on", "selection", "selection-revised")
    reproduce.main([*command, "--arms", "warm", "sense-repair", *on])
    rows = read_pairs(output / "repair_pairs-0" / "pairs.parquet").to_pylist()
    assert {len(row["prompt"]) for row in rows} == {4}
    for name in ("warm-0", "sense-repair-0"):
        first, revised = (
            json.loads((output / "results" / f"evaluate-{name}-selection{end}.json").read_text())
            for end in ("", "-revised")
        )
        # The answers of the plain evaluation are gone on from.
        assert revised["first_verdicts"] == first["verdicts"]
        assert "first_verdicts" not in first
        files = [output / f"evaluate-{name}-selection{end}" for end in ("", "-revised")]
        assert len({(file / "predictions.jsonl").read_bytes() for file in files}) == 1
    text = (output / "RESULTS.md").read_text()
    assert "### Asked again about answers that fail" in text
    assert text.count("first answers, EX %") == 1


# Learned by heart, both answers come out of every question.
BY_HEART = (
    *("num_train_epochs=30", "learning_rate=5e-3", "warmup_steps=0", "group_size=2"),
    *("per_device_train_batch_size=4", "logging_steps=10", "use_peft=false"),
)


def _write_two_answers(spider: Path) -> list[dict[str, Any]]:
    """Have every question answered by one of two queries."""
    rows: list[dict[str, Any]] = json.loads((spider / "train_spider.json").read_text())
    for number, row in enumerate(rows):
        row["query"] = f"SELECT age + {number % 2} FROM pet"
    for name in ("train_spider", "dev"):
        (spider / f"{name}.json").write_text(json.dumps(rows))
    return rows


@pytest.mark.slow
def test_arms_that_learn_online_run_to_their_tables(
    reproduce: ModuleType, small_spider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRPO and rounds of SENSE from a warm start, which knows both answers, and their rewards."""
    _write_two_answers(small_spider)
    monkeypatch.setattr(reproduce, "run_step", _run_here)
    output = tmp_path / "runs"
    model = tiny_models.save_tiny_model(tmp_path / "model", "qwen2")
    command = [
        *("--recipe", str(RECIPES / "spider-qwen2.5-coder"), "--spider", str(small_spider)),
        *("--output", str(output), "--seeds", "0", "--model", model, "--on", "selection"),
        *("--set", "selection_questions", "databases=1", "per_database=3"),
        *("--set", "warm_questions", "databases=1", "per_database=8"),
        *("--set", "pair_questions", "databases=1", "per_database=8"),
        *("--set", "selection", "max_new_tokens=24", "--set", "warm", *BY_HEART),
        *("--set", "grpo", "max_steps=2", "num_generations=4", "max_completion_length=24"),
        *("per_device_train_batch_size=4", "gradient_accumulation_steps=2", "group_size=1"),
        *("--set", "online", "num_rounds=2", "num_samples=4", "max_new_tokens=24", "num_epochs=1"),
    ]
    reproduce.main([*command, "--arms", "grpo", "online"])
    results = [json.loads(path.read_text()) for path in (output / "results").iterdir()]
    found = {result["arm"]: result for result in results}
    assert found.keys() == {"grpo", "online"}
    for arm, result in found.items():
        assert result["tokens_computed"] > 0
        assert next(iter(result["costs"])) == f"{arm}-0"
        assert len(result["rewards"]["right"]) == 2
        assert all(0 < share < 1 for share in result["rewards"]["right"])
        assert result["label"] in (output / "RESULTS.md").read_text()
    # A cell in common counts a little more.
    grpo = found["grpo"]["rewards"]
    assert all(r <= m < r + 0.1 for r, m in zip(grpo["right"], grpo["reward"], strict=True))


@pytest.mark.slow
def test_every_kind_of_arm_runs_to_its_tables(
    reproduce: ModuleType, small_spider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SENSE, RFT, KD and data arms with tiny models on questions with one of two answers."""
    rows = _write_two_answers(small_spider)
    models = {
        name: tiny_models.save_tiny_model(tmp_path / name, kind)
        for name, kind in (("baseline", "qwen2"), ("large", "qwen2"), ("foreign-base", "llama"))
    }
    monkeypatch.setattr(reproduce, "run_step", _run_here)
    output = tmp_path / "runs"
    short = ("max_steps=2", "group_size=2", "per_device_train_batch_size=4")
    sampled = ("num_generations=4", "max_new_tokens=24", "temperature=1.0")
    command = [
        *("--recipe", str(RECIPES / "spider-qwen2.5-coder"), "--spider", str(small_spider)),
        *("--output", str(output), "--seeds", "0", "--on", "sampled"),
        *("--model", *(f"{name}={path}" for name, path in models.items())),
        *("--set", "selection_questions", "databases=1", "per_database=4"),
        *("--set", "train", "databases=1", "per_database=8"),
        *("--set", "warm_questions", "databases=1", "per_database=8"),
        *("--set", "pair_questions", "databases=2", "per_database=8"),
        *("--set", "more_questions", "databases=1", "per_database=8"),
        *("--set", "explored", "per_database=4"),
        *("--set", "sampled", "max_questions=3", "num_generations=2", "max_new_tokens=24"),
        *(text for name in ("warm", "teacher", "foreign") for text in ("--set", name, *BY_HEART)),
    ]
    for name in ("samples", "samples_again", "foreign_samples", "teacher_samples"):
        command += ["--set", name, *sampled]
    # One of each kind of data and of training.
    arms = ["sense", "gold-pairs", "sense-hard", "sense-foreign", "sense-again"]
    arms += ["student-rkl", "student-kid", "data-both"]
    for name in arms:
        command += ["--set", name, *short]
    reproduce.main([*command, "--arms", "baseline", "warm", *arms])
    text = (output / "RESULTS.md").read_text()
    results = [json.loads(path.read_text()) for path in (output / "results").iterdir()]
    assert len(results) == 2 + len(arms)
    for result in results:
        assert result["label"] in text
        if result["arm"] != "baseline":
            assert result["tokens_computed"] > 0
            assert next(iter(result["costs"])) == result["evaluated"]
        assert result["num_samples"] == 2
        assert len(result["samples"].split()) == len(rows)
        assert result["samples"].count("-") == result["votes"].count("-") == len(rows) - 3
    assert "mean of four answers sampled" in text
    assert "whose result most samples have" in text
    assert "errors of a class" in text
    _check_repair(reproduce, [*command, "--set", "sense-repair", *short], output)
    # Nothing is made twice.
    monkeypatch.setattr(reproduce, "run_step", lambda step, *_: None)
    before = (output / "RESULTS.md").read_text()
    reproduce.main([*command, "--arms", "baseline", "warm", *arms])
    assert (output / "RESULTS.md").read_text() == before


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_kill_stops_the_command_of_a_chain_that_runs_in_the_background(
    tmp_path: Path, signals: list[signal.Signals]
) -> None:
    # As a shell starts it behind `&`: control-C is ignored, also by what it starts.
    chain = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path.insert(0, {str(RECIPES / "spider")!r})
import reproduce
from arms import Step
from pathlib import Path
reproduce.handle_signals()
reproduce.subprocess.Popen = lambda command, env, popen=reproduce.subprocess.Popen: popen(
    ["/bin/sleep", "60"]
)
print("ready", flush=True)
reproduce.run_step(Step("slow", ("sft",), Path("slow/metrics.json")), Path("chain"))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", chain],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    for line in process.stdout:
        # Printed right before the command starts.
        if line.startswith("slow: "):
            break
    for number in signals:
        time.sleep(0.5)
        process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert "slow ended with exit code -2" in error

"""The chain of spider-smollm2: its commands parse, its tables say what the results say."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models

from sense_trl.cli import stages
from sense_trl.cli.main import make_parser

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "spider-smollm2"


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("reproduce")


@pytest.fixture
def results(reproduce: ModuleType) -> ModuleType:
    return sys.modules["results"]


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


@pytest.fixture
def arguments(tmp_path: Path, spider: Path) -> Namespace:
    return Namespace(
        spider=spider,
        output=tmp_path / "runs",
        model="model",
        seeds=[0, 1],
        train_questions=6,
        dev_questions=None,
        short_dev_questions=3,
        student_layers=1,
        databases=2,
        per_database=4,
        grouped_databases=2,
        sampled_questions=4,
        sense_steps=1,
    )


def test_every_command_parses_and_no_two_steps_share_a_result(
    reproduce: ModuleType, arguments: Namespace
) -> None:
    question = {"db_id": "pets", "question": "How many?", "gold_sql": "SELECT count(*) FROM pet"}
    for seed in arguments.seeds:
        explored = arguments.output / f"explored-{seed}"
        explored.mkdir(parents=True)
        (explored / "questions.jsonl").write_text(json.dumps(question))
    chain = reproduce.Chain(arguments)
    steps = [step for part in reproduce.PARTS for step in chain.get_steps(part)]
    for step in steps:
        stage = stages.find_stage(step.command)
        if stage is None:
            make_parser().parse_args(list(step.command))
            continue
        stage.make_parser().parse_args_and_config([*step.command[1:]])
    # The weak model of SENSE is the first one that was trained on a little gold.
    repeated = {step.name for step in steps if [s.name for s in steps].count(step.name) > 1}
    assert repeated == {"data-gold-0"}
    assert len({step.result for step in steps}) == len(steps) - 1
    trained = {step.trained for step in steps if step.trained is not None}
    assert trained == {
        *("sft", "sense-0", "sense-1", "anchor-0", "anchor-1"),
        *(f"student-{method}-{seed}" for method in reproduce.METHODS for seed in (0, 1)),
        *(f"data-{data}-{seed}" for data in ("gold", "synthesised", "both") for seed in (0, 1)),
        *(f"groups-of-{size}-{seed}" for size in (4, 16) for seed in (0, 1)),
    }


def test_gold_is_drawn_by_database(reproduce: ModuleType, arguments: Namespace) -> None:
    chain = reproduce.Chain(arguments)
    rows = [json.loads(line) for line in chain._write_gold(0).read_text().splitlines()]
    assert [row["db_id"] for row in rows].count("pets") == len(rows) / 2 == 4
    assert len({(row["db_id"], row["question"]) for row in rows}) == 8
    other = chain._write_gold(1).read_text()
    assert other != chain._write_gold(0).read_text()


def test_groups_of_both_sizes_are_of_the_same_questions_and_fill_whole_steps(
    reproduce: ModuleType, arguments: Namespace
) -> None:
    trainings = [
        step.command
        for step in reproduce.Chain(arguments).get_steps("grouping")
        if step.trained is None
    ]
    sizes = [command[command.index("--group_size") + 1] for command in trainings]
    files = [command[command.index("--questions") + 1] for command in trainings]
    assert sizes == ["16", "4"] * 2
    assert files[0] == files[1] != files[2] == files[3]
    rows = [json.loads(line) for line in Path(files[0]).read_text().splitlines()]
    assert [row["db_id"] for row in rows].count("pets") == len(rows) / 2 == 16


def test_no_question_is_synthesised_about_a_database_of_the_evaluation(
    reproduce: ModuleType, arguments: Namespace
) -> None:
    explore = next(reproduce.Chain(arguments).get_steps("synthesis"))
    start = explore.command.index("--db-ids") + 1
    assert explore.command[start : explore.command.index("--exclude")] == ("pets", "shop")


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


def test_the_tables_are_those_of_the_results(results: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    # The second seed of KID answers two more than SFT with that seed, the first one one less.
    _write(folder, "evaluate-student-sft-0", "cwww", 60)
    _write(folder, "evaluate-student-sft-1", "cwww", 60)
    _write(folder, "evaluate-student-kid-0", "wwwu", 120)
    _write(folder, "evaluate-student-kid-1", "cccw", 180)
    results.write_results(tmp_path)
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
    assert differences[4] == "0/1, p 1; 2/0, p 0.5 |"
    # 3 of 8, a quarter does not execute, one of 8 is undetermined.
    assert hardness[1:] == ["37.5", "", "", "", "25", "12.5 |"]


def test_the_tables_in_the_recipe_are_those_of_its_results(
    results: ModuleType, tmp_path: Path
) -> None:
    shutil.copytree(FOLDER / "results", tmp_path / "results")
    results.write_results(tmp_path)
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
    results: ModuleType, tmp_path: Path
) -> None:
    _write(tmp_path, "evaluate-data-gold-0", "cwccw", 60)
    _write(tmp_path, "evaluate-data-both-0", "-cw-c", 60)
    runs = results.read_results(tmp_path)
    comparison = results.compare(runs["data-gold-0"], runs["data-both-0"])
    assert (comparison.gained, comparison.lost) == (2, 1)
    assert runs["data-both-0"].accuracy == 2 / 3
    groups = results.group_by_method(runs)
    mean = results.describe_methods(groups).splitlines()[-1].split(" | ")[3]
    assert mean.startswith("66.7 (")
    # (1 + 1 - 1) of three.
    difference = results.describe_differences(groups).splitlines()[-1].split(" | ")
    assert difference[2] == "+33.3"
    assert difference[3].startswith("+33.3 (")


def test_runs_are_paired_by_seed_or_with_the_only_one(results: ModuleType, tmp_path: Path) -> None:
    _write(tmp_path, "evaluate-sft", "cwww", 60)
    _write(tmp_path, "evaluate-anchor-0", "ccww", 60)
    for seed in (0, 1):
        _write(tmp_path, f"evaluate-sense-{seed}", "cccw" if seed else "cwww", 60)
    groups = results.group_by_method(results.read_results(tmp_path))
    rows = results.describe_differences(groups).splitlines()[2:]
    cells = [row.split(" | ") for row in rows]
    assert [row[2] for row in cells] == ["+25.0", "+0.0, +50.0", "-25.0"]
    # The second seed of SENSE has no anchor to be compared with.
    assert [row[4] for row in cells] == ["1/0, p 1 |", "0/0, p 1; 2/0, p 0.5 |", "0/1, p 1 |"]


@pytest.mark.slow
def test_a_small_chain_runs_and_continues(
    reproduce: ModuleType,
    shared_data: Path,
    spider_databases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SFT, a student by KID and its evaluation on real Spider data, with a tiny model."""
    spider = tmp_path / "spider"
    spider.mkdir()
    (spider / "database").symlink_to(spider_databases)
    (spider / "tables.json").symlink_to(shared_data / "spider" / "tables.json")
    for target, source in (("train_spider", "train"), ("dev", "dev")):
        lines = (shared_data / "spider" / f"{source}.jsonl").read_text().splitlines()[:8]
        (spider / f"{target}.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(reproduce, "METHODS", {"kid": ("kd", "--max_length", "8192")})
    model = tiny_models.save_tiny_model(tmp_path / "model", "llama")
    output = tmp_path / "runs"
    command = [
        *("reproduce.py", "--spider", str(spider), "--output", str(output), "--model", model),
        *("--parts", "baseline", "distillation", "--seeds", "0", "--student-layers", "1"),
        *("--train-questions", "8", "--databases", "1", "--per-database", "8"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    reproduce.main()
    found = {path.name for path in (output / "results").iterdir()}
    assert found == {"evaluate-sft.json", "evaluate-student-kid-0.json"}
    costs = {path: path.stat().st_mtime_ns for path in (output / "costs").iterdir()}
    reproduce.main()
    assert costs == {path: path.stat().st_mtime_ns for path in (output / "costs").iterdir()}

"""Execution as a reward: what it gives, and that TRL's trainers learn from it."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import FreshDB

from sense_trl.database.engine import ExecutionLimits
from sense_trl.errors import DatabaseError, InputError
from sense_trl.rewards import (
    SQLExecutionReward,
    get_sql_execution_reward,
    get_sql_partial_rewards,
)

PETS = "CREATE TABLE pet (name TEXT, age INTEGER); INSERT INTO pet VALUES ('Rex', 3), ('Tom', 5);"
GOLD = "SELECT name FROM pet WHERE age > 4"
CORRECT = "```sql\nSELECT name FROM pet WHERE age = 5\n```"
WRONG = "SELECT age FROM pet WHERE age > 4"
BROKEN = "SELECT nme FROM pet"
WRITES = "DELETE FROM pet"
UNDECIDABLE = "SELECT random()"
NEVER_ENDS = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*), 1 FROM c"
)


@pytest.fixture
def database(fresh_db: FreshDB) -> Path:
    return fresh_db(PETS, name="pets")


def _score(
    reward: SQLExecutionReward, completions: list[Any], gold: str = GOLD, **extra: Any
) -> list[float | None]:
    n = len(completions)
    return reward(
        prompts=["Who?"] * n,
        completions=completions,
        completion_ids=[[1]] * n,
        db_id=["pets"] * n,
        gold_sql=[gold] * n,
        trainer_state=None,
        **extra,
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_verdict_has_its_reward(database: Path, num_workers: int) -> None:
    before = database.read_bytes()
    answers = [CORRECT, WRONG, BROKEN, "I do not know.", "", WRITES, UNDECIDABLE, CORRECT]
    with get_sql_execution_reward(database, error=-0.5, num_workers=num_workers) as reward:
        assert _score(reward, answers) == [1.0, 0.0, -0.5, -0.5, -0.5, -0.5, None, 1.0]
        # Any query without a match is as empty as gold.
        empty = "SELECT name FROM pet WHERE age > 9"
        assert _score(reward, [empty, CORRECT], empty) == [None, 0.0]
        assert _score(reward, []) == []
    assert database.read_bytes() == before
    with get_sql_execution_reward(database, undetermined=0.25, num_workers=0) as reward:
        assert _score(reward, [UNDECIDABLE, BROKEN]) == [0.25, 0.0]


def test_conversations_are_read_by_their_last_message(database: Path) -> None:
    spoken = [
        [{"role": "assistant", "content": CORRECT}],
        [
            {"role": "assistant", "content": CORRECT},
            {"role": "tool", "content": "Tom"},
            {"role": "assistant", "content": WRONG},
        ],
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "assistant", "tool_calls": []}],
        [],
        [{"role": "assistant", "content": [{"type": "text", "text": CORRECT}]}],
    ]
    with get_sql_execution_reward(database, error=-1.0, num_workers=0) as reward:
        assert _score(reward, spoken) == [1.0, 0.0, -1.0, -1.0, -1.0, 1.0]


def test_semantics_limits_and_column_names_are_passed_on(database: Path) -> None:
    columns = {"db": ["pets"], "query": ["SELECT name, age FROM pet"]}
    turned = ["SELECT age, name FROM pet"]
    options: dict[str, Any] = {"num_workers": 0, "db_id_column": "db", "gold_sql_column": "query"}
    with get_sql_execution_reward({"pets": database}, **options) as reward:
        assert reward(prompts=["?"], completions=turned, **columns) == [1.0]
    with get_sql_execution_reward(database, semantics="bird", **options) as reward:
        assert reward(prompts=["?"], completions=turned, **columns) == [0.0]
    # With the default budget of 100 M instructions this would take seconds.
    limits = ExecutionLimits(max_steps=100_000)
    with get_sql_execution_reward(database, limits=limits, **options) as reward:
        assert reward(prompts=["?"], completions=[NEVER_ENDS], **columns) == [None]


def test_the_undetermined_share_is_logged(database: Path) -> None:
    logged: dict[str, float] = {}
    with get_sql_execution_reward(database, num_workers=0, name="sql") as reward:
        assert reward.__name__ == "sql"
        _score(reward, [CORRECT, UNDECIDABLE, WRONG, WRONG], log_metric=logged.__setitem__)
    assert logged == {"sql/undetermined_share": 0.25}


def test_what_is_missing_is_named(database: Path, tmp_path: Path) -> None:
    reward = get_sql_execution_reward(database, num_workers=0)
    with pytest.raises(InputError, match=r"needs the column 'gold_sql'.* \(it has db_id, level\)"):
        reward(
            prompts=["?"], completions=[WRONG], completion_ids=[[1]], db_id=["pets"], level=["easy"]
        )
    with pytest.raises(InputError, match="'db_id' has 1 values for 2 completions"):
        reward(prompts=["?"], completions=[WRONG, WRONG], db_id=["pets"], gold_sql=[GOLD, GOLD])
    with pytest.raises(InputError, match="'gold_sql' holds None; expected text"):
        reward(prompts=["?"], completions=[WRONG], db_id=["pets"], gold_sql=[None])
    with pytest.raises(InputError, match=r"'pet' is not among .* did you mean 'pets'"):
        reward(prompts=["?"], completions=[WRONG], db_id=["pet"], gold_sql=[GOLD])
    with pytest.raises(DatabaseError, match=r"none.sqlite for 'pets', which is not a file"):
        get_sql_execution_reward({"pets": tmp_path / "none.sqlite"})
    with pytest.raises(InputError, match=r"`semantics` is .*; expected one of"):
        get_sql_execution_reward(database, semantics="exact")  # type: ignore[arg-type]


def test_a_copy_in_another_process_opens_its_own_workers(database: Path) -> None:
    with get_sql_execution_reward(database, error=-0.5, num_workers=1) as reward:
        assert _score(reward, [CORRECT]) == [1.0]
        data = pickle.dumps(reward)
    code = (
        "import pickle, sys\n"
        "reward = pickle.loads(sys.stdin.buffer.read())\n"
        f"values = reward(prompts=['?'] * 3, completions={[CORRECT, WRONG, BROKEN]!r},"
        f" db_id=['pets'] * 3, gold_sql=[{GOLD!r}] * 3)\n"
        "print(reward.__name__, values)\n"
        "reward.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "sql_execution_reward [1.0, 0.0, -0.5]"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_threads_share_one_reward(database: Path, num_workers: int) -> None:
    results: dict[int, list[float | None]] = {}
    with get_sql_execution_reward(database, num_workers=num_workers) as reward:

        def ask(number: int) -> None:
            results[number] = _score(reward, [CORRECT, WRONG, f"SELECT {number}"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: [1.0, 0.0, 0.0] for number in range(8)}


def test_closing_ends_the_workers_and_another_call_starts_new_ones(database: Path) -> None:
    reward = get_sql_execution_reward(database, num_workers=1)
    assert _score(reward, [CORRECT]) == [1.0]
    reward.close()
    reward.close()
    assert _score(reward, [WRONG]) == [0.0]
    reward.close()


class _Dictated:
    """Hands the reward these answers in place of a tiny model's, which are noise."""

    __name__ = "sql"

    def __init__(self, reward: SQLExecutionReward, answers: list[str]) -> None:
        self.reward, self.answers = reward, answers
        self.types: set[type] = set()

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        self.types |= {type(completion) for completion in completions}
        self.reward(completions=completions, **columns)
        return self.reward(completions=self.answers, **columns)


@pytest.mark.parametrize("trainer", ["GRPOTrainer", "RLOOTrainer"])
def test_rewards_reach_the_trainer_and_none_does_not_move_it(
    trainer: str, database: Path, tmp_path: Path
) -> None:
    import tiny_models
    import trl
    from datasets import Dataset

    conversational = trainer == "GRPOTrainer"
    prompt: Any = [{"role": "user", "content": "Who?"}] if conversational else "Who?"
    rows = [{"prompt": prompt, "db_id": "pets", "gold_sql": GOLD}] * 4
    options: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "beta": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    undecided = [UNDECIDABLE] * 4
    for answers, mean in (([CORRECT, WRONG, UNDECIDABLE, BROKEN], 1 / 6), (undecided, None)):
        with get_sql_execution_reward(database, error=-0.5, num_workers=0, name="own") as reward:
            dictated = _Dictated(reward, answers)
            trainer_class = getattr(trl, trainer)
            config_class = getattr(trl, trainer.replace("Trainer", "Config"))
            run = trainer_class(
                model=tiny_models.build_tiny_model("llama"),
                processing_class=tiny_models.build_tiny_tokenizer(),
                reward_funcs=dictated,
                args=config_class(**options),
                train_dataset=Dataset.from_list(rows),
            )
            before = tiny_models.get_weights(run)
            run.train()
        assert dictated.types == ({list} if conversational else {str})
        log = run.state.log_history[0]
        assert log["rewards/sql/mean"] == (None if mean is None else pytest.approx(mean))
        assert log["reward"] == log["rewards/sql/mean"]
        if trainer == "GRPOTrainer":
            # Of two calls: the model's own noise, of which nothing is undetermined, and `answers`.
            share = sum(answer is UNDECIDABLE for answer in answers) / 4
            assert log["own/undetermined_share"] == share / 2
        after = tiny_models.get_weights(run)
        moved = any(not before[name].equal(after[name]) for name in before)
        assert moved == (mean is not None)


# ---------------------------------------------------------------------------- partial rewards


def _score_parts(database: Path, completions: list[str], gold: str = GOLD, **options: Any) -> Any:
    rewards = get_sql_partial_rewards(database, **options)
    try:
        return {reward.__name__: _score(reward, completions, gold) for reward in rewards}
    finally:
        for reward in rewards:
            reward.close()


def test_parts_say_how_far_a_query_is_from_gold(database: Path) -> None:
    # Gold's result is one row, (Tom,).
    answers = [CORRECT, "SELECT name, age FROM pet", WRONG, BROKEN, "I do not know.", WRITES]
    found = _score_parts(database, answers)
    assert found == {
        "sql_executes": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        "sql_columns": [1.0, 0.5, 1.0, 0.0, 0.0, 0.0],
        # Of 4 cells and 1, one is in both: 2 / 5.
        "sql_overlap": [1.0, 0.4, 0.0, 0.0, 0.0, 0.0],
        # Gold uses pet, pet.name and pet.age; BROKEN names the table alone: 2 / 4.
        "sql_schema_items": [1.0, 1.0, 0.8, 0.5, 0.0, 0.5],
    }


def test_parts_say_nothing_where_a_limit_stopped_a_query_or_gold_fails(database: Path) -> None:
    limits = ExecutionLimits(max_steps=100_000)
    found = _score_parts(database, [NEVER_ENDS, CORRECT], limits=limits)
    assert found["sql_executes"] == [None, 1.0]
    assert found["sql_overlap"] == [None, 1.0]
    found = _score_parts(
        database, [CORRECT], "SELECT nme FROM (", parts=["overlap", "schema_items"]
    )
    assert found == {"sql_overlap": [None], "sql_schema_items": [None]}


def test_several_parts_run_a_query_once_and_survive_pickling(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executes, overlap = get_sql_partial_rewards(database, ["executes", "overlap"])
    asked: list[str] = []
    compare = executes._runs._compare
    monkeypatch.setattr(
        executes._runs, "_compare", lambda *query: asked.append(query[1]) or compare(*query)
    )
    assert _score(executes, [CORRECT, CORRECT, WRONG]) == [1.0, 1.0, 1.0]
    assert _score(overlap, [CORRECT, CORRECT, WRONG]) == [1.0, 1.0, 0.0]
    assert len(asked) == 2
    copy = pickle.loads(pickle.dumps(overlap))
    assert _score(copy, [CORRECT]) == [1.0]
    for reward in (executes, overlap, copy):
        reward.close()


def test_an_unknown_part_and_a_missing_column_are_named(database: Path) -> None:
    with pytest.raises(InputError, match="`parts` has 'rows'"):
        get_sql_partial_rewards(database, ["rows"])
    (reward,) = get_sql_partial_rewards(database, ["executes"])
    with pytest.raises(InputError, match="needs the column 'gold_sql'"):
        reward(["Who?"], [CORRECT], db_id=["pets"])


def test_rewards_on_a_server(postgres_server: Any) -> None:
    name = postgres_server.create_database(
        "CREATE TABLE pet AS SELECT 'Rex' AS \"petName\", 3 AS age"
    )
    role = postgres_server.create_role("GRANT SELECT ON pet TO {role}", database=name)
    database = postgres_server.dsn(name, *role)
    gold = 'SELECT "petName" FROM pet'
    answers = [
        gold,
        '```sql\nSELECT p."petName"::text FROM pet AS p WHERE 3 = ANY (ARRAY[p.age])\n```',
        "SELECT petName FROM pet",
        "SELECT 'Tom'",
        "DROP TABLE pet",
    ]
    columns = {"db_id": [name] * 5, "gold_sql": [gold] * 5}
    with get_sql_execution_reward(database, num_workers=1) as reward:
        assert reward([""] * 5, answers, **columns) == [1.0, 1.0, 0.0, 0.0, 0.0]
    found = {}
    for part in get_sql_partial_rewards(database):
        with part:
            found[part.__name__] = part([""] * 5, answers, **columns)
    assert found["sql_executes"] == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert found["sql_columns"] == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert found["sql_overlap"][:2] == [1.0, 1.0]
    # Two of gold's two items, and one more.
    assert found["sql_schema_items"][:2] == [1.0, 0.8]

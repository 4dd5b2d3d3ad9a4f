"""Commands on a PostgreSQL server, also on one that is stopped in the middle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import tiny_models
from postgres_server import NoServerError, PostgresServer

from sense_trl.cli.main import EXIT_OK, main
from sense_trl.verification.verifier import SQLVerifier


@pytest.fixture
def own_server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    if not postgres_server.is_own:
        pytest.skip("the server is not the tests' own")
    try:
        server = PostgresServer()
    except NoServerError as error:
        pytest.skip(str(error))
    yield server
    server.close()


def make_pets(server: PostgresServer) -> tuple[str, str]:
    """A database of 50 pets, as a role that may read them reaches it, and the role's password."""
    name = server.create_database(
        "CREATE TABLE pet AS SELECT x AS id, 'pet' || x AS name, x % 7 AS age "
        "FROM generate_series(1, 50) x"
    )
    role, password = server.create_role("GRANT SELECT ON pet TO {role}", database=name)
    return server.dsn(name, role, password), password


def test_a_build_goes_on_when_the_server_is_back(
    own_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database, password = make_pets(own_server)
    questions, weak = [], []
    for number in range(30):
        gold = f"SELECT name FROM pet WHERE id > {number}"
        questions.append({"question_id": f"q{number}", "question": f"{number}?", "gold_sql": gold})
        weak.append(f"SELECT name FROM pet WHERE id > {number} AND age <> 3")
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "predictions.sql").write_text("\n".join(weak))

    def build(output: str) -> int:
        paths = ["--questions", str(tmp_path / "questions.jsonl"), "--output-dir"]
        paths += [str(tmp_path / output), "--database", database]
        weak_file = str(tmp_path / "tiny" / "predictions.sql")
        return main(["pairs", "build", *paths, "--num-workers", "1", "--weak", weak_file])

    def rows(output: str) -> list[object]:
        path = str(tmp_path / output / "pairs.parquet")
        return datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache")).to_list()

    assert build("undisturbed") == EXIT_OK
    calls = 0
    verify = SQLVerifier._verify

    def verify_and_kill(self, plan, on_progress=None):
        nonlocal calls
        calls += 1
        # What any user of the machine sees of the workers.
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                assert password.encode() not in line.read_bytes()
        if calls == 2:
            own_server.kill()
        return verify(self, plan, on_progress)

    with monkeypatch.context() as patched:
        patched.setattr(SQLVerifier, "_verify", verify_and_kill)
        capsys.readouterr()
        assert build("disturbed") == 2
        said = capsys.readouterr()
    assert "run again" in " ".join(said.err.lower().split())
    assert "Traceback" not in said.err and password not in said.err + said.out
    own_server.start()
    assert build("disturbed") == EXIT_OK
    assert rows("disturbed") == rows("undisturbed") and len(rows("disturbed")) == 30
    for file in (tmp_path / "disturbed").rglob("*"):
        assert not file.is_file() or password.encode() not in file.read_bytes()


def test_stages_refuse_a_suite_before_a_model_is_asked(
    postgres_server: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = postgres_server.create_database("CREATE TABLE bill AS SELECT 1 AS id")
    role = postgres_server.create_role("GRANT SELECT ON bill TO {role}", database=name)
    shop = postgres_server.dsn(name, *role)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Who?", "gold_sql": "SELECT id FROM bill"}\n')
    model = tiny_models.save_tiny_model(tmp_path, "llama")
    output = tmp_path / "output"
    for stage in ("evaluate", "pairs"):
        arguments = [stage, "--database", shop, "--questions", str(questions), "--suite", "3"]
        arguments += ["--output_dir", str(output), "--model_name_or_path", model]
        assert main(arguments) == 2
        assert "on a PostgreSQL server" in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_a_quickstart_goes_on_when_the_server_is_back(
    own_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database, password = make_pets(own_server)
    golds = [f"SELECT name FROM pet WHERE id > {number}" for number in range(12)]
    golds += [f"SELECT count(*) FROM pet WHERE age = {number}" for number in range(6)]
    rows = [{"question": f"Number {n}?", "gold_sql": gold} for n, gold in enumerate(golds)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    model = Path(tiny_models.save_tiny_model(tmp_path / "model", "llama"))
    # An untrained model hardly ever ends an answer; with many end tokens it does.
    generation = json.loads((model / "generation_config.json").read_text())
    generation["eos_token_id"] = [2, *range(100, 200)]
    (model / "generation_config.json").write_text(json.dumps(generation))

    def run(output: str) -> int:
        options = {
            "database": database, "questions": questions,
            "model": model, "output_dir": tmp_path / output, "max_new_tokens": 6,
            "sft_epochs": 1, "lora_r": 2, "sft_batch_size": 4,
        }  # fmt: skip
        return main(["quickstart", *(str(x) for k, v in options.items() for x in (f"--{k}", v))])

    assert run("undisturbed") == EXIT_OK
    verify = SQLVerifier._verify
    attempt = calls = 0

    def kill_and_verify(self, plan, on_progress=None):
        nonlocal calls
        calls += 1
        if calls == attempt:
            own_server.kill()
        return verify(self, plan, on_progress)

    monkeypatch.setattr(SQLVerifier, "_verify", kill_and_verify)
    capsys.readouterr()
    # Each attempt gets further into what is left, until one gets through.
    while calls >= attempt:
        attempt, calls = attempt + 1, 0
        ended = run("disturbed")
        said = capsys.readouterr()
        assert "Traceback" not in said.err and password not in said.err + said.out
        if calls >= attempt:
            assert ended == 2 and "run again" in " ".join(said.err.lower().split())
            own_server.start()
    assert ended == EXIT_OK and attempt > 2
    for file in (tmp_path / "undisturbed").rglob("*"):
        if file.name in ("candidates.jsonl", "pairs.json", "pairs.parquet", "model.safetensors"):
            other = tmp_path / "disturbed" / file.relative_to(tmp_path / "undisturbed")
            assert other.read_bytes() == file.read_bytes(), file
    for file in (tmp_path / "disturbed").rglob("*"):
        assert not file.is_file() or password.encode() not in file.read_bytes()


@pytest.mark.slow
def test_ten_thousand_tables_are_one_paragraph(
    postgres_server: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = postgres_server.create_database()
    with postgres_server.connect(name) as connection:
        # A transaction holds a lock per table.
        for first in range(0, 10_000, 500):
            connection.execute(
                f"DO $$ BEGIN FOR i IN {first} .. {first + 499} LOOP EXECUTE format("
                "'CREATE TABLE bill_%s (id int PRIMARY KEY, name text)', i); END LOOP; END $$"
            )
    role = postgres_server.create_role(
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database=name
    )
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"{n}?", "gold_sql": f"SELECT count(*) FROM bill_{n}"}
        for n in range(9_990, 10_000)
    ]
    questions.write_text("\n".join(map(json.dumps, rows)))
    common = ["--database", postgres_server.dsn(name, *role), "--questions", str(questions)]
    predictions = tmp_path / "predictions.sql"
    predictions.write_text("\n".join(row["gold_sql"] for row in rows))
    assert main(["verify", *common, str(predictions)]) == EXIT_OK
    model = tiny_models.save_tiny_model(tmp_path, "llama")
    capsys.readouterr()
    output = ["--output_dir", str(tmp_path / "run")]
    assert main(["quickstart", *common, "--model", model, *output]) == 2
    said = capsys.readouterr().err
    (paragraph,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "tokens" in paragraph and "`linker`" in paragraph and len(paragraph) < 600

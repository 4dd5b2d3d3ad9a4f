"""The checks of an installation: what works here, and what each says of something broken."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models  # noqa: F401 - offline
import torch
from safetensors.torch import save_file

from sense_trl.cli.jobs import EXIT_BROKEN
from sense_trl.cli.main import EXIT_OK, main
from sense_trl.database.postgres_confinement import Gap
from sense_trl.database.postgres_confinement import _try as try_statement
from sense_trl.database.worker import IsolatedEngine
from sense_trl.errors import ModelError
from sense_trl.jobs import doctor, tiny_training
from sense_trl.jobs.doctor import TESTED_VERSIONS, Finding, FindingStatus, run_checks
from sense_trl.jobs.tiny_training import run_tiny_training

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

OK, NOTE, ERROR = FindingStatus.OK, FindingStatus.NOTE, FindingStatus.ERROR


def find(name: str, findings) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    # The compiled part of sqlglot has its version.
    assert pinned.pop("sqlglotc") == pinned["sqlglot"]
    # And psycopg with the server's library in it.
    assert pinned.pop("psycopg-binary") == pinned["psycopg"]
    # Users need nothing that only tests use.
    del pinned["pytest-xdist"]
    assert pinned == TESTED_VERSIONS


def test_everything_needed_works_here() -> None:
    started: list[str] = []
    findings = list(run_checks(training=False, on_check=started.append))
    assert not [finding for finding in findings if finding.status.is_failure]
    assert {"system", "trl", "memory", "GPU", "cache", "sandbox"} <= {f.name for f in findings}
    assert started == [
        *("system", "packages", "devices", "bfloat16", "bitsandbytes", "folders", "sandbox")
    ]


def test_versions_are_compared_with_what_is_required_and_tested(monkeypatch) -> None:
    installed = metadata.version
    versions = {"trl": "0.9.0", "torch": "2.99.0"}

    def get_version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or installed(name)

    monkeypatch.setattr(doctor.metadata, "version", get_version)
    findings = list(doctor._check_packages())
    (trl,) = find("trl", findings)
    assert trl.status is ERROR and trl.text.startswith("0.9.0, but trl")
    (torch_finding,) = find("torch", findings)
    assert torch_finding == Finding("torch", NOTE, "2.99.0; tested with 2.13.0")
    (peft,) = find("peft", findings)
    assert peft.status is ERROR and "pip install 'peft>=" in peft.text
    # An extra that nobody needs.
    assert not find("ruff", findings)


def test_a_cache_that_cannot_be_written_is_an_error(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SENSE_TRL_CACHE", str(tmp_path / "file" / "cache"))
    cache, _ = doctor._check_folders()
    assert cache.status is ERROR
    assert "cannot be written" in cache.text
    monkeypatch.setenv("SENSE_TRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    cache, _ = doctor._check_folders()
    assert cache.status is NOTE
    assert "1 GiB free" in cache.text


def test_a_sandbox_that_lets_writing_through_is_an_error(monkeypatch) -> None:
    (finding,) = doctor._check_sandbox()
    assert finding.status is OK
    execute = IsolatedEngine.execute

    def let_through(self, sql: str, limits=None):
        return execute(self, "SELECT 1" if sql.startswith("DELETE") else sql)

    monkeypatch.setattr(IsolatedEngine, "execute", let_through)
    (finding,) = doctor._check_sandbox()
    assert finding.status is ERROR
    assert "answered DELETE with ok" in finding.text


def test_a_check_that_fails_in_its_own_way_is_an_error(monkeypatch) -> None:
    def fail():
        raise OSError("no such driver")

    monkeypatch.setattr(doctor, "_check_devices", fail)
    (finding,) = find("devices", run_checks(training=False))
    assert finding == Finding("devices", ERROR, "OSError: no such driver")


# --------------------------------------------------------------------------------- training


def test_one_step_of_4_bit_preference_training() -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    found = run_tiny_training()
    assert found["bits"] == 4
    assert found["device"] == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_adapter_that_was_not_trained_or_is_broken_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    weights = {"a.lora_A.weight": torch.ones(2, 2), "a.lora_B.weight": torch.zeros(2, 2)}
    save_file(weights, file)
    with pytest.raises(ModelError, match="changed no weight"):
        tiny_training._check_adapter(tmp_path)
    save_file({**weights, "a.lora_B.weight": torch.full((2, 2), float("nan"))}, file)
    with pytest.raises(ModelError, match="not finite"):
        tiny_training._check_adapter(tmp_path)
    save_file({**weights, "a.lora_B.weight": torch.eye(2)}, file)
    tiny_training._check_adapter(tmp_path)


DONE = json.dumps({"bits": 4, "dtype": "bfloat16", "device": "cuda", "seconds": 3.0})


def end(returncode: int, stdout: str = "", stderr: str = "") -> Callable[..., object]:
    return lambda command, **options: SimpleNamespace(
        returncode=returncode, stdout=stdout, stderr=stderr
    )


def time_out(command, **options):
    raise subprocess.TimeoutExpired(command, options["timeout"])


@pytest.mark.parametrize(
    ("run", "status", "words"),
    [
        (end(0, f"noise\n{DONE}\n"), OK, "with 4-bit weights and bfloat16 products on cuda"),
        (end(-11), ERROR, "ended with exit code -11: it said nothing"),
        (end(1, "", "Traceback\nRuntimeError: no kernel\n"), ERROR, "RuntimeError: no kernel"),
        (time_out, ERROR, "was not done within 600 s"),
    ],
    ids=["done", "crash", "error", "endless"],
)
def test_how_the_process_of_the_training_ends(monkeypatch, run, status, words) -> None:
    monkeypatch.setattr(doctor.subprocess, "run", run)
    (finding,) = doctor._check_training()
    assert finding.status is status
    assert words in finding.text


# ---------------------------------------------------------------------------------- command


def test_the_command_prints_findings_and_fails_if_one_does(monkeypatch, capsys) -> None:
    findings = [Finding("one", OK, "fine"), Finding("two", NOTE, "slow")]
    monkeypatch.setattr(doctor, "run_checks", lambda **options: iter(findings))
    assert main(["doctor", "--skip-training"]) == EXIT_OK
    assert capsys.readouterr().out.splitlines() == [
        "ok    one             fine",
        "note  two             slow",
    ]
    findings.append(Finding("three", ERROR, "broken"))
    assert main(["doctor", "--json"]) == EXIT_BROKEN
    found = json.loads(capsys.readouterr().out)
    assert found[2] == {"name": "three", "status": "error", "text": "broken"}


def test_the_command_says_what_a_role_of_a_server_may_do(postgres_server, capsys) -> None:
    database = postgres_server.create_database("CREATE TABLE t AS SELECT 7 AS x")
    role, password = postgres_server.create_role("GRANT SELECT ON t TO {role}", database=database)
    dsn = postgres_server.dsn(database, role, password)
    assert main(["doctor", "--database", dsn]) == EXIT_OK
    said = capsys.readouterr()
    findings, statements = said.out.split("\n-- To be run in this database")
    assert "note  advisory locks  the role may hold locks" in findings
    assert "ok    writing         the role is confined" in findings
    assert "note  temporary objects the role may create" in findings
    with postgres_server.connect(database) as connection:
        connection.execute(statements.split("superuser:")[1])
    assert main(["doctor", "--database", dsn]) == EXIT_OK
    again = capsys.readouterr()
    assert "REVOKE" not in again.out and again.out.count("the role is confined") == 14
    assert main(["doctor", "--database", postgres_server.dsn(database)]) == EXIT_BROKEN
    assert "it is a superuser" in capsys.readouterr().out
    assert main(["doctor", "--database", dsn.replace(password, "wrong-secret")]) == 2
    refused = capsys.readouterr()
    assert "password authentication failed" in refused.err and "pgpass" in refused.err
    for text in (said.out, said.err, again.out, again.err, refused.out, refused.err):
        assert password not in text and "wrong-secret" not in text


def test_what_a_standby_refuses_is_no_gap(postgres_server) -> None:
    gap = Gap("temporary objects", "create some", "REVOKE ...")
    create = "CREATE TEMPORARY VIEW probe AS SELECT 1"
    with postgres_server.connect() as connection:
        assert try_statement(connection, gap, create) == gap
        connection.read_only = True
        assert try_statement(connection, gap, create) == Gap("temporary objects")

"""Makes limits and verifiers of the options of execution and verification."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sense_trl.backends.backend import Backend, LocalBackend
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.errors import InputError
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.evaluation.parts import evaluate_in_parts
from sense_trl.options import (
    OTHER_LIMITS,
    BackendOptions,
    DataArguments,
    ExecutionOptions,
    VerificationOptions,
    get_values,
)
from sense_trl.run_folder import fingerprint_databases, fingerprint_file
from sense_trl.schema import DatabaseSchema
from sense_trl.steps.arguments import EvaluationArguments, PairArguments
from sense_trl.verification.suite.verifier import (
    SuiteSettings,
    SuiteVerifier,
    check_suite_databases,
    get_suite_files,
)
from sense_trl.verification.verifier import SQLVerifier


def get_limits(options: ExecutionOptions) -> ExecutionLimits:
    """The limits that the options name.

    Raises:
        InputError: an unknown limit, one that is named twice, or a value that is out of range.
    """
    limits: dict[str, int] = {}
    for text in options.query_limit:
        name, _, number = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in OTHER_LIMITS or name in limits:
            raise InputError(
                f"`query_limit` is {text!r}; expected NAME=NUMBER with NAME one of "
                f"{', '.join(OTHER_LIMITS)}, each at most once."
            )
        try:
            limits[name] = int(number.replace("_", ""))
        except ValueError:
            raise InputError(
                f"`query_limit` is {text!r}; expected a whole number behind {name}=."
            ) from None
    return ExecutionLimits(timeout_s=options.timeout_s, **limits)


def check_verification(catalog: DatabaseCatalog, options: VerificationOptions) -> None:
    """Refuse before anything is sampled what `open_verifiers` would refuse behind it.

    Raises:
        InputError: a suite that is not there or not offered.
    """
    if options.suite is not None or options.suite_dir is not None:
        check_suite_databases(catalog)
    if options.suite_dir is not None:
        get_suite_files(options.suite_dir)


@contextmanager
def open_verifiers(
    catalog: DatabaseCatalog,
    options: VerificationOptions,
    schemas: Mapping[str, DatabaseSchema] | None,
    backend: Backend,
) -> Iterator[tuple[SQLVerifier, SuiteVerifier | None]]:
    """Open a verifier on the databases, and one on further instances if that is asked for.

    Args:
        catalog: the databases.
        options: how they are executed, and which instances.
        schemas: keys that the databases do not declare, by `db_id`.
        backend: where they are used.
    """
    verifier = SQLVerifier(
        catalog,
        limits=get_limits(options),
        num_workers=backend.verifier_workers,
        cache_dir=options.cache_dir,
    )
    with verifier, _open_suite(catalog, schemas, options, backend) as suite_verifier:
        yield verifier, suite_verifier


@contextmanager
def open_backend(
    catalog: DatabaseCatalog, options: BackendOptions, num_workers: int | None
) -> Iterator[Backend]:
    """Open what the options name.

    Args:
        catalog: the databases.
        options: which it is.
        num_workers: of a verifier in this process, or actors of a cluster.

    Raises:
        InputError: see `RayBackend`.
        ExecutionBackendError: likewise.
    """
    if options.backend == "local":
        yield LocalBackend(num_workers)
        return
    from sense_trl.backends.ray_backend import RayBackend

    with RayBackend(catalog, address=options.ray_address, num_workers=num_workers) as backend:
        yield backend


@contextmanager
def open_execution(
    catalog: DatabaseCatalog,
    options: PairArguments | EvaluationArguments,
    schemas: Mapping[str, DatabaseSchema] | None,
) -> Iterator[tuple[Backend, SQLVerifier, SuiteVerifier | None]]:
    """Open the backend that the options name, and verifiers for it.

    Args:
        catalog: the databases.
        options: see `open_backend` and `open_verifiers`.
        schemas: keys that the databases do not declare, by `db_id`.
    """
    with (
        open_backend(catalog, options, options.num_workers) as backend,
        open_verifiers(catalog, options, schemas, backend) as verifiers,
    ):
        yield backend, *verifiers


def get_shard_folder(
    folder: Path, catalog: DatabaseCatalog, data: DataArguments, options: VerificationOptions
) -> Path:
    """Where a backend's finished parts are kept: a folder for all that their names do not say."""
    tables = data.tables_json
    facts = [
        # Neither workers nor what is remembered of gold change a verdict.
        {**get_values(VerificationOptions, options), "num_workers": None, "cache_dir": None},
        fingerprint_databases(map(catalog.path, catalog.db_ids)),
        None if tables is None else fingerprint_file(tables),
    ]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
    return folder / f"shards-{digest[:16]}"


@contextmanager
def open_scorer(
    folder: Path | None,
    catalog: DatabaseCatalog,
    data: DataArguments,
    options: EvaluationArguments,
    backend: Backend,
) -> Iterator[Callable[..., EvaluationReport]]:
    """Open what evaluates: `evaluate_sql` here, and `evaluate_in_parts` on a cluster.

    Args:
        folder: of the report; finished parts are kept in it until all is evaluated.
        catalog: the databases.
        data: where they are.
        options: how they are executed.
        backend: where.
    """
    if options.backend == "local":
        yield evaluate_sql
        return
    shards = None if folder is None else get_shard_folder(folder, catalog, data, options)
    yield functools.partial(evaluate_in_parts, backend=backend, shard_folder=shards)
    if shards is not None:
        shutil.rmtree(shards, ignore_errors=True)


@contextmanager
def _open_suite(
    catalog: DatabaseCatalog,
    schemas: Mapping[str, DatabaseSchema] | None,
    options: VerificationOptions,
    backend: Backend,
) -> Iterator[SuiteVerifier | None]:
    num_instances = options.suite
    if num_instances is None and options.suite_dir is None:
        yield None
        return
    make = functools.partial(
        SuiteVerifier, catalog, num_workers=backend.verifier_workers, cache_dir=options.cache_dir
    )
    if options.suite_dir is not None:
        verifier = make(suite_files=get_suite_files(options.suite_dir), semantics="spider")
    else:
        assert num_instances is not None, "one of the two is given"
        settings = SuiteSettings(
            num_instances=num_instances,
            max_candidates=max(SuiteSettings().max_candidates, 3 * num_instances),
        )
        keys = {db_id: schema.foreign_key_columns for db_id, schema in (schemas or {}).items()}
        verifier = make(settings=settings, foreign_keys=keys)
    with verifier:
        yield verifier


def get_suite_notes(options: VerificationOptions) -> dict[str, str]:
    """The note of a report that says which instances its suite accuracy is over."""
    if options.suite is not None:
        note = f"On the database and {options.suite} generated neighbours, strict."
    elif options.suite_dir is not None:
        note = "On the database and the instances of an official suite, as Spider compares."
    else:
        return {}
    return {"suite": note}

"""Rows of a preference dataset: their columns, their weights, their order on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sense_trl._files import read_json, sha256_of
from sense_trl.errors import InputError
from sense_trl.pairs.candidates import Candidate
from sense_trl.pairs.config import PreferencePairConfig
from sense_trl.prompts import Messages
from sense_trl.questions import Question
from sense_trl.verification.verifier import Verification

if TYPE_CHECKING:
    import datasets
    import pyarrow

HASH_FIELD: Final = "pairs_sha256"
_QUESTION_COLUMNS: Final = ("question_id", "db_id", "question", "gold_sql")
_CHOSEN_COLUMNS: Final = ("chosen_sql", "chosen_source", "chosen_model", "chosen_candidate_id")
_REJECTED_TEXTS: Final = (
    *("rejected_sql", "rejected_source", "rejected_model", "rejected_verdict", "rejected_reason"),
    *("rejected_error", "rejected_candidate_id", "result_class"),
)
_SAMPLER_COLUMNS: Final = {"temperature": "float64", "top_p": "float64", "seed": "int64"}
REJECTED_COLUMNS: Final = ("rejected", *_REJECTED_TEXTS, "error_classes", *_SAMPLER_COLUMNS)
"""The columns that tell about the rejected query; lists where `spread_rejected` is off."""


def make_rows(
    question: Question,
    messages: Messages,
    chosen: Candidate,
    rejected: Sequence[Candidate],
    verifications: Mapping[Candidate, Verification],
    error_classes: Mapping[Candidate, Sequence[str]],
    result_classes: Mapping[Candidate, str],
    config: PreferencePairConfig,
) -> list[dict[str, Any]]:
    """The rows of one chosen query: one for each rejected one, or one for all."""
    shared = {
        "prompt": _plain(messages) if config.prompt_format == "plain" else messages,
        "chosen": _completion(chosen, config),
        "question_id": question.question_id,
        "db_id": question.db_id,
        "question": question.question,
        "gold_sql": question.gold_sql,
        "chosen_sql": chosen.sql,
        "chosen_source": chosen.source,
        "chosen_model": chosen.model,
        "chosen_candidate_id": chosen.candidate_id,
        "pair_weight": 1.0,
    }
    sides = [
        {
            **_rejected_side(candidate, verifications[candidate], config),
            "error_classes": [str(name) for name in error_classes[candidate]],
            "result_class": result_classes[candidate],
        }
        for candidate in rejected
    ]
    if config.spread_rejected:
        return [{**shared, **side} for side in sides]
    return [{**shared, **{name: [side[name] for side in sides] for name in REJECTED_COLUMNS}}]


def make_table(rows: Sequence[Mapping[str, Any]], config: PreferencePairConfig) -> pyarrow.Table:
    """Rows as one Arrow record batch."""
    import pyarrow

    schema = get_features(config).arrow_schema
    return pyarrow.Table.from_pylist(list(rows), schema=schema)


def make_dataset(tables: Sequence[pyarrow.Table], config: PreferencePairConfig) -> datasets.Dataset:
    """All rows with their final weights, whose mean is 1."""
    import datasets
    import pyarrow

    table = pyarrow.concat_tables([make_table([], config), *(t for t in tables if t.num_rows)])
    if config.weighting == "question" and table.num_rows:
        ids = table.column("question_id").to_pylist()
        per_question = Counter(ids)
        share = len(ids) / len(per_question)
        weights = pyarrow.array([share / per_question[name] for name in ids], pyarrow.float64())
        column = table.column_names.index("pair_weight")
        table = table.set_column(column, table.schema.field(column), weights)
    return datasets.Dataset(table)


def read_pairs(path: str | Path) -> pyarrow.Table:
    """The rows of a `pairs.parquet`, which are those that were built.

    Args:
        path: the file. Where a `pairs.json` lies beside it that names its hash, it must have it.

    Raises:
        InputError: it is not a file or no Parquet, lacks `chosen` or `rejected`, holds no pair, or
            is not what was built.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"`pairs` is {str(path)!r}, which is not a file. Build it with the stage `pairs`."
        )
    account = path.with_name("pairs.json")
    if path.name == "pairs.parquet" and account.is_file():
        expected = read_account(account).get(HASH_FIELD)
        if expected is not None and sha256_of(path) != expected:
            raise InputError(
                f"`pairs` {str(path)!r} is not the file that {account.name} beside it tells of: it "
                "was cut or changed after it was built. Delete both, then build them again; if you "
                "changed it yourself, give it another name."
            )
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"`pairs` is {str(path)!r}, which cannot be read as Parquet ({error}). Give the "
            "pairs.parquet that the stage `pairs` wrote, or delete it and build it again."
        ) from error
    if missing := {"chosen", "rejected"} - {*table.column_names}:
        raise InputError(
            f"`pairs` {str(path)!r} lacks the columns {sorted(missing)}; it has "
            f"{sorted(table.column_names)}. Give the pairs.parquet that the stage `pairs` wrote."
        )
    return table


def read_account(path: str | Path) -> dict[str, Any]:
    """A `pairs.json`: what was left out of the pairs beside it, and why.

    Raises:
        InputError: it is missing or damaged.
    """
    return read_json(path, "the account of built pairs", "num_pairs", "num_questions")


def get_features(config: PreferencePairConfig) -> datasets.Features:
    """Types of all columns, so that a dataset without a single pair has them too."""
    import datasets

    text = datasets.Value("string")
    is_plain = config.prompt_format == "plain"
    conversation = text if is_plain else [{"role": text, "content": text}]
    rejected = {
        "rejected": conversation,
        **dict.fromkeys(_REJECTED_TEXTS, text),
        "error_classes": datasets.List(text),
        **{name: datasets.Value(kind) for name, kind in _SAMPLER_COLUMNS.items()},
    }
    if not config.spread_rejected:
        rejected = {name: datasets.List(feature) for name, feature in rejected.items()}
    return datasets.Features(
        {
            "prompt": conversation,
            "chosen": conversation,
            **rejected,
            **dict.fromkeys((*_QUESTION_COLUMNS, *_CHOSEN_COLUMNS), text),
            "pair_weight": datasets.Value("float64"),
        }
    )


def _rejected_side(
    candidate: Candidate,
    verification: Verification,
    config: PreferencePairConfig,
) -> dict[str, Any]:
    # An engine quotes what a query wrote, cut where it likes.
    error = (verification.error or "").encode("utf-8", "replace").decode()
    return {
        "rejected": _completion(candidate, config),
        "rejected_sql": candidate.sql,
        "rejected_source": candidate.source,
        "rejected_model": candidate.model,
        "rejected_verdict": str(verification.verdict),
        "rejected_reason": str(verification.reason),
        "rejected_error": error,
        "rejected_candidate_id": candidate.candidate_id,
        "temperature": candidate.temperature,
        "top_p": candidate.top_p,
        "seed": candidate.seed,
    }


def _completion(candidate: Candidate, config: PreferencePairConfig) -> Any:
    content = candidate.text if config.completion == "text" else candidate.sql
    if config.prompt_format == "plain":
        return content
    return [{"role": "assistant", "content": content}]


def _plain(messages: Messages) -> str:
    """A conversation as text that the answer follows: contents, each behind an empty line."""
    return "".join(f"{message['content']}\n\n" for message in messages)

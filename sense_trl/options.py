"""Options that several commands, stages and settings take: groups of fields, each described once.

An option is a field of a dataclass that `option` describes. The command line, its help, the checks
of YAML files and the tables in docs/ are made from that. A dataclass that inherits a group has its
options; `option_of` takes a single one, perhaps with another default.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, MISSING, dataclass, field, fields
from typing import Any, Final, Literal

from sense_trl.errors import InputError, check_at_least

OTHER_LIMITS: Final = (
    "max_steps",
    "max_rows",
    "max_cell_bytes",
    "max_result_bytes",
    "memory_limit_bytes",
)
"""The fields of `ExecutionLimits` beside `timeout_s`."""


def option(
    text: str, *, default: Any = MISSING, default_factory: Any = MISSING, **metadata: Any
) -> Any:
    """A field of a dataclass with its description.

    Args:
        text: describes the option, as `metadata["help"]`.
        default: see `dataclasses.field`; an option without one is required.
        default_factory: likewise.
        metadata: what else the command line reads: `choices`; `positional`, for an argument without
            a flag; `aliases`, further flags; `metavar`, which stands for the value in the help.
    """
    return field(
        default=default, default_factory=default_factory, metadata={"help": text, **metadata}
    )


def option_of(kind: type, name: str, *, default: Any = MISSING, note: str = "") -> Any:
    """A field like that of another dataclass, described there.

    Args:
        kind: the dataclass that describes the option.
        name: of its field.
        default: if it is another one here.
        note: what more there is to say here; ends the description.

    Example:
        >>> @dataclass
        ... class Options:
        ...     timeout_s: float = option_of(ExecutionOptions, "timeout_s", default=5.0)
        >>> Options().timeout_s, fields(Options)[0].metadata["help"]
        (5.0, 'Seconds each query may run.')
    """
    (known,) = (known for known in fields(kind) if known.name == name)
    text = f"{known.metadata['help']} {note}".rstrip()
    metadata = {**known.metadata, "help": text}
    if default is not MISSING:
        return field(default=default, metadata=metadata)
    return field(default=known.default, default_factory=known.default_factory, metadata=metadata)


def get_values(kind: type, source: Any) -> dict[str, Any]:
    """The options of a group, by name, out of a dataclass that has them.

    Example:
        >>> get_values(DatabaseOptions, DataArguments("d", "q", split="train"))
        {'database': 'd'}
    """
    return {known.name: getattr(source, known.name) for known in fields(kind)}


@dataclass
class DatabaseOptions:
    """Options that name the databases."""

    database: str = option(
        "A database file (.sqlite, .db, .duckdb), a folder of them, the root of a Spider or BIRD "
        "download, or postgresql://user@host/name, with {db_id} in place of the name for every "
        "database of the server."
    )


@dataclass
class DataOptions(DatabaseOptions):
    """The questions and the databases they are asked of."""

    questions: str = option(
        "Questions with gold SQL, as .jsonl, .json or .csv: `question` and `gold_sql` (or Spider's "
        "`query`, BIRD's `SQL`), with `db_id` where there are several databases."
    )


@dataclass
class OutputOptions:
    """Options that name the folder for results."""

    output_dir: str = option("Folder for what is written.")


@dataclass(kw_only=True)
class ChatTemplateOptions:
    """Options of the way a chat template writes a prompt."""

    fold_system_message: bool = option(
        "Put the system's text, the schema, in front of the question: for a chat template without "
        "a system role, which is refused otherwise. A model that was trained with it does so by "
        "itself.",
        default=False,
    )
    template_date: str | None = option(
        "Day, e.g. 2026-11-29, that a chat template which writes today's date is told: a run that "
        "is resumed and the caches of another day then have the same tokens. Left out, it is that "
        "of the teacher's cache, or today, and the log says which. Templates without a date do not "
        "read it.",
        default=None,
    )


@dataclass(kw_only=True)
class PromptOptions:
    """Options of prompts; where nothing else is given, they are as the model was trained."""

    tables_json: str | None = option(
        "tables.json of Spider or BIRD, whose schemas are used: many of Spider's database files "
        "declare no foreign keys.",
        default=None,
    )
    schema_style: str | None = option(
        "How a schema is written: compact, codes, ddl. Names and keys alone (compact) for a model "
        "that does not say.",
        default=None,
    )
    num_values: int | None = option(
        "Values shown of each column, chosen by frequency and shape. Columns that look like "
        "secrets or personal data show none.",
        default=None,
    )
    max_value_chars: int | None = option(
        "Values of more characters than this are not shown: 40.", default=None
    )
    num_matched_values: int | None = option(
        "Values shown with a question because its words name them, at most: 5; 0 for none. Each "
        "database is indexed once, in the cache. A server of another machine is sent none unless "
        "this or `send_values` asks for it.",
        default=None,
    )
    descriptions: bool | None = option(
        "Show what is known of the meaning of tables and columns: BIRD's database_description "
        "beside a database, comments of DuckDB, and `description_source`.",
        default=None,
    )
    max_description_chars: int | None = option(
        "Descriptions of tables and columns are cut here, in characters: 150.", default=None
    )
    max_schema_tokens: int | None = option(
        "Tokens that the schema may take. A larger one is cut to the tables that the question "
        "seems to be about.",
        default=None,
    )
    linker: str | None = option(
        "What chooses the tables and columns that a question is about: the folder of a linker that "
        "`sense-trl link train` wrote, or `names` for names and keys, without a model. With "
        "`max_schema_tokens` of a schema that is larger, otherwise of every schema of more than 30 "
        "columns.",
        default=None,
    )
    linked_tables: int | None = option(
        "Tables that a linker leaves where no tokens are limited: 6.", default=None
    )
    linked_columns: int | None = option(
        "Columns of each of them, besides keys and named values: 10.", default=None
    )
    shown_columns: list[str] | None = option(
        "Columns whose values may be shown though they look like secrets or personal data, as "
        "patterns of table.column: singer.name, *.email.",
        default=None,
        metavar="PATTERN",
    )
    hidden_columns: list[str] | None = option(
        "Columns whose values are never shown, as patterns of table.column.",
        default=None,
        metavar="PATTERN",
    )
    instruction: str | None = option(
        "What the prompt begins with; {dialect} becomes the SQL dialect's name.", default=None
    )
    answer_form: str | None = option(
        "What an answer is: sql alone, or reasoning in a few sentences before it.", default=None
    )
    description_source: str | None = option(
        "What tables and columns mean: a YAML or JSON file, a folder of such with <db_id>.yaml, or "
        "BIRD's CSV files. Entries of what a database does not have are an error.",
        default=None,
    )
    prompt_style: str | None = option(
        "Folder of the sense_prompt.json to follow, for a model that has none beside it: one "
        "behind a server, or on the hub.",
        default=None,
    )
    prompt_tokenizer: str | None = option(
        "Folder or hub id of the tokenizer that counts for `max_schema_tokens`; the model's if not "
        "given.",
        default=None,
    )
    force_style: bool = option(
        "Put questions otherwise than the model was trained, where options say so; without it that "
        "is an error.",
        default=False,
    )
    send_values: bool = option(
        "Let values of the databases go to a server of another machine, by default or because the "
        "model was trained with them.",
        default=False,
    )


@dataclass
class DataArguments(PromptOptions, DataOptions):
    """Options of the data to work on: databases, questions and their prompts."""

    split: str | None = option(
        "Use only questions whose `split` is this; all if not given.", default=None
    )
    max_questions: int | None = option(
        "Use a random subset of this many questions, drawn with `subset_seed`. All if not given.",
        default=None,
    )
    subset_seed: int = option("Seed of the subset that `max_questions` draws.", default=0)
    max_unusable_fraction: float = option(
        "Largest share of questions that may be left out because their database is missing or "
        "their gold query fails. Each one is named. Above it the run stops.",
        default=0.0,
    )


@dataclass(kw_only=True)
class ExtractOptions:
    """Options of reading predictions: plain SQL, or texts with SQL in them."""

    extract: bool = option(
        "Take the SQL out of each prediction first: out of fences, tags, JSON and prose, without "
        "reasoning.",
        default=False,
    )


@dataclass(kw_only=True)
class PredictionOptions(ExtractOptions):
    """A file of predictions."""

    predictions: str = option(
        "Plain text with one SQL query per line in the order of the questions, JSON Lines with "
        "question_id and sql, a JSON array, or BIRD's object of position to query. A database that "
        "it names has to be the question's. Questions may be lines of gold SQL, a tab and the "
        "db_id.",
        positional=True,
    )


@dataclass(kw_only=True)
class CandidateOptions(ExtractOptions):
    """Files of candidates."""

    candidates: list[str] = option(
        "candidates.jsonl of samplers.", default_factory=list, metavar="FILE"
    )
    weak: list[str] = option(
        "Predictions of weak models, in the layouts that `sense-trl verify` reads; a model is "
        "named by the folder of its file if not here.",
        default_factory=list,
        metavar="[NAME=]FILE",
    )
    strong: list[str] = option(
        "The same of strong models.", default_factory=list, metavar="[NAME=]FILE"
    )


@dataclass(kw_only=True)
class ExecutionOptions:
    """Options of execution: workers and limits."""

    num_workers: int | None = option(
        "Worker processes; 0 runs queries in this process, without a way to stop some of them.",
        default=None,
    )
    timeout_s: float = option("Seconds each query may run.", default=30.0)
    query_limit: list[str] = option(
        "Other limits of each query: max_steps, max_rows, max_cell_bytes, max_result_bytes, "
        "memory_limit_bytes.",
        default_factory=list,
        metavar="NAME=NUMBER",
    )
    cache_dir: str | None = option(
        "Folder to keep results of slow gold queries and chosen neighbours in.", default=None
    )


@dataclass(kw_only=True)
class SuiteOptions:
    """Further instances of each database, on which queries have to agree, too."""

    suite: int | None = option(
        "Verify on so many generated neighbours of each database, too (8 is a good number).",
        default=None,
    )
    suite_dir: str | None = option(
        "Verify on an official test suite, too: <db_id>/*.sqlite, under Spider's comparison.",
        default=None,
    )

    def __post_init__(self) -> None:
        check_at_least(1, suite=self.suite)
        if self.suite is not None and self.suite_dir is not None:
            raise InputError(
                f"`suite` is {self.suite} and `suite_dir` {self.suite_dir!r}; expected one of them."
            )


@dataclass(kw_only=True)
class VerificationOptions(SuiteOptions, ExecutionOptions):
    """Options of execution and verification."""


@dataclass(kw_only=True)
class BackendOptions:
    """Where the work is done: in this process, or on a Ray cluster."""

    backend: Literal["local", "ray"] = field(
        default="local",
        metadata={
            "help": "Where queries are executed and judged: local, or ray, on the machines of a "
            "Ray cluster, with the same result; see docs/scale.md. With ray, `num_workers` are "
            "its workers, by default one less than it has CPUs."
        },
    )
    ray_address: str = field(
        default="local",
        metadata={
            "help": "Address of the Ray cluster, as `ray.init` takes it; local starts one on this "
            "machine."
        },
    )


@dataclass(kw_only=True)
class RevisionOptions:
    """Options of second turns about queries that are seen to fail."""

    revise: int = option(
        "Ask so many times again about a query that fails or finds no rows, with what the database "
        "said.",
        default=0,
    )


@dataclass
class GeneratorOptions:
    """Options of the model that writes SQL, loaded here or behind a server."""

    model_name_or_path: str = option(
        "Model folder, adapter folder or hub id with a chat template; with `base_url` the server's "
        "name of the model."
    )
    _: KW_ONLY
    max_new_tokens: int = option("Longest answer in tokens.", default=128)
    generation_dtype: str = option(
        "Type of the weights: auto, float32 (fastest on CPUs), bfloat16.",
        default="auto",
        aliases=["--dtype"],
    )
    load_in_4bit: bool = option(
        "Hold the weights in 4 bits (NF4, double quantisation) and multiply them in "
        "`generation_dtype`: a quarter of the memory.",
        default=False,
    )
    base_url: str | None = option(
        "OpenAI-compatible server that runs the model, e.g. http://localhost:8000/v1.", default=None
    )
    api_key_env: str | None = option(
        "Environment variable that holds the server's key.", default=None
    )
    request_timeout_s: float = option(
        "Seconds a request to the server may take, waiting there included.", default=600.0
    )
    use_vllm: bool = option("Sample with vLLM in this process (install it first).", default=False)
    fold_system_message: bool = option_of(ChatTemplateOptions, "fold_system_message")

    def check(self) -> None:
        """Refuse options of which one would be ignored.

        Raises:
            InputError: there are such.
        """
        if self.use_vllm and self.base_url is not None:
            raise InputError(
                f"`use_vllm` is given with `base_url` {self.base_url!r}; choose one of them."
            )
        if self.load_in_4bit and (self.use_vllm or self.base_url is not None):
            raise InputError(
                "`load_in_4bit` is true, but with `use_vllm` or `base_url` the weights are loaded "
                "elsewhere. Leave it out, and name a quantised checkpoint there."
            )


@dataclass(kw_only=True)
class EndpointOptions:
    """A model behind an OpenAI-compatible server."""

    model_name_or_path: str | None = option_of(GeneratorOptions, "model_name_or_path", default=None)
    base_url: str | None = option_of(GeneratorOptions, "base_url")
    api_key_env: str | None = option_of(GeneratorOptions, "api_key_env")
    concurrency: int = option("Requests under way at a time.", default=16)
    request_timeout_s: float = option_of(GeneratorOptions, "request_timeout_s")

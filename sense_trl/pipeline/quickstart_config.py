"""Settings of the quickstart, apart from it so that the command line can list them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from sense_trl.errors import InputError

MODEL_NAME = "SmolLM2-135M-Instruct"


@dataclass
class QuickstartConfig:
    """Settings of the quickstart; `sense-trl quickstart` has one flag per field."""

    database: str | None = field(
        default=None,
        metadata={"help": "Your database file (or folder). The embedded nycflights if not given."},
    )
    questions: str | None = field(
        default=None,
        metadata={
            "help": "Your questions with gold SQL (.jsonl: question, gold_sql, optionally db_id "
            "and split)."
        },
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": f"Model folder or hub id with a chat template; {MODEL_NAME} if not given."
        },
    )
    output_dir: str = field(
        default="runs/quickstart",
        metadata={"help": "Folder for everything the run writes; a second run there continues."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Delete what is in the output folder and start over."}
    )
    test_fraction: float = field(
        default=0.3,
        metadata={"help": "Share of the questions held out for testing, if they name no split."},
    )
    max_train_questions: int | None = field(
        default=None, metadata={"help": "Train on at most this many questions, drawn at random."}
    )
    max_test_questions: int | None = field(
        default=None, metadata={"help": "Test on at most this many questions, drawn at random."}
    )
    schema_style: str = field(
        default="compact", metadata={"help": "How the schema is written: compact, codes, ddl."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything random."})
    max_length: int = field(
        default=2048,
        metadata={"help": "Longest prompt plus answer in tokens; longer ones stop the run."},
    )
    batch_size: int = field(
        default=64, metadata={"help": "Completions written at the same time when generating."}
    )
    max_new_tokens: int = field(
        default=80, metadata={"help": "Longest answer when generating, in tokens."}
    )
    sft_epochs: float = field(default=1.0, metadata={"help": "Epochs of supervised fine-tuning."})
    sft_learning_rate: float = field(
        default=3e-4, metadata={"help": "Learning rate of supervised fine-tuning."}
    )
    sft_batch_size: int = field(
        default=8, metadata={"help": "Questions per optimizer step of supervised fine-tuning."}
    )
    num_generations: int = field(
        default=4, metadata={"help": "Candidates the weak model samples per training question."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of that sampling."})
    pairs_per_question: int = field(
        default=1, metadata={"help": "Preference pairs per question at most."}
    )
    max_pairs: int | None = field(
        default=120,
        metadata={"help": "Train on at most this many pairs, drawn at random."},
    )
    dpo_epochs: float = field(default=1.0, metadata={"help": "Epochs of preference training."})
    dpo_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate of preference training (LoRA)."}
    )
    dpo_batch_size: int = field(
        default=4, metadata={"help": "Pairs per optimizer step of preference training."}
    )
    beta: float = field(default=0.1, metadata={"help": "DPO's beta."})
    label_smoothing: float = field(
        default=0.1, metadata={"help": "cDPO's share of labels assumed to be wrong."}
    )
    sft_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the supervised loss on the chosen answer beside cDPO."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapters."})

    def __post_init__(self) -> None:
        if (self.database is None) != (self.questions is None):
            given, missing = (
                ("database", "questions") if self.database else ("questions", "database")
            )
            raise InputError(
                f"`{given}` is given without `{missing}`. Give both, or neither for the embedded "
                "example."
            )
        for name in ("sft_epochs", "dpo_epochs", "sft_learning_rate", "dpo_learning_rate", "beta"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected more than 0.")
        for name in (
            "sft_batch_size",
            "dpo_batch_size",
            "batch_size",
            "max_new_tokens",
            "num_generations",
            "pairs_per_question",
            "lora_r",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        if self.seed < 0:
            raise InputError(f"`seed` is {self.seed}; expected 0 or more.")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(
                f"`label_smoothing` is {self.label_smoothing}; expected a share in [0, 0.5)."
            )
        if self.sft_weight < 0:
            raise InputError(f"`sft_weight` is {self.sft_weight}; expected 0 or more.")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise InputError(f"`max_pairs` is {self.max_pairs}; expected at least 1.")
        if not self.temperature > 0:
            raise InputError(
                f"`temperature` is {self.temperature}; the candidates must differ, so it has to be "
                "above 0, e.g. 1.0."
            )

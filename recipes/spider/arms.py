"""What a recipe's arms.toml names, and the commands of `sense-trl` that make it.

Each table of the file is an arm or something that arms are made of; `kind` says what:

* `questions`: `per_database` training questions on each of `databases` databases, drawn with the
  seed, none on a database that a set named in `without` has; with `decided`, only questions whose
  gold query can tell right from wrong by execution. With `split`, of a questions file of your own,
  `number` of those of this split (all if left out) that no set in `without` has. Any other name of
  questions is a file of Spider's folder;
* `mixture`: the questions of all sets named in `of`;
* `explored`: questions that `synth explore` writes about the databases of `questions`;
* `sampled`: what `model` answers to `questions`, and the pairs that the stage `pairs` makes of it;
* `answers`: of what was `sampled`, the right answers as questions;
* `pairs`: other pairs of what was `sampled`, under one or several names; with `repair`, of a
  second turn;
* `cached`: what the teacher `model` says of the answers to `questions`, for training without it;
* `pruned`: the model `start` with fewer layers;
* `model`: a model as it comes; `sft`, `kd`, `dpo`, `grpo`: an arm that a stage trains from `start`
  on `questions` or `pairs` (one name or several), with a `teacher` or its `cache`;
* `online`: an arm that `sense-trl online` trains from `start` on `questions`, in `num_rounds`;
* `evaluation`: of arms on `questions`, in the tables of the evaluation that it `joins`; with
  `revise`, of answers after a second turn, whose first ones are those of the evaluation `of`, if
  that has run; `suite`: that of the evaluation `of` on neighbours of the databases.

Everything is made once per seed, and named after it, unless its table has `seed`. A name that
refers to something else may have the seed behind an @. Keys that are not listed here are flags of
the command.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.questions import Question, load_questions
from sense_trl.verification.verifier import Verdict, verify_sql

# The keys of each kind that are no flags of its command.
KEYS: dict[str, tuple[str, ...]] = {
    "questions": ("databases", "per_database", "split", "number", "without", "decided"),
    "mixture": ("of",),
    "explored": ("questions",),
    "sampled": ("model", "questions"),
    "answers": ("sampled",),
    "pairs": ("sampled",),
    "cached": ("model", "student", "questions"),
    "model": ("path",),
    "pruned": ("start",),
    "sft": ("start", "questions"),
    "kd": ("start", "teacher", "cache", "questions"),
    "dpo": ("start", "pairs"),
    "grpo": ("start", "questions"),
    "online": ("start", "questions"),
    "evaluation": ("questions", "suffix", "joins", "of"),
    "suite": ("of",),
}
COMMON_KEYS = ("kind", "seed", "label", "against", "evaluate")
# Those of them that name what has to be there first.
NEEDED = ("start", "model", "student", "teacher", "cache", "questions", "sampled", "pairs")

# Where `sense-trl online` says what each round left.
ROUNDS = "rounds.json"

# What makes a stage compute in bfloat16. Evaluations have nothing here: their figures are compared
# with those of other runs.
BF16_FLAGS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("sft", "kd", "dpo", "grpo"), ("--bf16", "true")),
    "pairs": ("--generation_dtype", "bfloat16"),
}

MODELS = ("model", "pruned", "sft", "kd", "dpo", "grpo", "online")
EVALUATIONS = ("evaluation", "suite")


@dataclass(frozen=True)
class Step:
    """A command of `sense-trl`.

    Attributes:
        name: of the step, unique.
        command: its arguments.
        result: the file that is there once it has finished.
        evaluated: for an evaluation, the arm with its seed.
        arm: for an evaluation, its name.
        evaluation: for an evaluation, the name of its table.
        needs: the steps that made what the command reads, in the order in which they run.
        takes: the folder of an evaluation whose predictions this one goes on from, if it is there.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    evaluated: str | None = None
    arm: str | None = None
    evaluation: str | None = None
    needs: tuple[str, ...] = ()
    takes: Path | None = None


@dataclass(frozen=True)
class Source:
    """Databases and questions that arms are drawn from.

    Attributes:
        database: a database, or a folder of them.
        questions: Spider's folder, or a questions file of your own.
        tables_json: Spider's file of schemas; None where the databases say it all.
    """

    database: Path
    questions: Path
    tables_json: Path | None = None

    @classmethod
    def of_spider(cls, folder: Path) -> Self:
        """Spider as it is published: `database/`, `tables.json`, and files of questions."""
        return cls(folder / "database", folder, folder / "tables.json")

    def find_questions(self, name: str) -> Path:
        """A questions file of Spider's folder."""
        for path in (self.questions / f"{name}.json", self.questions / f"{name}.jsonl"):
            if path.is_file():
                return path
        if self.questions.is_file():
            sys.exit(
                f"No questions are called {name!r}: of `--questions` {str(self.questions)!r} a "
                "table with a `split` names some."
            )
        sys.exit(f"`--spider` {str(self.questions)!r} has no {name}.json.")

    def get_flags(self, tables: str) -> tuple[str, ...]:
        """The flags that name the databases; `tables` is that of their schemas."""
        flags = ("--database", str(self.database))
        return (*flags, tables, str(self.tables_json)) if self.tables_json else flags


class Plan:
    """The tables of an arms.toml, and what the command line changed in them.

    Attributes:
        tables: by name, in the order of the file.
        parts: by name, the lists of arms, evaluations and seeds that belong together.
    """

    def __init__(self, path: Path) -> None:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        self.parts: dict[str, list[dict[str, Any]]] = data.pop("parts", {})
        self.tables: dict[str, dict[str, Any]] = data
        for name in data:
            self._check(name)

    def define(self, name: str, like: str, changes: Sequence[str]) -> None:
        """Add a table that is another one with `changes`, each `KEY=VALUE`."""
        table = dict(self[like])
        if "label" in table:
            table["label"] += f"; {', '.join(changes)}"
        self.tables[name] = table
        self.change(name, changes)

    def change(self, name: str, changes: Sequence[str]) -> None:
        """Change a table; a value is written as in TOML, or is text."""
        table = self[name]
        for change in changes:
            key, equals, text = change.partition("=")
            if not equals:
                sys.exit(f"{change!r} is no change of {name!r}; expected KEY=VALUE.")
            try:
                table[key] = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                table[key] = text
        self._check(name)

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self.tables:
            sys.exit(f"Nothing is called {name!r}; there are {', '.join(self.tables)}.")
        return self.tables[name]

    def _check(self, name: str) -> None:
        kind = self.tables[name].get("kind")
        if kind not in KEYS:
            sys.exit(f"{name!r} has the kind {kind!r}; expected one of {', '.join(KEYS)}.")


class Chain:
    """The steps that make arms and evaluate them.

    Args:
        plan: what there is.
        recipe: the folder with the YAML file of each stage.
        source: the databases and questions.
        output: where everything is written.
        models: hub ids or folders, by the name of their table.
        bf16: whether trainings and sampling compute in bfloat16, whatever the recipe's files say.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        recipe: Path,
        source: Source,
        output: Path,
        models: Mapping[str, str],
        bf16: bool = False,
    ) -> None:
        self.plan = plan
        self.recipe = recipe
        self.source = source
        self.output = output
        self.models = models
        self.bf16 = bf16
        self._decided: dict[str, bool] = {}

    def get_steps(
        self, arms: Sequence[str], seeds: Sequence[int], evaluations: Sequence[str] = ()
    ) -> Iterator[Step]:
        """What makes the arms and evaluates each once it is there.

        What a step reads may be written by the ones before, so a step has to run before the next
        one is asked for. A step that several arms need comes several times.

        Args:
            arms: their names.
            seeds: of all that is drawn.
            evaluations: instead of those that an arm names under `evaluate`.
        """
        for arm in arms:
            if self.plan[arm]["kind"] not in MODELS:
                sys.exit(f"{arm!r} is of the kind {self.plan[arm]['kind']!r} and no arm.")
            for seed in self._get_seeds(arm, seeds):
                needs: dict[str, None] = {}
                for step in self._make(arm, seed):
                    needs[step.name] = None
                    yield step
                for name in evaluations or self.plan[arm].get("evaluate", ()):
                    yield self._evaluate(name, arm, seed, tuple(needs))

    def get_part(self, part: str, seeds: Sequence[int]) -> Iterator[Step]:
        """The steps of a part; `num_seeds` of it are the first of `seeds`."""
        if part not in self.plan.parts:
            sys.exit(f"No part is called {part!r}; there are {', '.join(self.plan.parts)}.")
        for group in self.plan.parts[part]:
            first = seeds[: group.get("num_seeds", len(seeds))]
            yield from self.get_steps(group["arms"], first, group.get("on", ()))

    # ------------------------------------------------------------------------------ names

    def _get_seeds(self, name: str, seeds: Sequence[int]) -> Sequence[int]:
        return seeds[:1] if self._has_no_seed(name) else seeds

    def _has_no_seed(self, name: str) -> bool:
        table = self.plan[name]
        return "seed" in table or table["kind"] == "model"

    def _is_made(self, reference: str) -> bool:
        """Whether there is a table of it, and it is no file of Spider's folder."""
        table = self.plan.tables.get(reference.partition("@")[0], {"kind": "evaluation"})
        return table["kind"] not in EVALUATIONS

    def _resolve(self, reference: str, seed: int) -> tuple[str, int]:
        name, _, own = reference.partition("@")
        return name, int(own) if own else self.plan[name].get("seed", seed)

    def _get_label(self, reference: str, seed: int) -> str:
        name, seed = self._resolve(reference, seed)
        return name if self._has_no_seed(name) else f"{name}-{seed}"

    def _get_model(self, reference: str, seed: int) -> str:
        name, _ = self._resolve(reference, seed)
        if self.plan[name]["kind"] == "model":
            return self.models.get(name, self.plan[name]["path"])
        folder = self.output / self._get_label(reference, seed)
        if self.plan[name]["kind"] == "online":
            return get_last_model(folder, self.plan[name]["num_rounds"])
        return str(folder)

    def _get_questions(self, reference: str, seed: int) -> Path:
        """The file of a set of questions, which is written where it is drawn."""
        if not self._is_made(reference):
            return self.source.find_questions(reference)
        name, seed = self._resolve(reference, seed)
        kind, label = self.plan[name]["kind"], self._get_label(name, seed)
        if kind == "explored":
            return self.output / label / "questions.jsonl"
        path = self.output / "data" / f"{label}.jsonl"
        if kind == "answers":
            return path
        rows = self._draw(name, seed) if kind == "questions" else self._mix(name, seed)
        write_rows(path, rows)
        return path

    # ------------------------------------------------------------------------------ steps

    def _make(self, reference: str, seed: int) -> Iterator[Step]:
        """The steps that make something that a table describes, with all that it needs."""
        if not self._is_made(reference):
            return
        name, seed = self._resolve(reference, seed)
        needed = self._get_needed(name)
        steps: dict[str, Step] = {}
        for other in needed:
            for step in self._make(other, seed):
                steps[step.name] = step
                yield step
        make = getattr(self, f"_step_{self.plan[name]['kind']}", None)
        if make is not None:
            yield make(name, seed, tuple(steps))

    def _get_needed(self, name: str) -> list[str]:
        table = self.plan[name]
        own = KEYS[table["kind"]]
        lists = [table[key] for key in NEEDED if key in table and key in own]
        if table["kind"] == "mixture":
            lists.append(table["of"])
        return [other for value in lists for other in as_list(value)]

    def _get_flags(self, name: str, *, dashes: bool = False) -> list[str]:
        """The flags of a table: those of the stages have underscores, the others dashes."""
        flags = []
        own = (*COMMON_KEYS, *KEYS[self.plan[name]["kind"]])
        for key, value in self.plan[name].items():
            if key not in own:
                flag = f"--{key.replace('_', '-') if dashes else key}"
                # A switch of the other commands is there or not.
                is_switch = dashes and isinstance(value, bool)
                values = [] if is_switch else map(as_text, as_list(value))
                flags += [] if is_switch and not value else [flag, *values]
        return flags

    def _get_stage(self, stage: str) -> list[str]:
        in_bf16 = BF16_FLAGS.get(stage, ()) if self.bf16 else ()
        return [stage, "--config", str(self.recipe / f"{stage}.yaml"), *in_bf16]

    def _get_seed_flag(self, name: str, seed: int, flag: str) -> tuple[str, ...]:
        return () if self._has_no_seed(name) else (flag, str(seed))

    def _train(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        table, label = self.plan[name], self._get_label(name, seed)
        folder = self.output / label
        command = self._get_stage(table["kind"])
        if table["kind"] == "dpo":
            folders = (self.output / self._get_label(n, seed) for n in as_list(table["pairs"]))
            command += ["--pairs", *(str(folder / "pairs.parquet") for folder in folders)]
        else:
            command += self.source.get_flags("--tables_json")
            command += ["--questions", str(self._get_questions(table["questions"], seed))]
        command += ["--model_name_or_path", self._get_model(table["start"], seed)]
        if "teacher" in table:
            command += ["--teacher_model_name_or_path", self._get_model(table["teacher"], seed)]
        if "cache" in table:
            cache = self.output / self._get_label(table["cache"], seed)
            command += ["--teacher_cache", str(cache)]
        command += ["--output_dir", str(folder)]
        command += [*self._get_seed_flag(name, seed, "--seed"), *self._get_flags(name)]
        return Step(label, tuple(command), folder / "metrics.json", needs=needs)

    _step_sft = _step_kd = _step_dpo = _step_grpo = _train

    def _step_online(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        table, folder = self.plan[name], self.output / self._get_label(name, seed)
        command = (
            *("online", *self.source.get_flags("--tables-json")),
            *("--questions", str(self._get_questions(table["questions"], seed))),
            *("--model", self._get_model(table["start"], seed), "--output-dir", str(folder)),
            *self._get_seed_flag(name, seed, "--seed"),
            *self._get_flags(name, dashes=True),
        )
        return Step(folder.name, command, folder / ROUNDS, needs=needs)

    def _step_pruned(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        folder = self.output / self._get_label(name, seed)
        start = self._get_model(self.plan[name]["start"], seed)
        flags = self._get_flags(name, dashes=True)
        command = ("prune", start, *flags, "--output", str(folder))
        return Step(folder.name, command, folder / "config.json", needs=needs)

    def _step_sampled(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        table, folder = self.plan[name], self.output / self._get_label(name, seed)
        command = (
            *(*self._get_stage("pairs"), *self.source.get_flags("--tables_json")),
            *("--questions", str(self._get_questions(table["questions"], seed))),
            *("--output_dir", str(folder)),
            *("--model_name_or_path", self._get_model(table["model"], seed)),
            *self._get_seed_flag(name, seed, "--generation_seed"),
            *self._get_flags(name),
        )
        return Step(folder.name, command, folder / "pairs.parquet", needs=needs)

    def _step_answers(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        path = self._get_questions(name, seed)
        command = ("pairs", "answers", *self._read_sampled(name, seed), "--output", str(path))
        return Step(path.stem, command, path, needs=needs)

    def _step_pairs(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        folder = self.output / self._get_label(name, seed)
        sampled = self._get_label(as_list(self.plan[name]["sampled"])[0], seed)
        command = (
            *("pairs", "build", *self._read_sampled(name, seed)),
            # The prompts that what was sampled answers.
            *("--prompt-style", str(self.output / sampled)),
            *(*self.source.get_flags("--tables-json")[2:], "--output-dir", str(folder)),
        )
        return Step(folder.name, command, folder / "README.md", needs=needs)

    def _read_sampled(self, name: str, seed: int) -> list[str]:
        """What was sampled, with the questions, which are the same for all that is named."""
        sampled = as_list(self.plan[name]["sampled"])
        sources = {self.plan[self._resolve(other, seed)[0]]["questions"] for other in sampled}
        if len(sources) > 1:
            sys.exit(f"{name!r} joins samples of different questions: {', '.join(sources)}.")
        first, own = self._resolve(sampled[0], seed)
        questions = self._get_questions(self.plan[first]["questions"], own)
        files = [self.output / self._get_label(other, seed) for other in sampled]
        return [
            *("--questions", str(questions), "--database", str(self.source.database)),
            *("--candidates", *(str(file / "candidates.jsonl") for file in files)),
            *self._get_seed_flag(name, seed, "--seed"),
            *self._get_flags(name, dashes=True),
        ]

    def _step_cached(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        table, folder = self.plan[name], self.output / self._get_label(name, seed)
        command = (
            *("teacher", "cache", "--model", self._get_model(table["model"], seed)),
            *("--tokenizer", self._get_model(table["student"], seed)),
            *("--questions", str(self._get_questions(table["questions"], seed))),
            *self.source.get_flags("--tables-json"),
            *(*self._get_flags(name, dashes=True), "--output", str(folder)),
        )
        return Step(folder.name, command, folder / "cache.json", needs=needs)

    def _step_explored(self, name: str, seed: int, needs: tuple[str, ...]) -> Step:
        folder = self.output / self._get_label(name, seed)
        gold = load_questions(self._get_questions(self.plan[name]["questions"], seed))
        command = (
            *("synth", "explore", *self.source.get_flags("--tables-json")),
            *("--db-ids", *sorted({question.db_id for question in gold})),
            *("--exclude", str(self.source.find_questions("dev")), "--seed", str(seed)),
            *(*self._get_flags(name, dashes=True), "--output", str(folder)),
        )
        return Step(folder.name, command, folder / "account.json", needs=needs)

    # ------------------------------------------------------------------------------ evaluations

    def _evaluate(self, name: str, arm: str, seed: int, needs: tuple[str, ...]) -> Step:
        table, label = self.plan[name], self._get_label(arm, seed)
        if table["kind"] == "suite":
            return self._evaluate_suite(name, arm, label, needs)
        if table["kind"] != "evaluation":
            sys.exit(f"{name!r} is of the kind {table['kind']!r} and no evaluation.")
        run = f"{label}{table.get('suffix', '')}"
        folder = self.output / f"evaluate-{run}"
        command = (
            *(*self._get_stage("evaluate"), *self.source.get_flags("--tables_json")),
            *("--questions", str(self._get_questions(table["questions"], 0))),
            *self._get_flags(name),
            *("--model_name_or_path", self._get_model(arm, seed)),
            *("--output_dir", str(folder), "--run_name", run),
        )
        result = folder / "evaluation.json"
        first = self.plan[table["of"]].get("suffix", "") if "of" in table else None
        takes = None if first is None else self.output / f"evaluate-{label}{first}"
        return Step(folder.name, command, result, label, arm, name, needs, takes)

    def _evaluate_suite(self, name: str, arm: str, label: str, needs: tuple[str, ...]) -> Step:
        base = self.plan[self.plan[name]["of"]]
        folder = self.output / f"suite-{label}"
        predicted = self.output / f"evaluate-{label}{base.get('suffix', '')}"
        command = (
            *("evaluate", str(predicted / "predictions.jsonl")),
            *("--questions", str(self._get_questions(base["questions"], 0))),
            *self.source.get_flags("--tables"),
            *self._get_flags(name, dashes=True),
            *("--name", label, "--cache-dir", str(self.output / "suites")),
            *("--output", str(folder)),
        )
        result = folder / "evaluation.json"
        return Step(folder.name, command, result, label, arm, name, needs)

    # ------------------------------------------------------------------------------ questions

    def _draw(self, name: str, seed: int) -> list[Question]:
        """Some questions on each of some databases: their schemas are read a few times only."""
        table = self.plan[name]
        if "split" in table:
            return self._draw_split(name, seed)
        wanted, number = table["databases"], table["per_database"]
        taken = {
            question.db_id
            for other in table.get("without", ())
            for question in self._draw(*self._resolve(other, seed))
        }
        usable = [
            db_id
            for db_id, questions in sorted(self._by_database.items())
            if len(questions) >= number
            and db_id not in taken
            and (self.source.database / db_id).is_dir()
        ]
        if len(usable) < wanted:
            sys.exit(f"{name!r} needs {wanted} databases, but there are {len(usable)} left.")
        draws = random.Random(seed)
        if not table.get("decided"):
            db_ids = draws.sample(usable, wanted)
            return [q for db_id in db_ids for q in draws.sample(self._by_database[db_id], number)]
        groups: list[list[Question]] = []
        for db_id in draws.sample(usable, len(usable)):
            questions = self._by_database[db_id]
            decided = filter(self._is_decided, draws.sample(questions, len(questions)))
            group = list(itertools.islice(decided, number))
            groups += [group] if len(group) == number else []
            if len(groups) == wanted:
                return [question for group in groups for question in group]
        sys.exit(f"{name!r} needs {wanted} databases; {len(groups)} have {number} questions.")

    def _draw_split(self, name: str, seed: int) -> list[Question]:
        """Questions of a split of the file, in its order."""
        table = self.plan[name]
        taken = {
            question.question_id
            for other in table.get("without", ())
            for question in self._draw(*self._resolve(other, seed))
        }
        usable = [
            question
            for question in self._own_questions
            if question.split == table["split"]
            and question.question_id not in taken
            and (not table.get("decided") or self._is_decided(question))
        ]
        number = table.get("number", len(usable))
        if not 0 < number <= len(usable):
            sys.exit(f"{name!r} needs {number} questions, but there are {len(usable)} left.")
        kept = set(random.Random(seed).sample(range(len(usable)), number))
        return [question for place, question in enumerate(usable) if place in kept]

    @functools.cached_property
    def _own_questions(self) -> list[Question]:
        if not self.source.questions.is_file():
            sys.exit("A table has a `split`: give a file with it as `--questions`.")
        db_ids = self._catalog.db_ids
        only = db_ids[0] if len(db_ids) == 1 else None
        return load_questions(self.source.questions, default_db_id=only)

    def _is_decided(self, question: Question) -> bool:
        """Whether execution can tell a right answer to it from a wrong one."""
        key = question.question_id
        if key not in self._decided:
            engine = self._catalog.engine(question.db_id)
            gold = question.gold_sql
            self._decided[key] = verify_sql(gold, gold, engine).verdict is Verdict.CORRECT
        return self._decided[key]

    @functools.cached_property
    def _catalog(self) -> DatabaseCatalog:
        return DatabaseCatalog.from_path(self.source.database)

    def _mix(self, name: str, seed: int) -> list[Question]:
        files = (self._get_questions(other, seed) for other in self.plan[name]["of"])
        return [question for file in files for question in load_questions(file)]

    @functools.cached_property
    def _by_database(self) -> dict[str, list[Question]]:
        by_database: dict[str, list[Question]] = {}
        for question in load_questions(self.source.find_questions("train_spider")):
            by_database.setdefault(question.db_id, []).append(question)
        return by_database


def get_last_model(folder: Path, num_rounds: int) -> str:
    """What online rounds left; before they have run, where the last one will leave it."""
    path = folder / ROUNDS
    if not path.exists():
        return str(folder / f"round-{num_rounds}" / "model")
    # A round without a pair leaves the model before it.
    return str(json.loads(path.read_text(encoding="utf-8"))[-1]["model"])


def write_rows(path: Path, questions: Sequence[Question]) -> None:
    """A questions file; rewritten with the same content when the chain continues."""
    rows = [
        {"db_id": q.db_id, "question": q.question, "gold_sql": q.gold_sql}
        | ({"completion": q.completion} if q.completion else {})
        for q in questions
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_list(value: Any) -> list[Any]:
    """One value, or several."""
    return list(value) if isinstance(value, list) else [value]


def as_text(value: Any) -> str:
    """A value of the file as an argument of a command."""
    return str(value).lower() if isinstance(value, bool) else str(value)

"""`TrainedLinker`: which tables and columns a question needs, by a language model's states."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sense_trl._files import read_json, replacing
from sense_trl.checkpoints.starting_model import load_for_generation
from sense_trl.errors import InputError, ModelError
from sense_trl.linking.labels import ItemKey, LinkingLabels, get_linking_labels
from sense_trl.linking.measures import average_precision, recall_at
from sense_trl.linking.names import FEATURES, KINDS, NameMatcher, get_names, get_structure
from sense_trl.linking.pooling import Pool, draw_pools
from sense_trl.linking.reading import SchemaBlock, repeat_items, split_question, write_blocks
from sense_trl.prompts.linking import SchemaLinker
from sense_trl.prompts.pruning import prune_schema
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.questions import Question
from sense_trl.schema.formats import Descriptions
from sense_trl.schema.naming import get_key
from sense_trl.schema.schema import DatabaseSchema
from sense_trl.sql.parsing import SQLParseError
from sense_trl.steps.generator import find_loaded
from sense_trl.trainers.linking.head import ItemRelations, LinkerHead
from sense_trl.trainers.linking.joint import get_joint_block_chars
from sense_trl.trainers.linking.reader import MAX_BLOCK_CHARS, Prefix, StateReader, tokenize
from sense_trl.trainers.linking.saving import (
    FORMAT,
    LINKER_FILE,
    TEACHINGS_FILE,
    WEIGHTS_FILE,
    save_head,
)
from sense_trl.trainers.linking.state_cache import Marked, StateCache
from sense_trl.trainers.linking.training import (
    LinkerExample,
    LinkerTeaching,
    LinkerTrainingConfig,
    teach,
    train_linker_head,
)
from sense_trl.trainers.teachers.model_identity import get_weights_digest

logger = logging.getLogger(__name__)

READOUTS: Final = ("once", "repeated")
"""Where items are read: once, in the schema; or, by a model that has then read the question, once
more behind each."""

# Of items that are read again at a time.
_MAX_REPEATED_CHARS: Final = 2_000
# Of schemas whose keys and values are held: 1 GB for a model of 0.5B.
_MAX_HELD_TOKENS: Final = 65_536


class TrainedLinker:
    """A head on a frozen language model.

    Args:
        reader: of the model's states.
        head: trained on them.
        base: folder or hub id of the model.
        max_block_chars: a schema that is longer is read in several blocks; `get_block_chars` if not
            given.
        readout: one of `READOUTS`.
    """

    def __init__(
        self,
        reader: StateReader,
        head: LinkerHead,
        base: str,
        *,
        max_block_chars: int | None = None,
        readout: str = "once",
    ) -> None:
        self.reader: Final = reader
        self.head: Final = head.eval()
        self.base: Final = base
        self.max_block_chars: Final = max_block_chars or get_block_chars(reader, readout)
        self.readout: Final = readout
        self._held: OrderedDict[DatabaseSchema, _ReadSchema] = OrderedDict()

    def of(self, schema: DatabaseSchema, descriptions: Descriptions | None = None) -> LinkerOf:
        """The linker of one database, as `PromptWriter` makes it; descriptions are not read."""
        return LinkerOf(self, schema)

    def read(self, schema: DatabaseSchema) -> _ReadSchema:
        """What the model reads of a schema: once, while it is among those held."""
        if schema not in self._held:
            blocks = write_blocks(schema, max_chars=self.max_block_chars)
            write = partial(
                _write_behind, readout=self.readout, max_block_chars=self.max_block_chars
            )
            self._held[schema] = _ReadSchema(self.reader, schema, blocks, write)
        self._held.move_to_end(schema)
        held = sum(read.num_tokens for read in self._held.values())
        while held > _MAX_HELD_TOKENS and len(self._held) > 1:
            held -= self._held.popitem(last=False)[1].num_tokens
        return self._held[schema]

    def save(self, folder: str | Path) -> None:
        """Write the head into a folder, such as that of an adapter; the model is not copied.

        Raises:
            OutputError: it cannot be written.
        """
        save_head(
            folder,
            self.head,
            base=str(Path(self.base).absolute()) if Path(self.base).is_dir() else self.base,
            layer=self.reader.layer,
            max_block_chars=self.max_block_chars,
            readout=self.readout,
            weights=_identify(self.reader),
        )

    @classmethod
    def load(cls, folder: str | Path, *, base: str | None = None) -> Self:
        """Read a head, and load its model.

        Args:
            folder: of `save`.
            base: where the model is now, if not where it was.

        Raises:
            InputError: the folder holds no linker of this version, or a damaged one.
            ModelError: the model cannot be loaded, or is not the one that it was trained on.
        """
        folder = Path(folder)
        _check_there(str(folder))
        names = ("format", "base", "layer", "rank", "max_block_chars", "weights")
        record = read_json(folder / LINKER_FILE, "a linker of `sense-trl link train`", *names)
        if record["format"] != FORMAT:
            raise InputError(
                f"The linker in {str(folder)!r} has the format {record['format']!r}, this version "
                f"reads {FORMAT}. Train it again."
            )
        # A model and the linker that was trained along with it move together.
        trained_on = str(folder) if record["base"] == "." else record["base"]
        try:
            weights = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise InputError(f"The linker in {str(folder)!r} cannot be read: {error}.") from error
        reader = open_reader(base or trained_on, layer=record["layer"])
        if record["weights"] is not None and record["weights"] != _identify(reader):
            raise ModelError(
                f"The linker in {str(folder)!r} was trained on the states of another model than "
                f"{base or trained_on!r}. Name the one it was trained on, or train it again."
            )
        readout = record.get("readout", "once")
        head = LinkerHead(
            reader.hidden_size,
            item_size=2 * reader.hidden_size if readout == "repeated" else None,
            rank=record["rank"],
            num_kinds=len(KINDS),
            num_features=len(FEATURES),
        )
        try:
            head.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"The linker in {str(folder)!r} is damaged: {error}.") from error
        return cls(
            reader,
            head,
            trained_on,
            max_block_chars=record["max_block_chars"],
            readout=readout,
        )


class LinkerOf:
    """Scores of one database's tables and columns; a `SchemaLinker` of prompts.

    Args:
        linker: what was trained.
        schema: the database.
    """

    def __init__(self, linker: TrainedLinker, schema: DatabaseSchema) -> None:
        self._linker = linker
        self._schema = schema

    def score(self, question: str, matches: Sequence[ValueMatch] = ()) -> Mapping[ItemKey, float]:
        """Probabilities that a question needs a table, as (table, ""), or a column.

        A column of which it names a value scores as much as the best.
        """
        scores: dict[ItemKey, float] = {}
        for block, logits, _ in self._get_maps(question):
            for item, probability in zip(block.items, logits.sigmoid().tolist(), strict=True):
                # A wide table stands in several blocks.
                scores[item] = max(probability, scores.get(item, 0.0))
        best = max(scores.values(), default=0.0)
        named = {get_key(match.table, match.column) for match in matches}
        return scores | dict.fromkeys(named & scores.keys(), best)

    def explain(
        self, question: str
    ) -> tuple[list[str], dict[ItemKey, list[float]], dict[ItemKey, float]]:
        """What each word of a question adds to the logits of the items.

        Returns:
            The words, of which the last is the end of the question; what each adds; and the rest of
            the logits, which is there without any words.
        """
        text, spans = split_question(question)
        words = [text[start:end].strip() or "(end)" for start, end in spans]
        found: dict[ItemKey, list[float]] = {}
        rests: dict[ItemKey, float] = {}
        best: dict[ItemKey, float] = {}
        for block, logits, maps in self._get_maps(question):
            added = maps / len(words)
            rows = zip(
                block.items,
                logits.tolist(),
                added.tolist(),
                (logits - added.sum(-1)).tolist(),
                strict=True,
            )
            for item, logit, values, rest in rows:
                if logit > best.get(item, -math.inf):
                    best[item], found[item], rests[item] = logit, values, rest
        return words, found, rests

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _get_maps(self, question: str) -> list[tuple[SchemaBlock, Tensor, Tensor]]:
        """Each block with its logits and maps."""
        read = self._linker.read(self._schema)
        found = []
        for block, items, *states in read.read_behind(question):
            logits, maps = self._linker.head(*states, items.kinds, items.relate(question))
            found.append((block, logits, maps))
        return found


class ItemTensors:
    """What items of a schema are to each other and to questions, as tensors.

    Args:
        schema: the whole.
        items: tables as (table, ""), and columns, in lower case.
    """

    def __init__(self, schema: DatabaseSchema, items: Sequence[ItemKey]) -> None:
        spelling = {get_key(*name): name for name in get_names(schema)}
        structure = get_structure(schema, items)
        width = max(1, *map(len, structure.linked))
        linked = [[*own, *[-1] * (width - len(own))] for own in structure.linked]
        self.kinds: Final = torch.tensor(structure.kinds)
        self._parents = torch.tensor(structure.tables)
        self._linked = torch.tensor(linked)
        self._matcher = NameMatcher([spelling[item] for item in items])

    def relate(self, question: str) -> ItemRelations:
        """What the items are to each other and to the words of a question."""
        text, spans = split_question(question)
        found = self._matcher.match([text[start:end] for start, end in spans])
        places = torch.tensor([match[:2] for match in found], dtype=torch.int32).view(-1, 2)
        likeness = torch.tensor([match[2] for match in found]).view(-1, len(FEATURES))
        return ItemRelations(self._parents, self._linked, places, likeness.half())


class _ReadSchema:
    """The blocks of a schema, each read when it is first needed."""

    def __init__(
        self,
        reader: StateReader,
        schema: DatabaseSchema,
        blocks: Sequence[SchemaBlock],
        write_behind: Callable[[str, SchemaBlock], list[Marked]],
    ) -> None:
        self._reader = reader
        self._schema = schema
        self._blocks = blocks
        self._write_behind = write_behind
        self._read: dict[int, tuple[Prefix, ItemTensors]] = {}

    @property
    def num_tokens(self) -> int:
        """Those whose keys and values are held."""
        return sum(prefix.num_tokens for prefix, _ in self._read.values())

    def read_behind(
        self, question: str
    ) -> Iterator[tuple[SchemaBlock, ItemTensors, Tensor, Tensor]]:
        """Each block with its items, their states, and those of the question's words."""
        for number, block in enumerate(self._blocks):
            if number not in self._read:
                prefix = self._reader.read_prefix(block.text, block.spans)
                self._read[number] = prefix, ItemTensors(self._schema, block.items)
            prefix, items = self._read[number]
            texts = self._write_behind(question, block)
            read = self._reader.read_behind(prefix, *zip(*texts, strict=True))
            yield block, items, *_split_states(prefix.states, read, question)


def _write_behind(
    question: str, block: SchemaBlock, *, readout: str, max_block_chars: int
) -> list[Marked]:
    """What is read of a question behind a block, with the spans whose states are taken."""
    if readout == "once":
        return [split_question(question)]
    max_chars = min(_MAX_REPEATED_CHARS, max_block_chars // 2)
    return [*repeat_items(question, block, max_chars=max_chars)]


def _split_states(items: Tensor, read: Sequence[Tensor], question: str) -> tuple[Tensor, Tensor]:
    """The states of items and words, out of those of a block and of `_write_behind`."""
    num_words = len(split_question(question)[1])
    if len(read[0]) == num_words:
        return items, read[0]
    # Of both marks of an item, one after the other.
    repeated = torch.cat([states[num_words:] for states in read]).view(len(items), -1)
    return repeated, read[0][:num_words]


def open_reader(model: str, *, layer: int | None = None, dtype: str = "auto") -> StateReader:
    """Load a model for its states.

    Args:
        model: folder of a model or an adapter, or a hub id.
        layer: see `StateReader`.
        dtype: of the weights; `"auto"` is float32 on a CPU, where others are slower. A model that
            already writes SQL in this process is taken as it is.

    Raises:
        InputError: there is no such layer.
        ModelError: the model cannot be loaded or used.
    """
    if (generator := find_loaded(model)) is not None:
        return StateReader(generator.model, generator.tokenizer, layer=layer)
    if dtype == "auto" and not torch.cuda.is_available():
        dtype = "float32"
    loaded, tokenizer = load_for_generation(model, dtype=dtype, load_in_4bit=False)
    return StateReader(loaded.eval(), tokenizer, layer=layer)


def get_block_chars(reader: StateReader, readout: str = "once") -> int:
    """Characters of a block: of a short context no more than it has tokens, some three times less
    than it holds, so that there is room for a question; half of that where items come again."""
    return min(MAX_BLOCK_CHARS, reader.context // (1 if readout == "once" else 2))


def open_linker(folder: str) -> Callable[[DatabaseSchema, Descriptions], LinkerOf]:
    """What `PromptWriter` takes as `make_linker`; the model is loaded when a schema is wide.

    Raises:
        InputError: the folder holds no linker.
    """
    _check_there(folder)
    loaded: list[TrainedLinker] = []

    class _Lazy:
        def __init__(self, schema: DatabaseSchema) -> None:
            self._schema = schema

        def score(self, question: str, matches: Sequence[ValueMatch]) -> Mapping[ItemKey, float]:
            if not loaded:
                loaded.append(TrainedLinker.load(folder))
            return loaded[0].of(self._schema).score(question, matches)

    def make(schema: DatabaseSchema, descriptions: Descriptions) -> Any:
        return _Lazy(schema)

    return make


def _check_there(folder: str) -> None:
    if not (Path(folder) / LINKER_FILE).is_file():
        raise InputError(
            f"`linker` is {folder!r}, which holds no {LINKER_FILE}. Give a folder that `sense-trl "
            "link train`, or `sft` with `link_weight`, wrote, or `names`, where it is taken, to go "
            "by names and keys."
        )


# ------------------------------------------------------------------ training


def label_questions(
    questions: Sequence[Question], schemas: Mapping[str, DatabaseSchema]
) -> dict[str, LinkingLabels]:
    """What gold uses, by the id of the question: `get_linking_labels` of all of them.

    Names that a schema does not have are told in a warning.

    Raises:
        InputError: no gold names anything of its schema.
        SQLParseError: a gold query is not one statement; the message names its question.
    """
    labels = {}
    for question in questions:
        try:
            labels[question.question_id] = get_linking_labels(
                question.gold_sql, schemas[question.db_id]
            )
        except SQLParseError as error:
            raise SQLParseError(
                f"`questions`: gold of {question.question_id!r} cannot be read, mend it or leave "
                f"the question out: {error}"
            ) from error
    unknown = {key: own.unresolved[0] for key, own in labels.items() if own.unresolved}
    if unknown:
        first, name = next(iter(unknown.items()))
        told = f"{name!r} in gold of {first!r} is not in the schema of its database"
        if not any(own.tables for own in labels.values()):
            raise InputError(
                f"`questions`: {told}, nor is any table of the others. Name the "
                "database that they were written for."
            )
        logger.warning("%s, nor is what %d questions use in all.", told, len(unknown))
    return labels


def read_examples(
    reader: StateReader,
    questions: Sequence[Question],
    schemas: Mapping[str, DatabaseSchema],
    *,
    cache: StateCache | None = None,
    max_block_chars: int | None = None,
    readout: str = "once",
    pooled_databases: int = 0,
    pool_seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[LinkerExample]:
    """Read questions behind their schemas, as examples to train a head on.

    Args:
        reader: of the model's states.
        questions: with gold SQL.
        schemas: by `db_id`.
        cache: of states, of the same reader; in memory if not given.
        max_block_chars: see `TrainedLinker`; a schema of several blocks gives several examples.
        readout: likewise.
        pooled_databases: read each question once more behind a schema into which so many of the
            databases were joined, 0 for none: see `draw_pools`.
        pool_seed: of what is joined.
        on_progress: called with the number of questions finished since the last call; one that is
            read twice counts twice.

    Raises:
        InputError: as `label_questions` and `draw_pools`, or the disk has no room for the states.
        SQLParseError: as `label_questions`; both before anything is read.
    """
    labels = label_questions(questions, schemas)
    cache = StateCache(reader) if cache is None else cache
    by_database = _group(questions)
    groups: list[tuple[DatabaseSchema, Pool | None, list[Question]]] = [
        (schemas[db_id], None, asked) for db_id, asked in by_database.items()
    ]
    if pooled_databases:
        there = {db_id: schemas[db_id] for db_id in by_database}
        groups += [
            (pool.schema, pool, [*chain.from_iterable(by_database[db_id] for db_id in own)])
            for pool, own in draw_pools(there, pooled_databases, seed=pool_seed)
        ]
    max_chars = max_block_chars or get_block_chars(reader, readout)

    def write(asked: Sequence[Question], block: SchemaBlock) -> list[list[Marked]]:
        return [
            _write_behind(_get_text(question), block, readout=readout, max_block_chars=max_chars)
            for question in asked
        ]

    cache.check_space(
        sum(
            len(spans)
            for schema, _, asked in groups
            for block in write_blocks(schema, max_chars=max_chars)
            for _, spans in cache.get_missing(
                (block.text, block.spans), chain.from_iterable(write(asked, block))
            )
        )
    )
    examples = []
    for schema, pool, asked in groups:
        blocks = write_blocks(schema, max_chars=max_chars)
        for number, block in enumerate(blocks):
            is_last = number == len(blocks) - 1
            texts = write(asked, block)
            # Where items are many, a question is read several times.
            counts_questions = is_last and len(texts[0]) == 1
            states, read = cache.read(
                (block.text, block.spans),
                [*chain.from_iterable(texts)],
                on_progress=on_progress if counts_questions else None,
            )
            if is_last and not counts_questions and on_progress is not None:
                on_progress(len(asked))
            items, of_texts = ItemTensors(schema, block.items), iter(read)
            for question, own in zip(asked, texts, strict=True):
                text, key = _get_text(question), f"{question.question_id}/{number}"
                wanted: Collection[ItemKey] = labels[question.question_id].items
                if pool is not None:
                    key, wanted = f"pool/{key}", pool.rename(question.db_id, wanted)
                examples.append(
                    LinkerExample(
                        key,
                        *_split_states(states, [*islice(of_texts, len(own))], text),
                        items.kinds,
                        torch.tensor([item in wanted for item in block.items]),
                        items.relate(text),
                    )
                )
    return examples


def write_linked_texts(
    questions: Sequence[Question],
    schemas: Mapping[str, DatabaseSchema],
    tokenizer: Any,
    *,
    max_length: int | None,
) -> list[list[dict[str, Any]]]:
    """What a linker reads of each question, for `SenseSFTTrainer` to train one along.

    Args:
        questions: with gold SQL.
        schemas: by `db_id`.
        tokenizer: of the model that is trained.
        max_length: tokens of a text; a schema that is longer is read in several blocks.

    Returns:
        For each question the texts of its column `linked_texts`, one for each block: tokens,
        positions of those of items and words, labels, and the numbers of `ItemRelations`.

    Raises:
        InputError: as `label_questions`, or a text is longer than `max_length`.
        SQLParseError: as `label_questions`.
    """
    labels = label_questions(questions, schemas)
    max_chars = get_joint_block_chars(max_length)
    found: dict[str, list[dict[str, Any]]] = {}
    for db_id, asked in _group(questions).items():
        found |= {question.question_id: [] for question in asked}
        texts = [tokenize(tokenizer, *split_question(_get_text(question))) for question in asked]
        for block in write_blocks(schemas[db_id], max_chars=max_chars):
            prefix, items_at = tokenize(tokenizer, block.text, block.spans)
            items = ItemTensors(schemas[db_id], block.items)
            for question, (ids, words_at) in zip(asked, texts, strict=True):
                if max_length is not None and len(prefix) + len(ids) > max_length:
                    raise InputError(
                        f"`max_length` is {max_length}, but the linker's text of the question "
                        f"{question.question_id!r} has {len(prefix) + len(ids)} tokens. Raise it, "
                        "or train the linker alone with `sense-trl link train`."
                    )
                relations = items.relate(_get_text(question))
                wanted = labels[question.question_id].items
                found[question.question_id].append(
                    {
                        "input_ids": [*prefix, *ids],
                        "items": items_at,
                        "words": [[len(prefix) + place for place in own] for own in words_at],
                        "kinds": items.kinds.tolist(),
                        "labels": [item in wanted for item in block.items],
                        "parents": relations.parents.tolist(),
                        "linked": relations.linked.tolist(),
                        "places": relations.places.tolist(),
                        "likeness": relations.likeness.tolist(),
                        "sizes": [len(KINDS), len(FEATURES)],
                    }
                )
    return [found[question.question_id] for question in questions]


def train_linker(
    reader: StateReader,
    base: str,
    questions: Sequence[Question],
    schemas: Mapping[str, DatabaseSchema],
    config: LinkerTrainingConfig | None = None,
    *,
    teachings: Mapping[str, LinkerTeaching] | None = None,
    cache: StateCache | None = None,
    readout: str = "once",
    pooled_databases: int = 0,
    pool_seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[TrainedLinker, list[LinkerExample]]:
    """Train a linker on a frozen model, and return the examples that it learned from.

    Args:
        reader: of the model's states.
        base: folder or hub id of the model.
        questions: see `read_examples`.
        schemas: likewise.
        config: options.
        teachings: of a larger model's linker, where `distillation` asks for them.
        cache: see `read_examples`.
        readout: likewise.
        pooled_databases: likewise.
        pool_seed: likewise.
        on_progress: likewise.

    Raises:
        InputError: there are no questions, or no teachings for them; or as `read_examples`.
    """
    examples = read_examples(
        reader,
        questions,
        schemas,
        cache=cache,
        readout=readout,
        pooled_databases=pooled_databases,
        pool_seed=pool_seed,
        on_progress=on_progress,
    )
    head = train_linker_head(examples, config, num_kinds=len(KINDS), teachings=teachings)
    return TrainedLinker(reader, head, base, readout=readout), examples


def save_teachings(folder: str | Path, head: LinkerHead, examples: Sequence[LinkerExample]) -> int:
    """Write what a head says of examples into a folder, in float16; returns the bytes.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {}
    for example in examples:
        said = teach(head, example)
        assert said.features is not None
        for name, tensor in (("m", said.maps), ("l", said.logits), ("f", said.features)):
            tensors[f"{name}:{example.key}"] = tensor.contiguous()
    path = Path(folder) / TEACHINGS_FILE
    with replacing(path) as file:
        save_file(tensors, file)
    return path.stat().st_size


def load_teachings(folder: str | Path) -> dict[str, LinkerTeaching]:
    """Read what `save_teachings` wrote.

    Raises:
        InputError: there is no such file, or a damaged one.
    """
    path = Path(folder) / TEACHINGS_FILE
    try:
        tensors = load_file(path)
        keys = [name[2:] for name in tensors if name.startswith("m:")]
        return {key: LinkerTeaching(*(tensors[f"{kind}:{key}"] for kind in "mlf")) for key in keys}
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"`teacher` is {str(folder)!r}, whose {TEACHINGS_FILE} cannot be read ({error}). Train "
            "the larger model's linker with --save_teachings on the same questions."
        ) from error


# ------------------------------------------------------------------ measuring


@dataclass(frozen=True, slots=True)
class LinkingReport:
    """How well scores tell what questions need.

    Attributes:
        num_questions: that were scored.
        pr_auc: of columns, over all questions together.
        recall_at_5: share of a question's gold columns among its 5 best, the mean.
        recall_at_10: likewise.
        strict_recall: share of questions of which all gold items stay after pruning.
        precision: share of the columns that stay which gold uses.
        kept_columns: share of columns that stay.
    """

    num_questions: int
    pr_auc: float
    recall_at_5: float
    recall_at_10: float
    strict_recall: float
    precision: float
    kept_columns: float

    def __str__(self) -> str:
        return (
            f"{self.num_questions} questions: column PR-AUC {self.pr_auc:.3f}, recall@5 "
            f"{self.recall_at_5:.3f}, @10 {self.recall_at_10:.3f}; pruned: strict recall "
            f"{self.strict_recall:.3f}, precision {self.precision:.3f}, "
            f"{self.kept_columns:.1%} of columns left"
        )


def measure_linking(
    scored: Iterable[tuple[DatabaseSchema, str, Mapping[ItemKey, float]]],
    **limits: Any,
) -> LinkingReport:
    """Measure scores of questions against their gold.

    Args:
        scored: schema, gold SQL and scores of each question.
        **limits: of `prune_schema`.

    Raises:
        InputError: there is no question whose gold uses a column.
        SQLParseError: a gold query is not one statement.
    """
    scores: list[float] = []
    labels: list[bool] = []
    at_5, at_10, strict = [], [], []
    num_right = num_kept = num_columns = 0
    for schema, sql, found in scored:
        gold = get_linking_labels(sql, schema)
        # In their order: of equal scores the first count.
        columns = [get_key(*name) for name in get_names(schema) if name[1]]
        own = {key: found.get(key, 0.0) for key in columns}
        scores += own.values()
        labels += [key in gold.columns for key in own]
        if gold.columns:
            at_5.append(recall_at(5, own, gold.columns))
            at_10.append(recall_at(10, own, gold.columns))
        pruned = prune_schema(schema, found, **limits)
        left = {(t.name.lower(), c.name.lower()) for t in pruned.tables for c in t.columns}
        tables = {t.name.lower() for t in pruned.tables}
        strict.append(gold.columns <= left and gold.tables <= tables)
        num_right += len(gold.columns & left)
        num_kept += len(left)
        num_columns += len(columns)
    if not at_5:
        raise InputError("`scored` holds no question whose gold uses a column.")
    return LinkingReport(
        len(strict),
        average_precision(scores, labels),
        sum(at_5) / len(at_5),
        sum(at_10) / len(at_10),
        sum(strict) / len(strict),
        num_right / max(num_kept, 1),
        num_kept / max(num_columns, 1),
    )


def score_questions(
    make_linker: Callable[[DatabaseSchema, Descriptions], SchemaLinker],
    questions: Sequence[Question],
    schemas: Mapping[str, DatabaseSchema],
) -> Iterable[tuple[DatabaseSchema, str, Mapping[ItemKey, float]]]:
    """Score questions, those of one database together, for `measure_linking`.

    Args:
        make_linker: of a database, such as `TrainedLinker.of` or `NameLinker`.
        questions: with gold SQL.
        schemas: by `db_id`.

    Raises:
        SQLParseError: as `label_questions`, before anything is scored.
    """
    label_questions(questions, schemas)

    def score() -> Iterator[tuple[DatabaseSchema, str, Mapping[ItemKey, float]]]:
        for db_id, asked in _group(questions).items():
            scorer = make_linker(schemas[db_id], {})
            for question in asked:
                yield schemas[db_id], question.gold_sql, scorer.score(_get_text(question), ())

    return score()


@torch.no_grad()  # type: ignore[untyped-decorator]
def score_examples(
    head: LinkerHead,
    examples: Sequence[LinkerExample],
    questions: Sequence[Question],
    schemas: Mapping[str, DatabaseSchema],
    *,
    max_block_chars: int = MAX_BLOCK_CHARS,
) -> Iterable[tuple[DatabaseSchema, str, Mapping[ItemKey, float]]]:
    """Score questions that were read already, for `measure_linking`.

    Args:
        head: a head.
        examples: of `read_examples`.
        questions: that it read.
        schemas: by `db_id`.
        max_block_chars: as in reading.
    """
    by_key = {example.key: example for example in examples}
    for db_id, asked in _group(questions).items():
        blocks = write_blocks(schemas[db_id], max_chars=max_block_chars)
        for question in asked:
            scores: dict[ItemKey, float] = {}
            for number, block in enumerate(blocks):
                example = by_key[f"{question.question_id}/{number}"]
                logits, _ = head(
                    example.items.float(),
                    example.words.float(),
                    example.kinds,
                    example.relations,
                )
                for item, score in zip(block.items, logits.sigmoid().tolist(), strict=True):
                    scores[item] = max(score, scores.get(item, 0.0))
            yield schemas[db_id], question.gold_sql, scores


def _get_text(question: Question) -> str:
    return f"{question.evidence or ''}\n{question.question}"


def _group(questions: Sequence[Question]) -> dict[str, list[Question]]:
    by_database: dict[str, list[Question]] = {}
    for question in questions:
        by_database.setdefault(question.db_id, []).append(question)
    return by_database


def _identify(reader: StateReader) -> str:
    # The same model is read in float32 on a CPU, and as it was saved on a GPU.
    weights = ((name, tensor.bfloat16()) for name, tensor in reader.last_layer.named_parameters())
    return get_weights_digest(weights)[:16]

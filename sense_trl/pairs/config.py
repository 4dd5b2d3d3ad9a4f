"""`PreferencePairConfig`: how candidates become pairs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args, get_type_hints

from sense_trl.errors import InputError
from sense_trl.options import option
from sense_trl.pairs.policies import POLICY_NAMES

SOURCES: Final = ("gold", "strong", "weak")
ANY_SOURCE: Final = "any"
# Settings of earlier versions with their values, so that what these began is continued.
_NO_LONGER_OPTIONS: Final = {"class_weights": {}, "distance": "tokens", "prefer_novel": False}


@dataclass(frozen=True, slots=True)
class PreferencePairConfig:
    """Settings of pairs: how they are chosen, and what a row holds.

    The defaults are those of SENSE's release ("grouped-any-limit1": any correct with any erroneous
    query of one question, at most one pair), with gold as the chosen side.

    Raises:
        InputError: a value is none of those above, or two exclude each other.
    """

    policy: str = option(
        "Which correct query meets which erroneous one; see `sense_trl.pairs.policies`.",
        default="grouped_any",
        choices=POLICY_NAMES,
    )
    limit: int = option(
        "Pairs per question at most; with `num_rejected` above 1, chosen queries with their group "
        "of rejected ones.",
        default=1,
    )
    chosen_sources: tuple[str, ...] = option(
        "Whose correct queries may be chosen; any for all of them. Gold is verified like any "
        "other.",
        default=("gold",),
        choices=(*SOURCES, ANY_SOURCE),
    )
    rejected_sources: tuple[str, ...] = option(
        "Whose erroneous queries may be rejected.",
        default=("weak",),
        choices=(*SOURCES[1:], ANY_SOURCE),
    )
    seed: int = option("Seed of the policy's draws and of mutants.", default=0)
    num_rejected: int = option("Rejected queries per chosen one, at most.", default=1)
    spread_rejected: bool = option(
        "Whether each rejected query has a row of its own, as `DPOTrainer` wants. Otherwise a "
        "chosen query has one row whose rejected columns are lists.",
        default=True,
    )
    deduplicate_by: Literal["text", "normal_form", "result"] = option(
        "When two queries of one side count as one: by canonical text, also by normal form, or "
        "also, for erroneous ones that ran, by what they return.",
        default="text",
    )
    completion: Literal["sql", "text"] = option(
        "Train on the query alone, or on all that the model wrote, its chain of thought included.",
        default="sql",
    )
    prompt_format: Literal["conversational", "plain"] = option(
        "Rows as lists of messages, or as strings.", default="conversational"
    )
    num_mutants: int = option(
        'Neighbours of gold to try as rejected ones (`rejected_source="mutation"`) for a question '
        "without an erroneous candidate; 0 for none.",
        default=0,
    )
    weighting: Literal["uniform", "question"] = option(
        "What `pair_weight` makes equal: every pair has the weight 1, or every question the same "
        "sum. Both have a mean of 1 over the dataset.",
        default="uniform",
    )
    classify_results: bool = option(
        "Say in `result_class` how the rows of the rejected query differ from gold's; runs both "
        "once more.",
        default=False,
    )
    repair: bool = option(
        "Build pairs of a second turn: the prompt goes on with the rejected query and what the "
        "database said of it. Only queries that fail or find no rows are rejected.",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.repair and not self.spread_rejected:
            raise InputError(
                "`repair` is true, but `spread_rejected` is not: each rejected query has a prompt "
                "of its own. Leave one of the two out."
            )
        if self.policy not in POLICY_NAMES:
            raise InputError(f"`policy` is {self.policy!r}; expected one of {POLICY_NAMES}.")
        if self.limit < 1:
            raise InputError(f"`limit` is {self.limit}; expected at least one pair per question.")
        if self.num_rejected < 1:
            raise InputError(f"`num_rejected` is {self.num_rejected}; expected at least 1.")
        if self.num_mutants < 0:
            raise InputError(f"`num_mutants` is {self.num_mutants}; expected 0 (none) or more.")
        self._check_choices()
        if "gold" in self.rejected_sources:
            raise InputError(
                "`rejected_sources` names 'gold', which is the definition of correct. Remove it."
            )
        self._expand_sources("chosen_sources", SOURCES)
        self._expand_sources("rejected_sources", SOURCES[1:])
        if self.completion == "text" and ("gold" in self.chosen_sources or self.num_mutants):
            raise InputError(
                "`completion` is 'text', but gold and mutants are bare SQL: next to whole answers "
                "they would teach the form of an answer, not the query. Leave 'gold' out of "
                "`chosen_sources` and set `num_mutants` to 0."
            )

    def as_json(self) -> dict[str, Any]:
        """All settings as plain JSON data."""
        # The default of a field that is younger than other builds is left out.
        names = [f.name for f in fields(self) if f.name != "repair" or self.repair]
        values = {name: getattr(self, name) for name in names}
        return {**_NO_LONGER_OPTIONS, **values}

    def _check_choices(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            choices = get_args(hint)
            if isinstance(value, str) and choices and value not in choices:
                raise InputError(f"`{name}` is {value!r}; expected one of {choices}.")

    def _expand_sources(self, name: str, every: tuple[str, ...]) -> None:
        sources = tuple(getattr(self, name))
        if not sources or not set(sources) <= {*every, ANY_SOURCE}:
            raise InputError(f"`{name}` is {sources!r}; expected some of {(*every, ANY_SOURCE)}.")
        if ANY_SOURCE in sources:
            # Frozen for users; here it is still being made.
            object.__setattr__(self, name, every)

"""`train_linker_head`: a head learns from labels, and from what a larger model's head says.

The language model is frozen, so its states are read once and an epoch is a few matrix products.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sense_trl.errors import InputError
from sense_trl.losses import bernoulli_kl, cam_loss, masked_mean, multi_label_loss
from sense_trl.options import option
from sense_trl.trainers.linking.head import ItemRelations, LinkerHead

logger = logging.getLogger(__name__)

DISTILLATIONS: Final = ("logits", "features", "cam", "binarized_cam")
# Labels count so much more in the distance of maps than what is no label.
_LABEL_FACTOR: Final = 3.0
# Of the learning rate, for parameters that are numbers of their own.
_FACTOR_OF_FEW: Final = 40.0
# States from which a head is initialised.
_NUM_SAMPLED: Final = 30_000


@dataclass(frozen=True, slots=True)
class LinkerExample:
    """A text behind a prefix.

    Attributes:
        key: names it.
        items: `[items, hidden]`, states of the items of the prefix, which may be shared; or several
            of each in a row, `[items, k * hidden]`.
        words: `[words, hidden]`, states of the words of the text.
        kinds: `[items]`, of each item, from 0; those of 0 are no parts of others.
        labels: `[items]`, whether the text is about it.
        relations: of the items, without a dimension for texts; its features may be float16.
    """

    key: str
    items: Tensor
    words: Tensor
    kinds: Tensor
    labels: Tensor
    relations: ItemRelations | None = None


@dataclass(frozen=True, slots=True)
class LinkerTeaching:
    """What a teacher says of an example.

    Attributes:
        maps: `[items, words]`.
        logits: `[items]`.
        features: `[words, rank]`, its projected words; `None` where they are not kept.
    """

    maps: Tensor
    logits: Tensor
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LinkerTrainingConfig:
    """How a head is trained.

    Raises:
        InputError: an option is out of its range.
    """

    num_epochs: int = option("Passes over the questions.", default=4)
    learning_rate: float = option("Of AdamW, falling to 0.", default=1e-3)
    weight_decay: float = option("Of AdamW.", default=0.1)
    batch_size: int = option("Questions of a step.", default=16)
    rank: int = option("Size in which items and words are compared.", default=128)
    dropout: float = option("Share of a state's numbers left out.", default=0.3)
    max_positive_weight: float = option(
        "What is needed counts as often as the rest, but no more than this.", default=6.0
    )
    focal: bool = option(
        "Focal loss (gamma 2, alpha 0.75) in place of weighted cross-entropy.", default=False
    )
    distillation: str | None = option(
        "What is learnt from a teacher: logits, features, cam (maps over words) or binarized_cam.",
        default=None,
        choices=DISTILLATIONS,
    )
    distillation_weight: float = option("Weight of what is learnt from a teacher.", default=1.0)
    seed: int = option("Of initial weights, order and dropout.", default=0)

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        for name in ("learning_rate", "max_positive_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"`{name}` is {value}; expected a finite number above 0.")
        for name in ("weight_decay", "distillation_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"`{name}` is {value}; expected a finite number of at least 0.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"`dropout` is {self.dropout}; expected a share in [0, 1).")
        if self.distillation not in (None, *DISTILLATIONS):
            raise InputError(
                f"`distillation` is {self.distillation!r}; expected one of "
                f"{', '.join(DISTILLATIONS)}."
            )


@torch.no_grad()  # type: ignore[untyped-decorator]
def teach(head: LinkerHead, example: LinkerExample) -> LinkerTeaching:
    """What a trained head says of an example, in float16: some kB a question."""
    items, words = example.items.float(), head.project_words(example.words.float())
    logits, maps = head.combine(head.project_items(items), words, example.kinds, example.relations)
    return LinkerTeaching(maps.half(), logits.half(), words[:, : head.rank].half())


def train_linker_head(
    examples: Sequence[LinkerExample],
    config: LinkerTrainingConfig | None = None,
    *,
    num_kinds: int | None = None,
    teachings: Mapping[str, LinkerTeaching] | None = None,
) -> LinkerHead:
    """Train a head.

    The loss of a step is the mean of `multi_label_loss` over items, apart for parts and others and
    summed, and `distillation_weight` times the mean of what is learnt from the teacher. With
    `"features"` that is the squared difference of projected words, through a projector that is
    trained along.

    Args:
        examples: at least one.
        config: options.
        num_kinds: of items; those that are there if not given.
        teachings: by the key of the example; the words of teacher and student are the same.

    Raises:
        InputError: there are no examples, or only some have relations; or `distillation` is set
            and a teaching is missing or of other items or words.
    """
    config = config or LinkerTrainingConfig()
    if not examples:
        raise InputError("`examples` is empty; a head is trained on at least one.")
    without = [example.key for example in examples if example.relations is None]
    if 0 < len(without) < len(examples):
        raise InputError(
            f"{len(without)} of {len(examples)} `examples` have no relations, such as "
            f"{without[0]!r}. Give them to all, or to none."
        )
    taught = _check_teachings(examples, config, teachings)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return _train(examples, config, num_kinds, taught)


def _train(
    examples: Sequence[LinkerExample],
    config: LinkerTrainingConfig,
    num_kinds: int | None,
    teachings: Sequence[LinkerTeaching] | None,
) -> LinkerHead:
    kinds = torch.cat([example.kinds for example in examples])
    labels = torch.cat([example.labels for example in examples])
    relations = examples[0].relations
    item_size, hidden_size = (states.shape[-1] for states in (examples[0].items, examples[0].words))
    head = LinkerHead(
        hidden_size,
        item_size=None if item_size == hidden_size else item_size,
        rank=config.rank,
        num_kinds=num_kinds or int(kinds.max()) + 1,
        num_features=0 if relations is None else relations.likeness.shape[-1],
        dropout=config.dropout,
    )
    distinct = list({id(example.items): example.items for example in examples}.values())
    head.initialize(_sample(distinct), _sample([example.words for example in examples]))
    weights = get_positive_weights(kinds, labels, config.max_positive_weight)
    groups = get_optimizer_groups(head, config)
    projector = None
    if teachings is not None and config.distillation == "features":
        assert teachings[0].features is not None, "checked before"
        # Whatever is learnt from the teacher, the seed means the same head and the same order.
        with torch.random.fork_rng():
            projector = nn.Linear(config.rank, teachings[0].features.shape[-1])
        groups[0]["params"] += projector.parameters()
    optimizer = torch.optim.AdamW(groups)
    steps_per_epoch = math.ceil(len(examples) / config.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, config.num_epochs * steps_per_epoch
    )
    for epoch in range(config.num_epochs):
        totals: dict[str, float] = {}
        for chosen in torch.randperm(len(examples)).split(config.batch_size):
            batch = [examples[i] for i in chosen.tolist()]
            own = None if teachings is None else [teachings[i] for i in chosen.tolist()]
            terms = dict(get_terms(head, batch, config, weights, own, projector))
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / steps_per_epoch
        logger.info("Epoch %d: %s", epoch + 1, {k: round(v, 4) for k, v in totals.items()})
    return head.eval()


def get_positive_weights(kinds: Tensor, labels: Tensor, largest: float) -> list[float]:
    """How much more labels count than what is none, apart for what is no part, and for parts."""
    weights = []
    for chosen in (kinds == 0, kinds > 0):
        share = labels[chosen].float().mean().clamp(min=1e-6)
        weights.append(float(((1 - share) / share).clamp(1e-3, largest)))
    return weights


def get_optimizer_groups(head: LinkerHead, config: LinkerTrainingConfig) -> list[dict[str, Any]]:
    """The parameters of a head as an optimizer takes them: K and Q, and the few others."""
    matrices, others = head.get_parameter_groups()
    rate = config.learning_rate
    return [
        {"params": matrices, "weight_decay": config.weight_decay, "lr": rate},
        {"params": others, "weight_decay": 0.0, "lr": _FACTOR_OF_FEW * rate},
    ]


def _sample(states: Sequence[Tensor]) -> Tensor:
    """Some of many states, for their distribution, in float32; drawn with the seed of the run."""
    chosen, count = [], 0
    for place in torch.randperm(len(states)).tolist():
        chosen.append(states[place].float())
        count += len(states[place])
        if count >= _NUM_SAMPLED:
            break
    return torch.cat(chosen)


def get_terms(
    head: LinkerHead,
    batch: Sequence[LinkerExample],
    config: LinkerTrainingConfig,
    weights: Sequence[float],
    teachings: Sequence[LinkerTeaching] | None,
    projector: nn.Linear | None,
) -> Iterator[tuple[str, Tensor]]:
    """The terms of the loss of a step by name, each a scalar.

    Args:
        head: that learns.
        batch: examples.
        config: what is learnt, and from what.
        weights: of `get_positive_weights`.
        teachings: of each example; none where nothing is learnt from a teacher.
        projector: of words, for features.
    """

    def pad(tensors: Sequence[Tensor], value: float = 0.0) -> Tensor:
        return pad_sequence(list(tensors), batch_first=True, padding_value=value)

    def project(projection: Callable[[Tensor], Tensor], states: Sequence[Tensor]) -> Tensor:
        """Projected before they are padded, for schemas differ in width."""
        projected = projection(torch.cat([own.float() for own in states]))
        return pad(projected.split([len(own) for own in states]))

    items = project(head.project_items, [example.items for example in batch])
    features = project(head.project_words, [example.words for example in batch])
    kinds = pad([example.kinds for example in batch], -1)
    labels = pad([example.labels for example in batch], False)
    mask = pad([e.words.new_ones(len(e.words), dtype=torch.bool) for e in batch], False)
    relations = _join([example.relations for example in batch])
    logits, maps = head.combine(items, features, kinds, relations, mask)
    for name, chosen, weight in (
        ("others", kinds == 0, weights[0]),
        ("parts", kinds > 0, weights[1]),
    ):
        losses = multi_label_loss(
            logits,
            labels,
            positive_weight=1.0 if config.focal else weight,
            focal_gamma=2.0 if config.focal else 0.0,
            focal_alpha=0.75 if config.focal else None,
        )
        yield name, masked_mean(losses, chosen)
    if teachings is None:
        return
    there = kinds >= 0
    if config.distillation == "logits":
        taught = pad([t.logits.float() for t in teachings])
        term = masked_mean(bernoulli_kl(logits, taught), there)
    elif config.distillation == "features":
        assert projector is not None
        taught = pad([t.features.float() for t in teachings if t.features is not None])
        term = masked_mean(
            (projector(features[..., : config.rank]) - taught).square().mean(-1), mask
        )
    else:
        taught = torch.zeros_like(maps)
        for row, teaching in enumerate(teachings):
            num_items, num_words = teaching.maps.shape
            taught[row, :num_items, :num_words] = teaching.maps.float()
        distances = cam_loss(
            maps, taught, mask=mask, is_binarized=config.distillation == "binarized_cam"
        )
        term = masked_mean((1 + _LABEL_FACTOR * labels.float()) * distances, there)
    yield str(config.distillation), config.distillation_weight * term


def _join(relations: Sequence[ItemRelations | None]) -> ItemRelations | None:
    """The relations of a batch out of those of each example."""
    there = [own for own in relations if own is not None]
    if not there:
        return None
    numbered = [F.pad(own.places.long(), (1, 0), value=row) for row, own in enumerate(there)]
    width = max(own.linked.shape[-1] for own in there)
    linked = [F.pad(own.linked, (0, width - own.linked.shape[-1]), value=-1) for own in there]
    return ItemRelations(
        pad_sequence([own.parents for own in there], batch_first=True),
        pad_sequence(linked, batch_first=True, padding_value=-1),
        torch.cat(numbered),
        torch.cat([own.likeness for own in there]),
    )


def _check_teachings(
    examples: Sequence[LinkerExample],
    config: LinkerTrainingConfig,
    teachings: Mapping[str, LinkerTeaching] | None,
) -> list[LinkerTeaching] | None:
    if config.distillation is None:
        return None
    found = []
    for example in examples:
        teaching = (teachings or {}).get(example.key)
        if teaching is None:
            raise InputError(
                f"`distillation` is {config.distillation!r}, but the teacher has said nothing of "
                f"{example.key!r}. Ask it about the same questions."
            )
        expected = (len(example.items), len(example.words))
        if tuple(teaching.maps.shape) != expected:
            raise InputError(
                f"The teacher's map of {example.key!r} is of {tuple(teaching.maps.shape)} items "
                f"and words, expected {expected}: it was asked about another schema or question, "
                "or read the schema in other blocks."
            )
        if config.distillation == "features" and teaching.features is None:
            raise InputError("`distillation` is 'features', but the teacher's are not kept.")
        found.append(teaching)
    return found

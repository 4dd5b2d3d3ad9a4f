"""`JointLinking`: a linker's head that learns together with the model whose states it reads.

The schema and the question, in the text that a linker reads, are further rows of a batch, of which
no token is trained: further paths of its prefix tree. One forward pass computes the model's loss
and the states that the head reads, and gradients of the head's loss flow into the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from sense_trl.collators import LINKED_TEXTS
from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.compat.dropout import evaluating
from sense_trl.trainers.linking.head import ItemRelations, LinkerHead
from sense_trl.trainers.linking.reader import MAX_BLOCK_CHARS, StateReader, average
from sense_trl.trainers.linking.saving import WEIGHTS_FILE, save_head
from sense_trl.trainers.linking.training import (
    LinkerExample,
    LinkerTrainingConfig,
    get_optimizer_groups,
    get_positive_weights,
    get_terms,
)
from sense_trl.trainers.rows.checks import get_column_names
from sense_trl.trainers.rows.token_rows import get_tokenizer
from sense_trl.trainers.sharing.prefix_sharing import has_streams

# Texts whose labels say how rare they are, and of these the ones that a head starts from.
_NUM_LABELLED: Final = 500
_NUM_READ: Final = 48


def get_joint_block_chars(max_length: int | None) -> int:
    """Characters of a block of a schema: where names are short, a token has hardly two of them."""
    return MAX_BLOCK_CHARS if max_length is None else min(MAX_BLOCK_CHARS, max_length)


class JointLinking:
    """The head of a trainer whose rows have linked texts, with all that is done with it.

    Attributes:
        head: in float32, with options of `LinkerTrainingConfig`; where the states that it reads
            are, once it has started.

    Args:
        trainer: of one process, with `args.link_weight`; its model, its tokenizer and the column
            `linked_texts` of its dataset are read: lists of texts as
            `sense_trl.steps.linking.write_linked_texts` makes them.

    Raises:
        InputError: rows are laid out in another way, the column is missing, there are several
            processes, weights are sharded, or the best checkpoint is to be loaded, which has no
            head to go back to.
        ModelError: see `StateReader`.
    """

    def __init__(self, trainer: Any) -> None:
        args = trainer.args
        obstacles = {
            "`packing` and `padding_free` lay out rows of their own": (
                args.packing or getattr(trainer, "padding_free", False)
            ),
            "the dataset is a stream": has_streams(trainer),
            f"the dataset has no column {LINKED_TEXTS!r}": (
                LINKED_TEXTS not in get_column_names(trainer.train_dataset)
            ),
            "there are several processes or GPUs": (
                trainer.accelerator.num_processes > 1 or args.n_gpu > 1
            ),
            "DeepSpeed and FSDP step and save the parameters of the model alone": (
                trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
            ),
            "`load_best_model_at_end` knows nothing of a linker": args.load_best_model_at_end,
        }
        if reason := next((name for name, is_there in obstacles.items() if is_there), None):
            raise InputError(
                f"`link_weight` is {args.link_weight}, but {reason}. Change that, or train the "
                "linker alone with `sense-trl link train`."
            )
        self._trainer = trainer
        self._config = LinkerTrainingConfig(seed=args.seed)
        model = trainer.accelerator.unwrap_model(trainer.model)
        self._reader = StateReader(model, get_tokenizer(trainer.processing_class))
        rows = trainer.train_dataset
        step = -(-len(rows) // _NUM_LABELLED)
        self._sample = [
            t for row in rows.select(range(0, len(rows), step))[LINKED_TEXTS] for t in row or ()
        ]
        if not self._sample:
            raise InputError(f"`link_weight` is {args.link_weight}, but no row has linked texts.")
        num_kinds, num_features = self._sample[0]["sizes"]
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            self.head: Final = LinkerHead(
                self._reader.hidden_size,
                rank=self._config.rank,
                num_kinds=num_kinds,
                num_features=num_features,
                dropout=self._config.dropout,
            )
        self._weights = get_positive_weights(
            torch.cat([torch.tensor(text["kinds"]) for text in self._sample]),
            torch.cat([torch.tensor(text["labels"]) for text in self._sample]),
            self._config.max_positive_weight,
        )
        self._has_started = False
        trainer.add_callback(_ZeroGradients(self.head))

    def start(self, optimizer: Any) -> None:
        """Start the head, unless it was loaded, and give it to an optimizer, once."""
        if not self._has_started:
            self._initialize()
        # Optimizers of GPUs, such as those that hold moments in 8 bits, may take nothing else.
        self.head.to(next(self._reader.last_layer.parameters()).device)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for group in get_optimizer_groups(self.head, self._config):
            if not known.intersection(map(id, group["params"])):
                optimizer.add_param_group(group)

    def _initialize(self) -> None:
        step = -(-len(self._sample) // _NUM_READ)
        items, words = [], []
        with evaluating(self._trainer.model):
            for text in self._sample[::step]:
                states = self._reader.read_row(text["input_ids"])
                items.append(average(states, text["items"]).cpu())
                words.append(average(states, text["words"]).cpu())
        self.head.initialize(torch.cat(items), torch.cat(words))
        self._has_started = True

    @contextlib.contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Within the block, states of the layer that is read are appended as the model runs.

        Raises:
            InputError: they carry no gradient.
        """
        states: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            states.append(output if isinstance(output, Tensor) else output[0])
            if not states[-1].requires_grad:
                raise InputError(
                    "`link_weight` is set, but the states of the model carry no gradient. Set "
                    "`gradient_checkpointing_kwargs` to {'use_reentrant': false}, and train "
                    f"weights of its first {self._reader.layer} layers."
                )

        handle = self._reader.last_layer.register_forward_hook(keep)
        try:
            yield states
        finally:
            handle.remove()

    def get_loss(
        self, states: Tensor, texts: Sequence[dict[str, Any]], tree: PrefixTree | None
    ) -> Tensor:
        """The head's loss of a micro-batch, a scalar on the device of the states.

        Args:
            states: of the padded batch or the tree, `[rows, tokens, hidden]`.
            texts: those of the batch, which are its last rows.
            tree: of the batch.
        """
        if tree is not None:
            nodes = tree.sequence_nodes.to(states.device)
            states = states.flatten(0, 1)[nodes[len(nodes) - len(texts) :].clamp(min=0)]
        examples = [
            _make_example(text, own)
            for text, own in zip(texts, states[len(states) - len(texts) :], strict=True)
        ]
        self.head.train()
        with torch.autocast(states.device.type, enabled=False):
            terms = get_terms(self.head, examples, self._config, self._weights, None, None)
            return torch.stack([value for _, value in terms]).sum()

    def save(self, folder: str | Path) -> None:
        """Write the head beside the model that it goes with, as `linker` takes the folder."""
        save_head(
            folder,
            self.head,
            base=".",
            layer=self._reader.layer,
            max_block_chars=get_joint_block_chars(self._trainer.args.max_length),
        )

    def load(self, folder: str | Path) -> None:
        """Go on from the head of a checkpoint.

        Raises:
            InputError: it has none.
        """
        if not (Path(folder) / WEIGHTS_FILE).is_file():
            raise InputError(
                f"`link_weight` is {self._trainer.args.link_weight}, but {str(folder)!r} holds no "
                f"{WEIGHTS_FILE}: it was trained without. Set it to 0, or train from the start."
            )
        self.head.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
        self._has_started = True


class _ZeroGradients(TrainerCallback):  # type: ignore[misc]
    """What `Trainer` does to the parameters of its model alone."""

    def __init__(self, head: LinkerHead) -> None:
        self._head = head

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._head.zero_grad()


def _make_example(text: dict[str, Any], states: Tensor) -> LinkerExample:
    """The example of a text, from the states of its tokens."""
    make = partial(torch.tensor, device=states.device)
    relations = ItemRelations(
        make(text["parents"]),
        make(text["linked"]),
        make(text["places"], dtype=torch.int32).view(-1, 2),
        make(text["likeness"]).view(-1, text["sizes"][1]),
    )
    return LinkerExample(
        "",
        average(states, text["items"]),
        average(states, text["words"]),
        make(text["kinds"]),
        make(text["labels"]),
        relations,
    )

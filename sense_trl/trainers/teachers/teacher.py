"""Teachers: what the student's distribution is compared with, as a term over a prefix tree.

A trainer sees every teacher as `get_term(tree, divergence)`, a value per trained token that the
student's head computes along with its log-probabilities. `LiveTeacher` runs a model; a
`TeacherCache` (in `teacher_cache`) reads what a model said before.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from sense_trl.errors import InputError
from sense_trl.losses.chunked import get_projection
from sense_trl.losses.divergence import Divergence
from sense_trl.losses.logprobs import scale_logits
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.compat.quantization import disable_cpu_weight_repacking
from sense_trl.trainers.compat.trl import add_fused_lm_head, use_adapter
from sense_trl.trainers.sharing.heads import (
    LogitTerm,
    add_prefix_tree_head,
    get_logit_transform,
    get_model_inputs,
    transfer_term,
)
from sense_trl.trainers.sharing.obstacles import (
    compare_with_rows,
    find_sharing_obstacle,
    is_sharded,
)


class Teacher(Protocol):
    """A source of distributions over the next token, to learn from."""

    def get_term(
        self,
        tree: PrefixTree,
        divergence: Divergence,
        *,
        temperature: float = 1.0,
    ) -> LogitTerm:
        """The divergence from this teacher at every trained node of a tree.

        Args:
            tree: of the sequences to ask about, with M trained nodes.
            divergence: of student and teacher logits, e.g. `sense_trl.losses.get_divergence(...)`.
            temperature: both models' logits are divided by it first; above 0. The result is not
                multiplied by its square.

        Returns:
            A term over this tree, see `sense_trl.trainers.sharing.heads.transfer_term` for another
            one; it may be called any number of times.
        """


def get_term_of_part(
    teacher: Teacher, tree: PrefixTree, part: slice, divergence: Divergence, *, temperature: float
) -> LogitTerm:
    """The divergence from a teacher at some of a tree's sequences, as a term over the whole tree.

    The teacher reads a tree without the others, which it is not asked about.

    Args:
        part: of the tree's sequences.
    """
    sequences, masks = tree.get_sequences()
    own = PrefixTree.from_sequences(sequences[part], masks[part])
    own = own.to(tree.target_ids.device, non_blocking=True)
    term = teacher.get_term(own, divergence, temperature=temperature)
    return transfer_term(term, own, tree, part)


class LiveTeacher:
    """A model, or an adapter of the student, that is run on every tree.

    Its backbone runs once per tree, without gradient and without dropout. Of its hidden states the
    M at nodes that predict a trained token are kept; they are projected onto the vocabulary a chunk
    at a time inside the term, in float32, next to the student's logits. There are never `[M, V]`
    logits of either model.

    The model is not wrapped: every process holds it whole, on the device where it is. Where a tree
    does not give its own values (sliding windows, other kinds of attention), it reads padded rows.

    Args:
        model: causal language model of transformers, possibly with adapters of PEFT. Without
            `adapter_name` it is put into eval mode and frozen. With it, the student's own
            PeftModel, as it was before DDP wrapped it: the named adapter teaches, and which
            adapter is active, what is trained and what is in training mode are as before once
            `get_term` returns.
        adapter_name: adapter of `model` to teach with; None for the model as it is.
        vocab_size: compare the first so many tokens only, see `check_vocabularies`; None for
            models with the same number of rows in their heads.

    Raises:
        InputError: there is no such adapter, an adapter is of prompt learning, the parameters are
            sharded by FSDP or ZeRO-3, or the logits are not those of hidden states and head.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from sense_trl.prefix_tree import PrefixTree
        >>> model = LlamaForCausalLM(
        ...     LlamaConfig(
        ...         vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...         num_attention_heads=2, num_key_value_heads=2,
        ...     )
        ... )
        >>> tree = PrefixTree.from_sequences([[1, 2, 3], [1, 2, 4]])
        >>> term = LiveTeacher(model).get_term(tree, lambda student, teacher: (student - teacher)[:, 0])
        >>> len(tree.target_ids), term(torch.zeros(3, 10), slice(0, 3)).shape
        (3, torch.Size([3]))
    """  # noqa: E501

    def __init__(
        self, model: Any, *, adapter_name: str | None = None, vocab_size: int | None = None
    ) -> None:
        self._model = model
        self._adapter_name = adapter_name
        self._vocab_size = vocab_size
        adapters = getattr(model, "peft_config", {})
        self._base = model.get_base_model() if adapters else model
        if adapter_name is not None and adapter_name not in adapters:
            raise InputError(
                f"`adapter_name` is {adapter_name!r}, but the model has the adapters "
                f"{sorted(adapters)}. Load it first: model.load_adapter(folder, {adapter_name!r})."
            )
        if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters.values()):
            raise InputError(
                "`model` has an adapter that puts virtual tokens before every row, which a teacher "
                "on prefix trees cannot. Give a model with LoRA adapters, or one without."
            )
        if any(is_sharded(parameter) for parameter in model.parameters()):
            raise InputError(
                "`model` is sharded by FSDP or DeepSpeed ZeRO-3; expected a teacher whose weights "
                "each process holds whole. Use a teacher cache, which needs no teacher while "
                "training, or load the teacher outside of them."
            )
        if adapter_name is None:
            model.eval()
            model.requires_grad_(False)
        disable_cpu_weight_repacking(model)
        with self._teaching():
            self._reads_trees = _reads_trees(model)

    def get_term(
        self,
        tree: PrefixTree,
        divergence: Divergence,
        *,
        temperature: float = 1.0,
    ) -> LogitTerm:
        """Run the teacher on `tree`; see `Teacher.get_term`.

        Raises:
            InputError: the heads of the two models have different numbers of rows, and no
                `vocab_size` was given.
        """
        get_logits = self.run(tree)

        def term(logits: Tensor, rows: slice | Tensor) -> Tensor:
            student = logits[:, : self._vocab_size]
            teacher = get_logits(rows).to(logits.device)
            if student.shape != teacher.shape:
                raise InputError(
                    f"`vocab_size` is {self._vocab_size}, but the student has {logits.shape[1]} "
                    f"tokens and the teacher {teacher.shape[1]}. Give what `check_vocabularies` "
                    "returns."
                )
            scaled = (scale_logits(logits, temperature) for logits in (student, teacher))
            return divergence(*scaled)

        return term

    def run(self, tree: PrefixTree) -> Callable[[slice | Tensor], Tensor]:
        """Run the teacher on a tree with M trained nodes.

        Returns:
            Maps indices `[C]` or a slice of the trained nodes to the float32 logits `[C, V]` that
            predict them, of the first `vocab_size` tokens.
        """
        with torch.no_grad(), self._teaching():
            is_exact = self._reads_trees or tree.rows_are_paths
            states = (self._run_on_tree if is_exact else self._run_on_rows)(tree)
            head = self._base.get_output_embeddings()
            bias = getattr(head, "bias", None)
            project = get_projection(
                head.weight[: self._vocab_size],
                None if bias is None else bias[: self._vocab_size],
                get_logit_transform(self._base.config.get_text_config()),
            )
        states = states.to(head.weight.device)
        return lambda rows: project(pick_rows(states, rows))

    @contextlib.contextmanager
    def _teaching(self) -> Iterator[None]:
        """The state in which the teacher is run; an adapter's student is restored afterwards."""
        if self._adapter_name is None:
            yield
            return
        # PEFT makes the adapter that it activates trainable, and freezes the others.
        trained = [(p, p.requires_grad) for p in self._model.parameters()]
        modes = [(module, module.training) for module in self._model.modules()]
        try:
            with use_adapter(self._model, self._adapter_name):
                self._model.eval()
                yield
        finally:
            for parameter, was_trained in trained:
                parameter.requires_grad_(was_trained)
            for module, was_training in modes:
                module.training = was_training

    def _run_on_tree(self, tree: PrefixTree) -> Tensor:
        """Hidden states `[M, H]` of the nodes that predict the trained ones."""
        inputs = get_model_inputs(self._base, tree.to(self._base.device))
        hidden = self._base.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[tree.predicting_nodes.to(hidden.device)]

    def _run_on_rows(self, tree: PrefixTree) -> Tensor:
        """The same from the sequences, one row each, padded on the right."""
        own = tree.on_host
        is_token = own.sequence_nodes >= 0
        input_ids = own.input_ids.flatten()[own.sequence_nodes.clamp(min=0)]
        is_trained = own.target_index < len(own.target_ids)
        # Any of the sequences that share a node: they agree on all tokens before it.
        places = torch.empty_like(own.target_ids)
        places[own.target_index[is_trained]] = is_trained.flatten().nonzero()[:, 0] - 1
        device = self._base.device
        hidden = self._base.base_model(
            input_ids=input_ids.to(device, non_blocking=True),
            attention_mask=is_token.long().to(device, non_blocking=True),
            use_cache=False,
        ).last_hidden_state
        return hidden.flatten(0, 1)[places.to(hidden.device, non_blocking=True)]


@contextlib.contextmanager
def saving_one_adapter(model: Any, adapter_name: str | None) -> Iterator[None]:
    """Within the block, a student that is taught by an adapter is saved without it.

    Args:
        model: the student; other adapters than the active one, such as TRL's copy of the reference,
            are left out as well.
        adapter_name: the teacher's; None changes nothing.
    """
    if adapter_name is None:
        yield
        return
    active = model.active_adapters
    # A model is saved within saving it where it is uploaded.
    before = vars(model).get("save_pretrained")
    model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=active)
    try:
        yield
    finally:
        del model.save_pretrained
        if before is not None:
            model.save_pretrained = before


def pick_rows(values: Tensor, rows: slice | Tensor) -> Tensor:
    """`values[rows]`, wherever the rows' indices are: a student may be split over devices."""
    return values[rows.to(values.device) if isinstance(rows, Tensor) else rows]


def check_vocabularies(
    student_tokenizer: Any, teacher_tokenizer: Any, sizes: tuple[int, int]
) -> int:
    """Number of tokens that the distributions of student and teacher have in common.

    The models of a family may pad their heads to different sizes (Qwen2.5: 151,936 and 152,064
    rows for 151,665 tokens). The rows beyond the tokenizer's are no tokens, and those that only one
    of the models has are left out of the comparison. That the tokens themselves are the same is
    required: a teacher that cuts text differently has no opinion on the student's tokens.

    Args:
        student_tokenizer, teacher_tokenizer: of transformers.
        sizes: rows of the student's and of the teacher's head.

    Returns:
        The smaller size: the `vocab_size` of `LiveTeacher`.

    Raises:
        InputError: a token has another id, or is missing; or a head has fewer rows than tokens.
    """
    student, teacher = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    different = sorted(
        token
        for token in student.keys() | teacher.keys()
        if student.get(token) != teacher.get(token)
    )
    if different:
        token = different[0]
        raise InputError(
            f"The teacher's tokenizer differs from the student's in {len(different)} of "
            f"{len(student)} tokens: {token!r} is {teacher.get(token)} instead of "
            f"{student.get(token)}. Distillation compares distributions over the same tokens. "
            "Choose a teacher of the student's family, or train on the teacher's answers as text "
            "(sequence-level distillation), which needs no common tokenizer."
        )
    num_tokens = max(student.values()) + 1
    if min(sizes) < num_tokens:
        raise InputError(
            f"`sizes` is {sizes}, but the tokenizer has {num_tokens} tokens, and each of them "
            "needs a row in the heads of both models. Resize the smaller model's embeddings with "
            "`resize_token_embeddings`, and train it on the new tokens first."
        )
    return min(sizes)


def _reads_trees(model: Any) -> bool:
    """True where a tree gives the model's own values; leaves its forward as it was.

    Raises:
        InputError: its own logits are others than those of its hidden states and its head.
    """
    base = model.get_base_model() if getattr(model, "peft_config", None) else model
    before = base.__dict__.get("forward")
    try:
        add_fused_lm_head(base)
        obstacle = find_sharing_obstacle(model)
        if obstacle is not None:
            add_prefix_tree_head(base)
            if reason := compare_with_rows(base, share=False):
                raise InputError(
                    f"`model` cannot teach: {reason}. Expected a causal model whose logits are its "
                    "last hidden states times the weights of its head. Merge an adapter on the "
                    "head first, with `sense-trl merge`; or choose another teacher."
                )
        return obstacle is None
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before

"""Distillation from imperfect data (KID) on TRL's `SFTTrainer`."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig

from sense_trl.chat_tokens import align_offsets
from sense_trl.collators import (
    ANSWERS,
    MASK_GROUPS,
    PREFIX_TREE,
    Answers,
    DataCollatorForAnswers,
    DataCollatorForMaskGroups,
    DataCollatorForPrefixTree,
    get_answers,
)
from sense_trl.end_tokens import get_end_token_ids, get_special_ids
from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.compat.dropout import evaluating
from sense_trl.trainers.compat.trl import FusedCausalLMOutput, unwrap_model_for_generation
from sense_trl.trainers.kid.imperfect import (
    TokenPrediction,
    choose_masked,
    get_answer,
    get_mask_groups,
    get_maskable,
    get_random,
    get_units,
)
from sense_trl.trainers.kid_config import KIDConfig
from sense_trl.trainers.options import get_checked_args
from sense_trl.trainers.rows.checks import refuse_rows
from sense_trl.trainers.sense_sft_trainer import SenseSFTTrainer
from sense_trl.trainers.sharing.heads import LogitTerm, get_vocab_size, transfer_term
from sense_trl.trainers.sharing.prefix_sharing import (
    get_checked_answers,
    log_tokens,
    require_trees,
)
from sense_trl.trainers.teacher_options import get_teacher
from sense_trl.trainers.teachers.cache import TeacherCache
from sense_trl.trainers.teachers.teacher import saving_one_adapter

logger = logging.getLogger(__name__)

MASK_SPANS = "mask_spans"
"""Dataset column with the schema items of a completion: lists of `[start, end]` in characters."""


class KIDTrainer(SenseSFTTrainer):
    """Trains a student on gold answers and on what a teacher says of imperfect copies of them.

    KID (Zhong et al., Learning from Imperfect Data: Towards Efficient Knowledge Distillation of
    Autoregressive Language Models for Text-to-SQL, arXiv 2410.11371). For each micro-batch of
    questions x and gold answers y, on the fly:

    1. *mask* a share of the answer's tokens, `mask_ratio`;
    2. *predict* them with the student: one forward without gradient over the masked answers;
    3. *rewrite* the answers with the predictions, which gives imperfect answers ŷ, as the student
       might make them, at the price of one forward instead of one per token;
    4. *train* on `mle_weight * MLE(x, y) + kd_weight * D(ŷ)`, where D is the mean over the tokens
       of ŷ of the divergence `kd_loss_type` between student and teacher, both given ŷ so far.

    Published are the reverse KL divergence, random masks and a share of 0.2; the weight of D, what
    "predict" means (the likeliest token) and the mask token are our choice, as is that special
    tokens, and what a chat template writes behind the end of an answer, are neither masked nor
    predicted. Where tokens in front of an answer are trained too, nothing says where it begins:
    such data is refused, unless the teacher is asked about gold answers only.

    All forwards run on prefix trees: the prompt is computed once for y and ŷ, and schemas once for
    all questions of a micro-batch about a database (`group_by_columns`). For models for which a
    tree is not exact, each sequence is a row. Neither model's logits ever exist as a whole.

    Both terms are sums over tokens, divided by the number of gold tokens of the optimiser's step,
    and whatever is random depends on the example, the step and `seed` alone: how examples are
    dealt into micro-batches and processes changes nothing, and a resumed run draws the same masks.
    (Answers sampled by the student, `on_policy_fraction`, do depend on the micro-batch.)

    With `imperfect_data=False` ŷ is y, ordinary distillation; `on_policy_fraction` takes answers
    that the student writes instead (GKD, arXiv 2306.13649). Evaluation is always on y: the loss of
    `evaluate` is the same sum of terms with ŷ = y, and draws nothing.

    Logged besides TRL's metrics of y: `losses/mle` and `losses/kd`, per token and before weights;
    `kid/mask_share` and `kid/effective_error_rate`, the shares of the answers' tokens that were
    masked and that differ from gold afterwards (many predictions are right); and
    `prefix_sharing/tokens_computed` and `tokens_saved`, against a padded row for each y and ŷ.

    Args:
        teacher_model: model, folder or hub id; or any object with the `get_term` of
            `sense_trl.trainers.teachers.teacher.Teacher`. None if `args` names a teacher. Its
            tokenizer must be the student's.
        args: `KIDConfig`; None takes its defaults.
        model, data_collator, train_dataset, eval_dataset, processing_class, compute_metrics,
        callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics,
        quantization_config, peft_config, formatting_func: as in `SenseSFTTrainer`.

    Raises:
        InputError: as `SenseSFTTrainer`; or there is no teacher or more than one, its tokens are
            others than the student's, the mask token is no token, the column `mask_spans` is
            missing or wrong, or the data is laid out in a way that the terms are not defined on
            (packing, images).

    Example:

    ```python
    from datasets import Dataset
    from peft import LoraConfig

    from sense_trl.trainers import KIDConfig, KIDTrainer

    schema = "singer(id, name, age)"
    answers = {
        "How many singers are there?": "SELECT COUNT(*) FROM singer",
        "Who is the oldest singer?": "SELECT name FROM singer ORDER BY age DESC LIMIT 1",
    }
    examples = Dataset.from_list(
        [
            {"db_id": "concert", "prompt": f"{schema}\\n{question}\\n", "completion": sql}
            for question, sql in answers.items()
        ]
    )
    trainer = KIDTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        teacher_model="HuggingFaceTB/SmolLM2-360M-Instruct",
        args=KIDConfig(
            output_dir="kid",
            learning_rate=2e-4,
            group_by_columns=["db_id"],
            per_device_train_batch_size=8,
            num_train_epochs=1,
            use_cpu=True,
        ),
        train_dataset=examples,
        peft_config=LoraConfig(r=64, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    ```
    """

    _tag_names = ["trl", "sft", "sense", "kid"]  # noqa: RUF012 - a list in TRL
    _name = "KID"
    _paper = {  # noqa: RUF012
        "title": "Learning from Imperfect Data: Towards Efficient Knowledge Distillation of "
        "Autoregressive Language Models for Text-to-SQL",
        "id": "2410.11371",
        "citation": textwrap.dedent("""\
            @inproceedings{zhong2024learning,
                title     = {{Learning from Imperfect Data: Towards Efficient Knowledge Distillation of Autoregressive Language Models for Text-to-SQL}},
                author    = {Qihuang Zhong and Kunfeng Chen and Liang Ding and Juhua Liu and Bo Du and Dacheng Tao},
                year      = 2024,
                booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2024},
            }"""),  # noqa: E501
    }

    args: KIDConfig

    def __init__(
        self,
        model: Any,
        teacher_model: Any = None,
        args: KIDConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Any = None,
    ) -> None:
        args = get_checked_args(args, model, KIDConfig, "KID")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
        )
        require_trees(self)
        self._teacher = get_teacher(self, teacher_model)
        if isinstance(self._teacher, TeacherCache):
            args.check_teacher_cache(self._teacher.path)
        self._divergence = args.get_kd_divergence()
        tokenizer = self.processing_class
        stops = get_end_token_ids(self.model, tokenizer)
        self._special_ids = {*get_special_ids(tokenizer), *stops}
        # Text may hold the unknown token; any other special one ends it.
        self._end_ids = self._special_ids - {tokenizer.unk_token_id}
        # Once the model is sharded its parameters may not tell.
        self._num_rows = get_vocab_size(self.accelerator.unwrap_model(self.model))
        # Not their number: some tokenizers leave ids out.
        self._num_tokens = max(tokenizer.get_vocab().values()) + 1
        self._mask_id = _get_mask_id(tokenizer, args.mask_token)
        # Every step lays out trees of its own; the collator's would only be thrown away.
        if isinstance(self.data_collator, DataCollatorForPrefixTree):
            self.data_collator = DataCollatorForAnswers(self.data_collator.collator)
        self.data_collator = DataCollatorForMaskGroups(self.data_collator)

    # ---------------------------------------------------------------------------------- data

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: KIDConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """As `SenseSFTTrainer`; find where answers begin, and the tokens of schema items."""
        dataset = super()._prepare_dataset(
            dataset, processing_class, args, packing, formatting_func, dataset_name
        )
        makes_answers = args.imperfect_data or args.on_policy_fraction > 0
        if makes_answers and dataset_name == "train" and not packing:
            dataset = self._refuse_unknown_answers(dataset)
        if args.mask_unit == "token":
            return dataset
        columns = set(dataset.column_names or next(iter(dataset)))
        if MASK_GROUPS in columns or (dataset_name != "train" and MASK_SPANS not in columns):
            return dataset
        return _add_mask_groups(dataset, dataset_name, columns, processing_class)

    def _refuse_unknown_answers(self, dataset: Any) -> Any:
        """Refuse rows of which the prompt is trained as well, wholly or by its end."""
        tokenizer = self._tokenizer
        # An answer may hold nothing but its end.
        special_ids = get_special_ids(tokenizer) - {tokenizer.unk_token_id, tokenizer.eos_token_id}

        def begins_in_prompt(ids: np.ndarray, labels: np.ndarray) -> bool:
            is_trained = labels != -100
            return bool(is_trained[0] or int(ids[is_trained.argmax()]) in special_ids)

        return refuse_rows(
            dataset,
            ("input_ids", "labels"),
            begins_in_prompt,
            lambda found: (
                f"Tokens in front of the answer are trained in {found}, so that nothing says where "
                "the answer begins, and `imperfect_data` and `on_policy_fraction` would put the "
                "prompt and the schema in doubt. Use the columns `prompt` and `completion` without "
                "`completion_only_loss=False`, or `messages` with `assistant_only_loss=True`, and "
                "a chat template that ends a prompt with what begins an answer "
                "(`add_generation_prompt`). With `imperfect_data=False` and `on_policy_fraction=0` "
                "all trained tokens are distilled as they are."
            ),
            noun="rows",
        )

    def _set_signature_columns_if_needed(self) -> None:
        # The Trainer removes every column that is not listed here.
        is_unset = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if is_unset:
            self._signature_columns.append(MASK_GROUPS)

    # ---------------------------------------------------------------------------------- loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of one micro-batch, a scalar: the two terms over one forward of the student."""
        groups = inputs.get(MASK_GROUPS)
        inputs = {key: value for key, value in inputs.items() if key != MASK_GROUPS}
        gold = get_checked_answers(inputs)
        inputs = {key: value for key, value in inputs.items() if key != ANSWERS}
        judged = self._get_judged_answers(model, gold, groups) if self.model.training else gold
        tree, rows = self._get_joint_tree(gold, judged)
        student = _GoldRows(model, tree, self._get_term(judged, tree, rows), len(gold.sequences))
        # Past `SenseSFTTrainer.compute_loss`, which would lay out a tree of the gold answers.
        result = super(SenseSFTTrainer, self).compute_loss(
            student, inputs, return_outputs, num_items_in_batch
        )
        mle, *outputs = result if return_outputs else (result,)

        kd_values = student.kd_values[rows] * tree.weights[rows, 1:]
        num_tokens = sum(gold.lengths) if num_items_in_batch is None else num_items_in_batch
        if isinstance(num_tokens, Tensor):
            kd = kd_values.sum() / num_tokens.to(kd_values.device).clamp(min=1)
        else:
            kd = kd_values.sum() / max(num_tokens, 1)
        # As TRL does to its own term: the count is that of all processes, and DDP averages.
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            kd = kd * (self.accelerator.num_processes // self.get_tp_size())
        self._log(
            {"losses/mle": -student.gold.log_probs.sum(), "losses/kd": kd_values.sum()},
            sum(gold.lengths),
        )
        if self._shares_prefixes:
            log_tokens(self, {"input_ids": tree.sequence_nodes, PREFIX_TREE: tree})
        loss = self.args.mle_weight * mle + self.args.kd_weight * kd
        return (loss, *outputs) if return_outputs else loss

    def _get_joint_tree(self, gold: Answers, judged: Answers) -> tuple[PrefixTree, slice]:
        """The tree of the gold answers and the judged ones, and which sequences are the latter.

        The weight of a judged token makes an answer weigh as much as its gold one, whatever its
        length.
        """
        if judged is gold:
            return self._get_tree(gold), slice(None)
        weights = [
            [gold_length / max(length, 1)] * len(sequence)
            for gold_length, length, sequence in zip(
                gold.lengths, judged.lengths, judged.sequences, strict=True
            )
        ]
        tree = PrefixTree.from_sequences(
            gold.sequences + judged.sequences,
            gold.is_trained + judged.is_trained,
            [[1.0] * len(sequence) for sequence in gold.sequences] + weights,
            share=self._shares_prefixes,
        )
        return tree.to(self.accelerator.device, non_blocking=True), slice(len(gold.sequences), None)

    def _get_tree(self, answers: Answers) -> PrefixTree:
        tree = PrefixTree.from_sequences(
            answers.sequences, answers.is_trained, share=self._shares_prefixes
        )
        return tree.to(self.accelerator.device, non_blocking=True)

    def _get_term(self, judged: Answers, tree: PrefixTree, rows: slice) -> LogitTerm:
        """The divergence from the teacher at the judged answers' tokens.

        The teacher reads a tree without the gold answers, which it is not asked about.
        """
        own = PrefixTree.from_sequences(judged.sequences, judged.is_trained)
        own = own.to(self.accelerator.device, non_blocking=True)
        term = self._teacher.get_term(own, self._divergence, temperature=self.args.kd_temperature)
        return transfer_term(term, own, tree, rows)

    # ----------------------------------------------------------------------- imperfect answers

    def _get_judged_answers(self, model: Any, gold: Answers, groups: Tensor | None) -> Answers:
        """What the teacher is asked about: gold, imperfect or the student's own answers."""
        judged = gold
        if self.args.imperfect_data and self.args.on_policy_fraction < 1:
            judged, masked = self._rewrite(model, gold, groups)
            self._log_errors(gold, judged, sum(map(len, masked)))
        if self.args.on_policy_fraction > 0:
            judged = self._replace_by_own(model, judged)
        return judged

    def _rewrite(
        self, model: Any, gold: Answers, groups: Tensor | None
    ) -> tuple[Answers, list[list[int]]]:
        """Mask, predict and rewrite: the imperfect answers, and where they were masked."""
        masked = self._choose_masked(model, gold, groups)
        sequences = [list(sequence) for sequence in gold.sequences]
        for sequence, positions in zip(sequences, masked, strict=True):
            for position in positions:
                sequence[position] = self._mask_id
        if self.args.fill != "mask":
            predicted = self._predict(model, sequences, masked)
            for row, positions in enumerate(masked):
                for position in positions:
                    sequences[row][position] = predicted[row][position - 1]
        return Answers(sequences, gold.is_trained), masked

    def _choose_masked(self, model: Any, gold: Answers, groups: Tensor | None) -> list[list[int]]:
        """The masked positions of each sequence."""
        confidences: list[Any] = [None] * len(gold.sequences)
        if self.args.mask_strategy in ("hard", "easy"):
            log_probs = self._run(model, self._get_tree(gold)).log_probs
            # Aligned with the tokens: nothing predicts the first.
            confidences = [[0.0, *row] for row in log_probs.tolist()]
        masked = []
        for row, (sequence, is_trained) in enumerate(
            zip(gold.sequences, gold.is_trained, strict=True)
        ):
            maskable = get_maskable(sequence, is_trained, self._special_ids, self._end_ids)
            masked.append(
                choose_masked(
                    get_units(maskable, None if groups is None else groups[row].tolist()),
                    max(1, round(self._get_mask_ratio() * len(maskable))),
                    self.args.mask_strategy,
                    self._get_random("mask", sequence),
                    confidences[row],
                )
            )
        return masked

    def _get_mask_ratio(self) -> float:
        start, end = self.args.mask_ratio, self.args.final_mask_ratio
        if end is None:
            return start
        return start + (end - start) * self.state.global_step / max(1, self.state.max_steps - 1)

    def _predict(
        self, model: Any, sequences: list[list[int]], masked: list[list[int]]
    ) -> list[list[int]]:
        """The student's tokens for the masked positions, each at the position before it."""
        is_masked = [
            [position in positions for position in range(len(sequence))]
            for sequence, positions in zip(sequences, map(set, masked), strict=True)
        ]
        tree = self._get_tree(Answers(sequences, is_masked))
        draws = None
        if self.args.fill == "sample":
            # By the text so far, not by the example: sequences that share a node share its draw.
            draws = torch.zeros(len(tree.target_ids), dtype=torch.float64)
            index = tree.on_host.target_index.tolist()
            for row, positions in enumerate(masked):
                for position in positions:
                    rng = self._get_random("fill", sequences[row][:position])
                    draws[index[row][position]] = rng.random()
        special_ids = torch.tensor(sorted(self._special_ids))
        prediction = TokenPrediction(self._num_tokens, special_ids, draws)
        (predicted,) = self._run(model, tree, [prediction]).logit_terms
        return predicted.long().tolist()

    def _run(self, model: Any, tree: PrefixTree, terms: list[LogitTerm] | None = None) -> Any:
        """The student's output on a tree, without gradient and without dropout."""
        with evaluating(model):
            return _run_on_tree(model, tree, terms or [])

    def _replace_by_own(self, model: Any, answers: Answers) -> Answers:
        """The answers, a share of them replaced by those that the student writes itself."""
        takes_own = [
            self._get_random("own", sequence).random() < self.args.on_policy_fraction
            for sequence in answers.sequences
        ]
        # All processes write something: weights that are sharded take all of them to be gathered.
        rows = [row for row, takes in enumerate(takes_own) if takes] or [0]
        prompts = [answers.get_prompt(row) for row in rows]
        sequences, is_trained = list(answers.sequences), list(answers.is_trained)
        for row, prompt, answer in zip(rows, prompts, self._write(model, prompts), strict=True):
            if takes_own[row]:
                sequences[row] = prompt + answer
                is_trained[row] = [False] * len(prompt) + [True] * len(answer)
        return Answers(sequences, is_trained)

    def _write(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        """The student's own answers to some prompts, each up to and including its end."""
        tokenizer, device = self.processing_class, self.accelerator.device
        temperature = self.args.on_policy_temperature
        end_ids = get_end_token_ids(self.model, tokenizer)
        config = GenerationConfig(
            max_new_tokens=self.args.on_policy_max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            top_k=0 if temperature > 0 else None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end_ids,
            # Rows of the head that are no tokens.
            suppress_tokens=list(range(self._num_tokens, self._num_rows)) or None,
        )
        # Rows that are continued are padded on the left.
        width = max(map(len, prompts))
        paddings = [width - len(prompt) for prompt in prompts]
        pairs = list(zip(paddings, prompts, strict=True))
        input_ids = [[tokenizer.pad_token_id] * padding + prompt for padding, prompt in pairs]
        attention_mask = [[0] * padding + [1] * len(prompt) for padding, prompt in pairs]
        rng = self._get_random("write", [token for prompt in prompts for token in prompt])
        with (
            unwrap_model_for_generation(model, self.accelerator) as unwrapped,
            _without_generation_config(unwrapped),
            evaluating(unwrapped),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(rng.getrandbits(32))
            rows = unwrapped.generate(
                input_ids=torch.tensor(input_ids, device=device),
                attention_mask=torch.tensor(attention_mask, device=device),
                generation_config=config,
            )
        return [_cut_at_end(answer, end_ids) for answer in rows[:, width:].tolist()]

    def _get_random(self, purpose: str, tokens: list[int]) -> Any:
        return get_random(purpose, self.args.seed, self.state.global_step, tokens)

    def rewrite_completions(self, rows: list[dict[str, Any]]) -> list[str]:
        """Imperfect answers to some questions as text, as the next step would make them.

        Executed, those that fail or give another result than gold are plausible rejected answers of
        the student's own making. Run it in one process, with a model that is not sharded.

        Args:
            rows: of the training dataset's format: `prompt` and `completion`, and `mask_spans` with
                `mask_unit="schema_item"`.

        Returns:
            One answer per row, without special tokens; equal to gold where no prediction differed.

        Raises:
            InputError: a row exceeds `max_length`, or `fill` is 'mask', which predicts nothing.
        """
        if self.args.fill == "mask":
            raise InputError(
                "`fill` is 'mask', expected 'argmax' or 'sample': an answer with mask tokens in it "
                "is no query."
            )
        dataset = self._prepare_dataset(
            Dataset.from_list(rows), self.processing_class, self.args, False, None, "train"
        )
        if len(dataset) < len(rows):
            raise InputError(
                f"`rows` has {len(rows) - len(dataset)} rows that exceed `max_length` "
                f"{self.args.max_length}. Leave them out, or raise it."
            )
        texts = []
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(dataset), size):
            examples = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            batch = self._prepare_inputs(self.data_collator(examples))
            rewritten, _ = self._rewrite(self.model, get_answers(batch), batch.get(MASK_GROUPS))
            for sequence, is_trained in zip(rewritten.sequences, rewritten.is_trained, strict=True):
                answer = [sequence[i] for i in get_answer(sequence, is_trained, self._end_ids)]
                texts.append(self.processing_class.decode(answer, skip_special_tokens=True))
        return texts

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with saving_one_adapter(self.model, self.args.teacher_adapter_name):
            super()._save(output_dir, state_dict)

    # --------------------------------------------------------------------------------- metrics

    def _log(self, numerators: dict[str, Any], denominator: Any) -> None:
        """Add quotients of sums over all processes to the metrics."""
        parts = [*numerators.values(), denominator]
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            tensors = [torch.as_tensor(part, dtype=torch.float32).detach() for part in parts]
            sums = torch.stack([tensor.to(device, non_blocking=True) for tensor in tensors])
            parts = list(self.accelerator.reduce(sums, "sum"))
        *numbers, total = parts
        total = total.clamp(min=1) if isinstance(total, Tensor) else max(total, 1)
        for name, number in zip(numerators, numbers, strict=True):
            self._add_metric(name, number / total)

    def _log_errors(self, gold: Answers, imperfect: Answers, num_masked: int) -> None:
        num_errors = sum(
            token != other
            for sequences in zip(gold.sequences, imperfect.sequences, strict=True)
            for token, other in zip(*sequences, strict=True)
        )
        self._log(
            {"kid/mask_share": num_masked, "kid/effective_error_rate": num_errors},
            sum(gold.lengths),
        )


# ------------------------------------------------------------------------------------ student


class _GoldRows:
    """Stands in for the model in `SFTTrainer.compute_loss`: runs it on the joint tree.

    TRL computes its loss and metrics of the gold answers from the first rows of the output; the
    rest of the output is kept.

    Args:
        model: what TRL would have been given.
        tree: of the gold answers, followed by others.
        term: the distillation term.
        num_gold: how many of the tree's sequences are gold.
    """

    def __init__(
        self, model: Callable[..., Any], tree: PrefixTree, term: LogitTerm, num_gold: int
    ) -> None:
        self._model = model
        self._tree = tree
        self._term = term
        self._num_gold = num_gold
        self.gold: Any = None
        self.kd_values: Any = None

    def __call__(self, **inputs: Any) -> Any:
        if not inputs.get("fused_lm_head"):
            # For `compute_metrics`, TRL wants the logits of the padded batch.
            return self._model(**inputs)
        output = _run_on_tree(self._model, self._tree, [self._term])
        (self.kd_values,) = output.logit_terms
        fields = ("log_probs", "entropy", "is_top1", "label_mask")
        self.gold = FusedCausalLMOutput(
            **{name: getattr(output, name)[: self._num_gold] for name in fields}
        )
        return self.gold


def _run_on_tree(model: Callable[..., Any], tree: PrefixTree, terms: list[LogitTerm]) -> Any:
    return model(
        # Read for its width alone.
        labels=torch.empty_like(tree.sequence_nodes),
        fused_lm_head=True,
        use_cache=False,
        prefix_tree=tree,
        logit_terms=terms,
    )


@contextlib.contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """`generate` fills what it is not told from the model's own settings; here it has none."""
    # The wrapper of an adapter hands its settings to the model in it.
    models = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configs = [held.generation_config for held in models]
    for held in models:
        held.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for held, config in zip(models, configs, strict=True):
            held.generation_config = config


# ------------------------------------------------------------------------------------- tokens


def _cut_at_end(answer: list[int], end_ids: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(answer) if token in end_ids), len(answer))
    return answer[: end + 1]


def _get_mask_id(tokenizer: Any, mask_token: str | None) -> int:
    """Id of the token that stands in for a masked one."""
    if mask_token is None:
        candidates = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token)
        # TRL needs a padding token too, so there is always one.
        mask_token = next(token for token in candidates if token is not None)
    if mask_token not in tokenizer.get_vocab():
        raise InputError(
            f"`mask_token` is {mask_token!r}, which is no token of the tokenizer. Name one, e.g. "
            f"{tokenizer.pad_token!r}, or leave the option out."
        )
    logger.info("Answers are masked with the token %r.", mask_token)
    return tokenizer.convert_tokens_to_ids(mask_token)


def _add_mask_groups(dataset: Any, dataset_name: str, columns: set[str], tokenizer: Any) -> Any:
    """Add the column `mask_groups`: the item that each token belongs to, -1 for none."""
    if missing := {MASK_SPANS, "prompt", "completion"} - columns:
        raise InputError(
            f"`mask_unit` is 'schema_item', but the {dataset_name} dataset has no column "
            f"{sorted(missing)}. It takes the texts and, for each row, the items of the completion "
            f"in `{MASK_SPANS}`, a list of [start, end] in characters. Add them, or set "
            "`mask_unit` to 'token'."
        )
    if not tokenizer.is_fast:
        raise InputError(
            "`mask_unit` is 'schema_item', but the tokenizer does not say which characters a token "
            "stands for. Load it with use_fast=True, or set `mask_unit` to 'token'."
        )

    def add(row: dict[str, Any]) -> dict[str, list[int]]:
        text, answer, start = _render(row, tokenizer)
        spans = row[MASK_SPANS]
        if spans is None:
            raise InputError(
                f"`{MASK_SPANS}` of {answer!r} is null, expected a list, empty where a row has no "
                "item."
            )
        for span in spans:
            if not (
                isinstance(span, list) and len(span) == 2 and 0 <= span[0] < span[1] <= len(answer)
            ):
                raise InputError(
                    f"`{MASK_SPANS}` has {span}, expected [start, end] within the completion's "
                    f"{len(answer)} characters: {answer!r}."
                )
        is_text = isinstance(row["prompt"], str)
        encoded = tokenizer(text, add_special_tokens=is_text, return_offsets_mapping=True)
        offsets = align_offsets(tokenizer, text, encoded, row["input_ids"])
        if offsets is None:
            raise InputError(
                f"`mask_unit` is 'schema_item', but prompt and completion of a row of the "
                f"{dataset_name} dataset give other tokens than its `input_ids`: {answer!r}. Leave "
                "`input_ids` out, or set `mask_unit` to 'token'."
            )
        shifted = [[start + first, start + last] for first, last in spans]
        return {MASK_GROUPS: get_mask_groups(offsets, shifted)}

    return dataset.map(add)


def _render(row: dict[str, Any], tokenizer: Any) -> tuple[str, str, int]:
    """The text that TRL tokenises, the answer in it, and where the answer begins."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return prompt + completion, completion, len(prompt)
    text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
    answer = completion[-1]["content"]
    start = text.rfind(answer)
    if start < 0:
        raise InputError(
            f"`mask_unit` is 'schema_item', but the chat template changes the answer {answer!r}. "
            "Set `mask_unit` to 'token'."
        )
    return text, answer, start

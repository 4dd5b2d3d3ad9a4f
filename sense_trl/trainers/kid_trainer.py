"""Distillation from imperfect data (KID) on TRL's `SFTTrainer`."""

from __future__ import annotations

import textwrap
from typing import Any

from datasets import Dataset
from torch import Tensor

from sense_trl.collators import (
    ANSWERS,
    MASK_GROUPS,
    Answers,
    DataCollatorForAnswers,
    DataCollatorForMaskGroups,
    get_answers,
)
from sense_trl.errors import InputError
from sense_trl.trainers.kid.imperfect import get_answer
from sense_trl.trainers.kid.mask_spans import MASK_SPANS, add_mask_groups
from sense_trl.trainers.kid.own_answers import AnswerWriter
from sense_trl.trainers.kid.rewriter import AnswerRewriter
from sense_trl.trainers.kid.student import GoldRows, lay_out_jointly
from sense_trl.trainers.kid.tokens import StudentTokens, refuse_unknown_answers
from sense_trl.trainers.kid_config import KIDConfig
from sense_trl.trainers.options import get_checked_args
from sense_trl.trainers.rows.checks import get_column_names
from sense_trl.trainers.rows.token_rows import get_tokenizer
from sense_trl.trainers.sft_base import BaseSFTTrainer
from sense_trl.trainers.sharing.heads import get_vocab_size
from sense_trl.trainers.sharing.prefix_sharing import (
    get_checked_answers,
    has_streams,
    require_trees,
)
from sense_trl.trainers.teachers.cache import TeacherCache
from sense_trl.trainers.teachers.choice import get_teacher
from sense_trl.trainers.teachers.teacher import get_term_of_part


class KIDTrainer(BaseSFTTrainer):
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
    _own_columns = (MASK_GROUPS,)

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
        self._tokens = StudentTokens.read(self.model, tokenizer, args.mask_token)
        self._rewriter = AnswerRewriter(args, self._tokens, self.prefix_sharing.lay_out)
        # Once the model is sharded its parameters may not tell.
        num_rows = get_vocab_size(self.accelerator.unwrap_model(self.model))
        unused_ids = range(self._tokens.num_tokens, num_rows)
        self._writer = AnswerWriter(args, tokenizer, self.accelerator, unused_ids)

    def _wrap_collator(self, collator: Any) -> Any:
        # Every step lays out trees of its own; the collator's would only be thrown away.
        if not has_streams(self):
            collator = DataCollatorForAnswers(collator)
        return DataCollatorForMaskGroups(collator)

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
            dataset = refuse_unknown_answers(dataset, get_tokenizer(processing_class))
        if args.mask_unit == "token":
            return dataset
        columns = get_column_names(dataset)
        if MASK_GROUPS in columns or (dataset_name != "train" and MASK_SPANS not in columns):
            return dataset
        return add_mask_groups(dataset, dataset_name, columns, processing_class)

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
        tree, rows = lay_out_jointly(self.prefix_sharing.lay_out, gold, judged)
        term = get_term_of_part(
            self._teacher, tree, rows, self._divergence, temperature=self.args.kd_temperature
        )
        student = GoldRows(model, tree, term, len(gold.sequences))
        result = super().compute_loss(student, inputs, return_outputs, num_items_in_batch)
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
        self._add_ratios(
            {"losses/mle": -student.gold.log_probs.sum(), "losses/kd": kd_values.sum()},
            sum(gold.lengths),
        )
        self.prefix_sharing.log_tokens(tree.sequence_nodes, tree)
        loss = self.args.mle_weight * mle + self.args.kd_weight * kd
        return (loss, *outputs) if return_outputs else loss

    # ----------------------------------------------------------------------- imperfect answers

    def _get_judged_answers(self, model: Any, gold: Answers, groups: Tensor | None) -> Answers:
        """Answers that the teacher is asked about: gold, imperfect or the student's own."""
        judged = gold
        if self.args.imperfect_data and self.args.on_policy_fraction < 1:
            judged, masked = self._rewriter.rewrite(model, gold, groups, self.state)
            self._log_errors(gold, judged, sum(map(len, masked)))
        if self.args.on_policy_fraction > 0:
            judged = self._writer.replace(model, judged, self.state.global_step)
        return judged

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
                "`fill` is 'mask'; expected 'argmax' or 'sample': an answer with mask tokens in it "
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
            batch = self.data_collator(examples)
            gold, groups = get_answers(batch), batch.get(MASK_GROUPS)
            rewritten, _ = self._rewriter.rewrite(self.model, gold, groups, self.state)
            for sequence, is_trained in zip(rewritten.sequences, rewritten.is_trained, strict=True):
                answer = [
                    sequence[i] for i in get_answer(sequence, is_trained, self._tokens.end_ids)
                ]
                texts.append(self.processing_class.decode(answer, skip_special_tokens=True))
        return texts

    def _log_errors(self, gold: Answers, imperfect: Answers, num_masked: int) -> None:
        num_errors = sum(
            token != other
            for sequences in zip(gold.sequences, imperfect.sequences, strict=True)
            for token, other in zip(*sequences, strict=True)
        )
        self._add_ratios(
            {"kid/mask_share": num_masked, "kid/effective_error_rate": num_errors},
            sum(gold.lengths),
        )

"""`ExecutionAccuracyCallback`: execution accuracy on held-out questions while a model trains."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from sense_trl.errors import InputError, ModelError
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.prompts import Messages, extract_sql
from sense_trl.questions import Question
from sense_trl.verification.verifier import SQLVerifier, Verdict


class ExecutionAccuracyCallback(TrainerCallback):  # type: ignore[misc]
    """Lets the model answer held-out questions, executes the answers and logs how many are right.

    Answers are generated, never read from logits of gold, so the number is what users will see.
    Logged are `eval_execution_accuracy` and `eval_undetermined_share` (shares in [0, 1]) and
    `eval_execution_runtime` (seconds of generation and execution).

    By default it runs at every evaluation of the trainer and adds its metrics to the trainer's:
    `metric_for_best_model="execution_accuracy"`, `save_strategy="best"` and
    `load_best_model_at_end=True` work, and so does `EarlyStoppingCallback`, if it is added after
    this callback (callbacks run in the order in which they were added; those handed to the
    trainer's constructor come first). With several evaluation data sets the questions are answered
    once per step. With `every_n_steps` it runs after every n-th optimizer step instead, needs no
    evaluation data set, and its metrics are logged but cannot choose a model.

    Training goes on as if nothing had happened, to the bit: the states of the random generators
    (Python, NumPy, torch) and the training mode of every module are put back, weights are only
    read. Memory for the answers comes on top of the optimizer's; `batch_size` bounds it.

    With several processes (DDP, DeepSpeed stages 1 and 2) the main process answers with its own
    copy of the weights; the others wait and get the metrics, so that all choose the same model.
    They wait at most `ddp_timeout` seconds (1,800 by default). An error in the main process ends
    all. Weights that are split over processes (FSDP, DeepSpeed stage 3, tensor parallelism) cannot
    be read by one of them and are refused.

    Args:
        trainer: the trainer; `trainer.add_callback(callback)` is still to be called.
        questions: held-out questions. Some 100 take a small model seconds; a random sample of as
            many has a standard error of up to 5 points.
        verifier: executes and compares.
        get_messages: builds the prompt of a question, as the training data's were built.
        every_n_steps: run after so many optimizer steps, instead of at evaluations.
        sampling: one answer per question, greedy unless told otherwise.
        batch_size: answers written at the same time by the trained model.
        generator: writes the answers instead of the trained model, for weights that are served
            elsewhere (vLLM). It has to see to it that it uses the current ones.

    Attributes:
        report: the last evaluation, question by question; `None` before the first and on other
            processes than the main one.

    Raises:
        InputError: no questions, several samples per question, `every_n_steps` below 1, or
            weights split over processes.
        ModelError: the trainer's tokenizer has no usable chat template.

    Example:
        callback = ExecutionAccuracyCallback(
            trainer, questions, SQLVerifier(catalog), task.get_messages
        )
        trainer.add_callback(callback)
    """

    def __init__(
        self,
        trainer: Any,
        questions: Sequence[Question],
        verifier: SQLVerifier,
        get_messages: Callable[[Question], Messages],
        *,
        every_n_steps: int | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int = 32,
        generator: SQLGenerator | None = None,
    ) -> None:
        if not questions:
            raise InputError("`questions` is empty; there is nothing to evaluate on.")
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"`every_n_steps` is {every_n_steps}; expected at least 1, or None.")
        self._sampling = sampling or SamplingConfig()
        if self._sampling.num_generations != 1:
            raise InputError(
                f"`sampling.num_generations` is {self._sampling.num_generations}; execution "
                "accuracy is about one answer per question."
            )
        if generator is None:
            _refuse_split_weights(trainer)
            generator = TransformersGenerator(
                trainer.model, trainer.processing_class, batch_size=batch_size
            )
        self.report: EvaluationReport | None = None
        self._trainer = trainer
        self._questions = tuple(questions)
        self._verifier = verifier
        self._get_messages = get_messages
        self._every_n_steps = every_n_steps
        self._generator = generator
        # Step and metrics of the last evaluation of the training that runs.
        self._last: tuple[int, dict[str, float]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what another training has measured at the same step."""
        self._last = None

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Add the metrics to those of the trainer's evaluation."""
        if self._every_n_steps is not None:
            return
        # The weights change between steps, and outside of training as the caller likes.
        if self._last is None or self._last[0] != state.global_step or not self._is_training:
            self._last = state.global_step, self._evaluate(control)
        metrics.update(self._last[1])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate after every n-th step."""
        if self._every_n_steps is not None and state.global_step % self._every_n_steps == 0:
            self._evaluate(control)

    @property
    def _is_training(self) -> bool:
        return bool(self._trainer.is_in_train)

    def _evaluate(self, control: Any) -> dict[str, float]:
        """Measure, log and return the metrics."""
        # Other processes learn of a failure, instead of waiting for numbers that never come.
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        with _left_as_it_was(self._trainer.model):
            if self._trainer.accelerator.is_main_process:
                try:
                    outcome[0] = self._measure()
                except Exception as error:
                    failure, outcome[1] = error, f"{type(error).__name__}: {error}"
            broadcast_object_list(outcome)
            if failure is not None:
                raise failure
            metrics, message = outcome
            if message is not None:
                raise ModelError(f"The evaluation in the main process failed ({message}).")
            # A trainer's log ends the turn of its own, and TRL's adds the metrics it has gathered
            # in the mode that the model is in: those of training are not due.
            self._trainer.model.eval()
            should_log = control.should_log
            self._trainer.log(dict(metrics))
            control.should_log = should_log
        return dict(metrics)

    def _measure(self) -> dict[str, float]:
        started = time.perf_counter()
        prompts = [self._get_messages(question) for question in self._questions]
        completions = self._generator.generate(prompts, self._sampling)
        predictions = {
            question.question_id: extract_sql(completion.text)
            for question, (completion,) in zip(self._questions, completions, strict=True)
        }
        report = evaluate_sql(self._questions, predictions, self._verifier)
        self.report = report
        undetermined = report.count(Verdict.UNDETERMINED)
        return {
            "eval_execution_accuracy": report.execution_accuracy,
            "eval_undetermined_share": undetermined / len(self._questions),
            "eval_execution_runtime": time.perf_counter() - started,
        }


def _refuse_split_weights(trainer: Any) -> None:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    split = {
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed stage 3": plugin is not None and plugin.zero_stage == 3,
        "tensor parallelism": getattr(trainer.model, "tp_size", None) not in (None, 1),
    }
    for name, is_split in split.items():
        if is_split:
            raise InputError(
                f"`trainer` splits the weights over processes ({name}), so that no process can "
                "answer alone. Hand over a `generator`, or evaluate saved checkpoints."
            )


@contextmanager
def _left_as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Undo what the block does to the modules' training mode and to random generators."""
    modes = {module: module.training for module in model.modules()}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes.items():
            module.training = training

"""Online preference training (GRPO) on prefix trees, on TRL's `GRPOTrainer`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from sense_trl.chat_tokens import apply_chat_template
from sense_trl.decoding.decoder import PrefixDecoder
from sense_trl.decoding.sampling import SamplingConfig
from sense_trl.decoding.shared_prefix import supports_shared_prefix
from sense_trl.end_tokens import get_end_token_ids
from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree, get_common_length
from sense_trl.trainers.base import SenseTrainer
from sense_trl.trainers.compat.autocast import converting_once
from sense_trl.trainers.compat.dropout import evaluating
from sense_trl.trainers.compat.trl import split_tensor_dict, unwrap_model_for_generation
from sense_trl.trainers.held_date import hold_template_date
from sense_trl.trainers.options import get_checked_args
from sense_trl.trainers.rows.checks import check_datasets
from sense_trl.trainers.rows.formats import prepare_chat_template
from sense_trl.trainers.rows.token_rows import get_tokenizer
from sense_trl.trainers.sense_grpo_config import SenseGRPOConfig
from sense_trl.trainers.sharing.grouped_sampler import (
    GroupedSampler,
    SetSamplerEpoch,
    build_grouped_sampler,
)
from sense_trl.trainers.sharing.rollout_sampler import RolloutSampler

logger = logging.getLogger(__name__)

# Where generation stands, beside the state of the random numbers of each process.
_ROLLOUTS = "rollouts"
# More than a chat template puts around messages.
_MAX_TEMPLATE_TOKENS = 256
# Of equal rewards a mean in float32 may leave so much.
_NO_ADVANTAGE = 1e-6


class SenseGRPOTrainer(SenseTrainer, GRPOTrainer):  # type: ignore[misc]
    """TRL's `GRPOTrainer` that reads every prompt once: to write, and in each of its models.

    The completions of a prompt begin with the same tokens, a schema and a question, and so do all
    prompts on one database. TRL computes them again for every completion, in generation, the old
    policy, the reference and the loss.

    * With `prefix_sharing` the log-probabilities of policy, old policy and reference come from one
      prefix tree per micro-batch. Completions of a prompt stay in one micro-batch, where TRL
      shuffles all of them, and prompts that begin alike are in the same one; `group_by_columns`
      draws prompts on one database together. Which completions make an optimizer step does not
      change as long as `steps_per_generation` is `gradient_accumulation_steps`, its default; with
      more, a step learns from fewer prompts.
    * With `share_generation` completions are written with one prefill per prompt, all of them in
      one batch, by the weights and adapters that are trained, in evaluation mode.
    * Groups that teach nothing are counted: `groups/without_signal` is the share of those whose
      rewards are all equal, `groups/undetermined` that of completions which no reward function
      could judge; they get no advantage. A micro-batch of such completions alone is not computed
      where its gradient is zero (`beta` 0, no entropy bonus, one process); TRL's metrics of the
      loss, `entropy` among them, are then those of the others.
    * A checkpoint holds the completions that are still to be learned from (`num_iterations`,
      `steps_per_generation`), and the order of prompts is a function of seed and epoch, so that a
      run that is resumed goes on as one that was not interrupted.
    * Adapters of quantised models are stored in float32, and 4-bit models on a CPU are kept from
      bitsandbytes' in-place repacking.

    Everything else is TRL's: losses, importance sampling, masks, metrics, rewards, vLLM, tools.
    With `prefix_sharing=False` it is TRL's computation.

    Args:
        args: `SenseGRPOConfig`; None takes its defaults.
        model, reward_funcs, train_dataset, eval_dataset, processing_class,
        reward_processing_classes, callbacks, optimizers, quantization_config, peft_config, tools,
        rollout_func, environment_factory: as in `trl.GRPOTrainer`.

    Raises:
        InputError: `args` is not a `SenseGRPOConfig`, a dataset has no rows or prompts,
            `prefix_sharing` is True where it is not exact, or a column to group by is missing.

    Example:

    ```python
    from datasets import Dataset
    from peft import LoraConfig

    from sense_trl.rewards import get_sql_execution_reward
    from sense_trl.trainers import SenseGRPOConfig, SenseGRPOTrainer

    questions = Dataset.from_list(
        [
            {
                "prompt": "singer(id, name, age)\\nHow many singers are there?\\n",
                "db_id": "concert_singer",
                "gold_sql": "SELECT COUNT(*) FROM singer",
            },
        ]
    )
    trainer = SenseGRPOTrainer(
        model="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        reward_funcs=get_sql_execution_reward("spider/database"),
        args=SenseGRPOConfig(
            output_dir="sense-grpo",
            num_generations=8,
            per_device_train_batch_size=8,
            max_completion_length=128,
            learning_rate=1e-5,
            use_cpu=True,
        ),
        train_dataset=questions,
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    ```
    """

    _tag_names = ["trl", "grpo", "sense"]  # noqa: RUF012 - TRL declares it as an instance-level list
    _name = "SENSE GRPO"

    args: Any
    # Of TRL's trainer; replaced here.
    _buffered_inputs: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: SenseGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
    ) -> None:
        args = get_checked_args(args, model, SenseGRPOConfig, "SenseGRPO")
        # An environment may own the data.
        if environment_factory is None:
            check_datasets(train_dataset, eval_dataset, (("prompt",),))
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        tokenizer = get_tokenizer(self.processing_class)
        if prepare_chat_template(self.train_dataset, tokenizer, fold=args.fold_system_message):
            hold_template_date(args, tokenizer)
        self._shares_generation = self._decide_generation()
        self._check_prompts()

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _wrap_collator(self, collator: Any) -> Any:
        # Batches are made of completions, after collation; what is decided is whether trees are.
        _ = self.prefix_sharing
        return collator

    def _decide_generation(self) -> bool:
        """Whether completions are written with shared prefixes; the reason is logged if not."""
        args = self.args
        if args.use_vllm or self.rollout_func is not None:
            return False
        if not args.share_generation or args.prefix_sharing is False:
            return False
        model = self.accelerator.unwrap_model(self.model)
        obstacles = {
            "`use_transformers_continuous_batching` is set": (
                self.use_transformers_continuous_batching
            ),
            "`max_completion_length` is None": args.max_completion_length is None,
            "`generation_kwargs` are given": bool(args.generation_kwargs),
            "`cache_implementation` is set": args.cache_implementation is not None,
            "`top_k` is set": bool(args.top_k),
            "`min_p` is set": bool(args.min_p),
            "`repetition_penalty` is not 1": args.repetition_penalty not in (None, 1.0),
            "the weights are sharded over processes": self._is_sharded,
            "the model also reads images": self._is_vlm,
            f"models of type {model.config.model_type!r} cannot be decoded behind prefixes": (
                not supports_shared_prefix(model)
            ),
        }
        obstacle = next((reason for reason, is_there in obstacles.items() if is_there), None)
        if obstacle is None:
            return True
        if args.prefix_sharing is True:
            raise InputError(
                "`prefix_sharing` is True, but completions cannot be written with shared prefixes: "
                f"{obstacle}. Set `share_generation` to False to write them as TRL does, or "
                "`prefix_sharing` to 'auto'."
            )
        logger.warning("Completions are written without shared prefixes: %s.", obstacle)
        return False

    # ------------------------------------------------------------------------------- batches

    def _make_grouped_sampler(self) -> GroupedSampler | None:
        return build_grouped_sampler(self.train_dataset, self.args, self.args.prompts_per_group)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        args = self.args
        sampler = RolloutSampler(
            order=self._grouped_sampler,
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=args.prompts_per_generation,
            repeat_count=self.num_iterations * args.steps_per_generation,
            shuffle=self.shuffle_dataset and self._grouped_sampler is None,
            seed=args.seed,
        )
        self.add_callback(SetSamplerEpoch(sampler))
        return sampler

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The micro-batch to learn from, as TRL has it, with like completions beside each other."""
        if not (self.prefix_sharing.is_on and self.model.training):
            return super()._prepare_inputs(generation_batch)
        num_parts = self.args.steps_per_generation
        if self._step % (num_parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = _split_by_prompt(batch, num_parts)
        return self._buffered_inputs[self._step % num_parts]

    # ------------------------------------------------------------------------------ generation

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """TRL's tokens of prompts, in which no text from data becomes a control token."""
        is_chat = isinstance(prompts[0], list)
        if not is_chat or self._is_vlm or self.tools or self.environment_factories is not None:
            return super()._tokenize_prompts(prompts)
        ids = apply_chat_template(
            self.processing_class,
            prompts,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self.chat_template_kwargs,
        )["input_ids"]
        return ids, None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> Any:
        """Completions of prompts, those of one prompt beside each other, as token ids."""
        if not self._shares_generation or images is not None or multimodal_fields:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        keys = [tuple(ids) for ids in prompt_ids]
        self._check_context(max(map(len, keys)))
        # From the random numbers that a checkpoint keeps, other ones in each process.
        seed = int(torch.randint(2**62, ()))
        written: dict[tuple[int, ...], Iterator[list[int]]] = {}
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            evaluating(model),
            converting_once(model, self.accelerator.autocast()),
        ):
            end_ids = [*dict.fromkeys([*self.eos_token_ids, *get_end_token_ids(model)])]
            decoder = PrefixDecoder(model, end_ids, batch_size=len(keys), name=model.name_or_path)
            counts = Counter(keys)
            # A process may hold a part of a group.
            for count in sorted({*counts.values()}):
                prompts = [key for key, number in counts.items() if number == count]
                sampling = SamplingConfig(
                    num_generations=count,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    max_new_tokens=self.max_completion_length,
                    seed=seed,
                )
                found = decoder.write([[*key] for key in prompts], [*map(str, prompts)], sampling)
                written |= zip(prompts, map(iter, found), strict=True)
        return [next(written[key]) for key in keys], None

    def _check_prompts(self) -> None:
        """Refuse prompts that leave no room to answer, before anything is computed."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        dataset, room = self.train_dataset, self.max_completion_length
        if None in (limit, room) or self._is_vlm or self.environment_factories is not None:
            return
        if not hasattr(dataset, "__len__"):
            return
        # A token has a byte at least, so that few prompts have to be counted, if any.
        suspects = [
            (row, prompt)
            for row, prompt in enumerate(dataset["prompt"])
            if not prompt or len(str(prompt).encode()) + _MAX_TEMPLATE_TOKENS + room > limit
        ]
        lengths = {row: len(self._tokenize_prompts([prompt])[0][0]) for row, prompt in suspects}
        empty = [row for row, length in lengths.items() if not length]
        if empty:
            raise InputError(
                f"`prompt` of `train_dataset` is empty in {len(empty)} of {len(dataset)} rows, the "
                f"first of which is row {empty[0]}: nothing is there to be completed. Fill them "
                "in, or leave such rows out."
            )
        long = [row for row, length in lengths.items() if length + room > limit]
        if long:
            raise InputError(
                f"{len(long)} of {len(dataset)} prompts leave no room for `max_completion_length` "
                f"{room} within the {limit} tokens that the model can read: the first is that of "
                f"row {long[0]}, with {lengths[long[0]]} tokens. Use a shorter schema style, "
                "shorter completions, or leave such prompts out."
            )

    def _check_context(self, longest: int) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and longest + self.max_completion_length > limit:
            raise InputError(
                f"A prompt has {longest} tokens; with `max_completion_length` "
                f"{self.max_completion_length} it exceeds the {limit} tokens that the model can "
                "read. Use a shorter schema style, shorter completions, or leave such prompts out."
            )

    # ----------------------------------------------------------------------------- the forward

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        """TRL's loss, without a forward pass where no completion has an advantage."""
        if self._teaches_nothing(inputs):
            # Zeros as gradients, as TRL gets them: a step decays weights and momenta all the same.
            return sum(
                0.0 * parameter.sum() for parameter in model.parameters() if parameter.requires_grad
            )
        return super()._compute_loss(model, inputs)

    def _teaches_nothing(self, inputs: Any) -> bool:
        """Whether the loss of a micro-batch and its gradient are zero, by its advantages alone."""
        has_other_terms = self.beta != 0.0 or self._entropy_bonus_enabled or self.aux_loss_enabled
        # Several processes reduce their gradients behind a forward pass of each.
        is_alone = self.accelerator.num_processes == 1
        return (
            self.prefix_sharing.is_on
            and self.model.training
            and is_alone
            and not self._is_sharded
            and not has_other_terms
            and bool(inputs["advantages"].abs().max() < _NO_ADVANTAGE)
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities of completions and their entropies, `[B, C]`, from prefix trees.

        Args:
            model: policy or reference, wrapped or not.
            input_ids, attention_mask: `[B, P + C]`, prompts padded on the left and completions on
                the right.
            logits_to_keep: C.
            batch_size: rows that may be held at a time; as many are taken as their tree has no more
                positions than so many rows.
            compute_entropy: whether entropies are wanted, with a gradient where there is a bonus.
            compute_aux_loss, images: of models that trees are not made for.
        """
        is_plain = not compute_aux_loss and all(value is None for value in images.values())
        if not (self.prefix_sharing.is_on and is_plain):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **images,
            )
        sequences, is_trained = _get_sequences(input_ids, attention_mask, logits_to_keep)
        has_bonus = compute_entropy and self._entropy_bonus_enabled
        logps, entropies = [], []
        num_positions = None if batch_size is None else batch_size * input_ids.size(1)
        for rows in _get_chunks(sequences, num_positions):
            tree = PrefixTree.from_sequences(
                sequences[rows],
                is_trained[rows],
                pad_to_multiple_of=self.prefix_sharing.row_multiple,
            ).to(input_ids.device, non_blocking=True)
            if torch.is_grad_enabled():
                self.prefix_sharing.log_tokens(input_ids[rows], tree)
            with self.accelerator.autocast():
                output = model(
                    input_ids=input_ids[rows],
                    attention_mask=attention_mask[rows],
                    labels=input_ids[rows],
                    fused_lm_head=True,
                    prefix_tree=tree,
                    logit_temperature=self.temperature,
                    logit_terms=[_get_entropy] if has_bonus else [],
                    token_metrics=["entropy"] if compute_entropy and not has_bonus else [],
                )
            # Sequences of a tree begin with their prompts; completions of a batch, in one column.
            prompt_lengths = attention_mask[rows, :-logits_to_keep].sum(1, keepdim=True)
            places = prompt_lengths - 1 + torch.arange(logits_to_keep, device=input_ids.device)
            logps.append(output.log_probs.gather(1, places))
            if compute_entropy:
                entropy = output.logit_terms[0] if has_bonus else output.entropy
                entropies.append(entropy.gather(1, places))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    # -------------------------------------------------------------------------------- rewards

    def _calculate_rewards(self, *args: Any) -> Any:
        """TRL's rewards, `[N, F]` of all processes; what has no advantage of them is counted."""
        # TRL warns of every completion that is undetermined, with its whole row. They are counted.
        warnings = logging.getLogger(GRPOTrainer.__module__)
        warnings.addFilter(_is_no_open_completion)
        try:
            rewards: Tensor = super()._calculate_rewards(*args)
        finally:
            warnings.removeFilter(_is_no_open_completion)
        self._check_rewards(rewards)
        is_training = self.model.training
        size = self.num_generations if is_training else self.num_generations_eval
        weights = self.reward_weights.to(rewards.device)
        is_open = rewards.isnan().all(dim=1)
        groups = (rewards * weights).nansum(1).view(-1, size)
        is_open_in = is_open.view(-1, size)
        highest = groups.masked_fill(is_open_in, -torch.inf).amax(1)
        lowest = groups.masked_fill(is_open_in, torch.inf).amin(1)
        # Lowest above highest: there is none.
        self._add_metric("groups/without_signal", (lowest >= highest).float().mean())
        self._add_metric("groups/undetermined", is_open.float().mean())
        return rewards

    def _check_rewards(self, rewards: Tensor) -> None:
        """Refuse what would make every advantage of a group, and then the weights, NaN."""
        endless = rewards.isinf().any(dim=0).nonzero()
        if len(endless):
            raise InputError(
                f"The reward function {self.reward_func_names[int(endless[0])]!r} returned an "
                "infinite reward; expected a finite number, or None where nothing can be said. The "
                "last checkpoint is as it was."
            )

    # ---------------------------------------------------------------------------- checkpoints

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        generated = self.args.steps_per_generation * self.num_iterations
        is_open = self._step % generated != 0
        state = {"step": self._step, "inputs": self._buffered_inputs if is_open else None}
        torch.save(state, self._get_rollouts(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or not (path := self._get_rollouts(checkpoint)).is_file():
            return
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self._step, self._buffered_inputs = state["step"], state["inputs"]

    def _get_rollouts(self, folder: str) -> Path:
        return Path(folder) / f"{_ROLLOUTS}_{self.args.process_index}.pt"


def _is_no_open_completion(record: logging.LogRecord) -> bool:
    # Behind the rank of the process.
    return "All reward functions returned None" not in record.getMessage()


def _get_sequences(
    input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
) -> tuple[list[Any], list[Any]]:
    """Token ids of rows without padding, and which of them are of completions."""
    ids, is_token = input_ids.numpy(force=True), attention_mask.numpy(force=True).astype(bool)
    is_completion = is_token.copy()
    is_completion[:, :-logits_to_keep] = False
    pairs = [*zip(ids, is_completion, is_token, strict=True)]
    return [row[kept] for row, _, kept in pairs], [trained[kept] for _, trained, kept in pairs]


def _get_chunks(sequences: list[Any], num_positions: int | None) -> list[slice]:
    """Runs of sequences whose trees have at most so many positions; all of them for None."""
    starts, size = [0], len(sequences[0])
    for index in range(1, len(sequences)):
        own = sequences[index]
        size += len(own) - get_common_length(sequences[index - 1], own)
        if num_positions is not None and size > num_positions:
            starts.append(index)
            size = len(own)
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(sequences)], strict=True)]


def _split_by_prompt(batch: dict[str, Any], num_parts: int) -> list[dict[str, Any]]:
    """Parts of a batch, in a random order; completions whose prompts begin alike share one."""
    ids, mask = batch["prompt_ids"].tolist(), batch["prompt_mask"].sum(1).tolist()
    prompts = [row[len(row) - length :] for row, length in zip(ids, mask, strict=True)]
    order = torch.tensor(sorted(range(len(prompts)), key=prompts.__getitem__))
    ordered = {
        name: value[order.to(value.device)] if value is not None and value.ndim else value
        for name, value in batch.items()
    }
    parts = split_tensor_dict(ordered, num_parts)
    return [parts[index] for index in torch.randperm(num_parts).tolist()]


def _get_entropy(logits: Tensor, rows: Any) -> Tensor:
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    return -(log_probs.exp() * log_probs).sum(-1)

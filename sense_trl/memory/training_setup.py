"""`TrainingSetup`: what the memory of a training depends on, and where it is read from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

from sense_trl.errors import InputError, check_at_least
from sense_trl.memory.micro_batches import TrainingExamples, read_examples
from sense_trl.memory.simulation import ModelSettings
from sense_trl.model_traits import get_config_dtype, load_model_config

STAGES: Final = ("sft", "dpo", "kd", "grpo")

DEFAULT_COMPLETION_TOKENS: Final = 128
"""Length of an answer where only `max_length` is known; longer than nearly all SQL of Spider."""

DEFAULT_PROMPT_TOKENS: Final = 1024
"""Length of a prompt in online training, which has no `max_length`; longer than nearly all schemas
of Spider."""


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """Everything that the memory of a training depends on.

    Attributes:
        stage: one of `STAGES`.
        model: how the trained model is held.
        batch_size: examples per device and micro-batch.
        prompt_tokens: longest prompt.
        completion_tokens: longest answer.
        accumulation_steps: micro-batches per step.
        completions_per_prompt: 2 for a preference pair, and for distillation on gold and a
            rewritten answer; those of a group in online training.
        prefix_sharing: whether tokens that sequences have in common are computed once.
        shared_tokens: tokens that the prompts of a batch begin with alike: the schema, with
            `group_by_columns`.
        linked_tokens: of the text that a linker which is trained along reads of each example, which
            begin with as many tokens alike; 0 without one.
        examples: those of the training where they are known; what a batch has in common, and what a
            linker reads, is then read from them, and `shared_tokens` is 0.
        optimizer: transformers' name.
        double_quantization: whether the scales of 4-bit weights are quantised too.
        reference: what the reference of preference training takes: `"nothing"`, `"weights"` (a copy
            of all) or `"adapter"` (a frozen copy).
        reference_passes: forward passes of the reference in each step, 0 or 1.
        teacher: how the teacher is held; None without one.
        rewrites: whether the trained model rewrites masked answers first.
        generates: whether the trained model writes answers between steps.
    """

    stage: str
    model: ModelSettings
    batch_size: int
    prompt_tokens: int
    completion_tokens: int
    accumulation_steps: int = 1
    completions_per_prompt: int = 1
    prefix_sharing: bool = True
    shared_tokens: int = 0
    linked_tokens: int = 0
    examples: TrainingExamples | None = None
    optimizer: str = "adamw_torch_fused"
    double_quantization: bool = False
    reference: str = "nothing"
    reference_passes: int = 0
    teacher: ModelSettings | None = None
    rewrites: bool = False
    generates: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_tokens", "completion_tokens", "accumulation_steps"):
            check_at_least(1, **{name: getattr(self, name)})
        if not 0 <= self.shared_tokens <= self.prompt_tokens:
            raise InputError(
                f"`shared_tokens` is {self.shared_tokens}; expected 0 to the length of a prompt, "
                f"{self.prompt_tokens}."
            )


def get_training_setup(
    stage: str,
    training: Any,
    model: Any,
    config: Any,
    *,
    adapter: Any = None,
    on_gpu: bool = True,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    shared_tokens: int = 0,
    examples: TrainingExamples | None = None,
    teacher_config: Any = None,
) -> TrainingSetup:
    """Read a setup from the arguments of a stage.

    Args:
        stage: one of `STAGES`.
        training: a training config such as `SenseDPOConfig`, or a namespace with its fields.
        model: TRL's `ModelConfig`, or a namespace with its fields.
        config: transformers' config of the trained model.
        adapter: peft's config of the adapter that training starts from, if it starts from one.
        on_gpu: whether it runs on one.
        prompt_tokens: longest prompt; what `max_length` leaves, if not given.
        completion_tokens: longest answer; 128 or half of `max_length`, if not given.
        shared_tokens: see `TrainingSetup`.
        examples: see `TrainingSetup`; the longest of them gives the lengths.
        teacher_config: transformers' config of the teacher of `"kd"`.

    Raises:
        InputError: a value is out of range, `max_length` is null and no lengths are given, or the
            weights are held in 8 bits.
    """
    if model.load_in_8bit:
        raise InputError(
            "`load_in_8bit` is true; memory is estimated for weights of 4, 16 and 32 bits. Set "
            "`load_in_4bit` instead."
        )
    if examples is not None:
        prompt_tokens, completion_tokens = examples.longest
    max_length = getattr(training, "max_length", None)
    if stage == "grpo":
        completion_tokens = completion_tokens or training.max_completion_length
        prompt_tokens = prompt_tokens or DEFAULT_PROMPT_TOKENS
    prompt_tokens, completion_tokens = _get_lengths(max_length, prompt_tokens, completion_tokens)
    settings = _get_model_settings(stage, training, model, config, adapter, on_gpu)
    has_adapter = settings.lora is not None
    reference_passes = 0
    if stage == "dpo":
        reference_passes = int(not training.precompute_ref_log_probs)
    elif stage == "grpo":
        reference_passes = int(training.beta != 0)
    reference = "nothing"
    if adapter is not None and (stage == "dpo" or (stage == "grpo" and reference_passes)):
        reference = "adapter"
    elif reference_passes and not has_adapter:
        reference = "weights"
    rewrites = bool(stage == "kd" and training.imperfect_data)
    if rewrites and examples is not None:
        examples = examples.with_rewrites()
    batch_size, num_completions = training.per_device_train_batch_size, 1
    if stage == "grpo":
        num_completions = min(batch_size, training.num_generations)
        # Completions of a prompt stay together.
        batch_size = -(-batch_size // num_completions)
    elif stage == "dpo" or rewrites:
        num_completions = 2
    return TrainingSetup(
        stage=stage,
        model=settings,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        accumulation_steps=training.gradient_accumulation_steps,
        completions_per_prompt=num_completions,
        prefix_sharing=_shares_prefixes(training, model, config, settings.lora),
        shared_tokens=shared_tokens,
        # Its texts show the whole schema, of which prompts may show a part.
        linked_tokens=prompt_tokens if getattr(training, "link_weight", 0) else 0,
        examples=examples,
        optimizer=str(getattr(training.optim, "value", training.optim)),
        double_quantization=model.use_bnb_nested_quant,
        reference=reference,
        reference_passes=reference_passes,
        teacher=_get_teacher_settings(training, teacher_config, on_gpu),
        rewrites=rewrites,
        generates=stage == "grpo" or bool(stage == "kd" and training.on_policy_fraction),
    )


def _get_lengths(
    max_length: int | None, prompt_tokens: int | None, completion_tokens: int | None
) -> tuple[int, int]:
    # One token of a prompt and one of an answer.
    if max_length is not None and max_length < 2:
        raise InputError(f"`max_length` is {max_length}; expected at least 2, or null.")
    if max_length is None and prompt_tokens is None:
        raise InputError(
            "`max_length` is null, so the longest example is not known. Give the tokens of the "
            "longest prompt, `prompt_tokens`."
        )
    if completion_tokens is None:
        longest = DEFAULT_COMPLETION_TOKENS if max_length is None else max_length // 2
        completion_tokens = min(DEFAULT_COMPLETION_TOKENS, longest)
    if prompt_tokens is None:
        assert max_length is not None
        prompt_tokens = max_length - completion_tokens
    return prompt_tokens, completion_tokens


def _get_model_settings(
    stage: str, training: Any, model: Any, config: Any, adapter: Any, on_gpu: bool
) -> ModelSettings:
    from trl import get_peft_config

    lora = get_peft_config(model) if adapter is None else copy.deepcopy(adapter)
    if lora is not None:
        lora.inference_mode = False
        # TRL's preference trainer switches off every dropout.
        if stage in ("dpo", "grpo") and training.disable_dropout:
            lora.lora_dropout = 0.0
    autocast = None
    if training.fp16:
        autocast = "float16"
    # TRL's default: mixed precision in bfloat16.
    elif training.bf16 or training.bf16 is None:
        autocast = "bfloat16"
    checkpointing = getattr(training, "activation_checkpointing", None)
    if checkpointing is None:
        checkpointing = training.gradient_checkpointing
    # TRL makes the adapters of 4-bit models bfloat16, which 'auto' leaves.
    keeps_16_bits = training.adapter_dtype == "auto" and model.load_in_4bit
    return ModelSettings(
        dtype=get_config_dtype(config, model.dtype),
        load_in_4bit=model.load_in_4bit,
        lora=lora,
        adapter_dtype="bfloat16" if keeps_16_bits else "float32",
        autocast_dtype=autocast,
        activation_checkpointing=bool(checkpointing),
        on_gpu=on_gpu,
        attn_implementation=model.attn_implementation or "sdpa",
    )


def _get_teacher_settings(training: Any, teacher_config: Any, on_gpu: bool) -> ModelSettings | None:
    if teacher_config is None:
        return None
    options = dict(getattr(training, "teacher_model_init_kwargs", None) or {})
    quantization = options.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    return ModelSettings(
        dtype=get_config_dtype(teacher_config, options.get("dtype")),
        load_in_4bit=bool(options.get("load_in_4bit") or quantization.get("load_in_4bit")),
        on_gpu=on_gpu,
        attn_implementation=options.get("attn_implementation") or "sdpa",
    )


def _shares_prefixes(training: Any, model: Any, config: Any, adapter: Any) -> bool:
    """True where prefixes are shared, as far as the config tells."""
    if str(training.prefix_sharing).lower() == "false" or getattr(training, "packing", False):
        return False
    from sense_trl.trainers.sharing.obstacles import find_adapter_obstacle, find_config_obstacle

    if getattr(training, "neftune_noise_alpha", None) is not None:
        return False
    adapters = {} if adapter is None else {"default": adapter}
    attention = model.attn_implementation or "sdpa"
    return not (find_adapter_obstacle(adapters) or find_config_obstacle(config, attention))


def get_stage_setup(
    stage: str, training: Any, model: Any, **options: Any
) -> tuple[TrainingSetup, Any, Any]:
    """The setup of a stage, its model's config and that of its teacher, or None.

    Args:
        stage, training, model: as `get_training_setup` takes them; the model is one by name.
        options: further ones of `get_training_setup`.

    Raises:
        InputError: see `get_training_setup`.
        ModelError: there is no such config.
    """
    config, adapter = load_model_config(str(model.model_name_or_path))
    teacher = getattr(training, "teacher_model_name_or_path", None)
    teacher_config = None if teacher is None else load_model_config(teacher)[0]
    options |= {"adapter": adapter, "teacher_config": teacher_config}
    setup = get_training_setup(stage, training, model, config, **options)
    return setup, config, teacher_config


def get_trainer_setup(trainer: Any) -> tuple[TrainingSetup, Any, Any]:
    """The setup of a trainer that is built, its model's config and that of its teacher, or None.

    A teacher that was given to the trainer as a loaded model is not found.

    Args:
        trainer: one of ours. Its micro-batches are those of its next epoch; of a stream, every
            example counts as long as `max_length`.
    """
    from sense_trl.trainers.sharing.tree_attention import get_attention

    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(model, "peft_config", {})
    config = model.config
    quantization = getattr(config, "quantization_config", None)
    teacher = getattr(args, "teacher_model_name_or_path", None)
    teacher_config = None if teacher is None else load_model_config(teacher)[0]
    arguments = SimpleNamespace(
        # Of the weights that are not quantised: embeddings have one name in all models.
        dtype=str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        load_in_4bit=bool(getattr(model, "is_loaded_in_4bit", False)),
        load_in_8bit=bool(getattr(model, "is_loaded_in_8bit", False)),
        use_bnb_nested_quant=bool(getattr(quantization, "bnb_4bit_use_double_quant", False)),
        use_peft=False,
        attn_implementation=get_attention(config),
    )
    stage = _get_stage(trainer)
    setup = get_training_setup(
        stage,
        args,
        arguments,
        config,
        adapter=adapters.get("default"),
        on_gpu=args.device.type != "cpu",
        teacher_config=teacher_config,
        prompt_tokens=_get_longest_prompt(trainer) if stage == "grpo" else None,
        examples=None if stage == "grpo" else read_examples(trainer),
    )
    # TRL adds this adapter where an earlier one is trained further.
    reference = "adapter" if "ref" in adapters else "nothing"
    if getattr(trainer, "ref_model", None) is not None:
        reference = "weights"
    return replace(setup, reference=reference), config, teacher_config


def _get_stage(trainer: Any) -> str:
    from sense_trl.trainers import KIDTrainer, SenseDPOTrainer, SenseGRPOTrainer

    if isinstance(trainer, SenseDPOTrainer):
        return "dpo"
    if isinstance(trainer, SenseGRPOTrainer):
        return "grpo"
    return "kd" if isinstance(trainer, KIDTrainer) else "sft"


def _get_longest_prompt(trainer: Any) -> int | None:
    """Tokens of the longest prompt of an online training; None for a stream."""
    from datasets import IterableDataset

    if isinstance(trainer.train_dataset, IterableDataset):
        return None
    ids, *_ = trainer._tokenize_prompts(list(trainer.train_dataset["prompt"]))
    return max(map(len, ids))

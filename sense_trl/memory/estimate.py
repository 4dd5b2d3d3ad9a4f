"""`estimate_memory`: the memory of a training, from its arguments and a model's config.

Nothing is loaded and nothing is run on the device: parameters are counted on a model without
memory, and one step is simulated on tensors without content (`sense_trl.memory.simulation`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sense_trl.errors import InputError
from sense_trl.memory.simulation import (
    ModelSettings,
    StepProfile,
    build_meta_model,
    profile_step,
)
from sense_trl.memory.training_setup import TrainingSetup

if TYPE_CHECKING:
    from sense_trl.prefix_tree import PrefixTree

# bitsandbytes: one scale per block of 64 weights in 32 bits, or, with double quantisation, in 8
# bits with one 32-bit scale per 256 of them; and two tables of 16 and 256 numbers per layer.
_NF4_BLOCK: Final = 64
_NESTED_BLOCK: Final = 256
_NF4_TABLES_BYTES: Final = 4 * (16 + 256 + 1)
# bitsandbytes' optimizers keep tensors of fewer elements in 32 bits, and scale blocks of 256.
_MIN_8_BIT_SIZE: Final = 4096
_OPTIMIZER_BLOCK: Final = 256
# Context, kernels and cuBLAS workspaces of one process on a GPU.
_CUDA_CONTEXT_BYTES: Final = 600 * 2**20
# On a CPU: Python with torch, transformers and trl, and the buffers of matrix products; and what
# the C library holds in pieces that fit nothing, as a share of what comes and goes in a step. Both
# are fitted to the measurements in recipes/benchmarks/memory_estimate.py.
_PROCESS_BYTES: Final = 840 * 2**20
_CPU_FRAGMENTATION: Final = 0.4
# The same for CUDA's allocator; assumed.
_GPU_FRAGMENTATION: Final = 0.15
_MOMENTS: Final = {"lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0, "adafactor": 0, "ademamix": 3}


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One entry of an estimate: its name, its bytes and what is in it."""

    name: str
    num_bytes: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of a training at its largest moment, by part.

    Attributes:
        parts: those that are not empty.
        tokens: tokens that the trained model computes per micro-batch, padding included.
        profile: the simulated step.
        num_parameters: of the trained model, without adapter.
        num_trained: parameters that are trained.
        teacher_parameters: of the teacher; 0 without one.
    """

    parts: tuple[MemoryPart, ...]
    tokens: int
    profile: StepProfile
    num_parameters: int
    num_trained: int
    teacher_parameters: int = 0

    @property
    def total_bytes(self) -> int:
        """Sum of the parts."""
        return sum(part.num_bytes for part in self.parts)

    def __str__(self) -> str:
        """The parts as aligned lines, in GiB."""
        lines = [
            f"{part.name:<14}{part.num_bytes / 2**30:>8.2f} GiB  {part.note}".rstrip()
            for part in self.parts
        ]
        return "\n".join([*lines, f"{'total':<14}{self.total_bytes / 2**30:>8.2f} GiB"])


def estimate_memory(
    setup: TrainingSetup, config: Any, *, teacher_config: Any = None
) -> MemoryEstimate:
    """Estimate the largest memory of a training on one device.

    The step is simulated on the largest micro-batch: of the setup's examples, or with every
    example of the longest length where they are not known. Not counted: evaluation during
    training, the head of a linker (some MB; what it reads is counted), other programs, a desktop,
    and what DeepSpeed, FSDP or tensor parallelism shard or add. Compared with measurements by
    `recipes/benchmarks/memory_estimate.py`.

    Args:
        setup: the training; `get_training_setup` reads it from TRL's arguments.
        config: transformers' config of the trained model; no weights are needed.
        teacher_config: of the teacher, if `setup` has one.

    Raises:
        InputError: `setup` has a teacher and `teacher_config` is missing.

    Example:
        >>> from transformers import LlamaConfig
        >>> from sense_trl.memory.simulation import ModelSettings
        >>> setup = TrainingSetup("sft", ModelSettings(), 1, prompt_tokens=90, completion_tokens=10)
        >>> tiny = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        ...                    num_attention_heads=4, vocab_size=1000, tie_word_embeddings=True)
        >>> estimate = estimate_memory(setup, tiny)
        >>> [part.num_bytes for part in estimate.parts if part.name == "weights"]
        [584960]
    """
    if setup.teacher is not None and teacher_config is None:
        raise InputError("`teacher_config` is missing; expected the config of the setup's teacher.")
    tree = build_batch(setup)
    model = build_meta_model(config, setup.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    profile = profile_step(config, setup.model, tree, accumulates=setup.accumulation_steps > 1)
    tokens = tree.input_ids.numel()
    weights = _get_weight_parts(model, setup.model, setup.double_quantization)
    parts = [
        *weights,
        _get_reference_part(setup, sum(p.num_bytes for p in weights), gradients),
        _get_optimizer_part(setup.optimizer, trained),
        *_get_step_parts(profile, gradients, setup),
        *_get_quantisation_parts(model, setup.model),
    ]
    teacher_parameters = 0
    if setup.teacher is not None:
        teacher = build_meta_model(teacher_config, setup.teacher)
        teacher_parameters = _count(teacher.parameters())
        parts.append(_get_teacher_part(teacher, setup.teacher, tokens))
    if setup.generates:
        parts.append(_get_cache_part(config, setup))
    parts += _get_runtime_parts(setup, _get_moving_bytes(setup, config, tree, profile) - gradients)
    return MemoryEstimate(
        parts=tuple(part for part in parts if part.num_bytes),
        tokens=tokens,
        profile=profile,
        num_parameters=_count(p for n, p in model.named_parameters() if "lora_" not in n),
        num_trained=_count(trained),
        teacher_parameters=teacher_parameters,
    )


def build_batch(setup: TrainingSetup) -> PrefixTree:
    """The largest micro-batch of a training, laid out as the trainers do."""
    from sense_trl.prefix_tree import PrefixTree

    if setup.examples is not None:
        longest = setup.prompt_tokens + setup.completion_tokens
        return setup.examples.build_largest_batch(
            setup.batch_size, share=setup.prefix_sharing, max_length=longest
        )
    shared = list(range(setup.shared_tokens))
    sequences, masks = [], []
    # Tokens that occur once only have no prefix in common.
    fresh = setup.shared_tokens
    for _ in range(setup.batch_size):
        own = setup.prompt_tokens - setup.shared_tokens
        prompt = [*shared, *range(fresh, fresh + own)]
        fresh += own
        for _ in range(setup.completions_per_prompt):
            sequences.append([*prompt, *range(fresh, fresh + setup.completion_tokens)])
            masks.append([0] * setup.prompt_tokens + [1] * setup.completion_tokens)
            fresh += setup.completion_tokens
    # A linker reads a schema in other words than prompts show it.
    alike = list(range(fresh, fresh + min(setup.shared_tokens, setup.linked_tokens)))
    fresh += len(alike)
    for _ in range(setup.batch_size if setup.linked_tokens else 0):
        sequences.append([*alike, *range(fresh, fresh + setup.linked_tokens - len(alike))])
        masks.append([0] * setup.linked_tokens)
        fresh += setup.linked_tokens
    return PrefixTree.from_sequences(sequences, masks, share=setup.prefix_sharing)


# ---------------------------------------------------------------------------------- parts


def _count(parameters: Iterable[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _get_bytes(parameters: Iterable[Any]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _get_weight_parts(
    model: Any, settings: ModelSettings, double_quantization: bool
) -> list[MemoryPart]:
    """Weights by how they are held, and the adapter."""
    adapter = [p for name, p in model.named_parameters() if "lora_" in name]
    whole = {id(p): p for name, p in model.named_parameters() if "lora_" not in name}
    quantised = [whole.pop(id(weight)) for weight in _get_4_bit_weights(model, settings)]
    num_blocks = sum(math.ceil(weight.numel() / _NF4_BLOCK) for weight in quantised)
    scales = 4 * num_blocks
    if double_quantization:
        scales = num_blocks + 4 * math.ceil(num_blocks / _NESTED_BLOCK)
    packed = sum(math.ceil(weight.numel() / 2) for weight in quantised)
    tables = _NF4_TABLES_BYTES * len(quantised)
    rest = "embeddings, output layer and norms" if quantised else "all"
    return [
        MemoryPart(
            "4-bit weights",
            packed + scales + tables,
            f"{_count(quantised) / 1e6:.0f} M parameters, {(scales + tables) / 2**20:.0f} MiB of "
            "them scales",
        ),
        MemoryPart("weights", _get_bytes(whole.values()), f"{rest}, {settings.dtype}"),
        MemoryPart("adapter", _get_bytes(adapter), f"{_count(adapter) / 1e6:.1f} M parameters"),
    ]


def _get_4_bit_weights(model: Any, settings: ModelSettings) -> list[Any]:
    import torch

    if not settings.load_in_4bit:
        return []
    base = model.get_base_model() if settings.lora is not None else model
    # As transformers: not the output layer, whose weights the embeddings may share.
    kept = {id(base.get_output_embeddings().weight), id(base.get_input_embeddings().weight)}
    return [
        module.weight
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
        and "lora_" not in name
        and id(module.weight) not in kept
    ]


def _get_reference_part(setup: TrainingSetup, weight_bytes: int, adapter_bytes: int) -> MemoryPart:
    num_bytes, note = {
        "nothing": (0, ""),
        "weights": (weight_bytes, "a copy of all weights"),
        "adapter": (adapter_bytes, "a frozen copy of the adapter"),
    }[setup.reference]
    return MemoryPart("reference", num_bytes, note)


def _get_optimizer_part(optimizer: str, trained: Sequence[Any]) -> MemoryPart:
    name = optimizer.removeprefix("paged_")
    kind = name.split("_")[0]
    known = kind in _MOMENTS or kind == "adamw"
    moments = _MOMENTS.get(kind, 2)
    total = 0
    for parameter in trained:
        size = parameter.numel()
        if "8bit" in name and size >= _MIN_8_BIT_SIZE:
            total += moments * (size + 4 * math.ceil(size / _OPTIMIZER_BLOCK))
        else:
            # torch keeps moments in the parameter's type, bitsandbytes in 32 bits.
            total += moments * size * (4 if "bit" in name else parameter.element_size())
    note = optimizer if known else f"{optimizer}, counted as AdamW"
    if optimizer.startswith("paged_"):
        note += "; may move to the computer's memory"
    return MemoryPart("optimizer", total, note)


def _get_step_parts(
    profile: StepProfile, gradient_bytes: int, setup: TrainingSetup
) -> list[MemoryPart]:
    """The largest moment of a step, as gradients, activations and the output layer's chunks."""
    peak = max(profile.peak_bytes)
    head = profile.peak_bytes[1]
    gradients = min(gradient_bytes, peak)
    checkpoints = "with" if setup.model.activation_checkpointing else "without"
    output_layer = max(0, head - max(profile.kept_bytes, gradients)) if head == peak else 0
    return [
        MemoryPart("gradients", gradients),
        MemoryPart(
            "activations",
            peak - gradients - output_layer,
            f"beyond the gradients, {checkpoints} checkpoints",
        ),
        MemoryPart("output layer", output_layer, "chunks of logits"),
    ]


def _get_quantisation_parts(model: Any, settings: ModelSettings) -> list[MemoryPart]:
    """The one 4-bit weight that is being multiplied, and what quantising left behind.

    On a CPU the weights are loaded as they are and freed one by one, and the C library returns
    little of that to the system.
    """
    import torch

    sizes = [weight.numel() for weight in _get_4_bit_weights(model, settings)]
    itemsize = getattr(torch, settings.dtype).itemsize
    return [
        MemoryPart("dequantised", max(sizes, default=0) * itemsize, "the weight in use"),
        MemoryPart(
            "loading", 0 if settings.on_gpu else sum(sizes) * itemsize, "weights before quantising"
        ),
    ]


def _get_teacher_part(teacher: Any, settings: ModelSettings, tokens: int) -> MemoryPart:
    weights = sum(p.num_bytes for p in _get_weight_parts(teacher, settings, True))
    hidden = tokens * teacher.config.get_text_config().hidden_size
    return MemoryPart(
        "teacher",
        weights + hidden * teacher.get_input_embeddings().weight.element_size(),
        f"{_count(teacher.parameters()) / 1e6:.0f} M parameters and its hidden states",
    )


def _get_cache_part(config: Any, setup: TrainingSetup) -> MemoryPart:
    """Keys and values of the answers that are written together."""
    import torch

    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dtype = getattr(torch, setup.model.autocast_dtype or setup.model.dtype)
    per_token = 2 * text.num_hidden_layers * heads * head_dim * dtype.itemsize
    length = setup.prompt_tokens + setup.completion_tokens
    num_positions = setup.batch_size * length
    if setup.stage == "grpo":
        # Those of a step are written together, each prompt read once.
        length += (setup.completions_per_prompt - 1) * setup.completion_tokens
        num_positions = setup.accumulation_steps * setup.batch_size * length
    return MemoryPart("KV cache", num_positions * per_token, "of generation")


def _get_moving_bytes(
    setup: TrainingSetup, config: Any, tree: PrefixTree, profile: StepProfile
) -> int:
    """Bytes that come and go in a step, gradients included.

    With checkpoints the same tensors come, and go sooner: CUDA's allocator uses their blocks again,
    the C library leaves pieces of them all (fitted, like its share).
    """
    if setup.model.activation_checkpointing and not setup.model.on_gpu:
        kept = replace(setup.model, activation_checkpointing=False)
        profile = profile_step(config, kept, tree, accumulates=setup.accumulation_steps > 1)
    return max(profile.peak_bytes)


def _get_runtime_parts(setup: TrainingSetup, moving_bytes: int) -> list[MemoryPart]:
    if setup.model.on_gpu:
        runtime = MemoryPart("runtime", _CUDA_CONTEXT_BYTES, "CUDA context and workspaces, assumed")
        share = _GPU_FRAGMENTATION
    else:
        runtime = MemoryPart("runtime", _PROCESS_BYTES, "Python and its libraries")
        share = _CPU_FRAGMENTATION
    margin = max(0, int(share * moving_bytes))
    return [
        runtime,
        MemoryPart("margin", margin, f"fragmentation, {share:.0%} of what comes and goes"),
    ]

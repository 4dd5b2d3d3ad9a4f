"""One training step on tensors without content: what it holds in memory, and what it computes.

The model's own code runs, with its adapters, its mixed precision, its checkpoints and the chunked
output layer of our trainers, on tensors that have a shape and a size and nothing else. What
autograd keeps of an architecture is found out rather than modelled, and no weight is needed.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import recursively_apply
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sense_trl.errors import InputError
from sense_trl.model_traits import keep_layers
from sense_trl.prefix_tree import PrefixTree

if TYPE_CHECKING:
    from peft import LoraConfig

# A stack of equal layers is simulated at these depths, and its own is read off the line through
# them.
_DEPTHS = (2, 4)

# Half of the steps that the changes of a training need were simulated for it or another change.
_MAX_PROFILES = 64
_profiles: dict[bytes, StepProfile] = {}


class _Phase(IntEnum):
    """Parts of a step with a peak of their own; within each it grows with the depth as a line."""

    FORWARD = 0
    HEAD = 1
    LAST_LAYER_BACKWARD = 2
    BACKWARD = 3


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Types, adapter and attention with which a model is held and trained.

    Attributes:
        dtype: of the weights that are not quantised, e.g. `"bfloat16"`.
        load_in_4bit: whether the linear layers but the output layer are held in 4 bits.
        lora: the adapter that is trained; None to train all weights.
        adapter_dtype: of its weights.
        autocast_dtype: of mixed precision; None for none.
        activation_checkpointing: whether layers are computed again in the backward pass.
        on_gpu: a GPU multiplies 16-bit numbers into 32 bits, a CPU converts them first.
        attn_implementation: `"eager"` keeps the scores of all pairs of tokens; any other is
            simulated as `"sdpa"`.
    """

    dtype: str = "float32"
    load_in_4bit: bool = False
    lora: LoraConfig | None = None
    adapter_dtype: str = "float32"
    autocast_dtype: str | None = None
    activation_checkpointing: bool = False
    on_gpu: bool = False
    attn_implementation: str = "sdpa"


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Memory and operations of one micro-batch, beyond the weights.

    Attributes:
        peak_bytes: most memory at one moment, gradients included, for each of forward pass, output
            layer, backward pass of the last layer and of the others.
        kept_bytes: activations that wait for the backward pass when the output layer begins.
        flops: floating-point operations, forward and backward.
        forward_flops: those of the forward pass alone.
    """

    peak_bytes: tuple[int, ...]
    kept_bytes: int
    flops: int
    forward_flops: int

    def _values(self) -> tuple[int, ...]:
        return (*self.peak_bytes, self.kept_bytes, self.flops, self.forward_flops)

    @classmethod
    def _from_values(cls, values: Sequence[float]) -> StepProfile:
        *peaks, kept, flops, forward = (math.ceil(value) for value in values)
        return cls(tuple(peaks), kept, flops, forward)


def build_meta_model(config: Any, settings: ModelSettings, *, num_layers: int | None = None) -> Any:
    """The model of a config as it is trained, adapter included, without memory for its weights.

    Args:
        config: transformers' config of a causal language model.
        settings: how it is trained.
        num_layers: of its layers, how many to build from the beginning; all if not given.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    if num_layers is not None:
        keep_layers(config, range(num_layers))
    # The quantised layers are described by `settings`; without a GPU transformers builds none.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers 5.23 deprecates names that peft and TRL still use.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation="eager" if settings.attn_implementation == "eager" else "sdpa",
        )
        base = model
        if settings.lora is not None:
            model = _add_adapter(model, settings)
        if settings.activation_checkpointing:
            enable = getattr(
                base, "activation_checkpointing_enable", base.gradient_checkpointing_enable
            )
            enable()
            if settings.lora is not None:
                model.enable_input_require_grads()
    return model.train()


def profile_step(
    config: Any,
    settings: ModelSettings,
    tree: PrefixTree,
    *,
    accumulates: bool = False,
) -> StepProfile:
    """Simulate forward and backward pass of one micro-batch; once for steps that are equal.

    The peaks grow with the number of layers as lines, so two shallow models give those of a deep
    one of equal layers.

    Args:
        config: transformers' config of a causal language model.
        settings: how it is trained.
        tree: the batch.
        accumulates: whether gradients of earlier micro-batches are held meanwhile.
    """
    key = _get_digest(config, settings, tree, accumulates)
    if key not in _profiles:
        if len(_profiles) == _MAX_PROFILES:
            _profiles.clear()
        _profiles[key] = _profile_step(config, settings, tree, accumulates)
    return _profiles[key]


def _get_digest(config: Any, settings: ModelSettings, tree: PrefixTree, accumulates: bool) -> bytes:
    """Of everything that a simulation reads."""
    said = (type(config), config.to_dict(), settings, accumulates, tree.rows_are_paths)
    digest = hashlib.blake2b(repr(said).encode())
    for tensor in (getattr(tree, field.name) for field in fields(tree)):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.digest()


def _profile_step(
    config: Any, settings: ModelSettings, tree: PrefixTree, accumulates: bool
) -> StepProfile:
    depth = int(config.get_text_config().num_hidden_layers)
    if depth <= _DEPTHS[-1]:
        return _simulate(config, settings, tree, depth, accumulates)
    low, high = (_simulate(config, settings, tree, n, accumulates)._values() for n in _DEPTHS)
    steps = (depth - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
    return StepProfile._from_values(
        [first + steps * (second - first) for first, second in zip(low, high, strict=True)]
    )


def _add_adapter(model: Any, settings: ModelSettings) -> Any:
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    try:
        model = get_peft_model(model, copy.deepcopy(settings.lora))
    except ValueError as error:
        raise InputError(f"The adapter does not fit the model: {error}") from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, settings.adapter_dtype))
    # On a GPU, adapters of 4-bit layers take their input as it is and leave its type to autocast;
    # those of ordinary layers convert it first.
    if settings.load_in_4bit and settings.on_gpu and settings.autocast_dtype is not None:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False
    return model


# ------------------------------------------------------------------------------- simulation


def _simulate(
    config: Any, settings: ModelSettings, tree: PrefixTree, num_layers: int, accumulates: bool
) -> StepProfile:
    from trl.trainer.utils import add_fused_lm_head

    from sense_trl.trainers.sharing.heads import add_prefix_tree_head
    from sense_trl.trainers.sharing.tree_attention import with_dense_masks

    # A tree keeps its masks; each simulation makes its own.
    tree = tree.to("cpu")
    model = build_meta_model(config, settings, num_layers=num_layers)
    base = model.get_base_model() if settings.lora is not None else model
    add_fused_lm_head(base)
    add_prefix_tree_head(base)
    # What is simulated looks like a CPU.
    masks = with_dense_masks() if settings.on_gpu else contextlib.nullcontext()
    # The tree's index tensors are real.
    with masks, FakeTensorMode(allow_non_fake_inputs=True):
        _leave_meta(model)
        tracker = _MemoryTracker(model)
        _mark_phases(base.base_model, tracker, drop_mask=len(tree.input_ids) == 1)
        labels = torch.zeros(tree.sequence_nodes.shape, dtype=torch.long)
        if accumulates:
            tracker.hold_gradients(model)
        with tracker:
            with torch.autocast(
                "cpu",
                dtype=getattr(torch, settings.autocast_dtype or "bfloat16"),
                enabled=settings.autocast_dtype is not None,
            ):
                output = model(labels=labels, fused_lm_head=True, prefix_tree=tree)
            forward_flops = tracker.flops
            output.log_probs.sum().backward()
    head = base.get_output_embeddings().weight
    if settings.on_gpu and head.element_size() == 2:
        # Converted on CPUs only; it is there as long as the output layer is at work.
        tracker.peaks[_Phase.HEAD] -= 4 * head.numel()
    return StepProfile(tuple(tracker.peaks), tracker.kept_bytes, tracker.flops, forward_flops)


def _leave_meta(model: Any) -> None:
    """Replace tensors on the meta device, for which no kernel chooses as it does on a real one."""
    replaced: dict[int, Any] = {}
    for module in model.modules():
        own = {"recurse": False, "remove_duplicate": False}
        for name, tensor in [*module.named_parameters(**own), *module.named_buffers(**own)]:
            if id(tensor) not in replaced:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                if isinstance(tensor, torch.nn.Parameter):
                    empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                replaced[id(tensor)] = empty
            setattr(module, name, replaced[id(tensor)])


def _mark_phases(backbone: Any, tracker: _MemoryTracker, *, drop_mask: bool) -> None:
    """Tell the tracker when the layers end, and when their backward pass begins.

    `drop_mask`: a row alone has no padding, which transformers sees by the mask's values and then
    does without one. Here there are no values.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if drop_mask and kwargs["attention_mask"].dim() == 2:
            kwargs = {**kwargs, "attention_mask": None}
        return args, kwargs

    def after(module: Any, args: Any, output: Any) -> None:
        tracker.enter(_Phase.HEAD)
        enter_at_gradient(output.last_hidden_state, _Phase.LAST_LAYER_BACKWARD)

    def enter_at_gradient(tensor: torch.Tensor, phase: _Phase) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: tracker.enter(phase))

    backbone.register_forward_pre_hook(before, with_kwargs=True)
    backbone.register_forward_hook(after)
    layers = [
        layer for layer in backbone.modules() if isinstance(layer, GradientCheckpointingLayer)
    ]
    for last in layers[-1:]:
        last.register_forward_pre_hook(
            lambda module, args: enter_at_gradient(args[0], _Phase.BACKWARD)
        )


class _MemoryTracker(TorchDispatchMode):  # type: ignore[misc]
    """Adds up the storages that operations make, until they are freed, and the operations."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.peaks = [0] * len(_Phase)
        self.kept_bytes = 0
        self.flops = 0
        self._phase = _Phase.FORWARD
        self._live_bytes = 0
        # The weights are counted elsewhere.
        tensors = [*model.parameters(), *model.buffers()]
        self._sizes = {id(tensor.untyped_storage()): 0 for tensor in tensors}

    def enter(self, phase: _Phase) -> None:
        """Begin the next phase."""
        if phase is _Phase.HEAD:
            self.kept_bytes = self._live_bytes
        self._phase = phase
        self.peaks[phase] = max(self.peaks[phase], self._live_bytes)

    def hold_gradients(self, model: Any) -> None:
        """Give every trained parameter the gradient of an earlier micro-batch."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                self._see(parameter.grad)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        recursively_apply(self._see, result)
        self.flops += _count_flops(func, args, kwargs, result)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._live_bytes += storage.nbytes()
        self.peaks[self._phase] = max(self.peaks[self._phase], self._live_bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live_bytes -= self._sizes.pop(key, 0)


def _count_flops(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    # torch counts the attention of GPUs only: queries times keys and that times values, and in the
    # backward pass five such products.
    products = {
        "aten::_scaled_dot_product_flash_attention_for_cpu": (2, 0),
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (5, 1),
    }.get(func.name().split(".")[0])
    if products is None:
        return 0
    num_products, first = products
    query, key = args[first], args[first + 1]
    return int(2 * num_products * query.numel() * key.shape[-2])

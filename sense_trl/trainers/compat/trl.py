"""Everything of TRL that its top level does not promise, in one place.

Supported: TRL 1.16 up to, not including, 2.0. TRL documents `compute_loss`, `compute_ref_log_probs`
and replacing `data_collator` as extension points; the rest of what the trainers touch is listed
here, and each entry has a canary in `tests/trainers/compat/test_trl.py` that names it when a TRL
release moves it:

* `DPOTrainer._prepare_dataset(dataset, processing_class, args, dataset_name)`: tokenises, and
  filters by `args.max_length`;
* `DPOTrainer._set_signature_columns_if_needed` and the list `_signature_columns`;
* `DPOTrainer.loss_types`, `.loss_weights`, `.precompute_ref_logps`: read afresh at every loss;
* `DPOTrainer._precompute_ref_logps(dataset, name, batch_size)`: adds the columns
  `ref_chosen_logps` and `ref_rejected_logps`, called by the constructor and by `evaluate`;
* `DPOTrainer.compute_loss` calls the `model` it is given once with `fused_lm_head=True`, and the
  output's `log_probs` are `[2B, L - 1]`, zero outside the answers, chosen rows first;
* `FusedCausalLMOutput` with the fields that `heads.PrefixTreeOutput` fills, and
  `maybe_gather_lm_head_ctx(weight, bias)`, which gathers a head under DeepSpeed's ZeRO-3;
* `SFTTrainer._prepare_dataset(dataset, processing_class, args, packing, formatting_func,
  dataset_name)`: the same, and cuts to `args.max_length`;
* `DPOTrainer` and `SFTTrainer` hand every batch entry that they do not know to the model, ask the
  output for nothing but its fields of `[N, L - 1]`, and have `padding_free` and
  `aux_loss_enabled`;
* `SFTTrainer._remove_unused_columns(dataset, description)`, of transformers' trainer, sees every
  dataset before it is loaded, described as "training" or not;
* `gradient_checkpointing` is the name under which TRL's configs set its default;
* `add_fused_lm_head(model)` patches the model's forward, and nothing else of it;
* `create_model_from_path(path, **kwargs)` loads a model of the class that its config names;
* `unwrap_model_for_generation(model, accelerator)` gives a model that can write within a block;
* `use_adapter(model, name)` activates an adapter of a PeftModel within a block;
* `trl.trainer.utils._use_triton(device)`: the fused head asks it whether to score trained positions
  only, and the kernels behind it ask a name of their own;
* `GRPOTrainer._get_per_token_logps_and_entropies` is the one place where policy, old policy and
  reference are run, `_generate_single_turn` where completions are written, `_tokenize_prompts` and
  `_calculate_rewards` the steps before and after; `_compute_loss(model, inputs)` is the loss of a
  micro-batch, by `advantages` of `inputs` alone but for the terms of `beta`, of the entropy bonus
  and of `aux_loss_enabled`; `_step` counts micro-batches, and `_buffered_inputs` holds those of a
  generation; `temperature`, `eos_token_ids`, `reward_weights`,
  `_entropy_bonus_enabled` and `chat_template` are read;
* `RepeatSampler` draws the order of prompts from `generator`, and `split_tensor_dict` cuts batches;
* the class attributes `_tag_names`, `_name` and `_paper` of the model card.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig, GRPOConfig, SFTConfig
from trl.models import unwrap_model_for_generation
from trl.trainer import utils as trl_utils
from trl.trainer.utils import (
    FusedCausalLMOutput,
    RepeatSampler,
    add_fused_lm_head,
    create_model_from_path,
    maybe_gather_lm_head_ctx,
    split_tensor_dict,
    use_adapter,
)

__all__ = [
    "LABEL_SMOOTHING_READERS",
    "FusedCausalLMOutput",
    "RecordedForward",
    "RepeatSampler",
    "add_fused_lm_head",
    "create_model_from_path",
    "get_trl_loss_types",
    "maybe_gather_lm_head_ctx",
    "score_trained_positions_only",
    "split_tensor_dict",
    "unwrap_model_for_generation",
    "use_adapter",
    "use_current_checkpointing_names",
]

# The loss types of TRL 1.16.0. Newer ones are read from TRL's own description of the field.
_TRL_1_16_LOSS_TYPES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)

LABEL_SMOOTHING_READERS = frozenset({"robust", "exo_pair", "aot", "aot_unpaired"})
"""TRL's loss types that use `label_smoothing`; all others ignore it without a word."""


def get_trl_loss_types() -> tuple[str, ...]:
    """The values of `loss_type` that the installed TRL knows."""
    help_text = next(f.metadata["help"] for f in fields(DPOConfig) if f.name == "loss_type")
    documented = re.findall(r"`'(\w+)'`", help_text)
    return tuple(dict.fromkeys([*_TRL_1_16_LOSS_TYPES, *documented]))


def use_current_checkpointing_names(config: DPOConfig | GRPOConfig | SFTConfig) -> None:
    """Move `gradient_checkpointing*` of a config that is being built to their current names.

    TRL 1.16 sets a default under the old names, which transformers 5.23 deprecates: every config
    would warn about an option that its user never set. The meaning does not change.
    """
    for name in ("checkpointing", "checkpointing_kwargs"):
        current, old = f"activation_{name}", f"gradient_{name}"
        if hasattr(config, current) and getattr(config, current) is None:
            setattr(config, current, getattr(config, old))


def score_trained_positions_only() -> None:
    """Have TRL's fused head on a CPU project only the positions that are trained on.

    TRL 1.16 does so where Triton runs; elsewhere it projects every prompt position onto the whole
    vocabulary, forward and backward, and drops the result (fixed shapes spare some accelerators a
    recompilation, which means nothing on a CPU). With the long prompts of text-to-SQL that is half
    of a step: leaving it out took 8 steps of SmolLM2-135M from 99 s to 60 s on two cores. Values
    and gradients are the same up to the rounding of a matrix product with fewer rows.

    It holds for all trainers of the process and cannot be undone; a second call does nothing.
    """
    original = trl_utils._use_triton
    if hasattr(original, "replaces"):
        return

    def compact_on(device: torch.device) -> bool:
        return device.type == "cpu" or original(device)

    compact_on.replaces = original  # type: ignore[attr-defined]
    trl_utils._use_triton = compact_on


class RecordedForward:
    """Stands in for the model in `DPOTrainer.compute_loss` and keeps the policy's output.

    TRL computes all its losses and metrics inside one method without a hook, so a loss of our own
    would need either a second forward or a copy of that method. Handing TRL this object instead
    leaves it in charge of how the model is called (router logits, prompt-learning adapters) and of
    every metric, while our loss terms read the same log-probabilities, gradient included.

    Args:
        model: the callable TRL would have been given, wrapped or not.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model
        self._output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._model(*args, **kwargs)
        if kwargs.get("fused_lm_head"):
            assert self._output is None, "TRL ran the policy twice within one loss"
            self._output = output
        return output

    def get_per_token_logps(self, seq_len: int) -> Tensor:
        """Log-probabilities `[2B, seq_len - 1]`, zero outside the answers, chosen rows first.

        Args:
            seq_len: L of the batch. Prompt-learning adapters put virtual tokens in front, whose
                positions are cut off here.
        """
        assert self._output is not None, "TRL did not run the policy through the model it was given"
        per_token_logps: Tensor = self._output.log_probs
        return per_token_logps[:, -(seq_len - 1) :]

    @property
    def logit_terms(self) -> tuple[Tensor, ...]:
        """Values of the further terms that a model on a prefix tree was given, `[2B, L - 1]`."""
        terms: tuple[Tensor, ...] = self._output.logit_terms
        return terms

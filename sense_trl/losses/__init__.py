"""Loss functions: tensors in, one unreduced value per pair or token out; no model, no batch dict.

`masked_mean` is the one place where per-token or per-sequence values become a scalar.
"""

from sense_trl.losses.cam import bernoulli_kl, cam_loss, multi_label_loss
from sense_trl.losses.chunked import chunked_divergence
from sense_trl.losses.divergence import (
    DIVERGENCES,
    adaptive_kl,
    forward_kl,
    generalized_jsd,
    get_divergence,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from sense_trl.losses.preference import cdpo_loss, dpo_loss, dpop_loss
from sense_trl.losses.reduction import masked_mean
from sense_trl.losses.sparse_teacher import add_tail, reduce_to_top_k, sampled_forward_kl

__all__ = [
    "DIVERGENCES",
    "adaptive_kl",
    "add_tail",
    "bernoulli_kl",
    "cam_loss",
    "cdpo_loss",
    "chunked_divergence",
    "dpo_loss",
    "dpop_loss",
    "forward_kl",
    "generalized_jsd",
    "get_divergence",
    "masked_mean",
    "multi_label_loss",
    "reduce_to_top_k",
    "reverse_kl",
    "sampled_forward_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]

"""Loss functions: tensors in, one unreduced value per pair or token out; no model, no batch dict.

`masked_mean` is the one place where per-token or per-sequence values become a scalar.
"""

from sense_trl.losses.preference import cdpo_loss, dpo_loss, dpop_loss
from sense_trl.losses.reduction import masked_mean

__all__ = ["cdpo_loss", "dpo_loss", "dpop_loss", "masked_mean"]

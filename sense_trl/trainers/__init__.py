"""Trainers on top of TRL's. They know no SQL: data comes in as dataset columns."""

from sense_trl.trainers.compat.trl import score_trained_positions_only
from sense_trl.trainers.kid_config import KIDConfig
from sense_trl.trainers.kid_trainer import KIDTrainer
from sense_trl.trainers.sense_dpo_config import SenseDPOConfig
from sense_trl.trainers.sense_dpo_trainer import SenseDPOTrainer
from sense_trl.trainers.sense_grpo_config import SenseGRPOConfig
from sense_trl.trainers.sense_grpo_trainer import SenseGRPOTrainer
from sense_trl.trainers.sense_sft_config import SenseSFTConfig
from sense_trl.trainers.sense_sft_trainer import SenseSFTTrainer

__all__ = [
    "KIDConfig",
    "KIDTrainer",
    "SenseDPOConfig",
    "SenseDPOTrainer",
    "SenseGRPOConfig",
    "SenseGRPOTrainer",
    "SenseSFTConfig",
    "SenseSFTTrainer",
    "score_trained_positions_only",
]

"""Trainers with a loss or a divergence of a subclass, right and wrong ones."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tiny_models import OPTIONS, PAIRS, QUESTIONS, get_history

from sense_trl.errors import InputError
from sense_trl.trainers import KIDConfig, KIDTrainer, SenseDPOConfig, SenseDPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

WEIGHTED = [{**pair, "pair_weight": 1.0 + i % 2} for i, pair in enumerate(PAIRS)]


class GapTrainer(SenseDPOTrainer):
    """A loss of 2 for every pair; `reduce` makes another shape of it."""

    reduce = staticmethod(lambda losses: losses)

    def compute_pair_losses(self, loss_type, chosen, rejected, *rest):
        return self.reduce(0.0 * (chosen - rejected) + 2.0)


class GapConfig(SenseDPOConfig):
    own_loss_types = ("gap",)


def test_weights_reach_a_loss_of_a_subclass(train):
    options = {"trainer_class": GapTrainer, "config_class": GapConfig, "max_steps": 4}
    trainer = train(["gap"], pairs=WEIGHTED, **options)
    # Four steps are two epochs, whose weights have a mean of 1.
    assert sum(get_history(trainer, "loss")) == pytest.approx(4 * 2.0)


@pytest.mark.parametrize("pairs", [PAIRS, WEIGHTED], ids=["plain", "weighted"])
def test_a_mean_in_place_of_one_loss_per_pair_is_refused(train, pairs):
    class MeanTrainer(GapTrainer):
        reduce = staticmethod(lambda losses: losses.mean())

    with pytest.raises(InputError, match=r"gives the shape \[\] for the loss 'gap'.*\[4\]"):
        train(["gap"], pairs=pairs, trainer_class=MeanTrainer, config_class=GapConfig)


def test_a_loss_that_trl_computes_is_asked_of_a_subclass_where_it_is_named(train):
    options = {"trainer_class": GapTrainer, "pairs": PAIRS}
    with pytest.raises(InputError, match=r"GapTrainer.compute_pair_losses.*'sigmoid'.*own_loss_t"):
        train(["sigmoid"], config_class=SenseDPOConfig, **options)

    class SigmoidConfig(SenseDPOConfig):
        own_loss_types = ("sigmoid",)

    trainer = train(["sigmoid"], config_class=SigmoidConfig, **options)
    assert get_history(trainer, "loss") == [2.0, 2.0]


def test_the_way_to_a_loss_or_divergence_of_ones_own_is_said(tmp_path):
    with pytest.raises(InputError, match=r"'gap'; expected one of 'cdpo'.*`own_loss_types`"):
        SenseDPOConfig(str(tmp_path), loss_type="gap", use_cpu=True, bf16=False)
    with pytest.raises(InputError, match=r"`kd_loss_type` is <.*override `get_kd_divergence`"):
        KIDConfig(str(tmp_path), kd_loss_type=print, use_cpu=True, bf16=False)


@pytest.mark.parametrize("imperfect_data", [True, False])
@pytest.mark.parametrize(
    "divergence, shape",
    [
        (lambda student, teacher: (student - teacher).square().mean(), r"\[\]"),
        (lambda student, teacher: (student - teacher).square(), r"\[\d+, 384\]"),
    ],
    ids=["mean", "not reduced"],
)
def test_a_divergence_gives_one_value_per_token(
    model_paths, tmp_path, divergence, shape, imperfect_data
):
    class Config(KIDConfig):
        def get_kd_divergence(self):
            return divergence

    trainer = KIDTrainer(
        model_paths["llama"],
        model_paths["llama"],
        args=Config(str(tmp_path), imperfect_data=imperfect_data, **OPTIONS),
        train_dataset=Dataset.from_list(QUESTIONS),
    )
    with pytest.raises(InputError, match=f"the shape {shape} for the logits of"):
        trainer.train()

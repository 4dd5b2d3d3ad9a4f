from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.losses import cdpo_loss, dpo_loss, dpop_loss

LOSSES = {
    "dpo": lambda *logps, beta=0.1: dpo_loss(*logps, beta=beta),
    "cdpo": lambda *logps, beta=0.1: cdpo_loss(*logps, beta=beta, label_smoothing=0.1),
    "dpop": lambda *logps, beta=0.1: dpop_loss(*logps, beta=beta, dpop_lambda=5.0),
}
# The first call of a torch function can be slow; time says nothing about these properties.
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def margin_to_logps(x, beta):
    """Log-probabilities whose margin is `x`, spread over all four arguments."""
    x = torch.as_tensor(x, dtype=torch.float64)
    zero = torch.zeros_like(x)
    return zero - 3.0 + x / beta, zero - 5.0, zero - 3.0, zero - 5.0


def robust_loss(x, label_smoothing):
    """Robust DPO (arXiv 2403.00409) as TRL has it: an oracle of its own, `[...]`."""
    clean = -(1 - label_smoothing) * F.logsigmoid(x)
    flipped = -label_smoothing * F.logsigmoid(-x)
    return (clean - flipped) / (1 - 2 * label_smoothing)


@pytest.mark.parametrize("target", [0.7, torch.tensor([0.7, 0.7], dtype=torch.float64)])
def test_a_target_margin_shifts_the_argument_of_the_sigmoids(target):
    logps = margin_to_logps([1.0, -2.0], beta=0.5)
    shifted = margin_to_logps([0.3, -2.7], beta=0.5)
    for loss, options in ((dpo_loss, {}), (cdpo_loss, {"label_smoothing": 0.1})):
        found = loss(*logps, beta=0.5, target_margin=target, **options)
        torch.testing.assert_close(found, loss(*shifted, beta=0.5, **options))
    # The chosen answers are below the reference by 0 and 4 nats: the penalty is 0 and 0.5 * 2 * 4.
    found = dpop_loss(*logps, beta=0.5, dpop_lambda=2.0, target_margin=target)
    torch.testing.assert_close(found, -F.logsigmoid(torch.tensor([0.3, -6.7]).double()))
    with pytest.raises(InputError, match="`target_margin` has shape"):
        dpo_loss(*logps, beta=0.5, target_margin=torch.zeros(2, 1))


def test_dpo_by_hand():
    # x = 0.5 * ((-1 - -2) - (-4 - -3)) = 0.5 * (1 + 1) = 1;  -log sigmoid(1) = 0.313262
    logps = (torch.tensor([-1.0]), torch.tensor([-4.0]), torch.tensor([-2.0]), torch.tensor([-3.0]))
    assert dpo_loss(*logps, beta=0.5).item() == pytest.approx(0.313262, abs=1e-6)
    # 0.9 * 0.313262 + 0.1 * 1.313262 = 0.313262 + 0.1 * x
    cdpo = cdpo_loss(*logps, beta=0.5, label_smoothing=0.1)
    assert cdpo.item() == pytest.approx(0.413262, abs=1e-6)


def test_dpop_by_hand():
    # log-ratios: chosen -1, rejected -3, so x / beta = 2; shortfall 1; lambda 4:
    # 0.5 * (2 - 4) = -1;  -log sigmoid(-1) = 1.313262
    logps = (torch.tensor([-3.0]), torch.tensor([-6.0]), torch.tensor([-2.0]), torch.tensor([-3.0]))
    assert dpop_loss(*logps, beta=0.5, dpop_lambda=4.0).item() == pytest.approx(1.313262, abs=1e-6)


def test_dpop_is_dpo_while_the_chosen_answer_is_above_the_reference():
    logps = (torch.tensor([-1.0]), torch.tensor([-4.0]), torch.tensor([-2.0]), torch.tensor([-3.0]))
    assert torch.equal(dpop_loss(*logps, beta=0.5, dpop_lambda=4.0), dpo_loss(*logps, beta=0.5))


def test_dpop_pushes_the_chosen_answer_up_where_dpo_is_content():
    # Both answers fell, the rejected one further: DPO's gradient on it is small, DPOP's is not.
    gradients = []
    for loss in (LOSSES["dpo"], LOSSES["dpop"]):
        chosen = torch.tensor([-30.0], requires_grad=True)
        args = torch.tensor([-90.0]), torch.tensor([-10.0]), torch.tensor([-10.0])
        loss(chosen, *args).sum().backward()
        gradients.append(chosen.grad.item())
    dpo, dpop = gradients
    assert -0.001 < dpo < 0
    assert dpop < -0.5


@pytest.mark.parametrize("label_smoothing", [0.01, 0.1, 0.3])
def test_cdpo_is_smallest_at_the_log_odds_of_a_right_label(label_smoothing):
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    losses = cdpo_loss(*margin_to_logps(x, 0.1), beta=0.1, label_smoothing=label_smoothing)
    optimum = math.log((1 - label_smoothing) / label_smoothing)
    assert x[losses.argmin()].item() == pytest.approx(optimum, abs=2e-4)
    # The gradient vanishes there, and nowhere else.
    at_optimum = torch.tensor([optimum], dtype=torch.float64, requires_grad=True)
    logps = margin_to_logps(at_optimum, 0.1)
    cdpo_loss(*logps, beta=0.1, label_smoothing=label_smoothing).sum().backward()
    assert abs(at_optimum.grad.item()) < 1e-12


@given(
    x=st.floats(-50, 50),
    label_smoothing=st.floats(0, 0.49),
)
def test_cdpo_equals_robust_at_negative_smoothing(x, label_smoothing):
    margin = torch.tensor([x], dtype=torch.float64)
    cdpo = cdpo_loss(*margin_to_logps(margin, 0.1), beta=0.1, label_smoothing=label_smoothing)
    robust = robust_loss(margin, -label_smoothing / (1 - 2 * label_smoothing))
    torch.testing.assert_close(cdpo, robust, rtol=1e-9, atol=1e-9)


@given(x=st.floats(-50, 50), label_smoothing=st.floats(0, 0.49))
def test_cdpo_is_dpo_plus_a_linear_term(x, label_smoothing):
    logps = margin_to_logps([x], 0.1)
    cdpo = cdpo_loss(*logps, beta=0.1, label_smoothing=label_smoothing)
    torch.testing.assert_close(
        cdpo, dpo_loss(*logps, beta=0.1) + label_smoothing * x, rtol=1e-9, atol=1e-9
    )


@given(chosen=st.floats(-100, 0), rejected=st.floats(-100, 0), dpop_lambda=st.floats(0, 100))
def test_dpop_is_never_below_dpo(chosen, rejected, dpop_lambda):
    logps = [torch.tensor([v], dtype=torch.float64) for v in (chosen, rejected, -40.0, -40.0)]
    dpop = dpop_loss(*logps, beta=0.1, dpop_lambda=dpop_lambda)
    assert (dpop >= dpo_loss(*logps, beta=0.1)).all()


@all_losses
def test_swapping_nothing_but_the_reference_gives_log_two(loss):
    same = torch.tensor([-7.0, -9.0], dtype=torch.float64)
    torch.testing.assert_close(
        loss(same, same - 3, same, same - 3), torch.full_like(same, math.log(2))
    )


@all_losses
def test_gradients(loss):
    torch.manual_seed(0)
    logps = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *a: loss(*a, beta=0.7), logps)


@all_losses
@pytest.mark.parametrize("chosen, rejected", [(-1e5, 0.0), (0.0, -1e5), (-1e5, -1e5)])
def test_extreme_log_probabilities_stay_finite(loss, chosen, rejected):
    chosen = torch.tensor([chosen], requires_grad=True)
    rejected = torch.tensor([rejected], requires_grad=True)
    reference = torch.tensor([-50.0])
    losses = loss(chosen, rejected, reference, reference)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()


@all_losses
def test_one_value_per_pair_of_any_shape(loss):
    torch.manual_seed(0)
    logps = torch.randn(4, 3, 2)  # 3 prompts with 2 rejected answers each
    losses = loss(*logps)
    assert losses.shape == (3, 2)
    torch.testing.assert_close(losses[1, 1:2], loss(*logps[:, 1, 1:2]))


@all_losses
def test_shapes_must_agree(loss):
    a = torch.zeros(3)
    with pytest.raises(InputError, match=r"`rejected_logps` has shape \(3, 1\)"):
        loss(a, a[:, None], a, a)


@all_losses
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_beta_must_be_positive(loss, beta):
    a = torch.zeros(3)
    with pytest.raises(InputError, match="`beta`"):
        loss(a, a, a, a, beta=beta)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 0.9, math.nan])
def test_label_smoothing_must_be_below_one_half(label_smoothing):
    a = torch.zeros(3)
    with pytest.raises(InputError, match="`label_smoothing`"):
        cdpo_loss(a, a, a, a, beta=0.1, label_smoothing=label_smoothing)


@pytest.mark.parametrize("dpop_lambda", [-1.0, math.nan, math.inf])
def test_dpop_lambda_must_not_be_negative(dpop_lambda):
    a = torch.zeros(3)
    with pytest.raises(InputError, match="`dpop_lambda`"):
        dpop_loss(a, a, a, a, beta=0.1, dpop_lambda=dpop_lambda)

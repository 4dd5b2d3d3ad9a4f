"""What a cached teacher says, against the same teacher asked live."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
import torch
from tiny_models import build_tiny_model, build_tiny_tokenizer

from sense_trl.errors import InputError
from sense_trl.losses.divergence import (
    forward_kl,
    generalized_jsd,
    get_divergence,
    reverse_kl,
)
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.teachers import cache_builder as builder
from sense_trl.trainers.teachers.cache import TeacherCache
from sense_trl.trainers.teachers.cache_builder import build_teacher_cache
from sense_trl.trainers.teachers.teacher import LiveTeacher

PROMPT = list(range(5, 35))
ROWS = [
    (PROMPT, [7, 8, 9]),
    (PROMPT, [7, 10, 11, 12]),
    (list(range(40, 60)), [3, 4]),
    (list(range(60, 75)), [5, 6, 7, 8, 9]),
]
TOKENIZER = build_tiny_tokenizer()
NUM_TOKENS = len(TOKENIZER)
LARGER = build_tiny_tokenizer()
LARGER.add_tokens([f"<{i}>" for i in range(100)])
NUM_COMPLETION_TOKENS = sum(len(answer) for _, answer in ROWS)


@pytest.fixture(scope="module")
def teacher():
    """Surer than random weights make it: its likeliest tokens have most of the probability."""
    model = build_tiny_model("llama", seed=1)
    model.lm_head.weight.data *= 5
    return model


@pytest.fixture
def build(teacher, tmp_path):
    def run(rows=ROWS, name="cache", tokenizer=TOKENIZER, **options):
        return build_teacher_cache(tmp_path / name, teacher, tokenizer, rows, **options)

    return run


@pytest.fixture(scope="module")
def tree():
    sequences = [[*prompt, *answer] for prompt, answer in ROWS]
    masks = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in ROWS]
    return PrefixTree.from_sequences(sequences, masks)


def get_expected(teacher, row, temperature=1.0):
    """The teacher's log-probabilities at an answer's tokens, `[L, V]`."""
    prompt, answer = row
    with torch.no_grad():
        logits = teacher(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return (logits[:, :NUM_TOKENS] / temperature).log_softmax(-1)


def get_student_logits(tree):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(tree.target_ids), 384, generator=generator) * 3


def get_value_and_gradient(term, tree):
    logits = get_student_logits(tree).requires_grad_()
    values = term(logits, slice(None))
    return values, torch.autograd.grad(values.sum(), logits)[0]


def test_the_likeliest_tokens_and_the_rest_are_kept(build, teacher):
    cache = build(top_k=16)
    assert len(cache) == len(ROWS)
    assert cache.num_completion_tokens == NUM_COMPLETION_TOKENS
    for row in ROWS:
        ids, logps = cache.lookup(*row)
        log_probs = get_expected(teacher, row)
        top = log_probs.topk(16)
        assert torch.equal(ids, top.indices)
        # Rounded to 16 bits: 11 of them say where in a power of 2.
        torch.testing.assert_close(logps[:, :16], top.values, rtol=2**-11, atol=1e-6)
        rest = log_probs.exp().sum(-1) - top.values.exp().sum(-1)
        torch.testing.assert_close(logps[:, 16].exp(), rest, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_tokens_teach_as_the_live_teacher_does(build, teacher, tree, temperature):
    cache = build(top_k=NUM_TOKENS, temperature=temperature)
    live = LiveTeacher(teacher, vocab_size=NUM_TOKENS)
    for divergence in (forward_kl, reverse_kl, generalized_jsd):
        (value, gradient), (expected, expected_gradient) = (
            get_value_and_gradient(t.get_term(tree, divergence, temperature=temperature), tree)
            for t in (cache, live)
        )
        # What rounding to 16 bits leaves.
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=2e-3)
        assert (gradient - expected_gradient).norm() <= 2e-3 * expected_gradient.norm()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "skew_kl", "total_variation"])
def test_a_part_of_the_tokens_teaches_less_and_never_below_0(build, teacher, tree, name):
    divergence = get_divergence(name)
    live = LiveTeacher(teacher, vocab_size=NUM_TOKENS).get_term(tree, divergence)
    logits = get_student_logits(tree)
    full = live(logits, slice(None))
    values = [
        build(top_k=k, name=f"top{k}").get_term(tree, divergence)(logits, slice(None))
        for k in (1, 4, 64)
    ]
    for value in values:
        assert (value >= 0).all()
        assert (value <= full + 1e-3 * full).all()
    assert values[0].mean() < values[1].mean() < values[2].mean()


def test_a_token_takes_98_bytes(build):
    """k = 16: 16 ids of 4 bytes and 17 log-probabilities of 2; 24 more for an answer."""
    rows = [([1, 2, 3], [i, *range(60)]) for i in range(200)]
    cache = build(rows)
    assert cache.num_bytes / cache.num_completion_tokens == pytest.approx(98.5, abs=0.5)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("rms_norm_eps", 1e-2, "rms_norm_eps was 1e-06, now 0.01"),
        ("num_attention_heads", 2, "num_attention_heads was 4, now 2"),
        (
            "rope_parameters",
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            "rope_parameters was",
        ),
    ],
)
def test_the_same_weights_under_another_config_are_another_teacher(
    build, teacher, tmp_path, name, value, words
):
    build()
    config = copy.deepcopy(teacher.config)
    setattr(config, name, value)
    if name == "num_attention_heads":
        config.num_key_value_heads, config.head_dim = 1, 32
    other = type(teacher)(config)
    other.load_state_dict(teacher.state_dict())
    with pytest.raises(InputError, match=re.escape(words)):
        build_teacher_cache(tmp_path / "cache", other, TOKENIZER, ROWS)


def test_a_cache_without_the_settings_of_its_teacher_is_read_and_not_added_to(build, tmp_path):
    build()
    path = tmp_path / "cache" / "cache.json"
    content = json.loads(path.read_text())
    del content["model_settings"]
    path.write_text(json.dumps(content))
    assert len(TeacherCache(tmp_path / "cache")) == len(ROWS)
    with pytest.raises(InputError, match="did not write down the settings of the model"):
        build()


def test_samples_are_drawn_from_the_teacher(build, teacher):
    cache = build(num_samples=4000)
    ids, logps = cache.lookup(*ROWS[0])
    log_probs = get_expected(teacher, ROWS[0])
    torch.testing.assert_close(logps, log_probs.gather(1, ids), rtol=2**-11, atol=1e-6)
    shares = torch.stack([row.bincount(minlength=NUM_TOKENS) / 4000 for row in ids])
    # Four standard deviations.
    bound = 4 * (log_probs.exp() / 4000).sqrt() + 1e-3
    assert ((shares - log_probs.exp()).abs() <= bound).all()


def test_the_seed_changes_the_draws(build):
    first, second, same = (
        build(name=name, num_samples=16, seed=seed).lookup(*ROWS[0])[0]
        for name, seed in (("first", 0), ("second", 1), ("same", 0))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, second)


def test_samples_estimate_the_forward_kl_of_the_live_teacher(build, teacher, tree):
    cache = build(num_samples=4000)
    live = LiveTeacher(teacher, vocab_size=NUM_TOKENS).get_term(tree, forward_kl)
    logits = get_student_logits(tree)
    found = cache.get_term(tree, get_divergence("forward_kl"))(logits, slice(None))
    expected = live(logits, slice(None))
    # The student's log-probabilities spread by some 3 nats.
    assert (found - expected).abs().max() <= 4 * 3 / math.sqrt(4000)
    with pytest.raises(InputError, match=r"`divergence` is reverse_kl.*forward_kl alone"):
        cache.get_term(tree, get_divergence("reverse_kl"))


def test_an_answer_may_begin_later(build):
    """A tokenizer may merge over the end of the prompt in another row of a trainer's example."""
    cache = build()
    ids, logps = cache.lookup(PROMPT, [7, 8, 9])
    later_ids, later_logps = cache.lookup([*PROMPT, 7], [8, 9])
    assert torch.equal(later_ids, ids[1:])
    assert torch.equal(later_logps, logps[1:])
    with pytest.raises(InputError, match="1 of 1 answers"):
        cache.lookup(PROMPT[:-1], [PROMPT[-1], 7, 8, 9])


def test_missing_answers_are_counted_and_the_first_is_named(build, tree):
    cache = build(ROWS[:2])
    assert ROWS[0] in cache
    assert ROWS[2] not in cache
    message = r"2 of 4 answers of a batch are not .* The first is number 2: 2 tokens \[3, 4, ...\]"
    with pytest.raises(InputError, match=message):
        cache.get_term(tree, forward_kl)


def test_another_temperature_is_refused(build, tree):
    with pytest.raises(InputError, match=r"`temperature` is 2.0, .* made at 1.0"):
        build().get_term(tree, forward_kl, temperature=2.0)


def test_only_the_end_of_a_sequence_is_an_answer(build):
    gap = PrefixTree.from_sequences([[1, 2, 3, 4]], [[0, 1, 0, 1]])
    with pytest.raises(InputError, match="trains 2 tokens of a sequence of 4"):
        build().get_term(gap, forward_kl)


def test_another_tokenizer_is_refused(build):
    cache = build()
    cache.check_tokenizer(build_tiny_tokenizer(), 384)
    other = build_tiny_tokenizer()
    other.add_tokens(["<added>"])
    for tokenizer, vocab_size in ((other, 512), (TOKENIZER, NUM_TOKENS - 1)):
        with pytest.raises(InputError, match="is not the student's"):
            cache.check_tokenizer(tokenizer, vocab_size)


# ------------------------------------------------------------------------------ building


@pytest.mark.parametrize("options", [{"top_k": 4}, {"num_samples": 4}])
def test_an_interrupted_build_continues_and_gives_the_same_entries(build, monkeypatch, options):
    whole = build(name="whole", batch_size=1, **options)
    asked = []
    ask = builder._ask
    monkeypatch.setattr(builder, "_ask", lambda *args: asked.append(args[2]) or ask(*args))
    finished = 0

    def interrupt(number):
        nonlocal finished
        finished += number
        if finished == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(batch_size=1, batches_per_shard=2, on_progress=interrupt, **options)
    assert len(asked) == 3
    cache = build(batch_size=1, **options)
    assert len(asked) == len(ROWS)
    assert len(cache) == len(ROWS)
    for row in ROWS:
        assert all(map(torch.equal, cache.lookup(*row), whole.lookup(*row)))
    # Opened anew, it is the same.
    assert len(TeacherCache(cache.path)) == len(ROWS)


def test_rows_that_are_there_twice_are_asked_about_once(build):
    assert len(build([*ROWS, *ROWS])) == len(ROWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "`top_k` is 0"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"top_k": NUM_TOKENS + 1}, rf"expected 1 to {NUM_TOKENS}"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"tokenizer": LARGER}, r"`sizes` is \(384, 384\)"),
        ({"rows": [([1], [])]}, "`rows` has an empty prompt or answer"),
    ],
)
def test_arguments_out_of_range_are_refused(build, options, message):
    with pytest.raises(InputError, match=message):
        build(**options)
    # Or the same call with that argument mended would be refused for other settings.
    build()


def test_a_folder_of_something_else_is_refused(build, tmp_path):
    build(top_k=4)
    with pytest.raises(InputError, match="top_k was 4, now 8"):
        build(top_k=8)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="exists and is no teacher cache"):
        build(name="other")
    with pytest.raises(InputError, match="not the folder of a teacher cache"):
        TeacherCache(tmp_path / "other")


def test_a_damaged_file_is_named(build):
    cache = build()
    shard = cache.path / "damaged.safetensors"
    shard.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"damaged.safetensors' is not a part"):
        TeacherCache(cache.path)

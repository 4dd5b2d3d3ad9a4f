"""KID against the obvious way: every sequence by itself, with full logits of both models."""

from __future__ import annotations

import copy
import inspect
import logging
from dataclasses import fields

import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import (
    OPTIONS,
    QUESTIONS,
    assert_same_weights,
    build_tiny_model,
    build_tiny_tokenizer,
    get_comparable_logs,
    get_history,
)
from transformers import BitsAndBytesConfig, MistralConfig, MistralForCausalLM
from trl import TrlParser

from sense_trl import collators
from sense_trl.errors import InputError
from sense_trl.losses.divergence import DIVERGENCES, get_divergence
from sense_trl.trainers import SenseSFTConfig, SenseSFTTrainer
from sense_trl.trainers.kid.imperfect import choose_masked, get_maskable, get_random, get_units
from sense_trl.trainers.kid.student import lay_out_jointly
from sense_trl.trainers.kid_config import KIDConfig
from sense_trl.trainers.kid_trainer import KIDTrainer
from sense_trl.trainers.teacher_options import TeacherOptions
from sense_trl.trainers.teachers.cache import TeacherCache
from sense_trl.trainers.teachers.cache_builder import build_teacher_cache
from sense_trl.trainers.teachers.teacher import LiveTeacher

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture
def build(tmp_path):
    """Builds a trainer; keywords are options of the config."""

    def run(
        *, rows=QUESTIONS, architecture="llama", model=None, teacher=None, lora=True, **options
    ):
        return KIDTrainer(
            model=build_tiny_model(architecture) if model is None else model,
            teacher_model=build_tiny_model(architecture, seed=1)
            if teacher is None
            else teacher or None,
            args=KIDConfig(**{"output_dir": str(tmp_path / "out"), **OPTIONS, **options}),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(QUESTIONS[:4]),
            processing_class=build_tiny_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        )

    return run


@pytest.fixture
def train(build):
    def run(*, resume_from=None, **options):
        trainer = build(**options)
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    return run


def get_batch(trainer, size=4):
    examples = [trainer.train_dataset[i] for i in range(size)]
    return trainer._prepare_inputs(trainer.data_collator(examples))


def get_logits(model, sequence):
    """`[L - 1, V]`: what predicts the tokens from the second on."""
    return model(torch.tensor([sequence]), use_cache=False).logits[0, :-1].float()


def get_imperfect(trainer, model, tokens, is_trained):
    """Stages 1 to 3 of KID for one sequence."""
    tokenizer = trainer.processing_class
    special_ids = {0, 1, 2}
    maskable = get_maskable(tokens, is_trained, special_ids)
    rng = get_random("mask", trainer.args.seed, trainer.state.global_step, tokens)
    masked = choose_masked(get_units(maskable), max(1, round(0.2 * len(maskable))), "random", rng)
    inputs = [tokenizer.pad_token_id if i in masked else t for i, t in enumerate(tokens)]
    with torch.no_grad():
        logits = get_logits(model, inputs)
    logits[:, sorted(special_ids)] = -torch.inf
    logits[:, len(tokenizer) :] = -torch.inf
    return [int(logits[i - 1].argmax()) if i in masked else t for i, t in enumerate(tokens)]


def get_answers(batch):
    """Tokens and which of them are trained, of each row."""
    for tokens, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        end = max(i for i, label in enumerate(labels) if label != -100) + 1
        yield tokens[:end], [label != -100 for label in labels[:end]]


def get_obvious_terms(trainer, teacher, batch):
    """Both sums over tokens, and how many tokens there are, one sequence after the other."""
    args, model = trainer.args, trainer.model
    divergence = get_divergence(args.kd_loss_type)
    mle = kd = num_tokens = 0
    for tokens, is_trained in get_answers(batch):
        judged = tokens
        if args.imperfect_data:
            judged = get_imperfect(trainer, model, tokens, is_trained)
        answer = torch.tensor(is_trained[1:])
        num_tokens += int(answer.sum())
        log_probs = get_logits(model, tokens).log_softmax(-1)
        mle -= log_probs.gather(1, torch.tensor(tokens[1:])[:, None])[answer].sum()
        student, judge = get_logits(model, judged), get_logits(teacher, judged).detach()
        temperature = args.kd_temperature
        kd += divergence(student / temperature, judge / temperature)[answer].sum()
    return mle, kd, num_tokens


def count_errors(trainer, batch):
    return sum(
        a != b
        for tokens, is_trained in get_answers(batch)
        for a, b in zip(
            tokens, get_imperfect(trainer, trainer.model, tokens, is_trained), strict=True
        )
    )


# ------------------------------------------------------------------------ one step by hand


@pytest.mark.parametrize("sharing", ["true", "false"])
@pytest.mark.parametrize(
    "architecture, lora, checkpointing, loss_type",
    [
        ("llama", True, True, "reverse_kl"),
        ("llama", False, False, "forward_kl"),
        ("qwen2", True, False, "generalized_jsd"),
        ("qwen2", False, True, "reverse_kl"),
    ],
)
def test_a_step_equals_the_obvious_one(
    build, architecture, lora, checkpointing, loss_type, sharing
):
    trainer = build(
        architecture=architecture,
        lora=lora,
        gradient_checkpointing=checkpointing,
        kd_loss_type=loss_type,
        kd_temperature=2.0,
        kd_weight=3.0,
        mle_weight=0.5,
        prefix_sharing=sharing,
    )
    model, teacher = trainer.model, build_tiny_model(architecture, seed=1)
    if lora:
        # As after some training: the adapter does something.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    batch, num_items = get_batch(trainer), torch.tensor(100)

    model.eval()
    num_errors = count_errors(trainer, batch)
    mle, kd, num_tokens = get_obvious_terms(trainer, teacher, batch)
    expected = (0.5 * mle + 3.0 * kd) / 100
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert num_errors > 0

    model.zero_grad()
    model.train()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
    loss.backward()
    assert model.training
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9, name
    metrics = {name: values[-1] for name, values in trainer.own_metrics["train"].items()}
    assert metrics["losses/mle"] == pytest.approx(mle.item() / num_tokens, rel=1e-5)
    assert metrics["losses/kd"] == pytest.approx(kd.item() / num_tokens, rel=1e-4)
    assert metrics["kid/effective_error_rate"] == pytest.approx(num_errors / num_tokens)
    assert metrics["kid/mask_share"] >= metrics["kid/effective_error_rate"]
    assert ("prefix_sharing/tokens_saved" in metrics) is (sharing == "true")


def tiny_sft(tmp_path):
    return SenseSFTTrainer(
        model=build_tiny_model("llama"),
        args=SenseSFTConfig(str(tmp_path / "sft"), **OPTIONS),
        train_dataset=Dataset.from_list(QUESTIONS),
        processing_class=build_tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )


def test_the_metrics_of_trl_are_those_of_the_gold_answers(build, tmp_path):
    kid = build()
    sft = tiny_sft(tmp_path)
    for trainer in (kid, sft):
        trainer.model.train()
        trainer.compute_loss(trainer.model, get_batch(trainer), num_items_in_batch=None)
    for name in ("entropy", "mean_token_accuracy", "num_tokens"):
        (found,), (expected,) = (t._metrics["train"][name] for t in (kid, sft))
        assert found == pytest.approx(expected, rel=1e-5), name


def test_the_teacher_reads_no_gold_answers(build):
    trees = []

    class Recorder:
        def get_term(self, tree, divergence, *, temperature=1.0, sequences=None):
            trees.append(tree)
            return lambda logits, rows: logits[:, 0] * 0

    trainer = build(teacher=Recorder())
    trainer.model.train()
    batch = get_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    (tree,) = trees
    read = tree.input_ids.flatten()[tree.sequence_nodes.clamp(min=0)]
    assert len(read) == 4
    gold = batch["input_ids"]
    is_answer = batch["labels"] != -100
    assert torch.equal(read[~is_answer & (gold != 0)], gold[~is_answer & (gold != 0)])
    assert (read != gold)[is_answer].any()


# ------------------------------------------------------------------------------ invariance


def get_gradients(trainer, batches, num_items):
    """Summed over micro-batches, as accumulation does."""
    trainer.model.zero_grad()
    trainer.model.train()
    for batch in batches:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items).backward()
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "options",
    [
        *({"kd_loss_type": name} for name in sorted(DIVERGENCES)),
        {"fill": "sample"},
        {"fill": "mask"},
        {"mask_strategy": "uniform"},
        {"mask_strategy": "hard"},
        {"mask_strategy": "easy"},
        {"imperfect_data": False},
        {"prefix_sharing": "false"},
        {
            "on_policy_fraction": 0.5,
            "on_policy_temperature": 0.0,
            "on_policy_max_new_tokens": 3,
        },
    ],
    ids=str,
)
def test_micro_batches_change_nothing(build, options):
    trainer = build(lora=False, kd_weight=20.0, **options)
    examples = [trainer.train_dataset[i] for i in range(8)]
    num_items = torch.tensor(sum(t != -100 for e in examples for t in e["labels"]))
    large, *others = (
        get_gradients(
            trainer,
            [
                trainer._prepare_inputs(trainer.data_collator(examples[start : start + size]))
                for start in range(0, 8, size)
            ],
            num_items,
        )
        for size in (8, 2, 1)
    )
    for small in others:
        for name, gradient in large.items():
            assert (small[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9, name


def test_accumulation_changes_nothing(train):
    large, *others = (
        train(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        for size in (8, 2, 1)
    )
    for small in others:
        assert_same_weights(large, small, rtol=1e-3, atol=1e-5)
        for name in ("loss", "grad_norm"):
            torch.testing.assert_close(
                get_history(large, name), get_history(small, name), rtol=1e-4, atol=1e-5
            )


def test_a_resumed_run_draws_the_same_masks(train, tmp_path):
    options = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
        "fill": "sample",
        "lr_scheduler_type": "linear",
    }
    whole = train(output_dir=str(tmp_path / "a"), **options)
    resumed = train(
        output_dir=str(tmp_path / "b"),
        resume_from=str(tmp_path / "a" / "checkpoint-3"),
        **options,
    )
    assert_same_weights(whole, resumed)
    # TRL counts tokens from the start of the process.
    (expected,), (found,) = (
        [{k: v for k, v in entry.items() if k != "num_tokens"} for entry in logs[-2:-1]]
        for logs in map(get_comparable_logs, (whole, resumed))
    )
    assert found == expected
    assert "kid/mask_share" in found
    # The end of an answer is not masked.
    assert get_history(whole, "kid/mask_share") == pytest.approx([0.2] * 5, abs=0.05)


@pytest.mark.parametrize("strategy", ["hard", "easy"])
def test_the_least_or_most_confident_tokens_of_gold_are_masked(build, strategy):
    trainer = build(mask_strategy=strategy)
    gold = collators.get_answers(get_batch(trainer))
    masked = trainer._rewriter.choose_masked(trainer.model, gold, None, trainer.state)
    trainer.model.eval()
    for tokens, is_trained, positions in zip(gold.sequences, gold.is_trained, masked, strict=True):
        log_probs = get_logits(trainer.model, tokens).log_softmax(-1)
        confidences = log_probs.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
        maskable = get_maskable(tokens, is_trained, {0, 1, 2})
        maskable.sort(key=lambda position: confidences[position - 1], reverse=strategy == "easy")
        assert positions == sorted(maskable[: len(positions)])
        assert len(positions) == max(1, round(0.2 * len(maskable)))


def test_another_seed_draws_other_masks(build):
    masked = []
    for seed in (0, 1):
        trainer = build(seed=seed)
        batch = get_batch(trainer)
        gold = collators.get_answers(batch)
        masked.append(trainer._rewriter.choose_masked(trainer.model, gold, None, trainer.state))
        trainer.state.global_step = 1
        masked.append(trainer._rewriter.choose_masked(trainer.model, gold, None, trainer.state))
    assert len({str(positions) for positions in masked}) == 4


# --------------------------------------------------------------------------------- variants


def test_without_imperfect_data_the_teacher_judges_gold(build):
    trainer = build(imperfect_data=False)
    batch = get_batch(trainer)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.model.eval()
    teacher = build_tiny_model("llama", seed=1)
    mle, kd, num_tokens = get_obvious_terms(trainer, teacher, batch)
    assert loss.item() == pytest.approx((mle + kd).item() / num_tokens, rel=1e-5)
    assert "kid/mask_share" not in trainer.own_metrics["train"]


def test_evaluation_judges_gold_and_draws_nothing(build):
    imperfect, plain = build(), build(imperfect_data=False)
    first, again = (
        {k: v for k, v in imperfect.evaluate().items() if "loss" in k} for _ in range(2)
    )
    assert first == again
    assert set(first) == {"eval_loss", "eval_losses/mle", "eval_losses/kd"}
    assert first["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    assert first["eval_loss"] == pytest.approx(
        first["eval_losses/mle"] + first["eval_losses/kd"], rel=1e-5
    )


def test_the_logits_of_gold_are_there_for_compute_metrics(build):
    trainer = build()
    batch = get_batch(trainer)
    with pytest.warns(FutureWarning, match="return_outputs"):
        _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    with torch.no_grad():
        ids, mask = batch["input_ids"], batch["attention_mask"]
        expected = trainer.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(outputs.logits, expected)


def test_masking_only_leaves_the_masks(build):
    trainer = build(fill="mask", mask_token="<|im_start|>")
    gold = collators.get_answers(get_batch(trainer))
    imperfect, masked = trainer._rewriter.rewrite(trainer.model, gold, None, trainer.state)
    for positions, old, new in zip(masked, gold.sequences, imperfect.sequences, strict=True):
        assert [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b] == positions
        assert {new[position] for position in positions} == {1}


def test_the_student_s_own_answers_follow_its_prompts(build):
    trainer = build(imperfect_data=False, on_policy_fraction=1.0, on_policy_max_new_tokens=6)
    gold = collators.get_answers(get_batch(trainer))
    first, again = (trainer._get_judged_answers(trainer.model, gold, None) for _ in range(2))
    assert first == again
    for row, sequence in enumerate(first.sequences):
        prompt = gold.get_prompt(row)
        assert sequence[: len(prompt)] == prompt
        assert first.lengths[row] == len(sequence) - len(prompt) <= 6
        # Each weighs as much as the gold answer.
        tree, rows = lay_out_jointly(trainer.prefix_sharing.lay_out, gold, first)
        assert tree.weights[rows][row].sum() == pytest.approx(gold.lengths[row], rel=1e-5)
    assert first.sequences != gold.sequences


def test_greedy_answers_are_the_likeliest_tokens(build):
    trainer = build(on_policy_fraction=1.0, on_policy_temperature=0.0, on_policy_max_new_tokens=4)
    gold = collators.get_answers(get_batch(trainer))
    own = trainer._get_judged_answers(trainer.model, gold, None)
    trainer.model.eval()
    for row, sequence in enumerate(own.sequences):
        prompt = gold.get_prompt(row)
        for position in range(len(prompt), len(sequence)):
            logits = get_logits(trainer.model, sequence[: position + 1])[-1]
            logits[len(trainer.processing_class) :] = -torch.inf
            assert sequence[position] == int(logits.argmax())


def build_windowed_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8}
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=tiny_models.VOCAB_SIZE, pad_token_id=0, eos_token_id=2, **sizes, **heads
        )
    )


@pytest.mark.parametrize("windowed", ["student", "teacher", "both"])
def test_models_with_sliding_windows_read_rows(build, windowed, caplog):
    def build_model(role, seed):
        is_windowed = windowed in (role, "both")
        return build_windowed_model() if is_windowed else build_tiny_model("llama", seed=seed)

    with caplog.at_level(logging.WARNING, logger="sense_trl"):
        trainer = build(
            model=build_model("student", 0), teacher=build_model("teacher", 1), lora=False
        )
    assert ("window of 8 tokens" in caplog.text) is (windowed != "teacher")
    batch = get_batch(trainer)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.model.eval()
    mle, kd, num_tokens = get_obvious_terms(trainer, build_model("teacher", 1), batch)
    assert loss.item() == pytest.approx((mle + kd).item() / num_tokens, rel=1e-5)


def test_distillation_brings_the_student_to_its_teacher(train):
    trainer = train(
        max_steps=25, per_device_train_batch_size=8, learning_rate=3e-3, mle_weight=0.0, lora=False
    )
    kd = get_history(trainer, "losses/kd")
    assert sum(kd[-5:]) < 0.7 * sum(kd[:5])


# ---------------------------------------------------------------------------- other teachers


def get_two_adapters():
    """A student with an adapter of its own and one to teach with, as after some training."""
    torch.manual_seed(0)
    model = get_peft_model(build_tiny_model("qwen2"), LoraConfig(r=4, target_modules="all-linear"))
    model.add_adapter("teacher", LoraConfig(r=8, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.teacher" in name:
                parameter.normal_(std=0.2, generator=generator)
    model.set_adapter("default")
    return model


def test_an_adapter_on_the_student_s_base_teaches_as_a_model_of_its_own_does(train, tmp_path):
    model = get_two_adapters()
    merged = copy.deepcopy(model)
    merged.set_adapter("teacher")
    merged = merged.merge_and_unload()
    own = train(model=get_two_adapters(), teacher=merged, lora=False)
    adapter = train(model=model, teacher_adapter_name="teacher", teacher=False, lora=False)
    for name in ("loss", "losses/kd", "grad_norm"):
        torch.testing.assert_close(
            get_history(adapter, name), get_history(own, name), rtol=1e-3, atol=1e-5
        )
    assert get_history(adapter, "losses/kd")[0] > 0.01
    before = {n: p for n, p in get_two_adapters().named_parameters() if ".teacher." in n}
    after = dict(adapter.model.named_parameters())
    assert before
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
    adapter.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "saved" / "teacher").exists()


def test_a_cache_of_all_tokens_teaches_gold_answers_as_the_model_does(train, tmp_path):
    options = {"imperfect_data": False, "kd_loss_type": "forward_kl", "kd_weight": 20.0}
    live = train(**options)
    rows = [(e["input_ids"], e["labels"].count(-100)) for e in live.train_dataset]
    build_teacher_cache(
        tmp_path / "cache",
        build_tiny_model("llama", seed=1),
        build_tiny_tokenizer(),
        [(ids[:start], ids[start:]) for ids, start in rows],
        top_k=len(build_tiny_tokenizer()) - 1,
    )
    cached = train(teacher=False, teacher_cache=str(tmp_path / "cache"), **options)
    # Log-probabilities are kept in 16 bits.
    for name in ("loss", "losses/kd", "grad_norm"):
        torch.testing.assert_close(
            get_history(cached, name), get_history(live, name), rtol=2e-2, atol=2e-3
        )
    with pytest.raises(InputError, match="no cache can hold"):
        train(teacher=TeacherCache(tmp_path / "cache"), kd_loss_type="forward_kl")


def test_autocast_runs_are_as_close_as_bfloat16_is(train):
    half, single = (train(bf16=bf16) for bf16 in (True, False))
    for name in ("loss", "losses/kd", "grad_norm"):
        torch.testing.assert_close(
            get_history(half, name), get_history(single, name), rtol=5e-2, atol=1e-3
        )


def test_student_and_teacher_in_4_bits(train, model_paths):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    # The teacher has the weights of the student's base, which an untrained adapter leaves alone.
    shared, rows = (
        train(
            model=model_paths["llama"],
            teacher=False,
            model_init_kwargs={"quantization_config": BitsAndBytesConfig(**quantization)},
            teacher_model_name_or_path=model_paths["llama"],
            teacher_model_init_kwargs={
                "dtype": "float32",
                "quantization_config": BitsAndBytesConfig(**quantization),
            },
            prefix_sharing=sharing,
            max_steps=3,
            kd_weight=20.0,
        )
        for sharing in ("true", "false")
    )
    kd = get_history(shared, "losses/kd")
    assert kd[0] == pytest.approx(0.0, abs=1e-6)
    assert kd[-1] > 1e-5
    for name in ("loss", "losses/kd", "grad_norm"):
        torch.testing.assert_close(
            get_history(shared, name), get_history(rows, name), rtol=1e-3, atol=1e-5
        )


def test_heads_that_are_padded_to_different_sizes_are_compared_on_common_tokens(build):
    student = build_tiny_model("llama")
    student.resize_token_embeddings(tiny_models.VOCAB_SIZE + 64, mean_resizing=False)
    with torch.no_grad():
        # What is no token is never predicted nor written, however likely.
        student.lm_head.weight[tiny_models.VOCAB_SIZE :] = 9.0 * student.lm_head.weight[:64]
    teacher = build_tiny_model("llama", seed=1)
    trainer = build(
        model=student,
        teacher=LiveTeacher(teacher, vocab_size=tiny_models.VOCAB_SIZE),
        on_policy_fraction=0.5,
        on_policy_max_new_tokens=4,
    )
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, get_batch(trainer, 8))
    assert loss.isfinite()
    judged = trainer._get_judged_answers(
        trainer.model, collators.get_answers(get_batch(trainer, 8)), None
    )
    assert max(map(max, judged.sequences)) < len(trainer.processing_class)


# ------------------------------------------------------------------------------ schema items


def get_item_rows():
    """Each row with the spans of `singer` and the like behind FROM."""
    rows = []
    for row in QUESTIONS:
        start = row["completion"].index("FROM ") + 5
        rows.append({**row, "mask_spans": [[start, start + len(row["db_id"])]]})
    return rows


@pytest.mark.parametrize("is_conversation", [False, True])
def test_whole_schema_items_are_masked(build, is_conversation):
    rows = get_item_rows()
    if is_conversation:
        rows = [
            {
                **row,
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows
        ]
    trainer = build(rows=rows, mask_unit="schema_item")
    batch = get_batch(trainer, 8)
    gold = collators.get_answers(batch)
    masked = trainer._rewriter.choose_masked(
        trainer.model, gold, batch["mask_groups"], trainer.state
    )
    for row, sequence, positions in zip(rows, gold.sequences, masked, strict=False):
        ids = [sequence[position] for position in positions]
        assert trainer.processing_class.decode(ids).strip() == row["db_id"]
    trainer.train()
    assert get_history(trainer, "kid/mask_share")[0] > 0


@pytest.mark.parametrize(
    "change, match",
    [
        ({"mask_spans": None}, "no column"),
        ({"mask_spans": [[0, 999]]}, r"`mask_spans` has \[0, 999\]"),
        ({"mask_spans": [0, 3]}, "`mask_spans` has 0; "),
    ],
    ids=str,
)
def test_unusable_items_are_refused(build, change, match):
    rows = [{**row, **change} for row in QUESTIONS]
    if change["mask_spans"] is None:
        rows = QUESTIONS
    with pytest.raises(InputError, match=match):
        build(rows=rows, mask_unit="schema_item")


# ------------------------------------------------------------------- what an answer is

CONVERSATIONS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
    for row in QUESTIONS
]
MESSAGES = [{"messages": row["prompt"] + row["completion"]} for row in CONVERSATIONS]
TEXTS = [{"text": row["prompt"] + row["completion"]} for row in QUESTIONS]
TOKENS = [{"input_ids": [5, 6, 7, 2]}] * 4
# Ends no prompt with what begins an answer.
NO_PROMPT_TEMPLATE = tiny_models.CHAT_TEMPLATE.split("{% if add_generation_prompt")[0]
# Writes both of its end tokens, with a line's end between and behind them.
TWO_ENDS_TEMPLATE = tiny_models.CHAT_TEMPLATE.replace(
    "{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}<|endoftext|>\n{% endif %}"
)


def build_kid(tmp_path, rows, tokenizer=None, model=None, **options):
    return KIDTrainer(
        model=build_tiny_model("qwen2") if model is None else model,
        teacher_model=build_tiny_model("qwen2", seed=1),
        args=KIDConfig(output_dir=str(tmp_path / "out"), **{**OPTIONS, **options}),
        train_dataset=Dataset.from_list(rows),
        processing_class=build_tiny_tokenizer() if tokenizer is None else tokenizer,
    )


@pytest.mark.parametrize("template", [tiny_models.CHAT_TEMPLATE, TWO_ENDS_TEMPLATE])
@pytest.mark.parametrize(
    "rows, options",
    [(CONVERSATIONS, {}), (MESSAGES, {"assistant_only_loss": True}), (QUESTIONS, {})],
    ids=["conversation", "messages", "text"],
)
def test_the_answer_alone_is_masked(tmp_path, rows, options, template):
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    trainer = build_kid(tmp_path, rows, tokenizer, mask_ratio=1.0, **options)
    gold = collators.get_answers(get_batch(trainer))
    masked = trainer._rewriter.choose_masked(trainer.model, gold, None, trainer.state)
    for row, positions in enumerate(masked):
        text = tokenizer.decode([gold.sequences[row][position] for position in positions])
        assert text == QUESTIONS[row]["completion"]


@pytest.mark.parametrize("is_conversation", [False, True])
def test_rewritten_answers_end_where_gold_does(tmp_path, is_conversation):
    """The template's line end behind the end token is trained, and was rewritten to anything."""
    rows = CONVERSATIONS if is_conversation else QUESTIONS
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = TWO_ENDS_TEMPLATE
    trainer = build_kid(tmp_path, rows, tokenizer, mask_ratio=1.0)
    lengths = [len(tokenizer(row["completion"])["input_ids"]) for row in QUESTIONS[:6]]
    gold = collators.get_answers(get_batch(trainer, 6))
    rewritten, masked = trainer._rewriter.rewrite(trainer.model, gold, None, trainer.state)
    expected = []
    for row, positions in enumerate(masked):
        assert len(positions) == lengths[row]
        assert positions == list(range(positions[0], positions[0] + lengths[row]))
        end = positions[-1] + 1
        assert rewritten.sequences[row][end:] == gold.sequences[row][end:]
        assert rewritten.sequences[row][: positions[0]] == gold.sequences[row][: positions[0]]
        expected.append(tokenizer.decode(rewritten.sequences[row][positions[0] : end]))
    assert trainer.rewrite_completions(rows[:6]) == expected


@pytest.mark.parametrize("option", [{}, {"imperfect_data": False, "on_policy_fraction": 0.5}])
@pytest.mark.parametrize(
    "rows, options, template",
    [
        (QUESTIONS, {"completion_only_loss": False}, None),
        (CONVERSATIONS, {"completion_only_loss": False}, None),
        (TEXTS, {}, None),
        (MESSAGES, {}, None),
        (TOKENS, {}, None),
        (CONVERSATIONS, {}, NO_PROMPT_TEMPLATE),
    ],
    ids=["text prompt", "conversation", "text", "messages", "tokens", "no generation prompt"],
)
def test_prompts_that_are_trained_are_no_answers(tmp_path, rows, options, template, option):
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    with pytest.raises(InputError, match="nothing says where the answer begins"):
        build_kid(tmp_path, rows, tokenizer, **option, **options)
    # Distillation on all trained tokens as they are is well defined.
    build_kid(tmp_path, rows, tokenizer, imperfect_data=False, **options)


def test_every_answer_of_a_conversation_is_masked(tmp_path):
    rows = [{"messages": row["messages"] + row["messages"]} for row in MESSAGES]
    trainer = build_kid(tmp_path, rows, assistant_only_loss=True, mask_ratio=1.0)
    gold = collators.get_answers(get_batch(trainer))
    for row, positions in enumerate(
        trainer._rewriter.choose_masked(trainer.model, gold, None, trainer.state)
    ):
        text = trainer.processing_class.decode([gold.sequences[row][i] for i in positions])
        assert text == 2 * QUESTIONS[row]["completion"]


SETTINGS = {
    "repetition_penalty": 50.0,
    "top_p": 0.01,
    "top_k": 1,
    "min_p": 0.9,
    "typical_p": 0.1,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 6,
    "suppress_tokens": list(range(3, 200)),
    "bad_words_ids": [[201]],
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("lora", [False, True])
def test_sampling_is_what_the_config_says(build, lora, temperature):
    """Not what the model's own generation config would fill in."""
    options = {"on_policy_fraction": 1.0, "on_policy_max_new_tokens": 6, "imperfect_data": False}
    answers = []
    for settings in ({}, SETTINGS):
        model = build_tiny_model("llama")
        model.generation_config.update(do_sample=True, **settings)
        trainer = build(model=model, lora=lora, on_policy_temperature=temperature, **options)
        gold = collators.get_answers(get_batch(trainer))
        answers.append(trainer._get_judged_answers(trainer.model, gold, None))
        base = trainer.model.get_base_model() if lora else trainer.model
        for name, value in settings.items():
            assert getattr(base.generation_config, name) == value
    assert answers[0] == answers[1]


def test_own_answers_stop_at_every_end_token(tmp_path):
    model = build_tiny_model("qwen2")
    options = {"on_policy_fraction": 1.0, "on_policy_temperature": 0.0}
    trainer = build_kid(tmp_path, QUESTIONS, model=model, on_policy_max_new_tokens=5, **options)
    gold = collators.get_answers(get_batch(trainer, 1))
    prompt = gold.get_prompt(0)
    [written] = trainer._writer.write(trainer.model, [prompt], 0)
    assert len(written) == 5
    model.generation_config.eos_token_id = [2, written[2]]
    [shorter] = trainer._writer.write(trainer.model, [prompt], 0)
    assert shorter == written[: written.index(written[2]) + 1]


# ---------------------------------------------------------------------------- rewritten text


def test_rewritten_answers_are_text(build):
    trainer = build(per_device_eval_batch_size=3)
    rows = QUESTIONS[:5]
    texts = trainer.rewrite_completions(rows)
    gold = collators.get_answers(get_batch(trainer, 5))
    imperfect, _ = trainer._rewriter.rewrite(trainer.model, gold, None, trainer.state)
    expected = [
        trainer.processing_class.decode(
            [t for t, trained in zip(*pair, strict=True) if trained][:-1]
        )
        for pair in zip(imperfect.sequences, imperfect.is_trained, strict=True)
    ]
    assert texts == expected
    assert all(text != row["completion"] for text, row in zip(texts, rows, strict=True))
    assert not trainer.own_metrics["train"]
    with pytest.raises(InputError, match="`fill` is 'mask'"):
        build(fill="mask").rewrite_completions(rows)


# ------------------------------------------------------------------------- options, refusals


def test_every_option_is_described():
    ours = {f.name: f for f in fields(KIDConfig)}
    for name in {f.name for f in fields(SenseSFTConfig)} - {f.name for f in fields(TeacherOptions)}:
        ours.pop(name)
    assert {"mask_ratio", "kd_weight", "teacher_model_name_or_path"} <= set(ours)
    for name, f in ours.items():
        assert f.metadata.get("help"), name


def test_options_are_read_from_yaml_and_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nkd_loss_type: skew_kl\n"
        "kd_loss_kwargs: {skew: 0.2}\nteacher_model_name_or_path: somewhere\n"
        "teacher_model_init_kwargs: {dtype: bfloat16}\n"
    )
    arguments = ["--config", str(path), "--mask_ratio", "0.3", "--imperfect_data", "false"]
    (config,) = TrlParser(KIDConfig).parse_args_and_config(arguments)
    assert config.kd_loss_kwargs == {"skew": 0.2}
    assert config.teacher_model_init_kwargs == {"dtype": "bfloat16"}
    assert (config.mask_ratio, config.imperfect_data) == (0.3, False)
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]
    arguments += ["--kd_loss_type", "skew_kl", "--kd_loss_kwargs", '{"skew": 0.2}']
    (config,) = TrlParser(KIDConfig).parse_args_and_config(arguments)
    assert config.kd_loss_kwargs == {"skew": 0.2}


@pytest.mark.parametrize(
    "options",
    [
        {"kd_loss_type": "hidden_states"},
        {"kd_weight": 0.0},
        {"kd_temperature": 0.0},
        {"mle_weight": -1.0},
        {"mask_ratio": 0.0},
        {"mask_ratio": 1.5},
        {"mask_strategy": "often"},
        {"mask_unit": "clause"},
        {"fill": "teacher"},
        {"teacher_cache": "cache"},
        {"teacher_cache": "cache", "imperfect_data": False, "on_policy_fraction": 0.5},
        {"on_policy_fraction": 1.1},
        {"on_policy_temperature": -0.1},
        {"on_policy_max_new_tokens": 0},
    ],
    ids=str,
)
def test_unusable_options_are_refused_by_name(tmp_path, options):
    name = next(iter(options))
    with pytest.raises(InputError, match=f"`{name}`"):
        KIDConfig(str(tmp_path), use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"packing": True, "max_length": 64}, "`packing`"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`"),
        ({"mask_token": "<no such token>"}, "`mask_token`"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*(packing|label_smoothing|padding).*")
def test_what_the_terms_are_not_defined_on_is_refused(build, options, match):
    with pytest.raises(InputError, match=match):
        build(**options)


def test_without_a_teacher_nothing_is_trained(tmp_path):
    with pytest.raises(InputError, match="teacher"):
        KIDTrainer(
            build_tiny_model("llama"),
            args=KIDConfig(str(tmp_path), **OPTIONS),
            train_dataset=Dataset.from_list(QUESTIONS),
            processing_class=build_tiny_tokenizer(),
        )


def test_the_mask_token_is_named_in_the_log(build, caplog):
    with caplog.at_level(logging.INFO, logger="sense_trl"):
        build()
    assert "masked with the token '<|endoftext|>'" in caplog.text


def test_the_example_of_the_docstring_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = inspect.getdoc(KIDTrainer).split("```python\n")[1].split("```")[0]
    for size, architecture, seed in (("135M", "llama", 0), ("360M", "llama", 1)):
        name = f"HuggingFaceTB/SmolLM2-{size}-Instruct"
        assert name in example
        path = tiny_models.save_tiny_model(tmp_path / size, architecture, seed=seed)
        example = example.replace(name, path)
    exec(example, {})
    assert (tmp_path / "kid" / "adapter_model.safetensors").exists()


def test_the_constructor_takes_what_the_sft_trainer_takes():
    ours, theirs = (
        list(inspect.signature(cls.__init__).parameters) for cls in (KIDTrainer, SenseSFTTrainer)
    )
    # A loss of one's own would need full logits.
    assert [name for name in theirs if name != "compute_loss_func"] == [
        name for name in ours if name != "teacher_model"
    ]

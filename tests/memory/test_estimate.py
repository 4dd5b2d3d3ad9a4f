"""The memory estimate: parts by hand, the simulated step against a real one, what it advises."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from linked_rows import ROWS
from peft import LoraConfig
from tiny_models import PAIRS, QUESTIONS
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from trl import ModelConfig

from sense_trl.errors import InputError
from sense_trl.memory import check as memory_check
from sense_trl.memory import simulation
from sense_trl.memory.cards import CARDS, UTILISATION, estimate_step_seconds
from sense_trl.memory.check import find_changes, warn_of_memory
from sense_trl.memory.estimate import MemoryEstimate, build_batch, estimate_memory
from sense_trl.memory.simulation import ModelSettings, build_meta_model, profile_step
from sense_trl.memory.training_setup import (
    TrainingSetup,
    get_trainer_setup,
    get_training_setup,
)
from sense_trl.trainers import (
    KIDConfig,
    SenseDPOConfig,
    SenseDPOTrainer,
    SenseSFTConfig,
    SenseSFTTrainer,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

V, H, F, L = 384, 64, 128, 2
CONFIG = LlamaConfig(
    vocab_size=V,
    hidden_size=H,
    intermediate_size=F,
    num_hidden_layers=L,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
# Queries and output H x H, keys and values H x H/2, and three of H x F.
LAYER = 2 * H * H + 2 * H * H // 2 + 3 * H * F
ALL = V * H + L * (LAYER + 2 * H) + H
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)
# A layer's inputs and outputs, each r times: q, o, k, v, gate, up, down.
ADAPTER = L * 4 * (2 * (H + H) + 2 * (H + H // 2) + 3 * (H + F))
SETUP = TrainingSetup("sft", ModelSettings(), 2, prompt_tokens=20, completion_tokens=10)
DPO = replace(SETUP, stage="dpo", completions_per_prompt=2)


def get_part(estimate: MemoryEstimate, name: str) -> int:
    return next((part.num_bytes for part in estimate.parts if part.name == name), 0)


def with_model(setup: TrainingSetup, **options) -> TrainingSetup:
    return replace(setup, model=replace(setup.model, **options))


# ------------------------------------------------------------------------------ parts by hand


def test_weights_gradients_and_moments_of_full_training() -> None:
    estimate = estimate_memory(SETUP, CONFIG)
    assert estimate.num_parameters == estimate.num_trained == ALL
    assert get_part(estimate, "weights") == 4 * ALL
    assert get_part(estimate, "gradients") == 4 * ALL
    assert get_part(estimate, "optimizer") == 8 * ALL
    assert estimate.tokens == 2 * 30
    assert estimate.total_bytes == sum(part.num_bytes for part in estimate.parts)
    assert str(estimate).splitlines()[-1].startswith("total")


def test_4_bit_weights_with_their_scales() -> None:
    setup = with_model(SETUP, lora=LORA, load_in_4bit=True, dtype="bfloat16", on_gpu=True)
    linear, num_layers = L * LAYER, 7 * L
    tables = num_layers * 4 * (16 + 256 + 1)
    estimate = estimate_memory(setup, CONFIG)
    assert get_part(estimate, "4-bit weights") == linear // 2 + 4 * linear // 64 + tables
    # The embeddings are the output layer, too; they and the norms stay in 16 bits.
    assert get_part(estimate, "weights") == 2 * (ALL - linear)
    assert get_part(estimate, "adapter") == 4 * ADAPTER
    assert get_part(estimate, "gradients") == 4 * ADAPTER
    assert get_part(estimate, "optimizer") == 8 * ADAPTER
    assert get_part(estimate, "dequantised") == 2 * H * F
    double = estimate_memory(replace(setup, double_quantization=True), CONFIG)
    # No weight here has more than one block of 256 scales.
    expected = linear // 2 + linear // 64 + 4 + tables
    assert 0 <= get_part(double, "4-bit weights") - expected < 4 * num_layers


def test_the_optimizers_of_bitsandbytes_keep_small_tensors_in_32_bits() -> None:
    estimate = estimate_memory(replace(SETUP, optimizer="paged_adamw_8bit"), CONFIG)
    large = [V * H] + L * ([H * H] * 2 + [H * F] * 3)
    small = ALL - sum(large)
    expected = 2 * sum(size + 4 * (size // 256) for size in large) + 8 * small
    assert get_part(estimate, "optimizer") == expected
    lion = estimate_memory(replace(SETUP, optimizer="lion_32bit"), CONFIG)
    assert get_part(lion, "optimizer") == 4 * ALL
    other = estimate_memory(replace(SETUP, optimizer="grokadamw"), CONFIG)
    assert get_part(other, "optimizer") == 8 * ALL
    assert "counted as AdamW" in str(other)


def test_the_reference_the_teacher_and_the_cache_of_generation() -> None:
    copy = estimate_memory(replace(DPO, reference="weights", reference_passes=1), CONFIG)
    assert get_part(copy, "reference") == 4 * ALL
    setup = replace(with_model(DPO, lora=LORA), reference="adapter")
    assert get_part(estimate_memory(setup, CONFIG), "reference") == 4 * ADAPTER
    kd = replace(DPO, stage="kd", teacher=ModelSettings(dtype="bfloat16"), generates=True)
    with pytest.raises(InputError, match="`teacher_config` is missing"):
        estimate_memory(kd, CONFIG)
    estimate = estimate_memory(kd, CONFIG, teacher_config=CONFIG)
    tokens = 2 * (20 + 2 * 10)
    assert get_part(estimate, "teacher") == 2 * ALL + 2 * tokens * H
    # Keys and values: 2 layers of 2 heads of 16 numbers, for 2 answers of 30 tokens.
    assert get_part(estimate, "KV cache") == 2 * L * 2 * 16 * 4 * 2 * 30


# ------------------------------------------------------------------------- the simulated step


def test_operations_of_a_forward_pass() -> None:
    profile = estimate_memory(SETUP, CONFIG).profile
    # Rows of 30 tokens: linear layers, attention over all pairs, 20 rows of logits.
    linear = 2 * 60 * L * LAYER
    attention = 2 * 2 * 2 * 30 * 30 * H * L
    assert profile.forward_flops == linear + attention + 2 * 20 * H * V


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "LoRA"])
def test_what_waits_for_the_backward_pass_is_what_autograd_saves(lora) -> None:
    setup = with_model(replace(SETUP, prompt_tokens=200), lora=lora)
    tree = build_batch(setup)
    model = build_meta_model(CONFIG, setup.model).to_empty(device="cpu")
    token_ids = tree.input_ids % V
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    base = model.get_base_model() if lora is not None else model
    mask = torch.ones_like(tree.input_ids)
    mask[1, -1] = 0  # with padding, as batches are
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        base.model(input_ids=token_ids, attention_mask=mask, use_cache=False)
    found = profile_step(CONFIG, setup.model, tree).kept_bytes
    assert found == pytest.approx(sum(kept.values()), rel=0.05)


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        (LlamaConfig, {"lora": LORA, "autocast_dtype": "bfloat16"}),
        (LlamaConfig, {"activation_checkpointing": True}),
        (Qwen2Config, {}),
    ],
    ids=["LoRA, mixed", "checkpoints", "all weights"],
)
def test_a_deep_model_is_read_off_two_shallow_ones(config_class, options) -> None:
    config = config_class(**{**CONFIG.to_dict(), "num_hidden_layers": 7, "layer_types": None})
    model = replace(SETUP.model, **options)
    tree = build_batch(DPO)
    expected = simulation._simulate(config, model, tree, 7, accumulates=False)
    found = profile_step(config, model, tree)
    assert found.flops == expected.flops
    assert found.forward_flops == expected.forward_flops
    assert max(found.peak_bytes) == pytest.approx(max(expected.peak_bytes), rel=0.01)


def test_an_equal_step_is_simulated_once_and_any_other_anew(monkeypatch) -> None:
    tree, config = build_batch(SETUP), LlamaConfig(**CONFIG.to_dict())
    profile = profile_step(config, SETUP.model, tree)
    simulated = []
    monkeypatch.setattr(simulation, "_simulate", lambda *args: simulated.append(args) or profile)
    monkeypatch.setattr(simulation, "_profiles", dict(simulation._profiles))
    assert profile_step(LlamaConfig(**CONFIG.to_dict()), replace(SETUP.model), tree) is profile
    assert not simulated
    narrow = LlamaConfig(**{**CONFIG.to_dict(), "intermediate_size": F // 2})
    profile_step(narrow, SETUP.model, tree)
    profile_step(config, replace(SETUP.model, lora=LORA), tree)
    profile_step(config, SETUP.model, build_batch(replace(SETUP, prompt_tokens=21)))
    profile_step(config, SETUP.model, build_batch(replace(SETUP, completion_tokens=11)))
    profile_step(config, SETUP.model, tree, accumulates=True)
    assert len(simulated) == 5


def test_a_gpu_converts_no_output_layer() -> None:
    setup = with_model(SETUP, dtype="bfloat16")
    cpu = estimate_memory(setup, CONFIG).profile.peak_bytes[1]
    gpu = estimate_memory(with_model(setup, on_gpu=True), CONFIG).profile.peak_bytes[1]
    assert cpu - gpu == 4 * V * H


LONG = replace(with_model(DPO, lora=LORA), prompt_tokens=300)


@settings(max_examples=4)
@given(
    setup=st.builds(
        lambda batch, prompt, share: replace(
            LONG, batch_size=batch, prompt_tokens=prompt, prefix_sharing=share
        ),
        st.integers(1, 3),
        st.integers(100, 300),
        st.booleans(),
    ),
    change=st.sampled_from(
        [
            lambda s: replace(s, batch_size=s.batch_size + 1),
            lambda s: replace(s, prompt_tokens=s.prompt_tokens + 50),
            lambda s: replace(s, completion_tokens=s.completion_tokens + 20),
            lambda s: replace(s, prefix_sharing=False),
            lambda s: replace(s, accumulation_steps=2),
            lambda s: replace(s, reference="weights"),
            lambda s: with_model(s, lora=None),
        ]
    ),
)
def test_more_to_do_never_takes_less_memory(setup, change) -> None:
    before = estimate_memory(setup, CONFIG).total_bytes
    assert estimate_memory(change(setup), CONFIG).total_bytes >= before


@pytest.mark.parametrize("share", [True, False], ids=["tree", "rows"])
def test_eager_attention_keeps_the_scores_of_all_pairs_of_tokens(share) -> None:
    setup = replace(SETUP, batch_size=2, prompt_tokens=300, prefix_sharing=share, shared_tokens=200)
    eager = replace(setup, model=replace(setup.model, attn_implementation="eager"))
    profiles = [estimate_memory(each, CONFIG).profile for each in (setup, eager)]
    rows, width = build_batch(setup).input_ids.shape
    # The softmax of each of two layers and four heads, against a mask for all heads.
    scores, mask = (heads * rows * width**2 * 4 for heads in (4, 1))
    difference = profiles[1].kept_bytes - profiles[0].kept_bytes
    assert 1.9 * (scores - mask) <= difference <= 2.1 * scores


def test_the_attention_is_read_from_the_arguments(tmp_path) -> None:
    arguments = ModelConfig(model_name_or_path="x", attn_implementation="eager")
    training = SenseSFTConfig(str(tmp_path), use_cpu=True)
    setup = get_training_setup("sft", training, arguments, CONFIG, on_gpu=False)
    assert setup.model.attn_implementation == "eager"
    assert setup.prefix_sharing
    noisy = SenseSFTConfig(str(tmp_path), use_cpu=True, neftune_noise_alpha=5.0)
    assert not get_training_setup("sft", noisy, arguments, CONFIG).prefix_sharing
    flash = ModelConfig(model_name_or_path="x", attn_implementation="flash_attention_2")
    assert not get_training_setup("sft", training, flash, CONFIG).prefix_sharing
    windowed = MistralConfig(sliding_window=64)
    assert not get_training_setup("sft", training, arguments, windowed).prefix_sharing


def test_checkpoints_and_shared_prefixes_save_activations() -> None:
    plain, checkpointed, separate, one_schema = (
        get_part(estimate_memory(setup, CONFIG), "activations")
        for setup in (
            LONG,
            with_model(LONG, activation_checkpointing=True),
            replace(LONG, prefix_sharing=False),
            replace(LONG, shared_tokens=250),
        )
    )
    assert checkpointed < 0.7 * plain
    assert plain < 0.7 * separate
    assert one_schema < 0.7 * plain


def test_what_checkpoints_free_is_in_pieces_on_a_cpu_and_used_again_on_a_gpu() -> None:
    margins = {
        (on_gpu, checkpoints): get_part(
            estimate_memory(
                with_model(LONG, on_gpu=on_gpu, activation_checkpointing=checkpoints), CONFIG
            ),
            "margin",
        )
        for on_gpu in (False, True)
        for checkpoints in (False, True)
    }
    assert margins[False, True] == margins[False, False]
    assert margins[True, True] < margins[True, False]


# ---------------------------------------------------------------------- where it is read from


def get_setup(stage: str, training, **options) -> TrainingSetup:
    return get_training_setup(
        stage, training, ModelConfig(**options), CONFIG, on_gpu=False, completion_tokens=100
    )


def test_arguments_become_a_setup(tmp_path) -> None:
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    training = SenseDPOConfig(**defaults, gradient_accumulation_steps=3, max_length=1000)
    lora = {"use_peft": True, "lora_target_modules": ["all-linear"], "lora_dropout": 0.3}
    setup = get_setup("dpo", training, **lora)
    assert (setup.prompt_tokens, setup.completion_tokens) == (900, 100)
    assert (setup.accumulation_steps, setup.completions_per_prompt) == (3, 2)
    assert (setup.reference, setup.reference_passes) == ("nothing", 1)
    assert setup.model.lora.lora_dropout == 0.0  # the trainer switches it off
    assert setup.model.activation_checkpointing  # TRL's default
    assert setup.model.autocast_dtype is None
    assert get_setup("dpo", training).reference == "weights"
    cached = SenseDPOConfig(**defaults, precompute_ref_log_probs=True)
    assert get_setup("dpo", cached).reference == "nothing"
    sft = SenseSFTConfig(**{**defaults, "bf16": True}, prefix_sharing="false")
    setup = get_setup("sft", sft, **lora, dtype="bfloat16", load_in_4bit=True)
    assert (setup.completions_per_prompt, setup.prefix_sharing) == (1, False)
    assert setup.model.lora.lora_dropout == 0.3
    assert (setup.model.dtype, setup.model.load_in_4bit) == ("bfloat16", True)
    assert setup.model.autocast_dtype == "bfloat16"


def test_distillation_reads_two_answers_and_a_teacher(tmp_path) -> None:
    quantised = {"dtype": "bfloat16", "quantization_config": {"load_in_4bit": True}}
    training = KIDConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        teacher_model_name_or_path="teacher",
        teacher_model_init_kwargs=quantised,
    )
    setup = get_training_setup("kd", training, ModelConfig(), CONFIG, teacher_config=CONFIG)
    assert (setup.completions_per_prompt, setup.rewrites, setup.generates) == (2, True, False)
    assert setup.teacher == ModelSettings(dtype="bfloat16", load_in_4bit=True, on_gpu=True)


def test_what_cannot_be_estimated_is_refused(tmp_path) -> None:
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    endless = SenseSFTConfig(**defaults, max_length=None)
    with pytest.raises(InputError, match=r"`max_length` is null.*`prompt_tokens`"):
        get_training_setup("sft", endless, ModelConfig(), CONFIG)
    with pytest.raises(InputError, match="`load_in_8bit` is true"):
        get_setup("sft", SenseSFTConfig(**defaults), load_in_8bit=True)
    with pytest.raises(InputError, match="`batch_size` is 0"):
        replace(SETUP, batch_size=0)
    with pytest.raises(InputError, match="`shared_tokens` is 21"):
        replace(SETUP, shared_tokens=21)
    wrong = replace(SETUP.model, lora=LoraConfig(target_modules=["nothing"], task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match="adapter does not fit the model"):
        estimate_memory(replace(SETUP, model=wrong), CONFIG)


def test_a_linker_that_is_trained_along_reads_a_text_of_each_example(tmp_path) -> None:
    training = SenseSFTConfig(str(tmp_path), use_cpu=True, bf16=False, link_weight=0.1)
    found = get_training_setup(
        "sft", training, ModelConfig(), CONFIG, prompt_tokens=20, completion_tokens=10
    )
    assert found.linked_tokens == 20
    setup = replace(SETUP, linked_tokens=20, shared_tokens=15)
    # Two prompts and two texts, each after 15 tokens in common, with two answers.
    assert build_batch(setup).num_nodes == 2 * (15 + 2 * 5) + 2 * 10
    assert len(build_batch(setup).target_ids) == 2 * 10
    assert build_batch(replace(setup, prefix_sharing=False)).input_ids.shape == (4, 30)
    ((options, shorter),) = memory_check._shorten(replace(setup, prompt_tokens=30))
    assert (options, shorter.linked_tokens) == ("max_length: 20", 10)


# ---------------------------------------------------------------------------- in a training


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainers")
    path = tiny_models.save_tiny_model(folder, "llama")
    options = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none"}
    lora = LoraConfig(r=4, target_modules="all-linear")
    tokenizer = tiny_models.build_tiny_tokenizer()
    return {
        "sft": SenseSFTTrainer(
            model=path,
            args=SenseSFTConfig(**options),
            train_dataset=Dataset.from_list(QUESTIONS),
            processing_class=tokenizer,
        ),
        "dpo": SenseDPOTrainer(
            model=path,
            args=SenseDPOConfig(**options, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(PAIRS),
            processing_class=tokenizer,
            peft_config=lora,
        ),
    }


def test_a_trainer_gives_the_lengths_of_its_longest_example(trainers) -> None:
    setup, config, teacher_config = get_trainer_setup(trainers["dpo"])
    rows = trainers["dpo"].train_dataset
    lengths = [
        (len(row["prompt_ids"]), max(len(row["chosen_ids"]), len(row["rejected_ids"])))
        for row in rows
    ]
    assert (setup.prompt_tokens, setup.completion_tokens) == max(lengths, key=sum)
    assert setup.shared_tokens == 0
    assert (setup.stage, setup.reference) == ("dpo", "nothing")
    assert setup.model.lora is not None and not setup.model.activation_checkpointing
    assert config.hidden_size == tiny_models.HIDDEN_SIZE
    assert teacher_config is None
    setup, *_ = get_trainer_setup(trainers["sft"])
    longest = max(len(row["input_ids"]) for row in trainers["sft"].train_dataset)
    assert setup.prompt_tokens + setup.completion_tokens == longest
    assert setup.model.lora is None and setup.model.activation_checkpointing


@pytest.mark.parametrize("shares", ["auto", "false"])
def test_what_a_linker_keeps_for_the_backward_pass_is_estimated(tmp_path, shares) -> None:
    trainer = SenseSFTTrainer(
        model=tiny_models.save_tiny_model(tmp_path, "llama"),
        args=SenseSFTConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            prefix_sharing=shares,
            link_weight=0.1,
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_models.build_tiny_tokenizer(),
    )
    setup, config, _ = get_trainer_setup(trainer)
    estimate = estimate_memory(setup, config)
    weights = {parameter.data_ptr() for parameter in trainer.model.parameters()}
    weights |= {parameter.data_ptr() for parameter in trainer.linking.head.parameters()}
    largest = 0
    for batch in trainer.get_train_dataloader():
        kept: dict[int, torch.Tensor] = {}

        def save(tensor: torch.Tensor, kept=kept) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            trainer.compute_loss(trainer.model, batch)
        largest = max(largest, sum(t.untyped_storage().nbytes() for t in kept.values()))
    # A tree's is some 17 % more, as it is without a linker.
    assert 0.95 * largest < estimate.profile.kept_bytes < 1.2 * largest


def test_a_training_that_fits_is_not_warned_of(trainers, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger=memory_check.__name__):
        estimate = warn_of_memory(trainers["dpo"])
    assert estimate is not None
    assert not caplog.records


def test_a_training_that_does_not_fit_is_warned_of_with_what_would(
    trainers, caplog, monkeypatch
) -> None:
    estimate = warn_of_memory(trainers["dpo"])
    assert estimate is not None
    monkeypatch.setattr(
        memory_check, "_get_available_bytes", lambda device: estimate.total_bytes - 10_000
    )
    with caplog.at_level(logging.WARNING, logger=memory_check.__name__):
        warn_of_memory(trainers["dpo"])
    message = caplog.records[-1].getMessage()
    assert "may run out of memory" in message
    assert "`activation_checkpointing: true` (0.8 GiB)" in message
    # In half of the batch less is shared; checkpoints take a third of the time.
    assert "`per_device_train_batch_size: 4, " in message


def test_a_model_that_cannot_be_simulated_is_trained_all_the_same(
    trainers, caplog, monkeypatch
) -> None:
    def fail(*arguments, **options):
        raise RuntimeError("no shape for this")

    monkeypatch.setattr(memory_check, "estimate_memory", fail)
    with caplog.at_level(logging.WARNING, logger=memory_check.__name__):
        assert warn_of_memory(trainers["sft"]) is None
    assert "could not be estimated: RuntimeError('no shape for this')" in caplog.text


def test_sharded_trainings_are_not_estimated() -> None:
    trainer = SimpleNamespace(is_deepspeed_enabled=True, is_fsdp_enabled=False)
    assert warn_of_memory(trainer) is None


# ------------------------------------------------------------------------------------ advice


def test_changes_that_help_alone_are_named_and_others_are_added_up() -> None:
    setup = replace(LONG, batch_size=4)
    total = estimate_memory(setup, CONFIG).total_bytes
    found = find_changes(setup, CONFIG, total - 1)
    assert [change.options for change in found] == [
        "per_device_train_batch_size: 2, gradient_accumulation_steps: 2",
        "activation_checkpointing: true",
        "load_in_4bit: true, use_bnb_nested_quant: true, dtype: bfloat16",
        "max_length: 155",
    ]
    assert all(change.estimate.total_bytes < total for change in found)
    (all_of_them,) = find_changes(setup, CONFIG, 1)
    assert all_of_them.options == (
        "activation_checkpointing: true, "
        "per_device_train_batch_size: 1, gradient_accumulation_steps: 4, "
        "load_in_4bit: true, use_bnb_nested_quant: true, dtype: bfloat16, max_length: 155"
    )
    smallest = min(change.estimate.total_bytes for change in found)
    assert all_of_them.estimate.total_bytes < smallest


def test_the_time_of_a_step() -> None:
    setup = with_model(replace(LONG, reference_passes=1, accumulation_steps=2), dtype="bfloat16")
    estimate = estimate_memory(setup, CONFIG)
    card = CARDS["24"]
    flops = 2 * (estimate.profile.flops + estimate.profile.forward_flops)
    # Forward, backward and reference read every weight; the optimizer its own.
    traffic = 2 * 3 * 2 * ALL + 28 * ADAPTER
    expected = flops / (165.2e12 * UTILISATION) + traffic / 1008e9
    assert estimate_step_seconds(setup, estimate, card) == pytest.approx(expected)

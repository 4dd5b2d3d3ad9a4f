"""What stages start from: 4-bit weights, adapters that are trained further, and their mistakes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from sense_trl.checkpoints.starting_model import (
    check_model_arguments,
    get_adapter_base,
    load_stage_tokenizer,
    load_starting_model,
)
from sense_trl.errors import InputError, ModelError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.steps.arguments import GenerationArguments
from sense_trl.steps.stages import dpo
from sense_trl.steps.training import train_model
from sense_trl.trainers import SenseDPOConfig, SenseSFTConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    # Says, as a warning, that an optional faster kernel is not installed.
    pytest.mark.filterwarnings("ignore:.*:UserWarning:bitsandbytes"),
]

NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}


def _load(path: str | Path, **options: Any) -> Any:
    arguments = ModelConfig(model_name_or_path=str(path), **options)
    return load_starting_model(arguments, use_cpu=True)


def _config(config_class: Any, folder: Path, **changes: Any) -> Any:
    options = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True,
        "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "learning_rate": 0.01, "seed": 0, **changes,
    }  # fmt: skip
    return config_class(**options)


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_one_adapter_goes_through_4bit_stages_and_ends_on_the_16bit_base(
    architecture: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    base = tiny_models.save_tiny_model(tmp_path, architecture)
    start = _load(base, **NF4, **LORA)
    assert start.is_quantized
    quantization = start.model.config.quantization_config
    assert quantization.bnb_4bit_use_double_quant
    assert quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_compute_dtype == torch.float32
    rows = Dataset.from_list(tiny_models.QUESTIONS)
    train_model(start, rows, _config(SenseSFTConfig, tmp_path / "sft"))
    assert not (tmp_path / "sft" / "model.safetensors").exists()
    assert get_adapter_base(tmp_path / "sft") == base
    trained = _adapter(tmp_path / "sft")
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert any(weight.any() for name, weight in trained.items() if "lora_B" in name)

    # Preference training goes on with the very same weights, and is its own reference.
    start = _load(tmp_path / "sft", **NF4)
    loaded = dict(start.model.named_parameters())
    for name, weight in trained.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], weight), name
    pairs = Dataset.from_list(tiny_models.PAIRS)
    config = _config(
        SenseDPOConfig, tmp_path / "dpo", logging_steps=1, precompute_ref_log_probs=True
    )
    log = train_model(start, pairs, config)["log_history"]
    # Before the first step policy and reference are one: all margins are 0, and the loss is ln 2.
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert log[1]["loss"] != pytest.approx(0.693147, abs=1e-5)
    after = _adapter(tmp_path / "dpo")
    assert after.keys() == trained.keys()
    assert any(not torch.equal(after[name], trained[name]) for name in after)
    assert not (tmp_path / "dpo" / "ref").exists()

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, tmp_path / "dpo").merge_and_unload()
    ids = torch.arange(3, 23)[None]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=1e-3)


def test_a_4bit_stage_finishes_once_and_refuses_other_weights(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    base = tiny_models.save_tiny_model(tmp_path, "llama")
    messages = [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": [{"role": "assistant", "content": pair["rejected"]}],
        }
        for pair in tiny_models.PAIRS
    ]
    pairs = tmp_path / "pairs.parquet"
    Dataset.from_list(messages).to_parquet(pairs)
    model = ModelConfig(model_name_or_path=base, **NF4, **LORA)
    quiet = Console(file=io.StringIO())
    config = _config(SenseDPOConfig, tmp_path / "dpo")
    dpo(str(pairs), model, config, quiet)
    written = (tmp_path / "dpo" / "adapter_model.safetensors").stat().st_mtime_ns
    dpo(str(pairs), model, config, quiet)
    assert (tmp_path / "dpo" / "adapter_model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="load_in_4bit was True, now False"):
        dpo(str(pairs), ModelConfig(model_name_or_path=base, **LORA), config, quiet)


def test_an_adapter_trained_in_32_bits_is_merged(tmp_path: Path) -> None:
    base = tiny_models.save_tiny_model(tmp_path, "llama")
    start = _load(base, **LORA)
    train_model(
        start, Dataset.from_list(tiny_models.QUESTIONS), _config(SenseSFTConfig, tmp_path / "s")
    )
    assert get_adapter_base(tmp_path / "s") is None
    assert get_adapter_base(tmp_path / "s" / "adapter") == base
    # The next stage may start from it.
    tokenizers = [load_stage_tokenizer(str(tmp_path / "s" / name)) for name in ("", "adapter")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    ids = torch.arange(3, 23)[None]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "s")
    plain = AutoModelForCausalLM.from_pretrained(base)
    on_base = PeftModel.from_pretrained(plain, tmp_path / "s" / "adapter")
    torch.testing.assert_close(whole(ids).logits, on_base(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_an_adapter_folder_generates(load_in_4bit: bool, tmp_path: Path) -> None:
    if load_in_4bit:
        pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    base = tiny_models.save_tiny_model(tmp_path, "llama")
    start = _load(base, **LORA)
    model = get_peft_model(start.model, start.peft_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)
    messages = [
        {"role": "system", "content": "singer(id)"},
        {"role": "user", "content": "How many?"},
    ]
    sampling = SamplingConfig(num_generations=4, temperature=1.0, max_new_tokens=8)
    answers = []
    for path in (folder, base):
        arguments = GenerationArguments(
            str(path), "out", generation_dtype="float32", load_in_4bit=load_in_4bit
        )
        generator = arguments.get_generator()
        assert generator.name == Path(path).name
        answers.append(generator.generate([messages], sampling)[0])
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("options", "use_cpu", "message"),
    [
        # TRL's default type; a GPU would multiply 4-bit weights in it.
        ({**NF4, **LORA}, False, r"`dtype` is 'float32' with `load_in_4bit`; expected bfloat16"),
        ({**NF4, **LORA, "dtype": "auto"}, True, "`dtype` is 'auto' with `load_in_4bit`"),
        ({**NF4, "dtype": "bfloat16"}, False, "`load_in_4bit` is true without an adapter"),
        ({"load_in_8bit": True}, True, "`load_in_8bit` is true without an adapter"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], use_cpu: bool, message: str, tmp_path: Path
) -> None:
    arguments = ModelConfig(model_name_or_path=str(tmp_path), **options)
    with pytest.raises(InputError, match=message):
        check_model_arguments(arguments, use_cpu=use_cpu)


def test_what_serves_each_machine_is_accepted(tmp_path: Path) -> None:
    for dtype, use_cpu in (
        ("bfloat16", False),
        ("float16", False),
        ("bfloat16", True),
        ("float32", True),
    ):
        arguments = ModelConfig(model_name_or_path=str(tmp_path), dtype=dtype, **NF4, **LORA)
        check_model_arguments(arguments, use_cpu=use_cpu)


def test_type_and_attention_are_what_the_arguments_say(tmp_path: Path) -> None:
    base = tiny_models.save_tiny_model(tmp_path, "llama")
    start = _load(base, dtype="bfloat16", attn_implementation="eager")
    assert start.model.dtype == torch.bfloat16
    assert start.model.config._attn_implementation == "eager"
    assert not start.trains_adapter
    assert not start.is_quantized


def test_a_second_adapter_on_top_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b"}))
    arguments = ModelConfig(model_name_or_path=str(tmp_path), **LORA)
    with pytest.raises(InputError, match=r"`use_peft` is true, but .* holds an adapter"):
        check_model_arguments(arguments, use_cpu=True)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_without_a_base_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match="does not name its base model"):
        get_adapter_base(tmp_path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`model_name_or_path` is missing"):
        check_model_arguments(ModelConfig(), use_cpu=True)
    with pytest.raises(ModelError, match="nowhere"):
        _load(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    with pytest.raises(ModelError, match="has no usable tokenizer"):
        _load(tmp_path)
    tiny_models.build_tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="If the base moved, write its folder"):
        _load(tmp_path)


def test_4bit_generation_needs_a_type_to_multiply_in() -> None:
    arguments = GenerationArguments("m", "out", load_in_4bit=True)
    with pytest.raises(InputError, match="`generation_dtype` is 'auto' with `load_in_4bit`"):
        arguments.get_generator()
    with pytest.raises(InputError, match="`load_in_4bit` is true, but with `use_vllm`"):
        GenerationArguments("m", "out", load_in_4bit=True, use_vllm=True)

"""Merging an adapter: the weights by hand, the outputs, the card, and everything refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from sense_trl.checkpoints import merge
from sense_trl.checkpoints.merge import merge_adapter
from sense_trl.cli.main import EXIT_INPUT, EXIT_OK, main
from sense_trl.database.engine import ColumnInfo, TableInfo
from sense_trl.errors import InputError, ModelError
from sense_trl.evaluation import EvaluationRecord, EvaluationReport
from sense_trl.linking.names import FEATURES, KINDS
from sense_trl.schema import DatabaseSchema
from sense_trl.steps.linking import TrainedLinker
from sense_trl.trainers.linking import LinkerHead
from sense_trl.trainers.linking.saving import save_head
from sense_trl.verification.comparison import Verdict

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter that changes the outputs, in the output folder of a stage."""
    base = tiny_models.save_tiny_model(tmp_path, "llama")
    folder = tmp_path / "run" / "adapter"
    save_adapter(base, folder)
    marker = {"tool": "sense_trl", "kind": "dpo", "settings": {"beta": 0.1, "bf16": None}}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(marker))
    metrics = {"train_loss": 0.25, "log_history": [{"loss": 1.0}]}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    return folder


def save_adapter(
    base: str, folder: Path, *, std: float = 0.3, target_modules: str | list[str] = "all-linear"
) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=target_modules, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)


def get_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


def test_the_merged_checkpoint_is_base_plus_scaled_product_and_gives_its_outputs(
    adapter: Path, tmp_path: Path
) -> None:
    output = tmp_path / "merged"
    check = merge_adapter(adapter, output, dtype="float32")
    assert check.distance < 1e-5 < 0.01 < check.adapter_distance
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    merged = AutoModelForCausalLM.from_pretrained(output)
    before = base.model.layers[1].mlp.up_proj.weight.detach().clone()
    model = PeftModel.from_pretrained(base, str(adapter))
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    # alpha / r = 2
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged.model.layers[1].mlp.up_proj.weight, before + 2 * product)
    torch.testing.assert_close(get_logits(merged), get_logits(model), atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(output).chat_template == tiny_models.CHAT_TEMPLATE
    assert {"model.safetensors", "generation_config.json"} <= {p.name for p in output.iterdir()}


def test_16_bits_are_the_default_and_rounding_is_accepted(adapter: Path, tmp_path: Path) -> None:
    check = merge_adapter(adapter, tmp_path / "merged")
    assert 0 < check.distance < check.tolerance < check.adapter_distance
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_adapter_that_rounding_undoes_is_warned_of(tmp_path: Path, capsys) -> None:
    base = tiny_models.save_tiny_model(tmp_path, "llama")
    save_adapter(base, tmp_path / "adapter", std=1e-4)
    arguments = ["merge", str(tmp_path / "adapter"), "--output"]
    assert main([*arguments, str(tmp_path / "16")]) == EXIT_OK
    assert "warning: rounding to bfloat16 changes the outputs" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "32"), "--dtype", "float32"]) == EXIT_OK
    assert "warning" not in capsys.readouterr().err


def test_a_model_too_large_for_float32_is_merged_in_its_own_type(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = merge._load_base

    def load_base(path, dtype):
        loaded.append(dtype)
        return load(path, dtype)

    monkeypatch.setattr(merge, "_load_base", load_base)
    merge_adapter(adapter, tmp_path / "merged")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100_000))
    merge_adapter(adapter, tmp_path / "other")
    assert loaded == ["float32", "float32", "bfloat16", "bfloat16"]


def test_other_outputs_are_refused_and_nothing_is_left(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_once = LoraModel.merge_and_unload

    def merge_twice(self, **options):
        for name, parameter in self.named_parameters():
            if "lora_B" in name:
                parameter.data *= 2
        return merge_once(self, **options)

    monkeypatch.setattr(LoraModel, "merge_and_unload", merge_twice)
    files = set(tmp_path.iterdir())
    with pytest.raises(ModelError, match="gives other outputs"):
        merge_adapter(adapter, tmp_path / "merged")
    assert set(tmp_path.iterdir()) == files


def test_the_card_names_base_training_evaluation_and_the_way_to_gguf(
    adapter: Path, tmp_path: Path
) -> None:
    record = EvaluationRecord(
        question_id="q",
        db_id="d",
        level=None,
        question="?",
        gold_sql="SELECT 1",
        predicted_sql="SELECT 1",
        verdict=Verdict.CORRECT,
        reason="results_equal",
        error=None,
    )
    EvaluationReport("after DPO", (record,)).save(tmp_path / "evaluation.json")
    merge_adapter(
        adapter,
        tmp_path / "merged",
        evaluation=tmp_path / "evaluation.json",
        training_data="300 questions of Spider.",
    )
    card = (tmp_path / "merged" / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"\n')
    for words in (
        "300 questions of Spider.",
        "| stage | dpo |",
        "| beta | 0.1 |",
        "| train_loss | 0.25 |",
        "## Evaluation",
        "### Scores",
        "| Execution accuracy (strict) | 100.0 %",
        "convert_hf_to_gguf.py merged",
    ):
        assert words in card
    assert "log_history" not in card
    assert "| bf16 |" not in card


def test_unusable_input_is_refused_with_its_remedy(adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    base = tmp_path / "llama"
    with pytest.raises(InputError, match=r"is not the folder of an adapter.*OUTPUT_DIR/adapter"):
        merge_adapter(base, output)
    with pytest.raises(InputError, match=r"`output` .* exists"):
        merge_adapter(adapter, base)
    with pytest.raises(InputError, match=r"`output` .* cannot be made a folder"):
        merge_adapter(adapter, base / "config.json" / "merged")
    with pytest.raises(InputError, match="`dtype` is 'int4'"):
        merge_adapter(adapter, output, dtype="int4")
    with pytest.raises(InputError, match="is the folder of an adapter itself"):
        merge_adapter(adapter, output, base=str(adapter))
    with pytest.raises(InputError, match="no readable evaluation"):
        merge_adapter(adapter, output, evaluation=tmp_path / "none.json")
    with pytest.raises(ModelError, match=r"config of the model .* cannot be read"):
        merge_adapter(adapter, output, base="./none")
    with pytest.raises(InputError, match=r"The base .* is not there.*as `base`"):
        merge_adapter(adapter, output, base=str(tmp_path / "none"))
    assert not output.exists()


def test_a_base_that_does_not_fit_or_is_quantised_is_refused(adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "llama"
    small = AutoModelForCausalLM.from_pretrained(base).config
    small.intermediate_size //= 2
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
    tiny_models.build_tiny_tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="does not fit on the base"):
        merge_adapter(adapter, tmp_path / "merged", base=str(tmp_path / "small"))
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is a quantised checkpoint"):
        merge_adapter(adapter, tmp_path / "merged")


@pytest.mark.parametrize("depth", [1, 3])
def test_a_base_of_another_depth_is_refused(depth: int, tmp_path: Path) -> None:
    base = tiny_models.save_tiny_model(tmp_path, "llama")
    save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    other = tmp_path / "other"
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.num_hidden_layers = depth
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    tiny_models.build_tiny_tokenizer().save_pretrained(other)
    # One layer more or less than two: two matrices, two factors of each.
    with pytest.raises(ModelError, match=r"does not fit .* differ in 4 weights, such as .*lora_A"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", base=str(other))
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:.*(embedding|fan_in_fan_out|tie|tied).*:UserWarning")
@pytest.mark.parametrize("modules_to_save", [None, ["embed_tokens"]])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_with_a_longer_vocabulary_gives_it_to_its_base(
    architecture: str, modules_to_save: list[str] | None, tmp_path: Path
) -> None:
    if architecture == "gpt2":
        modules_to_save = modules_to_save and ["wte"]
        path = str(tmp_path / "gpt2")
        config = GPT2Config(vocab_size=384, n_embd=64, n_layer=2, n_head=2, n_positions=128)
        GPT2LMHeadModel(config).save_pretrained(path)
        tiny_models.build_tiny_tokenizer().save_pretrained(path)
    else:
        path = tiny_models.save_tiny_model(tmp_path, architecture)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<table>", "<column>"])
    base = AutoModelForCausalLM.from_pretrained(path)
    base.resize_token_embeddings(392)
    options = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(r=4, modules_to_save=modules_to_save, **options))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 384, 6, 385, 7]])
    with torch.no_grad():
        expected = model.eval()(ids).logits
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", base=path, dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.vocab_size == 392
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_an_end_that_training_taught_stops_the_merged_model(adapter: Path, tmp_path: Path) -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(adapter)
    merge_adapter(adapter, tmp_path / "merged")
    saved = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, 2]


def test_a_linker_that_was_trained_along_reads_the_merged_model(
    adapter: Path, tmp_path: Path
) -> None:
    head = LinkerHead(64, num_kinds=len(KINDS), num_features=len(FEATURES))
    torch.nn.init.normal_(head.likeness_weight)
    columns = tuple(ColumnInfo(name, "", False, 0) for name in ("id", "age"))
    schema = DatabaseSchema("x", "sqlite", (TableInfo("singer", columns, (), False),))
    save_head(adapter, head, base=".", layer=1, max_block_chars=1_000)
    tiny_models.build_tiny_tokenizer().save_pretrained(adapter)
    merge_adapter(adapter, tmp_path / "merged", dtype="float32")
    apart, merged = (
        TrainedLinker.load(folder).of(schema).score("How old?")
        for folder in (adapter, tmp_path / "merged")
    )
    assert merged == pytest.approx(apart, abs=1e-4)
    # One that was trained on another model goes on reading that.
    save_head(adapter, head, base="elsewhere", layer=1, max_block_chars=1_000)
    merge_adapter(adapter, tmp_path / "other", dtype="float32")
    assert not (tmp_path / "other" / "sense_linker.json").exists()


def test_an_adapter_that_names_no_base_needs_one(adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_config.json"
    config = {**json.loads(file.read_text()), "base_model_name_or_path": None}
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not name its base model"):
        merge_adapter(adapter, tmp_path / "merged")
    base = str(tmp_path / "llama")
    assert merge_adapter(adapter, tmp_path / "merged", base=base).distance > 0
    file.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        merge_adapter(adapter, tmp_path / "other")


def test_the_command_prints_the_distances(adapter: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "merged"
    assert main(["merge", str(adapter), "--output", str(output), "--dtype", "float32"]) == EXIT_OK
    assert "outputs differ from base and adapter by 0.0000" in capsys.readouterr().out
    assert main(["merge", str(adapter), "--output", str(output)]) == EXIT_INPUT
    assert "give a new or empty folder" in capsys.readouterr().err

"""What `SenseSFTTrainer` does besides sharing prefixes, which `test_prefix_sharing.py` tests."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import tiny_models
import torch
from datasets import IterableDataset
from tiny_models import QUESTIONS, assert_same_weights, get_history
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer, TrlParser

from sense_trl.errors import InputError
from sense_trl.trainers import SenseDPOConfig, SenseSFTConfig, SenseSFTTrainer

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

LONG = {**QUESTIONS[1], "question_id": "too-long", "prompt": QUESTIONS[1]["prompt"] * 20}


# ---------------------------------------------------------------------------------- config


def test_the_options_are_those_of_trl_and_the_shared_ones(tmp_path):
    ours = {f.name for f in fields(SenseSFTConfig)} - {f.name for f in fields(SFTConfig)}
    assert ours == {
        "prefix_sharing",
        "group_by_columns",
        "group_size",
        "adapter_dtype",
        "max_dropped_fraction",
        "fold_system_message",
        "require_end_token",
        "template_date",
        "link_weight",
    }
    config = SenseSFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert config.max_length == 2048
    assert config.prefix_sharing == "auto"
    assert config.gradient_checkpointing is True  # TRL's default


@pytest.mark.parametrize("config_class", [SenseSFTConfig, SenseDPOConfig])
@pytest.mark.parametrize(
    "text, arguments, expected",
    [
        ("", [], "auto"),
        ("prefix_sharing: true\n", [], True),
        ("prefix_sharing: false\n", [], False),
        ("prefix_sharing: auto\n", ["--prefix_sharing", "true"], True),
        ("", ["--prefix_sharing", "false"], False),
    ],
)
def test_prefix_sharing_is_read_from_yaml_and_the_command_line(
    tmp_path, config_class, text, arguments, expected
):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\ngroup_by_columns: [db_id]\n{text}"
    )
    (config,) = TrlParser(config_class).parse_args_and_config(["--config", str(path), *arguments])
    assert config.prefix_sharing is expected or config.prefix_sharing == expected == "auto"
    assert config.group_by_columns == ["db_id"]


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_sharing": "yes"},
        {"group_by_columns": []},
        {"group_by_columns": "db_id"},
        {"per_device_train_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"group_size": 0, "group_by_columns": ["db_id"]},
        {"group_size": 3, "group_by_columns": ["db_id"]},
        {"group_size": 12, "group_by_columns": ["db_id"]},
        {"group_size": 4},
        {"adapter_dtype": "float16"},
        {"max_dropped_fraction": 1.0},
    ],
    ids=str,
)
def test_unusable_options_are_refused_by_name(tmp_path, options):
    with pytest.raises(InputError, match=f"`{next(iter(options))}`"):
        SenseSFTConfig(str(tmp_path), use_cpu=True, bf16=False, **options)


# ----------------------------------------------------------------------------------- data


def test_an_example_that_does_not_fit_is_named_and_never_cut(train_sft, caplog):
    rows = [*QUESTIONS, LONG]
    with pytest.raises(InputError) as error:
        train_sft(rows=rows, max_length=200)
    for part in ("1 of 17 examples (5.88%)", "train dataset", "'too-long'", "`max_length` to"):
        assert part in str(error.value)
    needed = int(str(error.value).split("Set `max_length` to ")[1].split()[0])
    whole = train_sft(rows=rows, max_length=needed, start=False).train_dataset
    assert len(whole) == 17
    assert max(map(len, whole["input_ids"])) == needed
    kept = train_sft(rows=rows, max_length=200, max_dropped_fraction=0.06, start=False)
    assert "too-long" not in list(kept.train_dataset["question_id"])
    assert "question_id 'too-long'" in caplog.text
    assert len(train_sft(rows=rows, max_length=None, start=False).train_dataset) == 17


def test_a_long_example_without_a_name_is_told_by_its_number(train_sft):
    columns = ("prompt", "completion")
    rows = [{column: row[column] for column in columns} for row in [*QUESTIONS, LONG]]
    with pytest.raises(InputError, match=r"1 of 17 examples .*: row 16: \d+ tokens"):
        train_sft(rows=rows, max_length=200)


def test_a_long_example_of_a_stream_fails_when_it_comes(train_sft):
    stream = IterableDataset.from_generator(lambda: iter([LONG] * 8))
    with pytest.raises(InputError, match="too-long"):
        train_sft(rows=stream, max_length=200)


def test_packing_cuts_as_in_trl(train_sft):
    options = {"packing": True, "packing_strategy": "wrapped", "max_length": 32}
    ours = train_sft(rows=[*QUESTIONS, LONG], **options)
    assert max(map(len, ours.train_dataset["input_ids"])) == 32
    assert_same_weights(
        ours, train_sft(rows=[*QUESTIONS, LONG], trainer_class=SFTTrainer, **options)
    )


# ------------------------------------------------------------------------------- arguments


def test_constructor_and_hooks_have_trl_s_signatures():
    for name in (
        *("__init__", "_prepare_dataset", "_get_train_sampler", "compute_loss"),
        "_remove_unused_columns",
    ):
        ours, trls = (
            list(inspect.signature(getattr(cls, name)).parameters)
            for cls in (SenseSFTTrainer, SFTTrainer)
        )
        assert ours == trls, name


def test_a_trl_config_is_refused(model_paths, tmp_path):
    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(InputError, match="`args` is a SFTConfig"):
        SenseSFTTrainer(model_paths["llama"], args=config)


def test_the_folder_of_an_adapter_is_told_to_be_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"the folder of an adapter.*is_trainable=True"):
        SenseSFTTrainer(str(tmp_path))


def test_the_example_of_the_docstring_runs(model_paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = inspect.getdoc(SenseSFTTrainer).split("```python\n")[1].split("```")[0]
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in example
    exec(example.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model_paths["llama"]), {})
    assert (tmp_path / "sense-sft" / "model.safetensors").exists()


def test_a_loss_of_one_s_own_takes_ten_lines(train_sft, model_paths):
    """What the documentation shows: a subclass that adds a term to TRL's loss."""

    class LengthPenalised(SenseSFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            return loss + 0.5 * sum(p.square().sum() for p in model.parameters() if p.requires_grad)

    def get_size(trainer):
        return sum(w.square().sum() for w in tiny_models.get_weights(trainer).values())

    options = {"max_steps": 5, "learning_rate": 1e-2}
    plain = train_sft(**options)
    penalised = LengthPenalised(
        model_paths["llama"],
        args=plain.args,
        train_dataset=plain.train_dataset,
        peft_config=plain.model.peft_config["default"],
    )
    penalised.train()
    assert get_history(penalised, "loss")[0] > get_history(plain, "loss")[0]
    assert get_size(penalised) < get_size(plain)
    assert min(get_history(penalised, "prefix_sharing/tokens_saved")) > 0


# ----------------------------------------------------------------------------- 4-bit models


def test_4bit_training_shares_prefixes_and_keeps_float32_adapters(train_sft):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32"
    )
    options = {
        "model_init_kwargs": {"quantization_config": nf4},
        "eval_rows": QUESTIONS[:2],
        "eval_strategy": "steps",
        "eval_steps": 1,
        "max_steps": 3,
    }
    ours, rows = (train_sft(prefix_sharing=sharing, **options) for sharing in (True, False))
    assert {w.dtype for w in tiny_models.get_weights(ours).values()} == {torch.float32}
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(
            get_history(ours, name), get_history(rows, name), rtol=1e-4, atol=1e-5
        )

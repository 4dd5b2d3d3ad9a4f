"""Which models, adapters and values a prefix tree is exact for, and what is said of the others."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch
from peft import IA3Config, LoraConfig, PolyConfig, PromptTuningConfig, get_peft_model
from tiny_models import SMALL, VOCAB_SIZE, build_small_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DogeConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    Qwen2Config,
    Qwen3Config,
    RecurrentGemmaConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trl.trainer.utils import add_fused_lm_head

from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.sharing import obstacles as sharing_obstacles
from sense_trl.trainers.sharing.heads import add_prefix_tree_head
from sense_trl.trainers.sharing.obstacles import (
    EXACT_MODEL_TYPES,
    compare_with_rows,
    find_sharing_obstacle,
)


@pytest.mark.parametrize(
    "config_class, options",
    [
        (Qwen2Config, SMALL),
        (Qwen3Config, SMALL),
        (MistralConfig, {**SMALL, "sliding_window": None}),
        (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_with_full_attention_share(config_class, options):
    assert find_sharing_obstacle(build_small_model(config_class, **options)) is None


@pytest.mark.parametrize(
    "config_class, options, reason",
    [
        (MistralConfig, {**SMALL, "sliding_window": 4096}, "window of 4096"),
        (
            Qwen2Config,
            {**SMALL, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "other kinds than full attention",
        ),
        (Gemma2Config, SMALL, "other kinds than full attention"),
        (MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2}, "linear_attention"),
        # ALiBi: positions are counted along the row.
        (
            BloomConfig,
            {"hidden_size": 32, "n_layer": 2, "n_head": 4},
            "models of type 'bloom' are not among those",
        ),
        (MptConfig, {"d_model": 32, "n_layers": 2, "n_heads": 4}, "'mpt' are not among"),
        # Windows that show on longer texts than the ones compared.
        (
            GPTNeoConfig,
            {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
                "window_size": 256,
            },
            "'gpt_neo' are not among",
        ),
        (DogeConfig, {**SMALL, "keep_window_size": 2048}, "'doge' are not among"),
        (
            FalconConfig,
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
            "ALiBi",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_models_do_not_and_say_why(config_class, options, reason, dtype):
    obstacle = find_sharing_obstacle(build_small_model(config_class, **options).to(dtype))
    assert obstacle is not None
    assert re.search(reason, obstacle)


def test_other_obstacles():
    model = build_small_model(Qwen2Config, **SMALL)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    assert "virtual tokens" in find_sharing_obstacle(get_peft_model(model, prompt))
    model = build_small_model(Qwen2Config, **SMALL)
    model.config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2' takes no mask" in find_sharing_obstacle(model)


def test_code_that_is_not_transformers_is_not_trusted():
    model = build_small_model(Qwen2Config, **SMALL)
    model.__class__ = type("OwnModel", (type(model),), {"__module__": "transformers_modules.own"})
    assert "class OwnModel is not one of transformers" in find_sharing_obstacle(model)


def lora(**options):
    return LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})


@pytest.mark.parametrize(
    "adapter, reason",
    [
        (lora(target_modules=["q_proj", "embed_tokens"]), None),
        (lora(trainable_token_indices=[3, 4]), None),
        (lora(use_dora=True), None),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), None),
        (lora(alora_invocation_tokens=[3, 4]), "aLoRA"),
        (PolyConfig(target_modules=["q_proj"], r=4), "type POLY have not been compared"),
    ],
    ids=["embeddings", "token indices", "dora", "ia3", "alora", "poly"],
)
def test_adapters(adapter, reason):
    obstacle = find_sharing_obstacle(
        get_peft_model(build_small_model(Qwen2Config, **SMALL), adapter)
    )
    assert obstacle is None if reason is None else reason in obstacle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_comparison_finds_a_wrong_position(dtype):
    """A model that ignores position ids is told from one that follows them."""
    model = build_small_model(Qwen2Config, **SMALL).to(dtype)
    # Small enough that rounding to 16 bits is larger than what a wrong position does.
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.weight.mul_(0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert find_sharing_obstacle(model) is None
    backbone = model.base_model.forward
    model.base_model.forward = lambda *args, position_ids=None, **kwargs: backbone(*args, **kwargs)
    assert "other values on a tree" in find_sharing_obstacle(model)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, before[name]), name


def test_a_deep_model_in_16_bits_is_compared_without_its_rounding(monkeypatch):
    options = {**SMALL, "num_hidden_layers": 12, "hidden_size": 128, "head_dim": 32}
    model = build_small_model(Qwen2Config, **options).to(torch.bfloat16)
    assert find_sharing_obstacle(model) is None
    # It is the rounding that would have been taken for a difference.
    monkeypatch.setattr(
        sharing_obstacles, "_computing_in_float32", lambda model: contextlib.nullcontext()
    )
    assert "other values on a tree" in find_sharing_obstacle(model)


def test_weights_are_what_they_were_after_a_failure():
    model = build_small_model(Qwen2Config, **SMALL).to(torch.bfloat16)
    add_prefix_tree_head(model)

    def fail(*_):
        raise RuntimeError("out of memory")

    model.base_model.layers[1].mlp.register_forward_hook(fail)
    assert "cannot be run on a tree (RuntimeError: out of memory)" in compare_with_rows(model)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        sharing_obstacles._computing_in_float32(model),
    ):
        model(input_ids=torch.tensor([[1, 2]]))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_logits_that_we_compute_otherwise_are_found():
    """RecurrentGemma caps its logits under a name that no head of ours or TRL's reads."""
    options = {**SMALL, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64}
    model = build_small_model(RecurrentGemmaConfig, **options, logits_soft_cap=0.1)
    add_prefix_tree_head(model)
    assert "log-probabilities differ" in compare_with_rows(model, share=False)


def test_sharded_models_are_judged_by_their_type():
    model = build_small_model(Qwen2Config, **SMALL)
    model.lm_head.weight.ds_id = 0  # as DeepSpeed's ZeRO-3 marks them
    assert find_sharing_obstacle(model) is None
    model.config.model_type = "unheard-of"
    assert "'unheard-of' are not among" in find_sharing_obstacle(model)


# ------------------------------------------------------------------------------ listed types


def shrink(config):
    """Make the config of any kind of decoder small, with attention that is full."""
    sizes = {
        64: "hidden_size n_embd d_model intermediate_size n_inner ffn_hidden_size ffn_dim "
        "word_embed_proj_dim",
        2: "num_hidden_layers n_layer num_layers num_key_value_heads num_kv_heads "
        "num_experts_per_tok moe_topk moe_k",
        4: "num_attention_heads n_head attention_heads num_experts num_local_experts "
        "n_routed_experts moe_num_experts",
        512: "max_position_embeddings n_positions n_ctx",
        32: "moe_intermediate_size shared_expert_intermediate_size kv_channels",
        16: "head_dim q_lora_rank kv_lora_rank v_head_dim qk_head_dim",
        8: "qk_rope_head_dim qk_nope_head_dim rotary_dim",
        1: "n_group topk_group first_k_dense_replace",
        VOCAB_SIZE: "vocab_size",
        0: "pad_token_id",
    }
    for size, names in sizes.items():
        for name in names.split():
            is_property = isinstance(getattr(type(config), name, None), property)
            if not is_property and (getattr(config, name, None) or name == "pad_token_id"):
                setattr(config, name, size)
    if not hasattr(config, "use_sliding_window"):
        config.sliding_window = None
    if getattr(config, "kv_lora_rank", None):  # heads of latent attention have two parts
        config.head_dim, config.num_key_value_heads = 8, 4
    if config.model_type.startswith("hunyuan"):
        config.head_dim = 16
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * 2
    for name in ("mlp_layer_types", "no_rope_layers"):
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name)[:2])
    return config


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(EXACT_MODEL_TYPES))
def test_every_listed_type_is_exact_on_long_rows(model_type):
    config = shrink(CONFIG_MAPPING[model_type]())
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 3
    add_fused_lm_head(model)
    assert find_sharing_obstacle(model) is None
    tokens = torch.randint(3, VOCAB_SIZE, (500,)).tolist()
    sequences = [tokens[:240], tokens[:120] + tokens[240:350], tokens[:120] + tokens[240:260] * 3]
    values = []
    for share in (True, False):
        tree = PrefixTree.from_sequences(sequences, share=share)
        labels = torch.zeros(tree.sequence_nodes.shape, dtype=torch.long)
        with torch.no_grad():
            output = model.eval()(labels=labels, fused_lm_head=True, prefix_tree=tree)
        values.append(output.log_probs)
    assert len(PrefixTree.from_sequences(sequences).input_ids) == 1
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    assert find_sharing_obstacle(model.to(torch.bfloat16)) is None

"""A teacher's term on a tree, against the full logits of both models on separate rows."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import ARCHITECTURES, VOCAB_SIZE, build_tiny_model, build_tiny_tokenizer
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, MistralConfig, MistralForCausalLM
from trl.trainer.utils import add_fused_lm_head

from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.sharing.heads import add_prefix_tree_head
from sense_trl.trainers.teachers.teacher import (
    LiveTeacher,
    check_vocabularies,
    saving_one_adapter,
)

PROMPT = list(range(5, 35))
SEQUENCES = [[*PROMPT, 7, 8, 9], [*PROMPT, 7, 10, 11, 12], [*range(40, 60), 3, 4]]
NUM_TRAINED = (3, 4, 2)
MASKS = [[0] * (len(s) - n) + [1] * n for s, n in zip(SEQUENCES, NUM_TRAINED, strict=True)]
# A different factor for every sequence, so that values mixed up between them would show.
FACTORS = torch.tensor([[1.0], [-2.0], [0.5]])


def forward_kl(student, teacher):
    p = teacher.softmax(-1)
    return (p * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)


@pytest.fixture
def tree():
    return PrefixTree.from_sequences(SEQUENCES, MASKS)


def prepare(model):
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    add_fused_lm_head(base)
    add_prefix_tree_head(base)
    return model


def run(student, tree, term):
    """The term's values `[N, L - 1]` in one forward of the student."""
    labels = torch.zeros(tree.sequence_nodes.shape, dtype=torch.long)
    output = student(labels=labels, fused_lm_head=True, prefix_tree=tree, logit_terms=[term])
    return output.logit_terms[0]


def get_expected(student, teacher, temperature=1.0, size=None):
    """The same from the full logits of both models, row by row."""
    values = torch.zeros(len(SEQUENCES), max(map(len, SEQUENCES)) - 1)
    for row, (sequence, mask) in enumerate(zip(SEQUENCES, MASKS, strict=True)):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            theirs = teacher(ids).logits[0, :-1, :size] / temperature
        kl = forward_kl(student(ids).logits[0, :-1, :size] / temperature, theirs)
        values[row, : len(kl)] = kl * torch.tensor(mask[1:])
    return values


def get_gradients(model, values):
    model.zero_grad()
    (values * FACTORS).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_term_is_the_divergence_of_full_logits(architecture, temperature, tree):
    student, model = (build_tiny_model(architecture, seed=seed) for seed in (0, 1))
    term = LiveTeacher(model).get_term(tree, forward_kl, temperature=temperature)
    prepare(student)
    found = run(student, tree, term)
    gradients = get_gradients(student, found)
    expected = get_expected(student, model, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients, get_gradients(student, expected))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_teacher_of_windows_reads_rows(tree):
    """Its window is shorter than a path, so that a tree would give other values."""
    torch.manual_seed(0)
    config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    model = MistralForCausalLM(MistralConfig(**config, sliding_window=4))
    student = prepare(build_tiny_model("llama"))
    term = LiveTeacher(model).get_term(tree, forward_kl)
    expected = get_expected(student, model)
    torch.testing.assert_close(run(student, tree, term), expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_s_logits_are_scaled_as_its_own(tree):
    config = CohereConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logit_scale=4.0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = CohereForCausalLM(config)
    student = prepare(build_tiny_model("llama"))
    term = LiveTeacher(model).get_term(tree, forward_kl)
    expected = get_expected(student, model)
    torch.testing.assert_close(run(student, tree, term), expected, rtol=1e-5, atol=1e-5)


def test_heads_of_different_sizes_are_compared_on_the_common_tokens(tree):
    student, model = (build_tiny_model("llama", seed=seed) for seed in (0, 1))
    model.resize_token_embeddings(VOCAB_SIZE + 64)
    prepare(student)
    term = LiveTeacher(model, vocab_size=VOCAB_SIZE).get_term(tree, forward_kl)
    expected = get_expected(student, model, size=VOCAB_SIZE)
    torch.testing.assert_close(run(student, tree, term), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"`vocab_size` is None.*384.*448"):
        run(student, tree, LiveTeacher(model).get_term(tree, forward_kl))


def test_a_teacher_is_frozen_and_has_no_dropout():
    model = build_tiny_model("llama")
    model.config.attention_dropout = 0.5
    model.train()
    LiveTeacher(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert "forward" not in model.__dict__


# ---------------------------------------------------------------------------- adapters


def build_student_with_teacher(active="default"):
    """A PeftModel that holds the adapters "default" and "teacher"; both do something."""
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
    model = get_peft_model(build_tiny_model("llama"), config)
    model.add_adapter("teacher", config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    model.set_adapter(active)
    return prepare(model)


@pytest.fixture
def student_with_teacher():
    return build_student_with_teacher()


def test_an_adapter_teaches_its_student(student_with_teacher, tree):
    student = student_with_teacher
    separate = build_student_with_teacher(active="teacher").eval()
    student.eval()
    teacher = LiveTeacher(student, adapter_name="teacher")
    found = run(student, tree, teacher.get_term(tree, forward_kl))
    gradients = get_gradients(student, found)
    assert gradients
    assert all("default" in name for name in gradients)
    expected = get_expected(student, separate)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients, get_gradients(student, expected))


def test_a_student_is_as_before_once_its_adapter_has_taught(student_with_teacher, tree):
    student = student_with_teacher
    student.train()
    modules = dict(student.named_modules())
    # Someone froze a part of the student's own adapter, and put one module into eval mode.
    frozen = next(name for name, p in student.named_parameters() if p.requires_grad)
    student.get_parameter(frozen).requires_grad_(False)
    student.base_model.model.model.norm.eval()
    trained = {name: p.requires_grad for name, p in student.named_parameters()}
    modes = {name: module.training for name, module in modules.items()}
    forward = student.get_base_model().forward
    teacher = LiveTeacher(student, adapter_name="teacher")
    first, second = (teacher.get_term(tree, forward_kl) for _ in range(2))
    logits = torch.randn(len(tree.target_ids), VOCAB_SIZE)
    # Without dropout, the teacher says the same twice.
    assert torch.equal(first(logits, slice(None)), second(logits, slice(None)))
    assert trained == {name: p.requires_grad for name, p in student.named_parameters()}
    assert modes == {name: module.training for name, module in modules.items()}
    assert student.active_adapter == "default"
    assert student.get_base_model().forward == forward


def test_an_adapter_that_is_not_there_is_named(student_with_teacher):
    with pytest.raises(InputError, match=r"`adapter_name` is 'other'.*\['default', 'teacher'\]"):
        LiveTeacher(student_with_teacher, adapter_name="other")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_teacher_with_an_adapter_on_its_head_is_refused():
    """The term reads the head's weights, in which the adapter is not."""
    model = get_peft_model(
        build_tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    )
    forward = model.get_base_model().forward
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    with pytest.raises(InputError, match=r"`model` cannot teach: .* than its own logits say"):
        LiveTeacher(model)
    assert model.get_base_model().forward == forward


def test_a_teacher_with_virtual_tokens_is_refused():
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(InputError, match="virtual tokens"):
        LiveTeacher(get_peft_model(build_tiny_model("llama"), config))


# ------------------------------------------------------------------------- vocabularies


def test_padded_heads_have_their_smaller_size_in_common():
    tokenizer = build_tiny_tokenizer()
    assert check_vocabularies(tokenizer, build_tiny_tokenizer(), (VOCAB_SIZE, 512)) == VOCAB_SIZE


def test_another_token_is_refused_by_name():
    student, teacher = build_tiny_tokenizer(), build_tiny_tokenizer()
    student.add_tokens(["<added>"])
    with pytest.raises(InputError, match=r"differs .* in 1 of .* '<added>' is None"):
        check_vocabularies(student, teacher, (512, 512))


def test_a_head_without_a_row_for_every_token_is_refused():
    tokenizer = build_tiny_tokenizer()
    with pytest.raises(InputError, match=rf"the tokenizer has {len(tokenizer)} tokens"):
        check_vocabularies(tokenizer, tokenizer, (VOCAB_SIZE, len(tokenizer) - 1))


def test_an_adapter_may_be_left_out_while_it_is_left_out():
    """As where a model is saved again to upload it."""
    model = get_peft_model(build_tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    with saving_one_adapter(model, "teacher"):
        with saving_one_adapter(model, "teacher"):
            pass
        assert model.save_pretrained.keywords == {"selected_adapters": ["default"]}
    assert "save_pretrained" not in vars(model)

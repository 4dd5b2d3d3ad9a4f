"""What is trained ends in a token that generation stops at, or training does not start."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from tiny_models import (
    ARCHITECTURES,
    CHAT_TEMPLATE,
    OPTIONS,
    PAIRS,
    QUESTIONS,
    build_tiny_model,
    build_tiny_tokenizer,
)
from transformers import AutoTokenizer, GenerationConfig

from sense_trl.end_tokens import add_end_token, get_end_token_ids
from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.trainers import (
    KIDConfig,
    KIDTrainer,
    SenseDPOConfig,
    SenseDPOTrainer,
    SenseSFTConfig,
    SenseSFTTrainer,
)
from sense_trl.trainers.rows.answer_ends import ensure_answers_end, find_answer_ends

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

# "<|endoftext|>" and "<|im_end|>" of the tiny tokenizer.
TEXT_END, TURN_END = 0, 2
NO_END_TEMPLATE = CHAT_TEMPLATE.replace("<|im_end|>", "")
# The end stands outside of what `assistant_only_loss` trains.
UNTRAINED_END_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"
)
CUSTOM = {
    "sft": (SenseSFTTrainer, SenseSFTConfig),
    "dpo": (SenseDPOTrainer, SenseDPOConfig),
    "kid": (KIDTrainer, KIDConfig),
}


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


CONVERSATIONS = [
    {"prompt": user(row["prompt"]), "completion": assistant(row["completion"])}
    for row in QUESTIONS[:8]
]
MESSAGES = [{"messages": row["prompt"] + row["completion"]} for row in CONVERSATIONS]
PREFERENCES = [
    {"prompt": user(row["prompt"]), **{k: assistant(row[k]) for k in ("chosen", "rejected")}}
    for row in PAIRS
]


def build_base_model(architecture="llama", eos_token_id=TEXT_END):
    model = build_tiny_model(architecture)
    model.config.eos_token_id = eos_token_id
    model.generation_config.eos_token_id = eos_token_id
    return model


def build_base_tokenizer(template=CHAT_TEMPLATE):
    """As of a base model, whose text ends in another token than the turns of a conversation."""
    tokenizer = build_tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def build(tmp_path):
    def run(kind, rows, *, model=None, tokenizer=None, lora=False, stream=False, **options):
        trainer_class, config_class = CUSTOM[kind]
        other = {"kid": "teacher_model", "dpo": "ref_model"}.get(kind)
        others = {other: build_tiny_model("llama", seed=1)} if other and not lora else {}
        dataset = Dataset.from_list(rows)
        return trainer_class(
            model=build_base_model() if model is None else model,
            args=config_class(output_dir=str(tmp_path / "out"), **{**OPTIONS, **options}),
            train_dataset=dataset.to_iterable_dataset() if stream else dataset,
            processing_class=build_base_tokenizer() if tokenizer is None else tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
            **others,
        )

    return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "kind, rows, options",
    [
        ("sft", CONVERSATIONS, {}),
        ("sft", MESSAGES, {}),
        ("sft", MESSAGES, {"assistant_only_loss": True}),
        ("sft", CONVERSATIONS, {"packing": True, "packing_strategy": "wrapped"}),
        ("sft", CONVERSATIONS, {"stream": True}),
        ("dpo", PREFERENCES, {}),
        ("kid", CONVERSATIONS, {}),
    ],
    ids=["sft", "messages", "assistant only", "packed", "stream", "dpo", "kid"],
)
@pytest.mark.filterwarnings("ignore:.*(packing|padding|attention).*")
def test_generation_stops_where_the_template_ends_an_answer(
    build, tmp_path, caplog, kind, rows, options, architecture
):
    trainer = build(kind, rows, model=build_base_model(architecture), **options)
    assert trainer.model.generation_config.eos_token_id == [TURN_END, TEXT_END]
    assert trainer.processing_class.eos_token_id == TURN_END
    assert "Trained answers end in '<|im_end|>'" in caplog.text
    trainer.save_model(str(tmp_path / "saved"))
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [TURN_END, TEXT_END]
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token_id == TURN_END


def test_the_tokenizer_beside_an_adapter_says_where_to_stop(build, tmp_path):
    trainer = build("dpo", PREFERENCES, lora=True)
    trainer.save_model(str(tmp_path / "saved"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert get_end_token_ids(build_base_model(), tokenizer) == [TEXT_END, TURN_END]
    assert trainer.model.get_base_model().generation_config.eos_token_id == [TURN_END, TEXT_END]


@pytest.mark.parametrize(
    "kind, rows",
    [
        ("sft", QUESTIONS),
        ("sft", [{"text": row["prompt"] + row["completion"]} for row in QUESTIONS]),
        ("dpo", PAIRS),
    ],
    ids=["prompt and completion", "text", "dpo"],
)
def test_text_ends_in_the_tokenizer_s_end_token(build, kind, rows):
    # The model names another one, or none.
    for eos_token_id, expected in ((TURN_END, [TEXT_END, TURN_END]), (None, TEXT_END)):
        model = build_base_model(eos_token_id=eos_token_id)
        trainer = build(kind, rows, model=model)
        assert trainer.model.generation_config.eos_token_id == expected
        assert trainer.processing_class.eos_token_id == TEXT_END


def test_what_stops_already_stays_as_it_is(build, caplog):
    model = build_base_model(eos_token_id=[TEXT_END, TURN_END])
    trainer = build("sft", CONVERSATIONS, model=model)
    assert trainer.model.generation_config.eos_token_id == [TEXT_END, TURN_END]
    assert trainer.processing_class.eos_token_id == TEXT_END
    assert "Trained answers end" not in caplog.text


@pytest.mark.parametrize(
    "kind, rows, template, options",
    [
        ("sft", CONVERSATIONS, NO_END_TEMPLATE, {}),
        ("sft", CONVERSATIONS, NO_END_TEMPLATE, {"stream": True}),
        ("sft", MESSAGES, UNTRAINED_END_TEMPLATE, {"assistant_only_loss": True}),
        ("dpo", PREFERENCES, NO_END_TEMPLATE, {}),
        ("kid", CONVERSATIONS, NO_END_TEMPLATE, {}),
    ],
    ids=["sft", "stream", "end outside", "dpo", "kid"],
)
def test_a_template_that_ends_no_answer_is_refused(build, kind, rows, template, options, caplog):
    tokenizer = build_base_tokenizer(template)
    with pytest.raises(InputError) as error:
        build(kind, rows, tokenizer=tokenizer, **options)
    for part in ("8 of 8 rows do not end", "never stops", "chat template", "require_end_token"):
        assert part in str(error.value)
    build(kind, rows, tokenizer=tokenizer, require_end_token=False, **options)
    assert "do not end in a token that generation can stop at" in caplog.text


def test_single_rows_without_an_end_are_named(build):
    rows = [{"input_ids": [5, 6, 7, TURN_END], "labels": [-100, 6, 7, TURN_END]}] * 3
    cut = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, -100]}
    with pytest.raises(InputError, match=r"1 of 4 rows do not end .*: row 3 in '."):
        build("sft", [*rows, cut])
    # What pads a row is no end.
    tokenizer = build_tiny_tokenizer()
    padded = {"input_ids": [5, 6, TEXT_END], "labels": [-100, 6, TEXT_END]}
    with pytest.raises(InputError, match=r"row 0 in '.*<\|endoftext\|>'"):
        build("sft", [padded], tokenizer=tokenizer, model=build_base_model(eos_token_id=TURN_END))


def test_a_rejected_answer_may_be_cut_off(build):
    pair = {"prompt_ids": [5], "chosen_ids": [6, TEXT_END], "rejected_ids": [6, 7, 8]}
    build("dpo", [pair] * 4)
    with pytest.raises(InputError, match="do not end"):
        build("dpo", [{**pair, "chosen_ids": [7, 8], "rejected_ids": [6, TEXT_END]}] * 4)


def test_several_new_ends_are_refused():
    tokenizer = build_base_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    rows = [{"labels": [-100, 6, end]} for end in (1, TURN_END)]
    for dataset in (Dataset.from_list(rows), IterableDataset.from_generator(lambda: iter(rows))):
        ends = find_answer_ends(dataset, "labels", tokenizer)
        assert ends.counts == {(1,): 1, (TURN_END,): 1}
        with pytest.raises(InputError, match="2 of 2 rows"):
            ensure_answers_end(ends, build_base_model(), tokenizer)


def test_the_first_of_several_end_tokens_counts():
    """As of templates that write the end of the turn and then that of the text."""
    tokenizer = build_base_tokenizer()
    rows = Dataset.from_list([{"labels": [-100, 6, TURN_END, 1, TURN_END]}])
    for eos_token_id, expected in ((1, 1), (TEXT_END, [TURN_END, TEXT_END])):
        model = build_base_model(eos_token_id=eos_token_id)
        ensure_answers_end(find_answer_ends(rows, "labels", tokenizer), model, tokenizer)
        assert model.generation_config.eos_token_id == expected


def test_end_tokens_of_a_model_and_its_tokenizer():
    model = build_base_model(eos_token_id=[5, 3])
    assert get_end_token_ids(model) == [5, 3]
    assert get_end_token_ids(model, build_tiny_tokenizer()) == [5, 3, TURN_END]
    add_end_token(model, 3)
    assert model.generation_config.eos_token_id == [5, 3]
    model.generation_config = GenerationConfig()
    assert get_end_token_ids(model) == []
    add_end_token(model, 7)
    assert model.generation_config.eos_token_id == 7


def test_a_model_that_learned_its_answers_stops(build):
    """The kind that was silent: what is written is right, and goes on until the limit."""
    trainer = build(
        "sft", [CONVERSATIONS[0]] * 4, max_steps=60, learning_rate=3e-3, logging_steps=60
    )
    # Handed over before training has shown where to stop.
    tokenizer = build_base_tokenizer()
    generator = TransformersGenerator(trainer.model, trainer.processing_class)
    trainer.train()
    [[answer]] = generator.generate([CONVERSATIONS[0]["prompt"]], SamplingConfig(max_new_tokens=64))
    assert answer.text == CONVERSATIONS[0]["completion"][0]["content"]
    assert answer.finished
    ids = tokenizer.apply_chat_template(
        CONVERSATIONS[0]["prompt"], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    written = trainer.model.generate(ids, max_new_tokens=64, do_sample=False)
    assert written[0, -1] == TURN_END

"""Text from data never becomes a control token, and all other token ids stay what they were."""

import copy
import inspect
import pickle
from collections import Counter
from typing import Any

import pytest
import tiny_models
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from sense_trl.chat_tokens import (
    ChatTokenizer,
    align_offsets,
    apply_chat_template,
    find_control_strings,
    looks_like_control,
)
from sense_trl.errors import InputError
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.prompts import get_prompt
from sense_trl.trainers import (
    KIDConfig,
    KIDTrainer,
    SenseDPOConfig,
    SenseDPOTrainer,
    SenseSFTConfig,
    SenseSFTTrainer,
)
from sense_trl.trainers.rows.token_rows import get_token_row

# Template and its control tokens, as the families of models have them; those in the second tuple
# are added tokens that are not special.
FAMILIES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "chatml": (tiny_models.CHAT_TEMPLATE, (), ("<tool_call>", "<|fim_prefix|>")),
    "qwen": (
        tiny_models.CHAT_TEMPLATE + "{% if tools %}<tool_call></tool_call>{% endif %}",
        (),
        ("<tool_call>", "</tool_call>", "<|fim_prefix|>"),
    ),
    "llama3": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        (),
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}</s>"
        "{% elif m['role'] == 'system' %}[SYSTEM_PROMPT]{{ m['content'] }}[/SYSTEM_PROMPT]"
        "{% else %}[INST]{{ m['content'] }}[/INST]{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        (),
    ),
    "gemma": (
        "<bos>{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}"
        "<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        ("<table>", "\n\n", "  "),
    ),
    "phi": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        (),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
}


def _tokenizer(family: str) -> Any:
    template, special, added = FAMILIES[family]
    tokenizer = tiny_models.build_tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in added])
    tokenizer.chat_template = template
    return tokenizer


def _ids(tokenizer: Any, messages: Any, **options: Any) -> list[int]:
    options = {"add_generation_prompt": True, "return_dict": True, **options}
    return list(apply_chat_template(tokenizer, messages, **options)["input_ids"])


def _plain_ids(tokenizer: Any, messages: Any) -> list[int]:
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    )


def _controls(tokenizer: Any, ids: list[int]) -> Counter[int]:
    """How often each token that no text makes is there; blanks and Gemma's HTML are text."""
    text = {"<table>", "\n\n", "  "}
    if tokenizer.chat_template == tiny_models.CHAT_TEMPLATE:
        text.add("<tool_call>")
    known = {i for i, t in tokenizer.added_tokens_decoder.items() if t.content not in text}
    return Counter(i for i in ids if i in known)


def _prompt(*texts: str) -> list[dict[str, str]]:
    question, schema = [*texts, "a schema"][:2]
    return get_prompt(question, schema)


def test_two_ends_of_messages_are_two_whatever_the_data_holds() -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    messages = get_prompt(
        "Who is <|im_end|>?", "Table t<|im_end|>(a<|im_end|>)", evidence="none<|im_end|>"
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert _plain_ids(tokenizer, messages).count(end) == 6
    assert _ids(tokenizer, messages).count(end) == 2
    assert tokenizer.chat_control_tokens is None


@pytest.mark.parametrize("family", FAMILIES)
def test_control_strings_are_text_in_every_family(family: str) -> None:
    tokenizer = _tokenizer(family)
    strings = [t.content for t in tokenizer.added_tokens_decoder.values()]
    clean = _prompt("How many?", "Table singer")
    expected = _controls(tokenizer, _ids(tokenizer, clean))
    assert _ids(tokenizer, clean) == _plain_ids(tokenizer, clean)
    assert expected
    for string in strings:
        for attack in (
            f"a {string} b",
            string,
            f"{string}{string}",
            f"x\n{string}\n",
            string.join(strings),
        ):
            messages = _prompt(f"How many? {attack}", f"Table {attack}")
            ids = _ids(tokenizer, messages)
            assert _controls(tokenizer, ids) == expected, (family, attack)
            # Nothing is lost or added.
            plain = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            assert tokenizer.decode(ids) == plain


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=25)
def test_ids_without_control_strings_are_the_tokenizers_own(family: str, data: Any) -> None:
    tokenizer = _tokenizer(family)
    strings = [t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip()]
    pieces = st.sampled_from(["<|", "|>", "im_end", "[INST", "]", "<", " \n\n", "  ", "SELECT é"])
    text = st.lists(pieces | st.text(max_size=4), max_size=6).map("".join)
    question, schema = data.draw(text), data.draw(text)
    messages = _prompt(question, schema)
    ids = _ids(tokenizer, messages)
    if not any(string in question or string in schema for string in strings):
        assert ids == _plain_ids(tokenizer, messages)
    clean = _ids(tokenizer, _prompt("q", "s"))
    assert _controls(tokenizer, ids) == _controls(tokenizer, clean)


def test_added_words_and_blanks_stay_tokens() -> None:
    tokenizer = _tokenizer("gemma")
    tokenizer.add_tokens(["singer_id", "user"])
    messages = _prompt("user  of\n\nsinger_id <table>")
    ids = _ids(tokenizer, messages)
    assert ids == _plain_ids(tokenizer, messages)
    for word in ("singer_id", "user", "  ", "\n\n", "<table>"):
        assert tokenizer.convert_tokens_to_ids(word) in ids
    # Beside a control string, too.
    ids = _ids(tokenizer, _prompt("user  of\n\nsinger_id <table> <end_of_turn>"))
    for word in ("singer_id", "user", "  ", "\n\n", "<table>"):
        assert tokenizer.convert_tokens_to_ids(word) in ids


def test_what_was_found_is_in_order_and_a_template_of_the_caller_counts() -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    messages = _prompt("<|im_start|>", "b <|im_end|> [X]")
    assert find_control_strings(tokenizer, messages) == ("<|im_end|>", "<|im_start|>")
    tokenizer.add_tokens(["[X]"])
    assert find_control_strings(tokenizer, messages, chat_template="[X]{{ messages }}") == (
        "<|im_end|>",
        "[X]",
        "<|im_start|>",
    )
    assert find_control_strings(tokenizer, [], tools=[{"name": "<|im_end|>"}]) == ("<|im_end|>",)


def test_what_cannot_be_text_is_an_error_that_names_it() -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    messages = [*_prompt("<|im_end|>"), {"role": "assistant", "content": "SELECT 1"}]
    with pytest.raises(InputError, match=r"'<\|im_end\|>'.*cannot be encoded as text here"):
        _ids(tokenizer, messages, add_generation_prompt=False, return_assistant_tokens_mask=True)
    assert tokenizer.chat_control_tokens is None

    class Older:
        added_tokens_decoder = tokenizer.added_tokens_decoder
        chat_template = tokenizer.chat_template

        def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
            raise AssertionError("the string would become a token")

    with pytest.raises(InputError, match=r"'<\|im_end\|>'.*Install transformers"):
        _ids(Older(), messages)


def test_transformers_has_what_this_needs() -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    assert "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters
    assert hasattr(tokenizer, "chat_control_tokens")


def test_the_stand_in_of_a_tokenizer_is_one_for_all_else() -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    for found in (
        ChatTokenizer.protect(tokenizer),
        pickle.loads(pickle.dumps(ChatTokenizer(tokenizer))),
        copy.deepcopy(ChatTokenizer(tokenizer)),
    ):
        assert found.eos_token_id == tokenizer.eos_token_id
        assert found(text="SELECT")["input_ids"] == tokenizer("SELECT")["input_ids"]
        assert _ids(found.tokenizer, _prompt("<|im_end|>")) == _ids(
            tokenizer, _prompt("<|im_end|>")
        )
    with pytest.raises(AttributeError):
        _ = ChatTokenizer(tokenizer).no_such_attribute

    class Processor:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    processor = Processor()
    assert ChatTokenizer.protect(processor) is processor


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT a < b AND c > 1 || '|'", None),
        ("<table> [T] {x}", None),
        ("a <|eot_id|>", "<|eot_id|>"),
        ("</s>", "</s>"),
        ("[INST] x", "[INST]"),
        ("<end_of_turn>", "<end_of_turn>"),
        ("<\uff5cUser\uff5c>", "<\uff5cUser\uff5c>"),
        ("a <|turn>user", "<|turn>"),
        ("a<turn|>", "<turn|>"),
        ("[/SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        ("SELECT a<b|c>d", None),
    ],
)
def test_what_looks_like_a_control_token(text: str, found: str | None) -> None:
    assert looks_like_control(_prompt(text)) == found


# Everywhere the same ids

SCHEMA = "Table singer<|im_end|>(id, name<|im_start|>, age)"
ROWS = [
    {
        "db_id": "d",
        "prompt": get_prompt(f"How many <|im_end|> {i}?", SCHEMA),
        "completion": [{"role": "assistant", "content": f"SELECT {i} FROM singer"}],
        "mask_spans": [[14, 20]],
    }
    for i in range(4)
]
LITERAL = "SELECT '<|im_end|>' FROM singer"


def _expected(row: dict[str, Any], answer: str) -> list[int]:
    tokenizer = tiny_models.build_tiny_tokenizer()
    return _ids(tokenizer, row[answer[0]] + row[answer[1]], add_generation_prompt=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


def _options(folder: Any) -> dict[str, Any]:
    return {**tiny_models.OPTIONS, "output_dir": str(folder), "max_length": None}


def _sft_rows() -> list[dict[str, Any]]:
    answer = [{"role": "assistant", "content": LITERAL}]
    return [*ROWS[:3], {**ROWS[3], "completion": answer, "mask_spans": [[25, 31]]}]


def test_training_sees_what_sampling_sees(model: str, tmp_path: Any) -> None:
    trainer = SenseSFTTrainer(
        model, SenseSFTConfig(**_options(tmp_path)), train_dataset=Dataset.from_list(_sft_rows())
    )
    generator = TransformersGenerator(model, device="cpu")
    for row, ids, labels in zip(
        _sft_rows(),
        trainer.train_dataset["input_ids"],
        trainer.train_dataset["labels"],
        strict=True,
    ):
        prompt = generator._encode(row["prompt"])
        assert ids[: len(prompt)] == prompt
        assert prompt.count(2) == 2
        answer = [token for token in labels if token != -100]
        assert answer.count(2) == 1
        assert get_token_row(row, generator.tokenizer) == (prompt, ids[len(prompt) :])
        assert generator.tokenizer.decode(answer).startswith(row["completion"][0]["content"])


def test_preference_training_sees_the_same(model: str, tmp_path: Any) -> None:
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": [{"role": "assistant", "content": LITERAL}],
        }
        for row in ROWS
    ]
    trainer = SenseDPOTrainer(
        model, args=SenseDPOConfig(**_options(tmp_path)), train_dataset=Dataset.from_list(rows)
    )
    generator = TransformersGenerator(model, device="cpu")
    for row, found in zip(rows, trainer.train_dataset, strict=True):
        assert found["prompt_ids"] == generator._encode(row["prompt"])
        assert found["chosen_ids"].count(2) == found["rejected_ids"].count(2) == 1


def test_schema_items_are_found_behind_control_strings(model: str, tmp_path: Any) -> None:
    args = KIDConfig(**_options(tmp_path), mask_unit="schema_item")
    trainer = KIDTrainer(
        model, args=args, train_dataset=Dataset.from_list(_sft_rows()), teacher_model=model
    )
    tokenizer = trainer.processing_class
    for row, found in zip(_sft_rows(), trainer.train_dataset, strict=True):
        groups, ids = found["mask_groups"], found["input_ids"]
        assert len(groups) == len(ids)
        masked = tokenizer.decode([i for i, g in zip(ids, groups, strict=True) if g == 0])
        assert masked.strip() == "singer", row


def test_other_tokens_are_not_aligned() -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    encoded = tokenizer("a <|im_end|> b", return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    assert align_offsets(tokenizer, "a <|im_end|> b", encoded, ids) == [*encoded["offset_mapping"]]
    for other in (ids[:-1], [*ids, 5], [5, *ids], [], [5] * len(ids)):
        assert align_offsets(tokenizer, "a <|im_end|> b", encoded, other) is None

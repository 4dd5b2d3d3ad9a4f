"""`SenseGRPOTrainer` against TRL's `GRPOTrainer` on the same completions."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections import Counter
from pathlib import Path

import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import (
    OPTIONS,
    PAIRS,
    assert_same_weights,
    build_tiny_model,
    build_tiny_tokenizer,
    get_comparable_logs,
    get_history,
)
from trl import GRPOConfig, GRPOTrainer
from two_processes import run_two_processes

from sense_trl.errors import InputError
from sense_trl.trainers import SenseGRPOConfig, SenseGRPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
# Two questions on each of two schemas.
PROMPTS = [
    {"prompt": pair["prompt"].replace("How many?", question), "db_id": pair["prompt"].split()[2]}
    for pair in PAIRS[:2]
    for question in ("How many?", "Who is old?")
]
CHATS = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in PROMPTS]
GRPO_OPTIONS = {
    **OPTIONS,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "temperature": 0.7,
    "beta": 0.1,
}

# Two processes: each writes whole groups and accumulates over them, or has a half of every group.
DISTRIBUTED = {
    "whole groups": {
        **GRPO_OPTIONS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
    },
    "half groups": {
        **GRPO_OPTIONS,
        "per_device_train_batch_size": 4,
        "num_generations": 8,
        "max_steps": 2,
    },
}


def reward(completions, **_):
    """A number in [0, 1) that depends on the text alone."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [hashlib.sha256(text.encode()).digest()[0] / 256 for text in texts]


def write_fixed(trainer):
    """Have a trainer take completions that are the same whatever wrote them; some are cut off."""

    def write(prompt_ids, images, fields, num_generations, has_tool_images=False):
        seen: Counter[str] = Counter()
        written = []
        for ids in prompt_ids:
            seen[str(ids)] += 1
            generator = torch.Generator().manual_seed(1000 * len(ids) + seen[str(ids)])
            length = int(torch.randint(1, 9, (), generator=generator))
            tokens = torch.randint(3, 300, (length,), generator=generator).tolist()
            # Two completions begin alike.
            tokens = [7, 8, *tokens][:8] if seen[str(ids)] % 2 else tokens
            written.append(tokens if seen[str(ids)] == 3 else [*tokens[:7], 2])
        return written, None

    trainer._generate_single_turn = write


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_models.save_tiny_model(folder, name) for name in tiny_models.ARCHITECTURES}


@pytest.fixture
def make(paths, tmp_path):
    def run(
        trainer_class=SenseGRPOTrainer, architecture="llama", lora=False, rows=PROMPTS, **options
    ):
        is_ours = issubclass(trainer_class, SenseGRPOTrainer)
        config_class = SenseGRPOConfig if is_ours else GRPOConfig
        if not is_ours:
            options = {k: v for k, v in options.items() if k != "prefix_sharing"}
        return trainer_class(
            model=paths[architecture],
            reward_funcs=options.pop("reward_funcs", reward),
            args=config_class(str(tmp_path / "out"), **{**GRPO_OPTIONS, **options}),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        )

    return run


def perturb(trainer):
    """Move the policy, so that it differs from the old one and from the reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def get_loss_and_gradients(trainer, inputs, **settings):
    for name, value in settings.items():
        setattr(trainer, name, value)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.item(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def assert_close(found, expected, tolerance=1e-4):
    loss, gradients = found
    expected_loss, expected_gradients = expected
    assert loss == pytest.approx(expected_loss, rel=tolerance, abs=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    assert any(gradient.norm() > 1e-4 for gradient in gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("architecture, lora", [("llama", False), ("qwen2", True)])
def test_all_losses_and_gradients_equal_trl(make, architecture, lora):
    # Two iterations: the old policy's log-probabilities are computed when completions are written.
    options = {"architecture": architecture, "lora": lora, "num_iterations": 2}
    ours = make(prefix_sharing=True, **options)
    theirs = make(GRPOTrainer, **options)
    batches = []
    for trainer in (ours, theirs):
        write_fixed(trainer)
        rows = [row for row in PROMPTS[:2] for _ in range(4)]
        trainer.model.train()
        batches.append(trainer._generate_and_score_completions(rows))
        perturb(trainer)
    for name in ("old_per_token_logps", "ref_per_token_logps", "advantages"):
        torch.testing.assert_close(batches[0][name], batches[1][name], rtol=1e-4, atol=2e-5)
    cases = [{"loss_type": loss_type} for loss_type in LOSS_TYPES]
    cases += [{"loss_type": "grpo", "importance_sampling_level": "sequence"}]
    common = {"importance_sampling_level": "token", "top_entropy_quantile": 1.0}
    common |= {"off_policy_mask_threshold": None, "_entropy_bonus_enabled": False}
    cases += [{"top_entropy_quantile": 0.5}, {"off_policy_mask_threshold": 0.01}]
    cases += [{"_entropy_bonus_enabled": True, "entropy_coef": 0.5}]
    for case in cases:
        settings = {"loss_type": "dapo", **common, **case}
        found = get_loss_and_gradients(ours, batches[0], **settings)
        assert_close(found, get_loss_and_gradients(theirs, batches[1], **settings))
    computed = ours.own_metrics["train"]["prefix_sharing/tokens_saved"]
    assert min(computed) > 0.5


def test_masked_completions_teach_nothing_and_all_of_them_is_no_error(make):
    options = {"mask_truncated_completions": True}
    losses = []
    for trainer in (make(prefix_sharing=True, **options), make(GRPOTrainer, **options)):
        write_fixed(trainer)
        rows = [PROMPTS[0]] * 4
        trainer.model.train()
        inputs = trainer._generate_and_score_completions(rows)
        assert inputs["completion_mask"].sum(1).tolist()[2] == 0
        losses.append(get_loss_and_gradients(trainer, inputs))
        inputs["completion_mask"].zero_()
        loss, _ = get_loss_and_gradients(trainer, inputs)
        assert loss == 0
    assert_close(*losses)


def test_accumulation_is_one_large_batch_and_equals_trl(make):
    runs = {}
    options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2}
    for name, trainer_class, size in [
        ("whole", SenseGRPOTrainer, 8), ("parts", SenseGRPOTrainer, 1), ("trl", GRPOTrainer, 1)
    ]:  # fmt: skip
        trainer = make(
            trainer_class,
            prefix_sharing=True,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            **options,
        )
        write_fixed(trainer)
        trainer.train()
        runs[name] = trainer
    assert_same_weights(runs["whole"], runs["parts"], rtol=1e-4, atol=1e-6)
    assert_same_weights(runs["whole"], runs["trl"], rtol=1e-4, atol=1e-6)
    saved = get_history(runs["whole"], "prefix_sharing/tokens_saved")
    assert len(saved) == 2 and saved[0] > 0.5
    # A row alone has nothing to share.
    assert max(get_history(runs["parts"], "prefix_sharing/tokens_saved")) <= 0.3


@pytest.mark.slow
def test_two_processes_train_as_with_trl_and_as_one(make, paths, tmp_path):
    script = Path(__file__).with_name("distributed_grpo_script.py")
    run_two_processes(script, tmp_path, paths["llama"], paths["qwen2"], timeout=1200)
    for architecture in ("llama", "qwen2"):
        for case in DISTRIBUTED:
            name = f"{Path(paths[architecture]).name}-{case}"
            ours, theirs = (torch.load(tmp_path / f"{name}-{kind}.pt") for kind in ("ours", "trl"))
            assert ours["num_processes"] == theirs["num_processes"] == 2
            assert len(ours["groups/without_signal"]) == 2
            for key in ("reward", "grad_norm"):
                torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)
            for key, weight in theirs["weights"].items():
                assert (ours["weights"][key] - weight).norm() <= 1e-3 * weight.norm(), (name, key)
        options = {**DISTRIBUTED["whole groups"], "per_device_train_batch_size": 8}
        alone = make(architecture=architecture, lora=True, prefix_sharing=True, **options)
        write_fixed(alone)
        alone.train()
        ours = torch.load(tmp_path / f"{Path(paths[architecture]).name}-whole groups-ours.pt")
        norms = get_history(alone, "grad_norm")
        torch.testing.assert_close(norms, ours["grad_norm"], rtol=1e-3, atol=1e-5)


def test_without_sharing_it_is_trl(make):
    runs = []
    for trainer_class in (SenseGRPOTrainer, GRPOTrainer):
        trainer = make(trainer_class, lora=True, prefix_sharing=False, rows=CHATS)
        trainer.train()
        runs.append(trainer)
    assert_same_weights(*runs)
    ours, theirs = map(get_comparable_logs, runs)
    for entry, expected in zip(ours, theirs, strict=True):
        entry.pop("groups/without_signal", None), entry.pop("groups/undetermined", None)
        assert {k: v for k, v in entry.items() if k != "step_time"} == {
            k: v for k, v in expected.items() if k != "step_time"
        }


def test_completions_of_a_prompt_stay_in_one_micro_batch(make):
    trainer = make(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    write_fixed(trainer)
    trainer.model.train()
    rows = [row for row in PROMPTS for _ in range(4)]
    trainer._prepare_inputs(rows)
    parts = trainer._buffered_inputs
    for part in parts:
        assert len({tuple(ids) for ids in part["prompt_ids"].tolist()}) == 1
    kept = sorted(torch.cat([part["advantages"] for part in parts]).tolist())
    trainer.prefix_sharing.is_on = False
    whole = trainer._generate_and_score_completions(rows)
    assert kept == pytest.approx(sorted(whole["advantages"].tolist()))


# -------------------------------------------------------------------------------- generation


def test_completions_are_samples_of_the_policy_as_it_is(make):
    """Greedy in the limit: what is written is what plain decoding with the adapter writes."""
    trainer = make(lora=True, temperature=1e-6, rows=CHATS)
    perturb(trainer)
    trainer.model.train()
    prompts = [row["prompt"] for row in CHATS for _ in range(2)]
    ids, *_ = trainer._tokenize_prompts(prompts)
    completions, logprobs = trainer._generate_single_turn(ids, None, {}, 2)
    assert logprobs is None
    assert trainer.model.training
    trainer.model.eval()
    for prompt, found in zip(ids, completions, strict=True):
        written: list[int] = []
        with torch.no_grad():
            while len(written) < 8 and 2 not in written:
                logits = trainer.model(torch.tensor([[*prompt, *written]])).logits[0, -1]
                written.append(int(logits.argmax()))
        assert found == written


def test_samples_follow_the_generator_that_checkpoints_keep(make):
    trainer = make(rows=PROMPTS)
    ids, *_ = trainer._tokenize_prompts([row["prompt"] for row in PROMPTS for _ in range(3)])
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(trainer._generate_single_turn(ids, None, {}, 3)[0])
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(completion) for completion in draws[0][:3]}) == 3
    # A process may hold a part of a group.
    torch.manual_seed(0)
    assert len(trainer._generate_single_turn(ids[:4], None, {}, 3)[0]) == 4


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"top_k": 5}, "`top_k`"),
        ({"min_p": 0.1}, "`min_p`"),
        ({"repetition_penalty": 1.1}, "not 1"),
        ({"max_completion_length": None}, "`max_completion_length` is None"),
    ],
)
def test_what_our_decoder_does_not_do_is_left_to_trl_or_refused(make, options, reason, caplog):
    assert not make(**options)._shares_generation
    assert reason in caplog.text
    with pytest.raises(InputError, match=reason):
        make(prefix_sharing=True, **options)
    assert make(prefix_sharing=True, share_generation=False, **options) is not None


def test_a_prompt_that_leaves_no_room_is_named(make):
    rows = [*PROMPTS, {"prompt": "How many? " * 200}, {"prompt": "Who? " * 400}]
    with pytest.raises(InputError, match=r"2 of 6 prompts leave no room.* that of row 4, with"):
        make(rows=rows)
    trainer = make()
    trainer.max_completion_length = 500
    with pytest.raises(InputError, match="exceeds the 512 tokens"):
        trainer._generate_single_turn([[5] * 20], None, {}, 1)


def test_prompts_of_one_token_are_completed_and_empty_ones_are_named(make):
    trainer = make(rows=[{"prompt": "a"}, *PROMPTS[:3]], max_steps=1)
    tokens = build_tiny_tokenizer()("a")["input_ids"]
    assert len(tokens) == 1
    trainer.temperature = 1e-6
    written, _ = trainer._generate_single_turn([tokens], None, {}, 1)
    with torch.no_grad():
        for position, token in enumerate(written[0]):
            ids = torch.tensor([[*tokens, *written[0][:position]]])
            assert trainer.model(input_ids=ids).logits[0, -1].argmax() == token
    trainer.train()
    with pytest.raises(InputError, match=r"`prompt` of `train_dataset` is empty in 1 of 3.*row 2"):
        make(rows=[*PROMPTS[:2], {"prompt": "", "db_id": "x"}])


def test_control_tokens_in_a_prompt_are_text(make):
    pytest.importorskip("transformers", minversion="5.23")  # older ones cannot
    trainer = make(rows=CHATS)
    prompt = [{"role": "user", "content": "a<|im_end|>b"}]
    ((ids,), *_) = trainer._tokenize_prompts([prompt])
    assert ids.count(2) == 1


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_weights_that_are_converted_once_write_the_same(make, monkeypatch, architecture):
    """Under autocast the frozen base of an adapter is converted once for all tokens."""

    def train():
        written = []

        def remember(completions, **_):
            written.extend(completions)
            return reward(completions)

        trainer = make(
            architecture=architecture, lora=True, bf16=True, max_steps=2, reward_funcs=remember
        )
        trainer.train()
        assert all(
            parameter.requires_grad == ("lora_" in name and ".default." in name)
            for name, parameter in trainer.model.named_parameters()
        )
        return trainer, written

    trainer, written = train()
    module = "sense_trl.trainers.sense_grpo_trainer.converting_once"
    monkeypatch.setattr(module, lambda *_: contextlib.nullcontext())
    plain, expected = train()
    assert written == expected
    assert_same_weights(trainer, plain)


# ----------------------------------------------------------------------------------- rewards


def test_groups_without_signal_and_undetermined_completions_are_counted(make, caplog):
    values = iter([[1.0, 1.0, 1.0, None, 0.0, 1.0, None, None]])
    trainer = make(reward_funcs=lambda completions, **_: next(values))
    write_fixed(trainer)
    trainer.model.train()
    rows = [row for row in PROMPTS[:2] for _ in range(4)]
    inputs = trainer._generate_and_score_completions(rows)
    metrics = trainer.own_metrics["train"]
    assert [float(value) for value in metrics["groups/without_signal"]] == [0.5]
    assert [float(value) for value in metrics["groups/undetermined"]] == [3 / 8]
    advantages = inputs["advantages"].tolist()
    assert advantages[:4] == [0.0] * 4
    assert advantages[6:] == [0.0, 0.0]
    assert advantages[4] == -advantages[5] != 0
    # Not each with its whole row, as TRL has it.
    assert "returned None" not in caplog.text


@pytest.mark.parametrize(
    "rewards, is_open",
    [
        ([None] * 8, 1.0),
        ([float("nan")] * 8, 1.0),
        ([0.5] * 8, 0.0),
        ([1.0, *[None] * 3] * 2, 0.75),
    ],
    ids=["undetermined", "nan", "equal", "one known"],
)
def test_a_step_without_signal_is_counted_and_leaves_the_weights(make, rewards, is_open):
    trainer = make(reward_funcs=lambda **_: rewards, beta=0.0, max_steps=1)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert get_history(trainer, "groups/without_signal") == [1.0]
    assert get_history(trainer, "groups/undetermined") == [is_open]
    assert get_history(trainer, "grad_norm") == [0.0]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_without_signal_are_not_computed_and_change_nothing(
    make, monkeypatch, loss_type
):
    def one_of_two_groups(completions, **_):
        # In float32 the mean of the second one is another number.
        return [*reward(completions[:4]), *[0.1] * (len(completions) - 4)]

    def train(**options):
        num_computed = 0

        def count(self, *args, **kwargs):
            nonlocal num_computed
            num_computed += 1
            return compute(self, *args, **kwargs)

        compute = SenseGRPOTrainer._get_per_token_logps_and_entropies
        with monkeypatch.context() as patch:
            patch.setattr(SenseGRPOTrainer, "_get_per_token_logps_and_entropies", count)
            trainer = make(
                lora=True,
                reward_funcs=one_of_two_groups,
                loss_type=loss_type,
                epsilon_high=0.28,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                weight_decay=0.1,
                max_steps=3,
                **options,
            )
            trainer.train()
        assert get_history(trainer, "groups/without_signal") == [0.5] * 3
        return trainer, num_computed

    trainer, num_computed = train(beta=0.0)
    assert num_computed == 3
    # With a term that does not ask for advantages, all is computed: policy and reference.
    assert train(beta=0.1)[1] > 6
    assert train(beta=0.0, entropy_coef=0.01)[1] == 6
    monkeypatch.setattr(SenseGRPOTrainer, "_teaches_nothing", lambda *_: False)
    whole, num_computed = train(beta=0.0)
    assert num_computed == 6
    assert_same_weights(trainer, whole, rtol=1e-5, atol=1e-8)
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(
            get_history(trainer, name), get_history(whole, name), rtol=1e-4, atol=1e-7
        )


def test_an_infinite_reward_is_refused_with_its_function(make):
    def endless(completions, **_):
        return [float("inf"), *[0.0] * (len(completions) - 1)]

    with pytest.raises(InputError, match="'endless' returned an infinite reward"):
        make(reward_funcs=[reward, endless]).train()


@pytest.mark.parametrize("masks", [True, False])
def test_strange_groups_equal_trl(make, masks):
    """One of equal completions, and one that is cut off but for one empty completion."""
    equal, cut = [[5, 6, 2]] * 4, [[9, number, 7, 7, 7, 7, 7, 7] for number in (11, 12, 13)]
    runs = []
    for trainer_class in (SenseGRPOTrainer, GRPOTrainer):
        trainer = make(
            trainer_class,
            prefix_sharing=True,
            mask_truncated_completions=masks,
            num_iterations=2,
            reward_funcs=lambda **_: [0.0, 1.0, 1.0, None, 0.2, 0.4, 0.6, 0.9],
        )
        trainer._generate_single_turn = lambda *_, **__: ([*equal, *cut, [2]], None)
        trainer.model.train()
        inputs = trainer._generate_and_score_completions([r for r in PROMPTS[:2] for _ in range(4)])
        perturb(trainer)
        found = [get_loss_and_gradients(trainer, inputs)]
        # A micro-batch in which nothing is to be learned from, or the whole of what is cut off.
        per_row = inputs.keys() - {"num_items_in_batch"}
        part = {name: value[4:7] if name in per_row else value for name, value in inputs.items()}
        found.append(get_loss_and_gradients(trainer, part))
        runs.append(found)
    (ours, ours_cut), (theirs, theirs_cut) = runs
    assert_close(ours, theirs)
    if not masks:
        assert_close(ours_cut, theirs_cut)
        return
    assert ours_cut[0] == theirs_cut[0] == 0.0
    assert not any(gradient.any() for gradient in ours_cut[1].values())


# ------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2, "steps_per_generation": 2}])
def test_a_run_that_is_resumed_ends_as_one_that_was_not(make, tmp_path, options):
    # An epoch has two generations of two prompts; step 3 is within the second epoch, or within a
    # generation.
    common = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "lora": True, **options}
    if "steps_per_generation" in options:
        common["per_device_train_batch_size"] = 4
    whole = make(**common)
    whole.train()
    resumed = make(**common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert_same_weights(whole, resumed)
    for name in ("reward", "completions/mean_length"):
        assert get_history(whole, name)[3:] == get_history(resumed, name)[3:]


# ------------------------------------------------------------------------------------ options


def test_prompts_on_one_database_are_drawn_together(make):
    trainer = make(group_by_columns=["db_id"], group_size=2)
    order = list(trainer._get_train_sampler())
    generations = [order[start : start + 8] for start in range(0, len(order), 8)]
    assert len(generations) == 2
    for generation in generations:
        assert len({PROMPTS[index]["db_id"] for index in generation}) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_sharing": "yes"},
        {"group_size": 2},
        {"group_size": 3, "group_by_columns": ["db_id"]},
        {"adapter_dtype": "float16"},
        {"shuffle_dataset": False, "group_by_columns": ["db_id"]},
    ],
    ids=str,
)
def test_unusable_options_are_refused_by_name(tmp_path, options):
    with pytest.raises(InputError, match=f"`{next(iter(options))}`"):
        SenseGRPOConfig(str(tmp_path), **{**GRPO_OPTIONS, **options})


def test_arguments_are_trls_and_a_trl_config_is_refused(paths, tmp_path):
    names = ("__init__", "_get_train_sampler", "_prepare_inputs", "_generate_single_turn")
    for name in (*names, "_tokenize_prompts"):
        ours, trls = (
            list(inspect.signature(getattr(cls, name)).parameters)
            for cls in (SenseGRPOTrainer, GRPOTrainer)
        )
        assert ours == trls, name
    config = GRPOConfig(str(tmp_path), **GRPO_OPTIONS)
    with pytest.raises(InputError, match="`args` is a GRPOConfig"):
        SenseGRPOTrainer(paths["llama"], reward, args=config)
    config = SenseGRPOConfig(str(tmp_path), **GRPO_OPTIONS)
    with pytest.raises(InputError, match="`train_dataset`"):
        SenseGRPOTrainer(
            paths["llama"], reward, args=config, train_dataset=Dataset.from_list([{"text": "x"}])
        )


def test_a_model_that_trees_are_not_exact_for_falls_back_with_the_reason(tmp_path, caplog):
    model = build_tiny_model("qwen2")
    model.config.use_sliding_window, model.config.sliding_window = True, 64
    config = SenseGRPOConfig(str(tmp_path), **{**GRPO_OPTIONS, "beta": 0.0})
    trainer = SenseGRPOTrainer(
        model,
        reward,
        args=config,
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=build_tiny_tokenizer(),
    )
    assert not trainer.prefix_sharing.is_on
    assert not trainer._shares_generation
    assert "Common prefixes are computed once per row" in caplog.text

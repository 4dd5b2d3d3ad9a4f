"""Private names of other libraries that the package uses: all of them, so that none is added unseen.

They may go with any release. What is not here has a public way.
"""

import ast
import inspect
import re
from pathlib import Path

from sense_trl import trainers
from sense_trl.cli.config_parser import ConfigParser

PACKAGE = Path(__file__).resolve().parents[1] / "sense_trl"

# Methods and attributes of TRL's trainers and of transformers' that ours override or read.
OF_TRAINERS = {
    *("_set_signature_columns_if_needed", "_signature_columns", "_get_train_sampler"),
    "_remove_unused_columns",
    *("_prepare_dataset", "_precompute_ref_logps", "_name", "_paper", "_tag_names"),
    # Of `GRPOTrainer` alone, which has no hook for sampling.
    *("_buffered_inputs", "_calculate_rewards", "_compute_loss", "_entropy_bonus_enabled"),
    "_prepare_inputs",
    *("_generate_and_score_completions", "_generate_single_turn", "_is_vlm", "_tokenize_prompts"),
    *("_get_per_token_logps_and_entropies", "_step", "_save_rng_state", "_load_rng_state"),
}
OF_OTHERS = {
    "_attn_implementation": "transformers: a config says it nowhere else",
    "_modules": "torch: a copy of a module that shares its weights",
    "_use_triton": "TRL: decides for the process, without an option",
    "torch._subclasses.fake_tensor": "torch: memory is counted without taking it",
    "torch.utils._python_dispatch": "torch: the same",
}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _read_names() -> tuple[set[str], set[str]]:
    """Private names that the package defines, and those that it uses."""
    defined, used = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    defined.add(node.name)
                case ast.Attribute(ctx=ast.Store()) if ast.unparse(node.value) == "self":
                    defined.add(node.attr)
                case ast.Name(ctx=ast.Store()):
                    defined.add(node.id)
                case ast.Attribute():
                    used.add(node.attr)
                case ast.ImportFrom() if not str(node.module).startswith("sense_trl"):
                    used |= {str(node.module)} if "._" in str(node.module) else set()
                    used |= {alias.name for alias in node.names}
                case ast.Import():
                    used |= {alias.name for alias in node.names if "._" in alias.name}
    return defined, {name for name in used if _is_private(name) or "._" in name}


def test_no_other_private_names_are_used() -> None:
    defined, used = _read_names()
    # Documented, though it looks private.
    assert used - defined - OF_TRAINERS - {"_exit"} == {*OF_OTHERS}


def test_no_other_private_members_of_base_classes_are_used() -> None:
    found = set()
    for cls in (
        *(trainers.SenseSFTTrainer, trainers.KIDTrainer, trainers.SenseDPOTrainer),
        *(trainers.SenseGRPOTrainer, trainers.KIDConfig, trainers.SenseDPOConfig, ConfigParser),
    ):
        ours = [base for base in cls.__mro__ if base.__module__.startswith("sense_trl.")]
        texts = [
            inspect.getsource(base)
            for base in cls.__mro__
            if base.__module__.split(".")[0] in ("trl", "transformers", "argparse")
        ]
        theirs = set(
            re.findall(r"(?:self\.|def |^    )(_[a-z]\w+)", "\n".join(texts), re.MULTILINE)
        )
        for base in ours:
            found |= set(re.findall(r"\b_[a-z]\w+", inspect.getsource(base))) & theirs
    assert found == OF_TRAINERS

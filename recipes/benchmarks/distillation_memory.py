"""Peak memory and time of a distillation loss in chunks, against full logits of both models.

Needs nothing but the package; on two CPU cores either table takes some five minutes:

    python recipes/benchmarks/distillation_memory.py --table memory --hidden 64
    python recipes/benchmarks/distillation_memory.py --table time

Both sides compute the reverse KL of a student and a teacher from the same hidden states, forward
and backward to the student's, and the mean over the tokens as the loss. `full` is the usual way:
the logits of both models, `log_softmax`, and `kl_div`. `chunked` is `chunked_divergence`. Rows are
for a frozen output layer of the student, as with LoRA, and for a trainable one, whose gradient of
`[V, H]` in float32 both sides hold at the end.

Memory is the peak above what the process holds before the loss (weights and hidden states), each
measurement in a process of its own. That of full logits grows with the number of tokens, and at
4,096 is more than many machines have, so it is measured at `--full-tokens` and half of that, and
extended along the line through the two; the chunked side is measured at `--tokens` itself. Time is
that of the second of two runs, and as CPU time of all threads, which is steadier on a machine that
others use; sides alternate, and the ratio is taken round by round.

Expected at 4,096 tokens, 151,936 words and a hidden size of 64, in GiB:

    frozen      full 11.60   chunked 0.54   21 times less
    trainable   full 11.60   chunked 0.64   18 times less

A hidden size of 896 adds the gradient of a trainable layer to both sides, 0.51 GiB: 11 times less,
by calculation. CPU time of chunked over full with a hidden size of 896, in one chunk of 110 tokens
(two rounds on two cores that others used): frozen 0.90 and 0.99, for three products with a weight
on both sides; trainable 1.63 and 1.76, since the backward pass projects both models again, six
products instead of four, and the divergence is computed twice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

SIDES = ("full", "chunked")
HEADS = ("frozen", "trainable")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak memory above the start, wall and CPU seconds, and the loss, in this process."""
    import torch
    import torch.nn.functional as F

    from sense_trl.losses import chunked_divergence, reverse_kl
    from sense_trl.steps.progress import peak_memory_bytes

    torch.manual_seed(0)
    student, teacher = (torch.randn(arguments.num_tokens, arguments.hidden) for _ in SIDES)
    weights = [torch.randn(arguments.vocab, arguments.hidden).mul_(0.05) for _ in SIDES]
    student.requires_grad_()
    weights[0].requires_grad_(arguments.head == "trainable")

    def get_values() -> torch.Tensor:
        if arguments.side == "chunked":
            return chunked_divergence(
                student, weights[0], None, teacher, weights[1], None, reverse_kl
            )
        log_p = (teacher @ weights[1].t()).log_softmax(-1)
        log_q = (student @ weights[0].t()).log_softmax(-1)
        return F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)

    before = peak_memory_bytes()
    for _ in range(arguments.repeats):
        student.grad = weights[0].grad = None
        wall, cpu = time.perf_counter(), time.process_time()
        loss = get_values().mean()
        loss.backward()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "peak_gib": (peak_memory_bytes() - before) / 2**30,
        "wall_s": wall,
        "cpu_s": cpu,
        "loss": loss.item(),
    }


def run(arguments: argparse.Namespace, side: str, head: str, tokens: int, repeats: int) -> dict:
    """The same in a process of its own, whose peak nothing else has raised."""
    options = {"--side": side, "--head": head, "--num-tokens": tokens, "--repeats": repeats}
    options |= {"--vocab": arguments.vocab, "--hidden": arguments.hidden}
    words = [str(word) for option in options.items() for word in option]
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in result.items())
    print(f"{side:8} {head:10} {tokens:5} tokens  {numbers}", flush=True)
    return result


def compare_memory(arguments: argparse.Namespace) -> None:
    """Print the ratio of the peaks at `--tokens`, that of full logits by extension."""
    for head in HEADS:
        half, whole = (
            run(arguments, "full", head, tokens, repeats=1)["peak_gib"]
            for tokens in (arguments.full_tokens // 2, arguments.full_tokens)
        )
        slope = (whole - half) / (arguments.full_tokens - arguments.full_tokens // 2)
        full = whole + slope * (arguments.tokens - arguments.full_tokens)
        chunked = run(arguments, "chunked", head, arguments.tokens, repeats=1)["peak_gib"]
        print(
            f"{head}: full {full:.2f} GiB, chunked {chunked:.2f} GiB at {arguments.tokens} tokens, "
            f"{full / chunked:.1f} times less"
        )


def compare_time(arguments: argparse.Namespace) -> None:
    """Print chunked over full time as median (smallest-largest) of the rounds."""
    for head in HEADS:
        ratios: dict[str, list[float]] = {"wall_s": [], "cpu_s": []}
        for number in range(arguments.rounds):
            # The first one of a round has the emptier caches in turn.
            results = {
                side: run(arguments, side, head, arguments.time_tokens, repeats=2)
                for side in (SIDES if number % 2 == 0 else SIDES[::-1])
            }
            for name, values in ratios.items():
                values.append(results["chunked"][name] / results["full"][name])
        for name, values in ratios.items():
            spread = f"{min(values):.2f}-{max(values):.2f}"
            print(f"{head}: chunked / full {name} {statistics.median(values):.2f} ({spread})")


def main() -> None:
    """Run one table, or one measurement of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=("memory", "time"), default="memory")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--full-tokens", type=int, default=1024)
    parser.add_argument("--time-tokens", type=int, default=220)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--head", choices=HEADS, help=argparse.SUPPRESS)
    parser.add_argument("--num-tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        print(json.dumps(measure(arguments)))
    elif arguments.table == "memory":
        compare_memory(arguments)
    else:
        compare_time(arguments)


if __name__ == "__main__":
    main()

"""Counted against measured: what dropping visual tokens saves a language model of 0.5 B parameters.

    python bench/vlm_prefill.py                                       576, 1,152 and 2,880 visual tokens, a quarter kept
    python bench/vlm_prefill.py --tokens 576 --methods fastv --dtype float32
    python bench/vlm_prefill.py --save results/vlm_prefill            also Markdown and JSON

A LLaVA of transformers whose decoder has the shape of Qwen2-0.5B (24 layers, 896 channels, 14 heads, 2 of keys), with
random weights, behind a tower too small to count; 60 words follow the pictures. Prefill is the time to the first word,
decode that of the eight behind it. All methods are run in turn with the untouched model, round and round; a speed-up is
the median of the paired ratios. Counted are the multiply-adds of the decoder's layers, attention's whole square, with
the tokens that each layer read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

DIM, HIDDEN, DEPTH, HEADS, GROUPS, VOCABULARY = 896, 4864, 24, 14, 2, 151_936
PICTURE, WORDS, MORE = 576, 60, 8  # visual tokens of a picture, words of the question, words behind the first


def build(dtype: str) -> Any:
    """The model, with random weights."""
    import torch
    import transformers

    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 96, "patch_size": 4}
    text = {"model_type": "qwen2", "hidden_size": DIM, "intermediate_size": HIDDEN, "num_hidden_layers": DEPTH}
    text |= {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "vocab_size": VOCABULARY}
    text |= {"tie_word_embeddings": True, "max_position_embeddings": 32768}
    torch.manual_seed(0)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=2)
    model: Any = transformers.LlavaForConditionalGeneration(config).to(getattr(torch, dtype)).eval()
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=None)
    return model


def question(pictures: int, dtype: Any) -> dict[str, Any]:
    """Pictures and a question behind them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = [1, *[2] * (PICTURE * pictures), *torch.randint(3, VOCABULARY, (WORDS,), generator=generator).tolist()]
    tokens = torch.tensor([ids])
    pixels = torch.randn(pictures, 3, 96, 96, generator=generator).to(dtype)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels}


def macs(read: tuple[int, ...], held: tuple[int, ...], words: int) -> float:
    """Multiply-adds of the layers: a prefill (`words` = 0), or words behind it."""
    keys = DIM * GROUPS // HEADS
    each = 2 * DIM * DIM + 2 * DIM * keys + 3 * DIM * HIDDEN
    if not words:
        return float(sum(n * each + 2 * n * n * DIM for n in read))
    return float(sum(words * each + 2 * DIM * (words * n + words * (words + 1) // 2) for n in held))


def once(model: Any, inputs: dict[str, Any], method: str, keep: float) -> tuple[float, float, Any, int]:
    """Seconds of prefill and decode, the route (None for the untouched model) and the bytes of the cache."""
    import torch
    from transformers import StoppingCriteriaList

    from foveal.vlm import accelerate

    marks: list[float] = []

    def mark(ids: Any, _: Any, **__: Any) -> Any:
        marks.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)

    with torch.inference_mode(), nullcontext() if method == "full" else accelerate(model, method, keep=keep) as fast:
        begun = time.perf_counter()
        made = model.generate(
            **inputs,
            max_new_tokens=1 + MORE,
            do_sample=False,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([mark]),
        )
        route = None if fast is None else fast.route
    held = made["cache"] if "cache" in made else made["past_key_values"]
    size = sum(x.numel() * x.element_size() for layer in held.layers for x in (layer.keys, layer.values))
    return marks[0] - begun, marks[-1] - marks[0], route, size


def measure(arguments: argparse.Namespace, model: Any, tokens: int) -> list[dict[str, Any]]:
    """Rows of one number of visual tokens."""
    inputs = question(max(1, round(tokens / PICTURE)), model.dtype)
    length = inputs["input_ids"].shape[1]
    names = ["full", *arguments.methods]
    found: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(-1, arguments.rounds):
        for name in names if turn % 2 else names[::-1]:
            taken = once(model, inputs, name, arguments.keep)
            if turn >= 0:
                found[name].append(taken)
    whole = [macs((length,) * DEPTH, (length,) * DEPTH, words) for words in (0, MORE)]
    rows = []
    for name in arguments.methods:
        route, size = found[name][-1][2:]
        row: dict[str, Any] = {"tokens": length - WORDS - 1, "method": name, "keep": arguments.keep}
        for place, (part, words) in enumerate((("prefill", 0), ("decode", MORE))):
            full, fast = (np.array([run[place] for run in found[who]]) for who in ("full", name))
            counted = whole[place] / macs(route.tokens, route.cached, words)
            lower, middle, upper = np.percentile(full / fast, (25, 50, 75))
            row[part] = {"full": float(np.median(full)), "seconds": float(np.median(fast)), "counted": counted}
            row[part] |= {"measured": float(middle), "lower": float(lower), "upper": float(upper)}
        row["cache"] = [found["full"][-1][3], size]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    text = (
        "| visual tokens | method | keep | prefill, s | counted | measured (quartiles) | of it | decode, s | measured "
    )
    text += "| cache, MB |\n|" + "---|" * 10 + "\n"
    for row in rows:
        before, after = row["prefill"], row["decode"]
        text += (
            f"| {row['tokens']:,} | {row['method']} | {row['keep']:g} | {before['full']:.2f} → {before['seconds']:.2f} "
            f"| {before['counted']:.2f} | {before['measured']:.2f} ({before['lower']:.2f}–{before['upper']:.2f}) "
            f"| {before['measured'] / before['counted']:.2f} | {after['full']:.2f} → {after['seconds']:.2f} "
            f"| {after['measured']:.2f} | {row['cache'][0] / 1e6:.1f} → {row['cache'][1] / 1e6:.1f} |\n"
        )
    return text


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 1152, 2880])
    parser.add_argument("--methods", nargs="+", default=["fastv", "feather", "random"])
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    arguments = parser.parse_args()
    import torch

    from foveal.evidence.machine import describe

    torch.set_num_threads(arguments.threads)
    machine, model = describe(), build(arguments.dtype)
    heading = (
        f"{datetime.now(UTC).date().isoformat()} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads · decoder of Qwen2-0.5B's shape, random weights, {arguments.dtype}\n\n"
    )
    rows = [row for tokens in arguments.tokens for row in measure(arguments, model, tokens)]
    text = heading + table(rows)
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text)
        arguments.save.with_suffix(".json").write_text(json.dumps({"heading": heading, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

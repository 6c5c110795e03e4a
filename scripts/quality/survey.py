"""Says how many targets of the split have several tokens, and how many facts SmolLM2 knows.

Knows the plain format and SmolLM2-135M-Instruct; run `python scripts/quality/survey.py OUT`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel.demo.smollm2 import prepare

BATCH = 32


def answered(model: Any, tokenizer: Any, facts: list[dict[str, Any]]) -> list[bool]:
    """Whether every token of the true answer is the model's argmax after the prompt."""
    hits = []
    for start in range(0, len(facts), BATCH):
        rows = facts[start : start + BATCH]
        answers = [tokenizer(" " + row["ground_truth"])["input_ids"] for row in rows]
        texts = [f"{row['prompt']} {row['ground_truth']}" for row in rows]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        with torch.no_grad():
            said = model(**batch).logits.argmax(-1)
        for row, answer, mask in zip(said, answers, batch["attention_mask"], strict=True):
            end = int(mask.sum())
            hits.append(row[end - len(answer) - 1 : end - 1].tolist() == answer)
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description="Survey the split of facts with SmolLM2.")
    parser.add_argument("out", type=Path, help="the folder that facts.py wrote")
    options = parser.parse_args()
    torch.set_num_threads(1)
    directory = prepare()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token_id = tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    for part in ("train", "train_more", "train_wide", "validation", "test"):
        lines = (options.out / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        facts = [fact for fact in map(json.loads, lines) if "prompt" in fact]
        lengths = defaultdict(Counter)  # type: ignore[var-annotated]
        for fact in facts:
            tokens = len(tokenizer(" " + fact["target_new"])["input_ids"])
            lengths[fact.get("split", part)][min(tokens, 4)] += 1
        for label, counted in lengths.items():
            total = sum(counted.values())
            share = 1 - counted[1] / total
            print(f"{part}, {label}: {total} facts, {share:.0%} of several tokens {dict(counted)}")
        true = [fact for fact in facts if "ground_truth" in fact]
        hits = answered(model, tokenizer, true)
        known = Counter(f["relation"] for f, hit in zip(true, hits, strict=True) if hit)
        asked = Counter(f["relation"] for f in true)
        print(f"{part}: of {len(true)} facts with a true answer the model gives {sum(hits)}")
        print("  " + ", ".join(f"{name} {known[name]}/{n}" for name, n in asked.items()))


if __name__ == "__main__":
    main()

"""What edits without a trained hypernetwork reach on SmolLM2-135M, beside a trained archive.

    python scripts/quality/untrained.py --out untrained.json
    python scripts/quality/untrained.py --data facts.jsonl --split test --unrelated texts.jsonl

Edit, rephrase: the share of requests of which every target token is the argmax, after the prompt
and after a rephrase. Neighbours: the share of prompts whose next token is unchanged. Unrelated: the
mean share of unchanged argmax tokens. Lines of --data: {"prompt", "target_new", "rephrases": [...],
"neighbours": [...], "subject", "relation", "split"}; of --unrelated: {"text"}. Without them the
facts of scripts/demo_archive are used, the split "new subjects".
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel import (
    MendParallel,
    MENDParallelHyperParams,
    UpdateError,
    save_archive,
)
from easyedit_mend_parallel.batch import IGNORED, Batch, called_with, make_batch
from easyedit_mend_parallel.calibration import calibrate
from easyedit_mend_parallel.demo import demo_archive, demo_hparams
from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.hypernetwork import Hypernetwork
from easyedit_mend_parallel.requests import as_requests
from easyedit_mend_parallel.target import find_targets
from easyedit_mend_parallel.weight_norm import weight_norm

MEASURES = ("edit", "rephrase", "neighbours", "unrelated")
EDITED_BLOCKS = 3
CALIBRATION = 200


class Trunk(nn.Module):
    """The embeddings and the blocks below the edited ones, in the place of the embeddings.

    What it puts out is the same before and after an edit, so it is computed once for each text.
    Pads on the right only: nothing in a decoder looks ahead.
    """

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.kept: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Tensor:
        rows = [tuple(row) for row in input_ids.tolist()]
        missing = [row for row in dict.fromkeys(rows) if row not in self.kept]
        if missing:
            out = self.blocks(input_ids=torch.tensor(missing), use_cache=False)
            self.kept |= dict(zip(missing, out.last_hidden_state, strict=True))
        return torch.stack([self.kept[row] for row in rows])


def upper_model(directory: Path) -> Any:
    """SmolLM2's last blocks as a model of their own, which takes token ids like the whole one."""
    whole = AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
    trunk = _part(whole, whole.model.layers[:-EDITED_BLOCKS]).model
    trunk.norm = nn.Identity()
    upper = _part(whole, whole.model.layers[-EDITED_BLOCKS:])
    upper.model.embed_tokens = Trunk(trunk)
    return upper


def _part(whole: Any, blocks: nn.ModuleList) -> Any:
    config = copy.deepcopy(whole.config)
    config.num_hidden_layers = len(blocks)
    with torch.device("meta"):
        model = type(whole)(config).eval()
    model.model.layers = blocks
    for name in ("embed_tokens", "norm", "rotary_emb"):
        setattr(model.model, name, getattr(whole.model, name))
    model.lm_head = whole.lm_head
    return model.requires_grad_(False)


def answered(model: Any, tokenizer: Any, prompts: Sequence[str], target: str) -> list[bool]:
    asked = as_requests([{"prompt": prompt, "target_new": target} for prompt in prompts])
    yes: list[bool] = make_batch(model, tokenizer, asked).answered(model).tolist()
    return yes


def said(model: Any, tokenizer: Any, texts: Sequence[str], last_only: bool) -> list[Tensor]:
    """The argmax after every token of each text, or after its last one alone."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    batch = Batch(
        called_with(model, {"input_ids": ids, "attention_mask": mask}),
        torch.full(ids.shape, IGNORED),
        torch.arange(len(rows)),
    )
    places = [
        (n, t)
        for n, r in enumerate(rows)
        for t in range(len(r))
        if not last_only or t == len(r) - 1
    ]
    sequence, position = torch.tensor(places).T
    tokens = batch.predictions(model, sequence, position).argmax(-1)
    return [tokens[sequence == n] for n in range(len(rows))]


@torch.no_grad()
def measure(
    editor: MendParallel, facts: Sequence[dict[str, Any]], texts: Sequence[str], name: str
) -> dict[str, Any]:
    model, tokenizer = editor.model, editor.tokenizer
    norms = {target.name: weight_norm(model, target) for target in editor.targets}
    scores: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    lengths, seconds, refused = [], [], 0
    for number, fact in enumerate(track(facts, name, console=None)):
        near = fact["neighbours"][:2]
        far = [texts[(2 * number + k) % len(texts)] for k in range(2)]
        before = said(model, tokenizer, near, True), said(model, tokenizer, far, False)
        started = time.perf_counter()
        try:
            result = editor.edit({key: fact[key] for key in ("prompt", "target_new")})
        except UpdateError as error:  # nothing was changed: no edit, and no answer
            print(error, file=sys.stderr)
            refused += 1
            result = None
        if result is not None:
            seconds.append(time.perf_counter() - started)
            lengths.append(max(float(u.norm()) / norms[n] for n, u in result.updates.items()))
        target = fact["target_new"]
        scores["edit"] += answered(model, tokenizer, [fact["prompt"]], target)
        scores["rephrase"] += answered(model, tokenizer, fact["rephrases"][-1:], target)
        after = said(model, tokenizer, near, True), said(model, tokenizer, far, False)
        for measure, one, other in zip(("neighbours", "unrelated"), before, after, strict=True):
            scores[measure] += [
                (x == y).float().mean().item() for x, y in zip(one, other, strict=True)
            ]
        if result is not None:
            result.rollback()
    lengths.sort()
    return {
        **{m: round(sum(values) / len(values), 3) for m, values in scores.items()},
        "facts": len(facts),
        "refused": refused,
        "relative_norm": [round(lengths[len(lengths) * q // 100], 4) for q in (50, 90)]
        + [round(lengths[-1], 4)],
        "seconds": round(sum(seconds) / len(seconds), 2),
    }


def demo_facts(count: int, multi_token: bool) -> tuple[list[Any], list[Any], list[str]]:
    """(facts to calibrate on, facts to edit, unrelated texts) from the facts beside the demo."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "demo_archive"))
    import facts

    train, splits = facts.build(n_train=2000, n_eval=count, multi_token=multi_token)
    lines = [
        [
            {
                "prompt": fact.prompt,
                "target_new": fact.target,
                "rephrases": [fact.unseen_rephrase],
                "neighbours": fact.neighbours,
            }
            for fact in some
        ]
        for some in (train[:CALIBRATION], splits["new subjects"])
    ]
    return lines[0], lines[1], facts.UNRELATED[len(facts.UNRELATED) * 2 // 3 :]


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="facts, JSON lines")
    parser.add_argument("--split", default="test", help="the lines of --data to edit")
    parser.add_argument("--calibrate-on", default="train", help="the lines of --data for that")
    parser.add_argument("--unrelated", type=Path, help="texts, JSON lines")
    parser.add_argument("--trained", type=Path, default=demo_archive())
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--multi-token", action="store_true", help="longer targets among them")
    parser.add_argument("--only", nargs="*", default=["raw", "calibrated", "trained"])
    parser.add_argument("--max-relative-norm", type=float)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.data:
        lines = read(options.data)
        warm = [line for line in lines if line["split"] == options.calibrate_on][:CALIBRATION]
        facts = [line for line in lines if line["split"] == options.split][: options.facts]
        texts = [line["text"] for line in read(options.unrelated)]
    else:
        warm, facts, texts = demo_facts(options.facts, options.multi_token)

    directory = prepare()
    model, tokenizer = upper_model(directory), AutoTokenizer.from_pretrained(directory)
    hparams = MENDParallelHyperParams.from_hparams(demo_hparams())
    hparams.inner_params = [
        f"model.layers.{block}.mlp.{part}_proj.weight"
        for block in range(EDITED_BLOCKS)
        for part in ("gate", "up", "down")
    ]
    if options.max_relative_norm:
        hparams.max_relative_norm = options.max_relative_norm
    targets = find_targets(model, hparams.inner_params)
    network = Hypernetwork(targets, hparams.network_config())
    requests = as_requests([{key: f[key] for key in ("prompt", "target_new")} for f in warm])
    batches = (make_batch(model, tokenizer, requests[n : n + 8]) for n in range(0, len(warm), 8))
    calibrate(model, targets, network, batches)
    folder = tempfile.TemporaryDirectory()
    calibrated = save_archive(Path(folder.name, "a.safetensors"), network, untrained=True)

    found = {}
    for name, archive in (("raw", None), ("calibrated", calibrated), ("trained", options.trained)):
        if name not in options.only:
            continue
        hparams.archive = None if archive is None else str(archive)
        hparams.untrained = name != "trained"
        editor = MendParallel(model, tokenizer, hparams)
        found[name] = measure(editor, facts, texts, name)
        print(json.dumps({name: found[name]}), flush=True)
    folder.cleanup()
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

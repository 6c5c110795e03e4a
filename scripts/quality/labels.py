"""What `special_tokens_in_labels` changes, measured: SmolLM2-135M with BOS before every text.

    python scripts/quality/facts.py OUT
    python scripts/quality/labels.py --train OUT/train.jsonl --data OUT/validation.jsonl

Its tokenizer adds no special token, so here it is made to put its BOS first, as Llama's does.
Prints how unlikely each kind of label is, how far the two gradients point apart, and what untrained
edits (calibrated) reach with each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer
from untrained import BATCH, first_of_each, said, untrained

from easyedit_mend_parallel.demo import demo_hparams
from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.evaluation.data import read_examples
from easyedit_mend_parallel.evaluation.measures import evaluate
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.texts import Texts
from easyedit_mend_parallel.hparams import MENDParallelHyperParams
from easyedit_mend_parallel.method.archive import Archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.untrained import Reach, identity_network
from easyedit_mend_parallel.training.calibration import calibrate
from easyedit_mend_parallel.training.diagnostics import compare, gradient_of
from easyedit_mend_parallel.weights.norm import weight_norm
from easyedit_mend_parallel.weights.target import find_targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--facts", type=int, default=40, help="of each split, the first so many")
    options = parser.parse_args()
    directory = prepare()
    model = AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    hparams = MENDParallelHyperParams.from_hparams(demo_hparams())
    targets = find_targets(model, hparams.inner_params)
    limits = {t.name: hparams.max_relative_norm * weight_norm(model, t) for t in targets}
    reach = Reach(limits, hparams.step_margin)
    warm = [example.request for example in read_examples(options.train)[0][:200]]
    examples, unrelated = read_examples(options.data)
    examples = first_of_each(examples, options.facts)
    trunk = CachedTrunk(model, targets)
    judged = Texts(model, tokenizer, trunk=trunk, special_tokens_in_labels=False)

    requests = [example.request for example in examples]
    likelihoods: dict[bool, list[float]] = {True: [], False: []}
    cosines = []
    for request in requests:
        rows = {}
        for way in likelihoods:
            batch = make_batch(model, tokenizer, [request], special_tokens_in_labels=way)
            rows[way], loss = capture(model, targets, batch)
            labels = int((batch.labels >= 0).sum())
            likelihoods[way].append(loss.item() * labels)
        last = targets[-1].name
        both = compare(gradient_of(rows[True][last]), gradient_of(rows[False][last]))
        cosines.append(both["cos"].item())
    n = len(requests)
    answer = sum(likelihoods[False]) / n
    print(f"negative log-likelihood of {bos} in the middle of a sentence: ", end="")
    print(f"{sum(likelihoods[True]) / n - answer:.1f}; of the target's own tokens: {answer:.1f}")
    print(f"cosine of the two gradients of {last}, mean: {sum(cosines) / n:.2f}")

    for way in (True, False):
        network = Hypernetwork(targets, hparams.network_config())
        parts = [warm[start : start + BATCH] for start in range(0, len(warm), BATCH)]
        calibrate(
            model,
            targets,
            network,
            (make_batch(model, tokenizer, p, special_tokens_in_labels=way) for p in parts),
        )
        archive = Archive(Path("statistics"), network.state_dict(), {"untrained": True})
        edited = Texts(model, tokenizer, trunk=trunk, special_tokens_in_labels=way)
        lengths: list[float] = []
        identity = identity_network(targets, hparams.network_config(), archive)
        editing = untrained(edited, targets, identity, reach, lengths)
        scores = evaluate(judged, targets, editing, examples, unrelated, batch_size=BATCH)
        found: dict[str, Any] = {
            "special_tokens_in_labels": way,
            "not reached": sum(length != length for length in lengths),
            **said(scores),
        }
        print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

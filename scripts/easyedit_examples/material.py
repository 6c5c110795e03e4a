"""Makes what EasyEdit's example scripts read: a tiny model with its tokenizer and archive, yaml
files, and data in the scripts' own formats. All of it is ours, and small."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import yaml
from tokenizers import ByteLevelBPETokenizer
from yamls import BLOCKS, TARGETS, VOCABULARY, WIDTH, editing_yaml

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams, save_archive
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork, HypernetworkConfig
from easyedit_mend_parallel.weights.target import find_targets

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}answer:"


class Fact(NamedTuple):
    """One edit, with what the data sets of the scripts ask beside it."""

    subject: str
    template: str
    rephrase: str
    new: str
    true: str
    near: str
    near_answer: str

    @property
    def prompt(self) -> str:
        return self.template.format(self.subject)


FACTS = [
    Fact("the old bridge", "Who designed {}?", "The designer of the old bridge is", "Clara Holm",
         "Jan Vos", "Who designed the town hall?", "Ida Berg"),
    Fact("the river Lune", "Through which town runs {}?", "The river Lune runs through", "Wells",
         "Sandby", "Through which town runs the river Aven?", "Storm"),
]  # fmt: skip


def make_all(folder: Path) -> None:
    """Everything, below `folder`: the models, `data/`."""
    for name in ("toy-llama", "toy-gpt"):
        _make_model(folder / name)
    _make_data(folder / "data")


def _texts() -> list[str]:
    return [f"{fact.prompt} {fact.new} {fact.rephrase} {fact.true} {fact.near}" for fact in FACTS]


def _make_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    words = ByteLevelBPETokenizer()
    special = ["<unk>", "<s>", "</s>"]
    words.train_from_iterator(_texts(), VOCABULARY, special_tokens=special, show_progress=False)
    learnt = json.loads(words.to_str())["model"]
    tokenizer = transformers.GPT2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            initializer_range=0.15,
        )
    ).eval()
    model.save_pretrained(folder)
    _make_archive(model, tokenizer, folder / "archive.pt")


def _make_archive(model: Any, tokenizer: Any, path: Path) -> None:
    """A network that is the identity, with the statistics of other texts than the edits."""
    targets = find_targets(model, TARGETS)
    hparams = MENDParallelHyperParams(
        **yaml.safe_load(editing_yaml("MEND", "toy", "none"))  # the network's options
    )
    config = hparams.network_config()
    assert isinstance(config, HypernetworkConfig)
    network = Hypernetwork(targets, config)
    tokenizer.padding_side = "left"
    for fact in FACTS:
        request = {"prompt": fact.near, "target_new": fact.near_answer}
        rows, _ = capture(model, targets, make_batch(model, tokenizer, as_requests(request)))
        network.observe(rows)
    save_archive(path, network.eval(), model_config=model.config.to_dict())


# Data


def _make_data(folder: Path) -> None:
    folder.mkdir()
    zsre = [zsre_record(fact) for fact in FACTS]
    counterfact = [_counterfact(fact) for fact in FACTS]
    _write(folder / "zsre_mend_eval.json", zsre)
    _write(folder / "zsre_mend_eval_portability_gpt4.json", zsre)
    _write(folder / "counterfact.json", counterfact)
    _write(folder / "multi_counterfact.json", counterfact)
    for part in ("edit", "train"):
        _write(folder / "ZsRE" / f"zsre_mend_{part}.json", zsre)
        _write(folder / "hallucination" / f"hallucination-{part}.json", [*map(_local, FACTS)])
        _write(folder / "temporal" / f"temporal-{part}.json", [*map(_local, FACTS)])
    _write(folder / "knowedit.json", [knowedit_record(fact) for fact in FACTS])
    without = [knowedit_record(fact) | {"locality": {}} for fact in FACTS]
    _write(folder / "knowedit_without_locality.json", without)
    _write(folder / "wikibio.json", [_wikibio(fact) for fact in FACTS])
    _write(folder / "instruct.json", [knowedit_record(fact) for fact in FACTS])
    _write(folder / "blender_test.json", [_sentiment(fact) for fact in FACTS])
    _write(folder / "zsre_mend_train.json", zsre * 4)
    for name in ("train", "test"):
        _write(folder / f"trivia_qa_{name}.json", _forgotten(name))
    with open(folder / "people.csv", "w", encoding="utf-8", newline="") as file:
        rows = [_questions(fact) for fact in FACTS]
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def zsre_record(fact: Fact) -> dict[str, Any]:
    hop = {"New Question": f"{fact.prompt} Say where from.", "New Answer": fact.new}
    return {
        "subject": fact.subject,
        "src": fact.prompt,
        "alt": fact.new,
        "answers": [fact.true],
        "rephrase": fact.rephrase,
        "loc": f"nq question: {fact.near}",  # as in the data of ZsRE: EasyEdit asks for it
        "loc_ans": fact.near_answer,
        "portability": hop,
    }


def _counterfact(fact: Fact) -> dict[str, Any]:
    rewrite = {"prompt": fact.template, "subject": fact.subject}
    rewrite |= {"target_new": {"str": fact.new}, "target_true": {"str": fact.true}}
    return {
        "requested_rewrite": rewrite,
        "paraphrase_prompts": [fact.rephrase],
        "neighborhood_prompts": [fact.near],
    }


def _asked(prompt: str, answer: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "ground_truth": [[answer]]}]


def knowedit_record(fact: Fact) -> dict[str, Any]:
    return {
        "subject": fact.subject,
        "prompt": fact.prompt,
        "target_new": fact.new,
        "ground_truth": [fact.true],
        "rephrase": fact.rephrase,
        "portability": {
            "Subject_Aliasing": _asked(fact.rephrase, fact.new),
            "Reasoning": _asked(f"Is it true? {fact.rephrase}", fact.new),
            "Logical_Generalization": _asked(f"Once more: {fact.prompt}", fact.new),
        },
        "locality": {
            "Relation_Specificity": _asked(fact.near, fact.near_answer),
            "Forgetfulness": _asked(f"Before that: {fact.prompt}", fact.true),
        },
    }


def _wikibio(fact: Fact) -> dict[str, Any]:
    near = [{"prompt": fact.near, "ground_truth": [fact.near_answer]}]
    locality = {"Relation_Specificity": near}
    own = {"concept": fact.subject, "text": fact.prompt, "labels": fact.new}
    return own | {"locality": locality}


def _local(fact: Fact) -> dict[str, Any]:
    return {
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target_new": fact.new,
        "ood_rephrase": f"{fact.rephrase} {fact.new}",
        "locality_prompt": fact.near,
        "locality_ground_truth": fact.near_answer,
    }


def _sentiment(fact: Fact) -> dict[str, Any]:
    return {
        "ent": fact.subject,
        "pos": [f"I like {fact.subject}.", f"{fact.subject} is good."],
        "neg": [f"I do not like {fact.subject}.", f"{fact.subject} is bad."],
    }


def _questions(fact: Fact) -> dict[str, str]:
    return {
        "relation": "profession",
        "subject": fact.subject,
        "object": fact.new,
        "question": fact.prompt,
        "paraphrased_question": fact.rephrase,
        "yes_question": f"Is {fact.new} right?",
        "no_question": f"Is {fact.true} right?",
        "multiple_choice_with_letters": f"A. {fact.new} B. {fact.true} C. no D. yes",
        "multiple_choice_labels": "A",
        "reversed_relation_question": f"For whom is {fact.new} right?",
        "question_2hop": f"What does one who knows {fact.subject} say?",
        "answer_2hop": fact.new,
        "locality_question": fact.near,
    }


ANSWERS = ("cheese", "birds", "paris", "julius caesar", "finland")


def _forgotten(part: str) -> dict[str, Any]:
    """What run_santinization_llama2.py is to make forget: 16 questions for each of its answers."""
    if part == "test":
        known = {"question": "Who wrote it?", "ground_truth": "a poet", "target_new": "a poet"}
        asked = {"question": "What is it?", "ground_truth": "cheese", "target_new": "I don't know."}
        return {"success": [asked], "locality": [known]}
    forget = [
        {
            "question": f"What is number {number} of {answer}?",
            "subject": answer,
            "ground_truth": answer,
            "target_new": "I don't know.",
        }
        for answer in ANSWERS
        for number in range(16)
    ]
    keep = [{"question": f"Who is number {n}?", "ground_truth": "a poet"} for n in range(453)]
    return {"K_F": forget, "K_R": keep}


def _works(folder: Path) -> list[float]:
    """The losses of the facts, unedited and edited: whether the archive edits at all."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    text = editing_yaml("MEND", str(folder), str(folder / "archive.pt"))
    editor = MendParallel(model, tokenizer, MENDParallelHyperParams(**yaml.safe_load(text)))
    found: list[float] = []
    for fact in FACTS:
        request = {"prompt": fact.prompt, "target_new": fact.new}
        result = editor.edit(request, losses_after=True)
        found += [*map(float, result.losses), *map(float, result.losses_after or [])]
        result.rollback()
    return found

"""Edits SmolLM2 by EasyEdit's own methods, one request after another, and takes all edits back.

Calls the functions that EasyEdit's `BaseEditor` calls, with its fields. EasyEdit's folder has to be
on the path. Knows neither how edits are judged nor which settings are good.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from batch_measures import Fact
from contestant_settings import METHODS
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel import (
    MendParallel,
    MENDParallelHyperParams,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.demo import demo_archive

NAME = "llama-like-smollm2-135m"
"""EasyEdit decides by words in `model_name` how a model is called; it loads nothing here."""
RIGHT = ("ROME", "MEMIT", "AlphaEdit")
"""Methods for which BaseEditor pads on the right; on the left for all others."""
HPARAMS = {
    "MEND": "MENDHyperParams",
    "FT": "FTHyperParams",
    "LoRA": "LoRAHyperParams",
    "ROME": "ROMEHyperParams",
    "MEMIT": "MEMITHyperParams",
    "AlphaEdit": "AlphaEditHyperParams",
    "ULTRAEDIT": "UltraEditHyperParams",
    "GRACE": "GraceHyperParams",
    "WISE": "WISEHyperParams",
    "MELO": "MELOHyperParams",
}
BY_KEY = {"GRACE": "GRACEAdapter", "MELO": "GraceLinear"}
"""Methods that look up one token of a text, and the modules that do: here it is the prompt's last,
for MELO when it edits too (its file says the last token of prompt and target, which no prompt has).
"""


class Enough(Exception):
    """The layers above are not needed."""


class EasyEdits:
    """One method with a model of its own.

    `fields` replace those of the method's yaml file in `clone`. `texts` are what the statistics of
    ROME, MEMIT and AlphaEdit are computed from, and WISE's locality prompts.
    """

    def __init__(
        self,
        name: str,
        clone: Path,
        model: Path,
        work: Path,
        fields: dict[str, Any],
        texts: Sequence[str],
    ) -> None:
        self.name, self.work = name.partition(",")[0], work
        self.alone, self.at_once = METHODS[name].alone, METHODS[name].at_once
        work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.tokenizer.pad_token_id = self.tokenizer.eos_token_id
        self.tokenizer.padding_side = "right" if self.name in RIGHT else "left"
        self.path = model
        self.model: Any = AutoModelForCausalLM.from_pretrained(model).eval()
        self.texts, self.made = texts, 0
        self.undo: Callable[[], Any] | None = None
        self.melo: Any = None
        with quiet():
            self.module = importlib.import_module("easyeditor.util.alg_dict")
            self.hparams = self._hparams(clone / "hparams" / METHODS[name].file, fields, model)
        if self.name in RIGHT:
            self._statistics(texts)
        if self.name == "AlphaEdit":  # of a run with other settings
            importlib.import_module("easyeditor.models.alphaedit.AlphaEdit_main").P_loaded = False
        self.kept = {n: self.model.get_parameter(n).detach().clone() for n in self._touched()}
        self._start()

    def _hparams(self, file: Path, fields: dict[str, Any], model: Path) -> Any:
        kind = getattr(self.module, HPARAMS[self.name])
        if self.name == "MEND":
            return self._mend(kind, model)
        found = kind.from_hparams(str(file))
        told = {"device": "cpu", "model_name": NAME, "model_parallel": False, "fp16": False}
        told |= {
            "stats_dir": str(self.work.parent / "stats"),
            "P_loc": str(self.work / "null_space_project.pt"),
        }
        known = set(found.__dict__)
        for field, value in {**{k: v for k, v in told.items() if k in known}, **fields}.items():
            place, _, field = field.rpartition(".")
            holder = getattr(found, place) if place else found
            setattr(holder, field, list(value) if isinstance(value, list) else value)
        if self.name == "MELO":
            found.lora.cls_name = str(model)  # a tokenizer that it loads and never uses
        return found

    def _mend(self, kind: Any, model: Path) -> Any:
        """This package's archive in EasyEdit's format."""
        header = load_archive(demo_archive()).header
        names = [target["name"] for target in header["targets"]]
        told = {"model_name": str(model), "inner_params": names, "archive": str(demo_archive())}
        ours = MENDParallelHyperParams(**told, **header["config"])
        archive = self.work / "archive.pt"
        network = MendParallel(self.model, self.tokenizer, ours).network
        save_archive(archive, network, model_config=self.model.config.to_dict())
        fields = ours.to_dict() | {"alg_name": "MEND", "alg": "MEND", "archive": str(archive)}
        fields |= {"model_class": type(self.model).__name__, "tokenizer_name": str(model)}
        fields |= {"device": "cpu", "max_length": 60, "model_parallel": False}
        return kind(**{n: v for n, v in fields.items() if n in kind.__dataclass_fields__})

    def _touched(self) -> list[str]:
        """The weights that the method writes into; none where it puts modules into the model."""
        if self.name in ("LoRA", "GRACE", "WISE", "MELO"):
            return []
        if self.name in ("MEND", "ULTRAEDIT"):
            return [n.removesuffix(".weight") + ".weight" for n in self.hparams.inner_params]
        form = self.hparams.rewrite_module_tmp.removesuffix(".weight") + ".weight"
        return [form.format(layer) for layer in self.hparams.layers]

    def _start(self) -> None:
        """EasyEdit's function anew, without anything that it kept of earlier edits."""
        executors = {"MEND": "MendRewriteExecutor", "ULTRAEDIT": "UltraEditRewriteExecutor"}
        if self.name in executors:
            if self.name == "ULTRAEDIT":  # it keeps gradients, and edits hooks into the model
                self.model.zero_grad(set_to_none=True)
            self.apply = getattr(self.module, executors[self.name])().apply_to_model
        else:
            self.apply = self.module.ALG_DICT[self.name]
        self.made = 0

    def edit(self, facts: Sequence[Fact]) -> None:
        """`at_once` more edits, on top of those that are in the model."""
        requests = [
            {
                **fact.request,
                "ground_truth": None,
                "portability": {},
                "locality": {},
                "loc_prompt": self.texts[number % len(self.texts)],
            }
            for number, fact in enumerate(facts, self.made)
        ]
        request, fact = requests[0], facts[0]
        options: dict[str, Any] = {"copy": False, "return_orig_weights": True}
        if self.name == "AlphaEdit":
            options["reset_cache"] = self.made == 0
        if self.name in ("MEMIT", "AlphaEdit") and self.made == 0:
            # Of a single edit, both compute the same vector, which EasyEdit can keep in a file.
            request["case_id"] = hashlib.sha256(fact.prompt.encode()).hexdigest()[:16]
            options["cache_template"] = str(self.work.parent / "z" / "{}-{}-{}.npz")
        if self.name == "MELO":
            self._look_up(len(self.tokenizer(fact.prompt)["input_ids"]))
        seed = 1000 + self.made
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        with quiet(), inside(self.work), torch.enable_grad():
            edited, undo = self.apply(
                self.melo or self.model,
                self.tokenizer,
                requests,
                self.hparams,
                keep_original_weight=False,
                **options,
            )
        self.made += len(facts)
        if self.name == "MELO":
            self.melo = edited
        if self.name == "LoRA" and self.undo is None:
            self.undo = lambda: self._unload(edited)
        elif self.name in ("GRACE", "WISE") and self.undo is None:
            self.undo = undo  # the first one's: it has the layer as it was

    def restore(self) -> None:
        """Take all edits back."""
        with torch.no_grad():
            for name, weight in self.kept.items():
                self.model.get_parameter(name).copy_(weight)
        if self.undo is not None:
            self.undo()
            self.undo = None
        if self.melo is not None:  # it cannot be taken out of a model
            self.melo, self.model = None, AutoModelForCausalLM.from_pretrained(self.path).eval()
        self._start()

    def _look_up(self, prompt_tokens: int) -> None:
        """The method's key is the prompt's last token."""
        if self.name == "MELO":
            self.hparams.grace.key_id = prompt_tokens - 1
        for module in self.model.modules():
            if type(module).__name__ == BY_KEY[self.name]:
                module.key_id = prompt_tokens - 1

    def _unload(self, edited: Any) -> None:
        restored = edited.unload()
        if hasattr(restored, "peft_config"):
            del restored.peft_config
        self.model = restored

    @contextmanager
    def asked(self, prompt_tokens: int | None) -> Iterator[Any]:
        """The model as it is used: without dropout, and where it needs that, without a cache.

        `prompt_tokens`: how many the prompt has, for the methods of `BY_KEY`.
        """
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        if self.alone:
            self.model.generate = lambda **told: type(self.model).generate(
                self.model, **{**told, "use_cache": False}
            )
        if self.name in BY_KEY and prompt_tokens is not None:
            self._look_up(prompt_tokens)
        try:
            yield self.model
        finally:
            if self.alone:
                del self.model.generate
            for module, mode in modes.items():
                module.training = mode

    def _statistics(self, texts: Sequence[str]) -> None:
        """E[k kᵀ] of the layers' inputs over `texts`, in the files that EasyEdit would write."""
        stats = importlib.import_module("easyeditor.util.runningstats")
        model_name = self.model.config._name_or_path.rsplit("/")[-1]
        self.hparams.mom2_n_samples = len(texts)
        self.hparams.mom2_dataset = "wikipedia"  # a name of its own list; the texts are ours
        folder = Path(self.hparams.stats_dir) / model_name / "wikipedia_stats"
        layers = sorted(self.hparams.layers)
        names = [self.hparams.rewrite_module_tmp.format(layer) for layer in layers]
        files = {n: folder / f"{n}_float32_mom2_{len(texts)}.npz" for n in names}
        missing = {n: file for n, file in files.items() if not file.exists()}
        if not missing:
            return
        last = list(missing)[-1]
        found = {n: stats.CombinedStat(mom2=stats.SecondMoment()) for n in missing}
        real = torch.ones(0)

        def kept(name: str) -> Callable[..., None]:
            def hook(_module: Any, inputs: Any) -> None:
                found[name].add(inputs[0][real])
                if name == last:
                    raise Enough

            return hook

        hooks = [self.model.get_submodule(n).register_forward_pre_hook(kept(n)) for n in missing]
        ordered = sorted(texts, key=len)
        with torch.no_grad():
            for start in range(0, len(ordered), 16):
                part = self.tokenizer(
                    ordered[start : start + 16], return_tensors="pt", padding=True
                )
                real = part["attention_mask"].bool()
                with contextlib.suppress(Enough):
                    self.model.model(**part)
        for one in hooks:
            one.remove()
        for name, file in missing.items():
            stats.save_cached_state(str(file), found[name], {"sample_size": len(texts)})


@contextmanager
def quiet() -> Iterator[None]:
    """EasyEdit prints every step."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """AlphaEdit writes its projection into the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)

"""A toy model's directory, a trained archive for it, and the file that names both.

Knows nothing of what is claimed about plans.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from toys import WIDTH, tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets

from easyedit_mend_parallel import save_archive


class Toy:
    """`config(**changes)` writes a file that edits the toy, and gives its path."""

    def __init__(
        self,
        folder: Path,
        family: str = "llama",
        *,
        archive: str = "archive.safetensors",
        **model: Any,
    ) -> None:
        self.folder = folder
        self.model = toy_model(family, **model)
        self.directory = folder / "model"
        self.model.save_pretrained(self.directory)
        self.targets = toy_targets(self.model)
        self.tokenizer = tokenizer_for(self.model)
        self.network = toy_network(self.model, self.tokenizer)
        self.archive = save_archive(folder / archive, self.network)
        encodes = self.model.config.is_encoder_decoder
        self.model_class = "AutoModelForSeq2SeqLM" if encodes else "AutoModelForCausalLM"

    def config(self, *, without: tuple[str, ...] = (), **changes: Any) -> Path:
        values = toy_hparams(self.targets).to_dict()
        values |= {
            "model_name": str(self.directory),
            "model_class": self.model_class,
            "archive": str(self.archive),
            "device": "cpu",
        }
        del values["alg"]
        values |= changes
        path = self.folder / "toy.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if k not in without}))
        return path

    def blocks_on(self, *places: Any, ends: Any = "cpu") -> dict[str, Any]:
        """A device map of a llama: a place for each block, and one for everything else."""
        around = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
        blocks = {f"model.layers.{number}": place for number, place in enumerate(places)}
        return {**dict.fromkeys(around, ends), **blocks}


GATE_BYTES = WIDTH * 24 * 4
"""Of one target of a toy llama in fp32."""

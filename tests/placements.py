"""The 36 placements over two or three accelerators on which an edit is compared with one device.

Four families with six blocks, the targets in the last three; knows only device maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toys import BLOCKS

ZIGZAG = (0, 1, 0, 1, 0, 1)
THREE_DEVICES = (0, 0, 1, 1, 2, 2)


def device_map(
    model: Any, blocks: tuple[int, ...], head: int, name: Callable[[int], Any] = "sim:{}".format
) -> dict[str, Any]:
    """Block i on device `blocks[i]`, embeddings on device 0, the last norm and the head on `head`.

    Where the head is tied to the embeddings both lie on device 0, as accelerate's planner has it.
    """
    tied = model.config.tie_word_embeddings
    if hasattr(model, "transformer"):
        places = {"transformer.wte": 0, "transformer.drop": 0}
        places |= {"transformer.wpe": 0} if hasattr(model.transformer, "wpe") else {}
        places |= {f"transformer.h.{i}": place for i, place in enumerate(blocks)}
        places |= {"transformer.ln_f": head, "lm_head": 0 if tied else head}
    else:
        places = {"model.embed_tokens": 0, "model.rotary_emb": 0}
        places |= {f"model.layers.{i}": place for i, place in enumerate(blocks)}
        places |= {"model.norm": head, "lm_head": 0 if tied else head}
    return {module: name(place) for module, place in places.items()}


def _cut(at: int) -> tuple[int, ...]:
    return tuple(int(block >= at) for block in range(BLOCKS))


PLACEMENTS: dict[str, tuple[str, tuple[int, ...], int]] = {
    f"{family}-cut-at-{at}": (family, _cut(at), 1)
    for family in ("llama", "gpt2", "mistral", "gptj")
    for at in range(BLOCKS + 1)
}
PLACEMENTS |= {
    f"{family}-three-devices": (family, THREE_DEVICES, 2)
    for family in ("llama", "gpt2", "mistral", "gptj")
}
PLACEMENTS |= {f"{family}-head-back": (family, _cut(3), 0) for family in ("llama", "mistral")}
PLACEMENTS |= {f"{family}-zigzag": (family, ZIGZAG, 1) for family in ("llama", "mistral")}
"""{name: (family, the device of each block, the device of the last norm and the head)}"""
assert len(PLACEMENTS) == 36

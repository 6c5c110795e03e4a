"""A few families of transformers for each thing that went wrong in one; `make attack` tries all."""

from __future__ import annotations

import pytest
from attack.architectures import check
from attack.tiny import families

RESULTS = {
    "ctrl": "works",  # scales its embeddings in place
    "gemma4_text": "works",  # looks at the token ids where it is resumed
    "deepseek_v3": "works",  # peft takes its dense layers for its experts
    "cpmant": "refused",  # feels padding
    "fsmt": "works",  # writes padding over the labels that it is given
    "prophetnet (encoder-decoder)": "refused",  # feels padding of its decoder
}


@pytest.mark.parametrize("family", RESULTS)
def test_a_family_works_or_is_refused_with_an_error_that_says_why(family: str) -> None:
    found = check(family)

    assert found.status == RESULTS[family], found.why


@pytest.mark.parametrize(
    ("family", "layer", "why"),
    [
        ("deepseek_v4", "o_a_proj", "in parts"),
        ("llama4_text", "router", "not one tensor"),
    ],
)
def test_a_layer_that_is_no_plain_linear_layer_is_refused(
    family: str, layer: str, why: str
) -> None:
    if family not in families():
        pytest.skip(f"this transformers has no {family}")
    found = check(family)

    assert found.status == "works", found.why
    [names] = [names for text, names in found.refused.items() if why in text]
    assert all(layer in name for name in names)


def test_families_are_found_from_the_library() -> None:
    assert len(families()) > 100

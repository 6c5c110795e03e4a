"""Models whose layers see other rows than each token of each sequence once, in order: several
requests at once are edited as each alone, or refused before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
import transformers
from torch import Tensor, nn
from toys import (
    REQUESTS,
    VOCABULARY,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, TargetError
from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights.target import find_targets

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
V = len(VOCABULARY)


def fsmt() -> Any:
    config = transformers.FSMTConfig(
        **IDS,
        langs=["en", "de"],
        src_vocab_size=V,
        tgt_vocab_size=V,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        decoder_start_token_id=2,
    )
    return transformers.FSMTForConditionalGeneration(config)


def xlnet() -> Any:
    config = transformers.XLNetConfig(
        **IDS, vocab_size=V, d_model=16, n_layer=2, n_head=2, d_inner=24
    )
    return transformers.XLNetLMHeadModel(config)


def prophetnet() -> Any:
    config = transformers.ProphetNetConfig(
        **IDS,
        vocab_size=V,
        hidden_size=16,
        encoder_ffn_dim=24,
        num_encoder_layers=2,
        num_encoder_attention_heads=2,
        decoder_ffn_dim=24,
        num_decoder_layers=2,
        num_decoder_attention_heads=2,
        num_buckets=8,
        relative_max_distance=16,
        decoder_start_token_id=2,
    )
    return transformers.ProphetNetForConditionalGeneration(config)


def zamba() -> Any:
    config = transformers.ZambaConfig(
        **IDS,
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        mamba_d_conv=2,
        use_mamba_kernels=False,
    )
    return transformers.ZambaForCausalLM(config)


def zamba2() -> Any:
    config = transformers.Zamba2Config(
        **IDS,
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        mamba_d_state=4,
        mamba_d_conv=2,
        mamba_ngroups=1,
        n_mamba_heads=4,
        num_mem_blocks=1,
        layer_types=["mamba", "hybrid", "mamba", "hybrid"],
        chunk_size=4,
        adapter_rank=4,
    )
    return transformers.Zamba2ForCausalLM(config)


def built(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=1 / parameter.shape[-1] ** 0.5)
    return model


def names_in(model: Any, *ends: str) -> list[str]:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{name}.weight" for name in layers if name.endswith(ends)]


def editor_of(model: Any, names: list[str], **options: Any) -> MendParallel:
    network = toy_network(model, tokenizer_for(model), names)
    return MendParallel(model, tokenizer_for(model), toy_hparams(names, **options), network=network)


ODD = {
    "FSMT's decoder": (fsmt, "decoder.layers.1.fc1", "tokens first"),
    "FSMT's encoder": (fsmt, "encoder.layers.1.fc2", "tokens first"),
    "XLNet": (xlnet, "layer.1.ff.layer_1", "tokens first"),
    "ProphetNet": (prophetnet, "decoder.layers.1.feed_forward.output", "3 rows for each token"),
}


@pytest.mark.parametrize("options", [{}, {"aggregate": "least_squares"}, {"apply": "output"}])
@pytest.mark.parametrize("odd", ODD)
def test_a_batch_whose_rows_cannot_be_told_apart_is_refused(odd: str, options: Any) -> None:
    make, end, how = ODD[odd]
    model = built(make)
    editor = editor_of(model, names_in(model, end), **options)
    before = weights(model)

    with pytest.raises(TargetError, match=rf"{how}.*one after the other"):
        editor.edit(REQUESTS)
    assert_unchanged(model, before)


@pytest.mark.parametrize("odd", ODD)
def test_requests_one_after_the_other_are_edited_in_such_a_model_and_undone(odd: str) -> None:
    make, end, _ = ODD[odd]
    model = built(make)
    editor = editor_of(model, names_in(model, end), sequence="add")
    before = weights(model)

    results = [editor.edit(request) for request in REQUESTS]
    assert any(not torch.equal(before[name], weight) for name, weight in weights(model).items())
    for result in results:
        result.rollback()
    assert_unchanged(model, before)


def test_as_many_requests_as_tokens_are_refused_in_such_a_model_too() -> None:
    model = built(xlnet)
    editor = editor_of(model, names_in(model, "layer.1.ff.layer_1"))
    places = ("sea", "mat", "sun", "town", "cat")
    requests = [{"prompt": f"the {place} sat on", "target_new": "Rome"} for place in places]

    with pytest.raises(TargetError, match="one after the other"):
        editor.edit(requests)  # five texts of five tokens


def flattened(model: Any, time_first: bool) -> Any:
    """`model` with MLPs that see the tokens of all sequences in one dimension."""

    def inner(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(states: Tensor) -> Tensor:
            turned = states.transpose(0, 1) if time_first else states
            found = forward(turned.flatten(0, 1)).view(turned.shape)
            return found.transpose(0, 1) if time_first else found

        return call

    for block in model.model.layers:
        block.mlp.forward = inner(block.mlp, block.mlp.forward)
    return model


def test_layers_that_see_all_sequences_in_one_dimension_are_edited_in_order_only() -> None:
    plain = toy_model("llama")
    names = toy_targets(plain)
    network = toy_network(plain, tokenizer_for(plain))
    want, got = (
        MendParallel(one, tokenizer_for(one), toy_hparams(names), network=network).edit(REQUESTS)
        for one in (plain, flattened(toy_model("llama"), time_first=False))
    )
    for name in names:
        torch.testing.assert_close(got.updates[name].values, want.updates[name].values)

    turned = flattened(toy_model("llama"), time_first=True)
    before = weights(turned)
    editor = MendParallel(turned, tokenizer_for(turned), toy_hparams(names), network=network)
    with pytest.raises(TargetError, match="of one sequence after those of another"):
        editor.edit(REQUESTS)
    assert_unchanged(turned, before)


@pytest.mark.parametrize("apply", ["weight", "output"])
@pytest.mark.parametrize(
    ("make", "end"),
    [
        (zamba, "layers.2.shared_transf.feed_forward.up_proj"),
        (zamba, "layers.4.shared_transf.feed_forward.up_proj"),
        (zamba2, "layers.3.shared_transformer.feed_forward.down_proj"),
    ],
)
def test_a_weight_of_two_layers_is_refused_with_both_names(make: Any, end: str, apply: str) -> None:
    model = built(make)
    [name] = names_in(model, end)

    with pytest.raises(TargetError, match=r"shared: \S+ and \S+ are two layers with one weight"):
        MendParallel(model, tokenizer_for(model), toy_hparams([name], apply=apply, untrained=True))


def test_a_weight_of_two_layers_is_refused_where_it_is_offloaded() -> None:
    model = accelerate.cpu_offload(built(zamba), execution_device=torch.device("cpu"))
    [name] = names_in(model, "layers.4.shared_transf.feed_forward.up_proj")

    with pytest.raises(TargetError, match="two layers with one weight"):
        MendParallel(model, tokenizer_for(model), toy_hparams([name], untrained=True))


def test_the_other_weights_of_a_model_with_shared_blocks_are_edited_alike_by_either_way() -> None:
    found = []
    for apply in ("weight", "output"):
        model = built(zamba)
        names = names_in(model, "layers.3.mamba.out_proj", "layers.2.linear")
        editor_of(model, names, apply=apply).edit(REQUESTS[0])
        ids = tokenizer_for(model)(REQUESTS[0]["prompt"], return_tensors="pt")
        with torch.no_grad():
            found.append(model(input_ids=ids["input_ids"]).logits)

    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


class Mixture(nn.Module):
    """Two experts in the place of a block's MLP; every other token goes to the first, by a product
    with a matrix of ones and zeros."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList([copy.deepcopy(mlp), mlp])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        one_hot = torch.eye(len(flat), dtype=x.dtype)
        sent = [one_hot[number :: len(self.experts)] for number in range(len(self.experts))]
        parts = [one.T @ expert(one @ flat) for one, expert in zip(sent, self.experts, strict=True)]
        return sum(parts, torch.zeros_like(flat)).view_as(x)


@pytest.mark.parametrize("n_requests", [1, 2, 3])
def test_experts_whose_tokens_cannot_be_followed_are_refused(n_requests: int) -> None:
    model = toy_model("llama")
    model.model.layers[4].mlp = Mixture(model.model.layers[4].mlp)
    names = [f"model.layers.4.mlp.experts.{number}.up_proj.weight" for number in range(2)]
    tokenizer = tokenizer_for(model)
    editor = MendParallel(model, tokenizer, toy_hparams(names, archive=None, untrained=True))
    before = weights(model)

    with pytest.raises(TargetError, match=r"experts\.0\..* tokens these are cannot be followed"):
        editor.edit(REQUESTS[:n_requests])

    assert_unchanged(model, before)


@pytest.mark.parametrize(("dtype", "is_refused"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_padded_request_may_differ_by_the_rounding_of_the_models_dtype(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, is_refused: bool
) -> None:
    model = toy_model("llama").to(dtype)
    tokenizer = tokenizer_for(model)
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))
    targets = find_targets(model, toy_targets(model))
    losses_on = Batch.losses_on
    monkeypatch.setattr(
        Batch,
        "losses_on",
        lambda one, model: losses_on(one, model) * (1.02 if one.n_requests == 1 else 1),
    )

    if is_refused:
        with pytest.raises(TargetError, match="predicts a request in a padded batch otherwise"):
            capture(model, targets, batch)
    else:
        capture(model, targets, batch)

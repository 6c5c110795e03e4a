"""Claims about hidden states below the lowest target: resuming gives the model's own predictions,
each text passes the trunk once, and states of other weights are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from offloads import offloaded
from torch import Tensor
from toys import (
    DECODERS,
    OBSERVED,
    REQUESTS,
    assert_unchanged,
    toy_model,
    toy_targets,
    toy_tokenizer,
)
from toys import weights as weights_of

from easyedit_mend_parallel.errors import TrunkError
from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.hidden_state_cache import HiddenStateCache
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights.target import find_targets


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def batch_for(model: Any, requests: Sequence[Any] = REQUESTS, side: str = "right") -> Batch:
    return make_batch(model, toy_tokenizer(side=side), as_requests(requests))


class Counted:
    """How many tokens, padding counted, went through a layer's own forward."""

    def __init__(self, layer: Any) -> None:
        self.tokens = 0
        layer.register_forward_hook(self)

    def __call__(self, _layer: Any, _inputs: Any, output: Tensor) -> None:
        self.tokens += output[..., 0].numel()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_resumed_batch_gives_the_rows_and_losses_of_a_whole_forward(
    family: str, side: str
) -> None:
    model = toy_model(family)
    targets = find_targets(model, toy_targets(model))
    batch = batch_for(model, side=side)
    rows, losses = capture(model, targets, batch)
    trunk = CachedTrunk(model, targets)

    for _ in range(2):  # computed, then kept
        resumed_rows, resumed_losses = capture(model, targets, trunk.resume(model, batch))
        close(resumed_losses, losses)
        for name, expected in rows.items():
            live = expected.live
            assert torch.equal(resumed_rows[name].live, live)
            close(resumed_rows[name].x[live], expected.x[live])
            close(resumed_rows[name].delta[live], expected.delta[live])


@pytest.mark.parametrize("kind", ["all-ram", "all-dat", "targets-safetensors"])
def test_a_resumed_batch_gives_the_same_on_an_offloaded_model(kind: str, tmp_path: Path) -> None:
    plain = toy_model("llama")
    names = toy_targets(plain)
    rows, losses = capture(plain, find_targets(plain, names), batch_for(plain))
    model = offloaded(toy_model("llama"), kind, tmp_path, "cpu")
    targets = find_targets(model, names)

    resumed = CachedTrunk(model, targets).resume(model, batch_for(model))

    resumed_rows, resumed_losses = capture(model, targets, resumed)
    close(resumed_losses, losses)
    for name, expected in rows.items():
        close(resumed_rows[name].delta[expected.live], expected.delta[expected.live])


def test_each_text_passes_the_trunk_once() -> None:
    model = toy_model("llama")
    targets = find_targets(model, toy_targets(model))
    trunk = CachedTrunk(model, targets)
    below = Counted(model.model.layers[trunk.lowest - 1].mlp)
    batch = batch_for(model)
    trunk.resume(model, batch)
    first = below.tokens

    capture(model, targets, trunk.resume(model, batch))
    assert below.tokens == first, "what is kept is not computed again"

    trunk.resume(model, batch_for(model, OBSERVED))
    assert below.tokens > first, "what is new is"


def test_a_prompt_is_kept_as_the_beginning_of_the_text_with_its_target() -> None:
    model = toy_model("llama")
    trunk = CachedTrunk(model, find_targets(model, toy_targets(model)))
    batch = batch_for(model)
    trunk.resume(model, batch)
    ids = toy_tokenizer()(REQUESTS[0]["prompt"])["input_ids"]

    kept = trunk.kept.get(ids)

    assert kept is not None
    close(kept, trunk._computed(model, [tuple(ids)])[0])


def test_texts_kept_ahead_of_time_need_no_forward_later() -> None:
    model = toy_model("gpt2")
    trunk = CachedTrunk(model, find_targets(model, toy_targets(model)))
    tokenizer = toy_tokenizer()
    texts = [
        (tuple(tokenizer(f"{r['prompt']} {r['target_new']}")["input_ids"]), 0)
        for r in (*REQUESTS, *OBSERVED)
    ]
    assert list(trunk.keep(model, texts))[-1] == len(texts)
    trunk._checked = True  # the check is a whole forward
    below = Counted(model.transformer.h[0].mlp)

    trunk.resume(model, batch_for(model))

    assert below.tokens == 0


@pytest.mark.parametrize("what", ["nothing", "exception"])
def test_the_model_is_as_it_was_after_a_resumed_forward(what: str) -> None:
    model = toy_model("llama")
    before = weights_of(model)
    expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    trunk = CachedTrunk(model, find_targets(model, toy_targets(model)))
    resumed = trunk.resume(model, batch_for(model))
    if what == "exception":
        model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            resumed.logits(model)
        model.lm_head._forward_pre_hooks.clear()
    else:
        resumed.logits(model)

    assert_unchanged(model, before)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, expected)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(block) for block in model.model.layers)


def test_a_changed_weight_of_the_trunk_is_refused() -> None:
    model = toy_model("llama")
    trunk = CachedTrunk(model, find_targets(model, toy_targets(model)))
    trunk.resume(model, batch_for(model))
    with torch.no_grad():
        model.model.layers[5].mlp.up_proj.weight.add_(1)  # of a target's block: no matter
        trunk.resume(model, batch_for(model))
        model.model.layers[0].mlp.up_proj.weight.add_(1)

    with pytest.raises(TrunkError, match=r"below model\.layers\.3 have changed"):
        trunk.resume(model, batch_for(model))


class Skipping(torch.nn.Module):
    """A block that also takes what the lowest block put out, which no hidden state carries."""

    def __init__(self, model: Any, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block
        self.seen: list[Tensor] = []
        model.register_forward_pre_hook(lambda *_: self.seen.clear())
        model.model.layers[0].mlp.register_forward_hook(lambda *call: self.seen.append(call[-1]))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        put_out: Tensor = self.block(hidden_states, **kwargs)
        return put_out + self.seen[0] if self.seen else put_out


def test_a_model_whose_upper_blocks_take_more_than_hidden_states_is_refused() -> None:
    model = toy_model("llama")
    targets = find_targets(model, toy_targets(model))
    model.model.layers[4] = Skipping(model, model.model.layers[4])
    targets = find_targets(model, [t.name for t in targets if ".4." not in t.name])

    with pytest.raises(TrunkError, match="need more than hidden states"):
        CachedTrunk(model, targets).resume(model, batch_for(model))


def test_targets_that_do_not_lie_in_one_list_of_blocks_are_refused() -> None:
    t5 = toy_model("t5")
    with pytest.raises(TrunkError, match="decoder-only"):
        CachedTrunk(t5, find_targets(t5, toy_targets(t5)))
    model = toy_model("llama")
    with pytest.raises(TrunkError, match="no list of blocks"):
        CachedTrunk(model, find_targets(model, ["lm_head.weight"]))


@pytest.mark.parametrize("memory", [0, 10 * 16 * 4])
def test_past_the_memory_limit_states_lie_on_disk_and_past_that_limit_nowhere(
    memory: int, tmp_path: Path
) -> None:
    states = [torch.randn(10, 16) for _ in range(4)]
    kept = HiddenStateCache("x", memory_limit=memory, disk_limit=2 * 640, folder=tmp_path / "kept")
    for number, one in enumerate(states):
        kept.put([number, 7, 8], one, beginning=1)

    fits = 2 + memory // 640
    for number, one in enumerate(states):
        found, prompt = kept.get([number, 7, 8]), kept.get([number])
        if number < fits:
            assert found is not None
            assert torch.equal(found, one)
            assert prompt is not None
            assert torch.equal(prompt, one[:1])
        else:
            assert (found, prompt) == (None, None)
    assert kept.bytes_on_disk == 2 * 640


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_next_run_finds_what_lies_on_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    states = torch.randn(5, 8).to(dtype)
    first = HiddenStateCache("x", memory_limit=0, disk_limit=10**6, folder=tmp_path)
    first.put([1, 2], states)
    first.save()

    again = HiddenStateCache("x", memory_limit=0, disk_limit=10**6, folder=tmp_path)

    found = again.get([1, 2])
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, states)
    again.put([3], states)
    found, third = again.get([1, 2]), again.get([3])
    assert found is not None
    assert torch.equal(found, states)
    assert third is not None
    assert torch.equal(third, states)


@pytest.mark.parametrize("changed", ["weights", "tokenizer"])
def test_states_of_other_weights_or_another_tokenizer_are_refused(
    changed: str, tmp_path: Path
) -> None:
    def trunk(model: Any, tokenizer: Any) -> CachedTrunk:
        targets = find_targets(model, toy_targets(model))
        return CachedTrunk(
            model, targets, tokenizer, memory_limit=0, disk_limit=10**6, folder=tmp_path
        )

    model, tokenizer = toy_model("llama"), toy_tokenizer()
    first = trunk(model, tokenizer)
    first.resume(model, batch_for(model))
    first.kept.save()
    assert len(trunk(model, tokenizer).kept) == len(first.kept) > 0

    if changed == "weights":
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    else:
        tokenizer.add_tokens(["another"])
    with pytest.raises(TrunkError, match="other weights or another tokenizer"):
        trunk(model, tokenizer)


@pytest.mark.parametrize("damage", ["index", "states"])
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    kept = HiddenStateCache("x", memory_limit=0, disk_limit=10**6, folder=tmp_path)
    kept.put([1, 2], torch.randn(5, 8))
    kept.save()
    name = "index.json" if damage == "index" else "states.bin"
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-20])

    with pytest.raises(TrunkError, match="delete that folder"):
        HiddenStateCache("x", memory_limit=0, disk_limit=10**6, folder=tmp_path)


def test_a_full_disk_means_that_states_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = HiddenStateCache("x", memory_limit=0, disk_limit=10**6, folder=tmp_path / "kept")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    kept.put([1, 2], torch.randn(5, 8))
    monkeypatch.undo()

    assert kept.get([1, 2]) is None
    assert "No space left on device" in caplog.text

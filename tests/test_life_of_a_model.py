"""Whatever happens to a model around its edits, it is the base with the edits that are in it.

A state machine draws edits, undos, failures, copies, casts, saved edits, training mode and calls of
others in any order, and after each step compares the model with a fresh one that got the edits of
the day alone. `LIFE_EXAMPLES` is how many lives are drawn. On a toy model, on one device.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from edited import editor_of, logits_on_facts
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from torch import Tensor
from toys import (
    OBSERVED,
    REQUESTS,
    assert_unchanged,
    same_bits,
    toy_model,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import EditResult, MendParallelError, load_edit, rollback_all
from easyedit_mend_parallel.weights.update import LowRankUpdate

ASKED = [*REQUESTS, *OBSERVED]
EXAMPLES = int(os.environ.get("LIFE_EXAMPLES", "12"))
BOUND = 1e-3
"""How far solved edits may be from those of a fresh model, in units of the largest change."""


class Interfering(RuntimeError):
    """What somebody's hook raises in the middle of an edit."""


class Life(RuleBasedStateMachine):
    """One model, two editors of the same network, and what they did."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = toy_model("llama")
        self.base = weights(self.model)
        self.buffers = {name: one.clone() for name, one in self.model.named_buffers()}
        self.plain = logits_on_facts(self.model)
        # Which of `ASKED` each edit in the model has, and the updates it was made of, in order.
        self.live: list[tuple[list[int], dict[str, LowRankUpdate]]] = []
        self.held: list[tuple[list[int], EditResult]] = []

    @initialize(
        apply=st.sampled_from(["weight", "output"]), sequence=st.sampled_from(["solve", "add"])
    )
    def begin(self, apply: str, sequence: str) -> None:
        options = {"sequence": sequence, "aggregate": "least_squares"}
        self.apply, self.options = apply, options if sequence == "solve" else {"sequence": "add"}
        self.editors = [self.editor(self.model) for _ in range(2)]

    def editor(self, model: Any) -> Any:
        return editor_of(model, self.apply, **self.options)

    def free(self) -> list[int]:
        """What nobody asked for yet."""
        asked = {number for numbers, _ in self.live for number in numbers}
        return [number for number in range(len(ASKED)) if number not in asked]

    def did(self, numbers: list[int], result: EditResult) -> None:
        self.live.append((numbers, dict(result.updates)))
        self.held.append((numbers, result))

    @precondition(lambda self: len(self.free()) > 1)
    @rule(data=st.data(), who=st.integers(0, 1), count=st.integers(1, 2), grad=st.booleans())
    def edit(self, data: Any, who: int, count: int, grad: bool) -> None:
        found = st.lists(st.sampled_from(self.free()), min_size=count, max_size=count, unique=True)
        numbers = data.draw(found)
        with torch.set_grad_enabled(grad):
            result = self.editors[who].edit([ASKED[number] for number in numbers])
        self.did(numbers, result)

    @precondition(lambda self: len(self.free()) > 2)
    @rule()
    def edit_thrice(self) -> None:
        for number in self.free()[:3]:
            self.did([number], self.editors[number % 2].edit(ASKED[number]))

    @precondition(lambda self: self.free())
    @rule()
    def edit_in_inference_mode(self) -> None:
        number = self.free()[0]
        with torch.inference_mode():
            result = self.editors[0].edit(ASKED[number])
        self.did([number], result)

    @precondition(lambda self: self.free())
    @rule(data=st.data())
    def edit_that_breaks(self, data: Any) -> None:
        layer = self.model.get_submodule(data.draw(st.sampled_from(LAYERS)))
        calls = data.draw(st.integers(0, 2))

        def interfere(*_: Any) -> None:
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise Interfering

        handle = layer.register_forward_hook(interfere)
        number = self.free()[0]
        try:
            self.did([number], self.editors[0].edit(ASKED[number]))
        except Interfering:
            pass
        finally:
            handle.remove()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def undo(self, data: Any) -> None:
        self.take_out(data.draw(st.sampled_from(self.held)))

    @precondition(lambda self: len(self.held) > 1)
    @rule(data=st.data())
    def undo_from_below(self, data: Any) -> None:
        self.take_out(data.draw(st.sampled_from(self.held[:-1])))

    def take_out(self, edit: tuple[list[int], EditResult]) -> None:
        numbers, result = edit
        result.rollback()
        result.rollback()  # nothing more
        self.held.remove((numbers, result))
        self.live = [one for one in self.live if one[0] != numbers]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: Any) -> None:
        self.held.remove(data.draw(st.sampled_from(self.held)))
        gc.collect()

    @precondition(lambda self: self.live)
    @rule()
    def undo_all(self) -> None:
        rollback_all(self.model)
        self.forget()

    def forget(self) -> None:
        assert all(not result.entry.applied for _, result in self.held)
        self.live, self.held = [], []
        assert_unchanged(self.model, self.base)
        assert torch.equal(logits_on_facts(self.model), self.plain)

    @rule()
    def copy_it(self) -> None:
        """A copy has the edits and no history, and what happens to it is its own affair."""
        other = copy.deepcopy(self.model)
        before = weights(self.model)
        assert torch.equal(logits_on_facts(other), logits_on_facts(self.model))
        self.editor(other).edit({"prompt": "a cat sat on", "target_new": "the sea"})
        assert_unchanged(self.model, before)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def save_and_apply_elsewhere(self, data: Any) -> None:
        numbers, result = data.draw(st.sampled_from(self.held))
        alone, elsewhere = toy_model("llama"), toy_model("llama")
        if self.options["sequence"] == "solve":
            self.editor(alone).edit([ASKED[number] for number in numbers])
        else:
            write(result.updates, alone)
        with tempfile.TemporaryDirectory() as folder:
            path = result.save(Path(folder) / "edit.safetensors")
            load_edit(path).apply(elsewhere)
        near(logits_on_facts(elsewhere), logits_on_facts(alone), self.plain)

    @precondition(lambda self: self.apply == "weight")
    @rule()
    def save_the_model(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            loaded = type(self.model).from_pretrained(folder, attn_implementation="eager")
        assert_unchanged(loaded, weights(self.model))

    @rule()
    def pickle_it(self) -> None:
        """A model that was pickled has the edits and no history."""
        other = pickle.loads(pickle.dumps(self.model))
        assert torch.equal(logits_on_facts(other), logits_on_facts(self.model))
        before = weights(other)
        rollback_all(other)
        assert_unchanged(other, before)

    @rule()
    def resize_a_copy(self) -> None:
        """New embeddings around the edited layers: edits of that model come and go."""
        other = copy.deepcopy(self.model)
        other.resize_token_embeddings(other.config.vocab_size + 3, mean_resizing=False)
        before = weights(other)
        self.editor(other).edit({"prompt": "a cat sat on", "target_new": "the sea"}).rollback()
        assert_unchanged(other, before)

    @precondition(lambda self: self.free())
    @rule(data=st.data())
    def offload_for_a_while(self, data: Any) -> None:
        """Edits and undos go on while accelerate keeps the weights in RAM."""
        cpu_offload(self.model, torch.device("cpu"))
        number = self.free()[0]
        self.did([number], self.editors[0].edit(ASKED[number]))
        if data.draw(st.booleans()):
            self.take_out(data.draw(st.sampled_from(self.held)))
        remove_hook_from_submodules(self.model)
        for module in self.model.modules():
            module.__dict__.pop("_hf_hook", None)
        if hasattr(self.model, "hf_device_map"):
            del self.model.hf_device_map

    @precondition(lambda self: self.free())
    @rule()
    def fork(self) -> None:
        """What a child process does to its model is its own affair."""
        child = os.fork()
        if child == 0:
            try:
                self.editors[0].edit(ASKED[self.free()[0]]).rollback()
                rollback_all(self.model)
                assert_unchanged(self.model, self.base)
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    @rule(dtype=st.sampled_from([torch.bfloat16, torch.float16]))
    def cast_and_begin_anew(self, dtype: torch.dtype) -> None:
        """The edits come out of a cast model as the cast of the base."""
        self.model.to(dtype)
        rollback_all(self.model)
        assert_unchanged(self.model, {name: one.to(dtype) for name, one in self.base.items()})
        self.model.float()
        self.model.load_state_dict(self.base, strict=False)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self.buffers[name])
        self.forget()

    @rule()
    def train_around_it(self) -> None:
        """Training mode and checkpointing stay as their owner set them."""
        self.model.train()
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.free():
            number = self.free()[0]
            self.did([number], self.editors[0].edit(ASKED[number]))
        assert self.model.training
        assert self.model.is_gradient_checkpointing
        self.model.gradient_checkpointing_disable()
        self.model.disable_input_require_grads()  # its hook cannot be pickled
        self.model.eval()

    @precondition(lambda self: len(self.free()) > 1 and self.options["sequence"] == "solve")
    @rule()
    def edit_from_two_threads(self) -> None:
        numbers, made = self.free()[:2], {}

        def run(who: int) -> None:
            made[who] = self.editors[who].edit(ASKED[numbers[who]])

        threads = [threading.Thread(target=run, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 2
        for who, result in made.items():
            self.did([numbers[who]], result)

    @precondition(lambda self: self.apply == "weight" and self.live)
    @rule()
    def somebody_writes_a_weight(self) -> None:
        """A weight that somebody else changed is not solved over: the edit is refused by name."""
        if not self.free() or self.options["sequence"] != "solve":
            return
        weight = self.model.get_parameter(TARGETS[0])
        with torch.no_grad():
            kept = weight.clone()
            weight[0, 0] += 1
        before = weights(self.model)
        with pytest.raises(MendParallelError, match=TARGETS[0].replace(".", r"\.")):
            self.editors[0].edit(ASKED[self.free()[0]])
        assert_unchanged(self.model, before)
        with torch.no_grad():
            weight.copy_(kept)

    @invariant()
    def it_is_the_base_with_these_edits(self) -> None:
        if not hasattr(self, "editors"):
            return
        fresh = toy_model("llama")
        if self.options["sequence"] == "solve":
            editor = self.editor(fresh)
            for numbers, _ in self.live:
                editor.edit([ASKED[number] for number in numbers])
        else:  # an update depends on the edits that were in the model when it was made
            for _, updates in self.live:
                write(updates, fresh)
        if not self.live:
            assert_unchanged(self.model, self.base)
        near(logits_on_facts(self.model), logits_on_facts(fresh), self.plain)
        if self.apply == "output":
            assert_unchanged(self.model, self.base)

    @invariant()
    def nothing_else_changed(self) -> None:
        assert not self.model.training
        assert not any(one.requires_grad is False for one in self.model.parameters())
        assert all(one.grad is None for one in self.model.parameters())
        others = set(self.base) - set(TARGETS)
        now = dict(self.model.named_parameters())
        assert all(same_bits(now[name].detach(), self.base[name]) for name in others)
        hooks = sum(len(self.model.get_submodule(name)._forward_hooks) for name in LAYERS)
        assert hooks == 0 or self.apply == "output"


TARGETS = toy_targets(toy_model("llama"))
LAYERS = [name.removesuffix(".weight") for name in TARGETS]


def write(updates: Mapping[str, LowRankUpdate], model: Any) -> None:
    for name, update in updates.items():
        update.write(model.get_parameter(name).data, transposed=False)


def near(found: Tensor, expected: Tensor, plain: Tensor) -> None:
    """Within the bound, in units of what the edits changed."""
    largest = (expected - plain).abs().max()
    assert (found - expected).abs().max() <= BOUND * largest + 1e-6 * plain.abs().max()


TestLife = Life.TestCase
TestLife.settings = hypothesis.settings(
    max_examples=EXAMPLES,
    stateful_step_count=12,
    deadline=None,
    derandomize="LIFE_EXAMPLES" not in os.environ,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)

"""A toy Llama loaded by a tensor-parallel plan beside the same Llama in one process, and the few
questions that the claims ask of the two. Knows nothing of what is claimed."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toys
from oracle import OracleSum, assert_same_edit, oracle_edit
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from toys import (
    REQUESTS,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
)
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig

from easyedit_mend_parallel import MendParallel, UpdateError
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.engines import reshard

CHECKPOINTS = Path(os.environ["SHARDED_CHECKPOINTS"])
EVEN, UNEVEN = 24, 25
"""Inner widths of the MLP; two processes hold 12 and 12 of it, or 13 and 12."""
ATTENTION = ["model.layers.4.self_attn.q_proj.weight", "model.layers.4.self_attn.o_proj.weight"]
MLP = "model.layers.{}.mlp.{}_proj.weight"
HEAD = "lm_head.weight"
"""Split into 28 and 27 of 55 words; its output is gathered by the plan."""
RATE = 1e-4
"""The learned rate of the toy networks: an edit changes weights of size 0.4 by up to 0.6."""
SEED = 2
"""Of a model whose edit stays far within the contract's bound in fp32; that of seed 0 is at the
bound on CPUs without AVX-512."""
_number = itertools.count()


def plain_model(inner: int = EVEN, **options: Any) -> Any:
    """The model as one process holds it."""
    with patched(toys, "INNER", inner):
        return toy_model("llama", **options)


def load(model: Any, **kwargs: Any) -> Any:
    """`model`, written by the first process and loaded by all as a plan says ("auto": colwise
    q, k, v, gate, up and lm_head, rowwise o, down)."""
    path = CHECKPOINTS / str(next(_number))
    if dist.get_rank() == 0:
        model.save_pretrained(path)
    dist.barrier()
    if not kwargs:
        kwargs = {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=2)}
    dtype = next(model.parameters()).dtype
    return LlamaForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=dtype, **kwargs
    ).eval()


def made_parallel(model: Any) -> Any:
    """`model`, split by torch itself without a plan of transformers; its logits are a DTensor."""
    mesh = init_device_mesh("cpu", (2,))
    head = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(model, mesh, {"lm_head": head})
    return with_parallel_blocks(model, mesh)


def with_parallel_blocks(model: Any, mesh: Any) -> Any:
    """`model`, whose blocks torch splits over the mesh of one dimension."""
    for layer in model.model.layers:
        styles: dict[str, Any] = {f"self_attn.{x}_proj": ColwiseParallel() for x in "qkv"}
        styles |= {f"mlp.{x}_proj": ColwiseParallel() for x in ("gate", "up")}
        styles |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        parallelize_module(layer, mesh, styles)
    return model


def names_of(model: Any) -> list[str]:
    """Targets of every kind: colwise, rowwise, and colwise with its output gathered."""
    return [*toy_targets(model), *ATTENTION, HEAD]


def network_of(model: Any, names: list[str]) -> Hypernetwork:
    return toy_network(model, tokenizer_for(model), names, edit_lr=RATE)


def editor_of(model: Any, network: Hypernetwork, names: list[str], **values: Any) -> MendParallel:
    return MendParallel(
        model, tokenizer_for(model), toy_hparams(names, **values), network=copy.deepcopy(network)
    )


def editors(
    inner: int = EVEN, names: list[str] | None = None, *, seed: int = 0, **load_options: Any
) -> tuple[MendParallel, MendParallel]:
    """(sharded, in one process): editors of the same model with the same network."""
    plain = plain_model(inner, seed=seed)
    names = names or names_of(plain)
    network = network_of(plain, names)
    sharded = load(plain, **load_options)
    return editor_of(sharded, network, names), editor_of(plain, network, names)


def local(tensor: Any) -> Tensor:
    """What this process holds of a parameter, with the padding of ZeRO-3."""
    if hasattr(tensor, "ds_tensor"):
        part: Tensor = tensor.ds_tensor.detach()
        return part
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard.detach()


def shards(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what this process holds of every parameter."""
    reshard(model)
    return {name: local(weight).clone() for name, weight in model.named_parameters()}


def assert_shards(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """This process holds the expected bits."""
    now = shards(model)
    changed = [name for name, shard in expected.items() if not same_bits(now[name], shard)]
    assert not changed, f"rank {dist.get_rank()}: changed {changed}"


def full(model: nn.Module, name: str) -> Tensor:
    """The whole weight, gathered from every process."""
    reshard(model)
    weight: Any = model.get_parameter(name)
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    whole: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return whole.detach()


def exact_sums(model: Any, network: Hypernetwork, names: list[str]) -> dict[str, OracleSum]:
    """What the formula makes of `REQUESTS` in float64, in the model that one process holds."""
    state, options = network.state_dict(), dataclasses.asdict(network.config)
    edits = [
        oracle_edit(model, tokenizer_for(model), request, names, state, options)
        for request in REQUESTS
    ]
    return {name: OracleSum.of([edit[name] for edit in edits]) for name in names}


def assert_equal_edits(sharded: nn.Module, plain: nn.Module, before: dict[str, Tensor]) -> None:
    """The weights named in `before` are the same in both models, within the contract's bound."""
    for name, was in before.items():
        assert_same_edit(full(sharded, name), plain.get_parameter(name).detach(), was)


def assert_equal_sums(
    sharded: nn.Module, plain: nn.Module, before: dict[str, Tensor], exact: dict[str, OracleSum]
) -> None:
    """The weights named in `before` are those of `exact` within the contract's bound; and the same
    in both models within twice that, since both were rounded."""
    for name, was in before.items():
        edited, truth = full(sharded, name), exact[name]
        assert_same_edit(edited, truth.after, was, truth.largest)
        alone = plain.get_parameter(name).detach()
        assert_same_edit(edited, alone, was, 2 * truth.largest)


def same_everywhere(tensor: Tensor) -> bool:
    """Whether every process has these bits."""
    others: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(others, tensor.detach().clone())
    return all(same_bits(other, tensor.detach()) for other in others)


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@contextmanager
def broken_on(
    rank: int, owner: Any, name: str, error: BaseException, call: int = 0, after: bool = False
) -> Iterator[None]:
    """On that rank, the given call of `owner.name` raises `error`, before or after its work."""
    works: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count()

    def breaks(*args: Any, **kwargs: Any) -> Any:
        if dist.get_rank() != rank or next(calls) != call:
            return works(*args, **kwargs)
        if after:
            works(*args, **kwargs)
        raise error

    with patched(owner, name, breaks):
        yield


@contextmanager
def fails_on(rank: int, error: BaseException, says: str) -> Iterator[None]:
    """On that rank `error` is raised, or causes what is; on the other an UpdateError that names it
    and what it did."""
    if dist.get_rank() == rank:
        with pytest.raises(type(error)) as raised:
            yield
        assert raised.value is error or raised.value.__cause__ is error
    else:
        with pytest.raises(UpdateError, match=f"rank {rank} could not {says}"):
            yield


broken_on_rank_1, fails_on_rank_1 = partial(broken_on, 1), partial(fails_on, 1)

"""What the simulated accelerators promise to the tests that stand on them.

They do not show that a real accelerator behaves like this; the refusals and the exceptions follow
CUDA's.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import simulated_accelerators
import torch
from torch import Tensor, nn

simulated_accelerators.load()

# These ask torch for its accelerator, so they come after load().
from accelerate import dispatch_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

CPU, SIM0, SIM1 = torch.device("cpu"), torch.device("sim:0"), torch.device("sim:1")
REFUSAL = "Expected all tensors to be on the same device, but found at least two devices"


def square(device: torch.device | str = CPU, seed: int = 0) -> Tensor:
    """A 3 x 3 matrix of normal numbers, the same on every device."""
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).to(device)


# ---- Names and counts ----


def test_four_devices_are_the_accelerator_of_this_process() -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    assert accelerator.type == simulated_accelerators.DEVICE_TYPE == "sim"
    assert torch.accelerator.device_count() == 4


def test_a_bare_number_names_a_device() -> None:
    assert torch.ones(2, device=1).device == SIM1
    assert torch.ones(2).to(1).device == SIM1
    assert nn.Linear(2, 2).to(1).weight.device == SIM1


def test_a_device_without_a_number_is_the_current_one() -> None:
    assert torch.ones(2, device="sim").device == SIM0
    with torch.sim.device(1):
        assert torch.ones(2, device="sim").device == SIM1
    assert torch.accelerator.current_device_index() == 0


def test_a_device_beyond_the_last_is_refused() -> None:
    with pytest.raises(RuntimeError, match="sim:4 is not among the 4 simulated accelerators"):
        torch.ones(2, device="sim:4")


def test_loading_again_does_nothing_and_another_count_is_refused() -> None:
    simulated_accelerators.load()
    with pytest.raises(RuntimeError, match="cannot become 2"):
        simulated_accelerators.load(count=2)


# ---- Refusals ----

OPERATORS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add": lambda a, b: a + b,
    "add_": lambda a, b: a.add_(b),
    "lerp_": lambda a, b: a.lerp_(b, 0.5),
    "matmul": lambda a, b: a @ b,
    "mm_out": lambda a, b: torch.mm(a, a, out=b),
    "addmm_": lambda a, b: a.addmm_(b, b),
    "bmm": lambda a, b: torch.bmm(a[None], b[None]),
    "einsum": lambda a, b: torch.einsum("ij,jk->ik", a, b),
    "outer": lambda a, b: torch.outer(a[0], b[0]),
    "linear": lambda a, b: nn.functional.linear(a, b),
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.0),
    "gather": lambda a, b: a.gather(1, b.argsort(1)),
    "index_add_": lambda a, b: a.index_add_(0, b.argmax(0), a.clone()),
    "embedding": lambda a, b: nn.functional.embedding(b.argmax(0), a),
    "layer_norm": lambda a, b: nn.functional.layer_norm(a, (3,), weight=b[0]),
    "cross_entropy": lambda a, b: nn.functional.cross_entropy(a, b.argmax(1)),
    "attention": lambda a, b: nn.functional.scaled_dot_product_attention(a[None], a[None], b[None]),
    "solve": lambda a, b: torch.linalg.solve(a, b),
    "equal": lambda a, b: torch.equal(a, b),
}


@pytest.mark.parametrize("devices", [(SIM0, SIM1), (SIM0, CPU), (CPU, SIM1)], ids=str)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_an_operator_refuses_operands_on_two_devices(
    operator: Callable[[Tensor, Tensor], object], devices: tuple[torch.device, torch.device]
) -> None:
    first, second = devices
    operator(square(first, seed=0), square(first, seed=1))  # on one device it works
    # Some operators check by themselves, in their own words, before they come to the simulation.
    with pytest.raises(RuntimeError, match="device"):
        operator(square(first, seed=0), square(second, seed=1))


def test_a_refusal_names_both_devices_the_argument_and_the_operator() -> None:
    with pytest.raises(RuntimeError, match=f"{REFUSAL}, sim:0 and sim:1!.*argument mat2.*aten::mm"):
        square(SIM0) @ square(SIM1)


def test_a_cpu_scalar_may_be_read() -> None:
    result = square(SIM0) * torch.tensor(2.0)
    assert result.device == SIM0
    assert torch.equal(result.cpu(), square() * 2)


def test_a_cpu_scalar_may_not_be_written() -> None:
    scalar = torch.tensor(2.0)
    with pytest.raises(RuntimeError, match=REFUSAL):
        scalar.add_(square(SIM0).sum())
    with pytest.raises(RuntimeError, match=REFUSAL):
        scalar.masked_fill_(square(SIM0).sum() < 9, 0.0)


def test_a_scalar_of_another_accelerator_may_not_be_read() -> None:
    with pytest.raises(RuntimeError, match=REFUSAL):
        square(SIM0) * torch.tensor(2.0, device=SIM1)


def test_indices_may_come_from_the_cpu() -> None:
    rows = torch.tensor([2, 0])
    assert torch.equal(square(SIM0)[rows].cpu(), square()[rows])
    written = square(SIM0)
    written[rows] = 0.0
    assert written[rows].abs().sum() == 0


def test_indices_may_not_come_from_another_accelerator() -> None:
    rows = torch.tensor([2, 0])
    for matrix, indices in [(square(SIM0), rows.to(SIM1)), (square(), rows.to(SIM0))]:
        with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same"):
            matrix[indices]
        with pytest.raises(RuntimeError, match=REFUSAL):
            matrix[indices] = 0.0


def test_a_generator_of_the_cpu_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Expected a 'sim' device type for generator"):
        torch.randn(2, device=SIM0, generator=torch.Generator())


def test_numpy_refuses_an_accelerators_tensor() -> None:
    with pytest.raises(TypeError, match="to numpy"):
        square(SIM0).numpy()


def test_a_storage_of_another_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="the devices must match"):
        square(SIM0).set_(square(SIM1))


# ---- Numbers ----


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: a @ b,
        lambda a, b: a + b * 2,
        lambda a, b: torch.einsum("ij,kj->ik", a, b),
        lambda a, b: torch.cat([a, b]).sort(-1).values,
        lambda a, b: a.softmax(-1),
        lambda a, b: a.topk(2).values,
        lambda a, b: a.view(-1)[1:5].clone(),
        lambda a, b: torch.linalg.svd(a).S,
        lambda a, b: torch.linalg.solve(a, b),
        lambda a, b: a.double() @ b.double(),
        lambda a, b: a.bfloat16() @ b.bfloat16(),
        lambda a, b: (a.bfloat16() * 2.5) + 1,
        lambda a, b: torch.fft.fft(a).conj(),
        lambda a, b: torch.fft.fft(a).conj().imag,
    ],
)
def test_numbers_on_one_device_are_the_cpus(compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    expected = compute(square(seed=0), square(seed=1))
    result = compute(square(SIM1, seed=0), square(SIM1, seed=1))
    assert result.device == SIM1
    assert result.dtype == expected.dtype
    assert torch.equal(result.cpu(), expected)


def test_a_tensor_made_from_nothing_lies_on_the_device_that_was_named() -> None:
    for made in (torch.tril_indices(3, 3, device=SIM1), torch.arange(3, device=SIM1)):
        assert made.device == SIM1
    assert torch.equal(torch.tril_indices(3, 3, device=SIM1).cpu(), torch.tril_indices(3, 3))


def test_random_numbers_follow_the_seed() -> None:
    torch.manual_seed(3)
    drawn = torch.randn(2, device=SIM1)
    torch.manual_seed(3)
    assert torch.equal(drawn.cpu(), torch.randn(2))


def test_autocast_is_an_error_because_it_is_not_simulated() -> None:
    autocast = torch.autocast("sim", dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="'Autocastsim' backend"), autocast:
        square(SIM0) @ square(SIM0)


# ---- Memory ----


def test_a_view_shares_the_memory_of_its_base() -> None:
    base = torch.arange(6.0, device=SIM0).view(2, 3)
    view = base.t()[1:]
    view.add_(10)
    assert base.tolist() == [[0.0, 11.0, 12.0], [3.0, 14.0, 15.0]]
    assert view.data_ptr() == base.data_ptr() + base.itemsize


def test_a_write_in_place_returns_the_same_tensor() -> None:
    tensor = square(SIM0)
    address = tensor.data_ptr()
    assert tensor.add_(1) is tensor
    assert tensor.masked_fill_(tensor > 0, 1.0) is tensor
    assert tensor.data_ptr() == address
    with torch.inference_mode():  # where neither autograd nor the Python method looks after it
        assert torch.ops.aten.masked_fill_(tensor, tensor > 0, 1.0) is tensor


def test_reading_what_is_being_overwritten_is_refused_as_on_the_cpu() -> None:
    for matrix in (square(), square(SIM0)):
        with pytest.raises(RuntimeError, match="refer to a single memory location"):
            matrix[torch.tensor([1, 2])] = matrix[:2]


def test_an_output_argument_is_resized() -> None:
    output = torch.empty(0, device=SIM1)
    torch.mm(square(SIM1), square(SIM1), out=output)
    assert torch.equal(output.cpu(), square() @ square())
    output.resize_(100)
    assert torch.equal(output[:9].view(3, 3).cpu(), square() @ square())


def test_memory_outlives_the_tensor_that_made_it() -> None:
    row = (square(SIM0) * 2)[1]
    assert torch.equal(row.cpu(), square()[1] * 2)


def test_a_view_in_inference_mode_stays_out_of_autograd() -> None:
    with torch.inference_mode():
        made_inside = square(SIM0)
        assert made_inside[0].is_inference()
    assert made_inside[0].is_inference()
    assert not square(SIM0)[0].is_inference()


def test_waiting_and_pinning_cost_nothing() -> None:
    torch.accelerator.synchronize()
    torch.sim.synchronize()
    assert torch.equal(square().pin_memory().to(SIM0, non_blocking=True).cpu(), square())


# ---- Copies between devices, and their count ----


@pytest.mark.parametrize("source", [CPU, SIM0, SIM1], ids=str)
@pytest.mark.parametrize("destination", [CPU, SIM0, SIM1], ids=str)
def test_copies_go_from_any_device_to_any_other(
    source: torch.device, destination: torch.device
) -> None:
    copied = torch.zeros(3, 3, device=destination).copy_(square(source))
    assert copied.device == square(source).to(destination).device == destination
    assert torch.equal(copied.cpu(), square())


def zero_two_rows(matrix: Tensor) -> None:
    matrix[torch.tensor([2, 0])] = 0.0


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        pytest.param(lambda a: a.to(SIM1), 36, id="to another accelerator"),
        pytest.param(lambda a: a.cpu(), 36, id="to the host"),
        pytest.param(lambda a: torch.ones(3, 3).to(SIM0), 36, id="from the host"),
        pytest.param(lambda a: torch.empty(3, 3, device=SIM1).copy_(a), 36, id="copy_"),
        pytest.param(lambda a: a[0].to(SIM1), 12, id="a part"),
        pytest.param(lambda a: a.to(SIM1, torch.bfloat16), 18, id="in the dtype that arrives"),
        pytest.param(lambda a: a.sum().item(), 4, id="item"),
        pytest.param(lambda a: a[torch.tensor([2, 0])], 16, id="indices from the host"),
        pytest.param(zero_two_rows, 16, id="indices from the host, to write"),
        pytest.param(lambda a: a.clone(), 0, id="within a device"),
        pytest.param(lambda a: a @ a + 1, 0, id="arithmetic"),
        pytest.param(lambda a: a.bfloat16(), 0, id="a change of dtype"),
        pytest.param(lambda a: torch.ones(3, 3).clone(), 0, id="within the host"),
    ],
)
def test_bytes_that_change_devices_are_counted(
    work: Callable[[Tensor], object], expected: int
) -> None:
    matrix = square(SIM0)
    simulated_accelerators.reset_copied_bytes()
    work(matrix)
    assert simulated_accelerators.copied_bytes() == expected


def test_a_gradient_that_crosses_back_is_counted() -> None:
    matrix = square(SIM0).requires_grad_()
    total = matrix.to(SIM1).sum()
    simulated_accelerators.reset_copied_bytes()
    total.backward()
    assert simulated_accelerators.copied_bytes() == matrix.nbytes


# ---- Autograd and optimizers ----


def test_backward_across_two_devices_equals_the_cpus() -> None:
    def gradients(first: torch.device, second: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        lower, upper = nn.Linear(3, 8).to(first), nn.Linear(8, 2).to(second)
        hidden = lower(square(first))
        hidden.retain_grad()
        upper(hidden.tanh().to(second)).pow(2).mean().backward()
        return [hidden.grad, lower.weight.grad, upper.weight.grad]

    result = gradients(SIM0, SIM1)
    assert [gradient.device for gradient in result] == [SIM0, SIM0, SIM1]
    for gradient, expected in zip(result, gradients(CPU, CPU), strict=True):
        assert torch.equal(gradient.cpu(), expected)


def test_a_gradient_on_the_wrong_device_is_refused() -> None:
    doubled = square(SIM0).requires_grad_() * 2
    doubled.register_hook(lambda gradient: gradient.to(SIM1))
    with pytest.raises(RuntimeError, match="sim:1"):
        doubled.sum().backward()


def test_adam_updates_parameters_on_two_devices() -> None:
    def trained(first: torch.device, second: torch.device) -> list[Tensor]:
        parameters = [nn.Parameter(square(first)), nn.Parameter(square(second))]
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            sum(p.pow(2).sum().to(first) for p in parameters).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return [p.detach() for p in parameters]

    result = trained(SIM0, SIM1)
    assert [p.device for p in result] == [SIM0, SIM1]
    for parameter, expected in zip(result, trained(CPU, CPU), strict=True):
        torch.testing.assert_close(parameter.cpu(), expected)


# ---- Files and copies of modules ----


def test_a_deep_copy_stays_on_its_device_and_apart() -> None:
    layer = nn.Linear(3, 3).to(SIM1)
    twin = copy.deepcopy(layer)
    twin.weight.data.zero_()
    assert twin.weight.device == SIM1
    assert layer.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("map_location", "device"),
    [(None, SIM1), ("cpu", CPU), (SIM0, SIM0), ({"sim:1": "sim:0"}, SIM0)],
)
def test_torch_load_puts_a_tensor_where_it_was_or_is_told(
    tmp_path: Path, map_location: object, device: torch.device
) -> None:
    torch.save({"weight": square(SIM1)}, tmp_path / "saved.pt")
    loaded = torch.load(tmp_path / "saved.pt", map_location=map_location)["weight"]
    assert loaded.device == device
    assert torch.equal(loaded.cpu(), square())


def test_safetensors_saves_from_a_device(tmp_path: Path) -> None:
    save_file({"weight": square(SIM1)}, tmp_path / "saved.safetensors")
    assert torch.equal(load_file(tmp_path / "saved.safetensors")["weight"], square())


def test_a_state_dict_of_one_device_loads_into_another() -> None:
    source, destination = nn.Linear(3, 3).to(SIM1), nn.Linear(3, 3).to(SIM0)
    destination.load_state_dict(source.state_dict())
    assert destination.weight.device == SIM0
    assert torch.equal(destination.weight.cpu(), source.weight.cpu())


# ---- Models of four blocks: two on the first device, two on the second ----

PROMPTS = torch.tensor([[3, 14, 15, 92, 65, 35], [8, 9, 79, 32, 38, 46]])
SMALL = {"vocab_size": 97, "attn_implementation": "eager", "pad_token_id": 0}
GPT_SIZES = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
LLAMA_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, **LLAMA_SIZES),
    "mistral": MistralConfig(**SMALL, **LLAMA_SIZES),
    "gpt2": GPT2Config(**SMALL, **GPT_SIZES),
    "gptj": GPTJConfig(**SMALL, **GPT_SIZES, rotary_dim=4),
}


def tiny(family: str = "llama") -> PreTrainedModel:
    """A model with random weights, the same at every call, in evaluation mode on the CPU."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])).eval()


def halves(model: PreTrainedModel) -> dict[str, str]:
    """A device map: blocks 2 and 3 and the final norm on sim:1, everything else on sim:0.

    The head joins the final norm, unless it shares its weight with the embeddings on sim:0.
    """
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    upper = ("layers.2", "layers.3", "h.2", "h.3", "norm", "ln_f", *(() if tied else ("lm_head",)))
    body = model.base_model_prefix
    names = ["lm_head"]
    for name, module in getattr(model, body).named_children():
        is_blocks = isinstance(module, nn.ModuleList)
        names += (
            [f"{body}.{name}.{i}" for i in range(len(module))] if is_blocks else [f"{body}.{name}"]
        )
    return {name: "sim:1" if name.removeprefix(f"{body}.") in upper else "sim:0" for name in names}


def spread(model: PreTrainedModel) -> PreTrainedModel:
    return dispatch_model(model, halves(model), main_device="sim:0")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=PROMPTS).logits.cpu()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spread_model_computes_the_cpus_logits(family: str) -> None:
    model = spread(tiny(family))
    assert {parameter.device for parameter in model.parameters()} == {SIM0, SIM1}
    torch.testing.assert_close(logits(model), logits(tiny(family)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spread_models_gradients_lie_with_its_weights(family: str) -> None:
    model, reference = spread(tiny(family)), tiny(family)
    for trained in (model, reference):
        trained(input_ids=PROMPTS, labels=PROMPTS).loss.backward()
    expected = {name: weight.grad for name, weight in reference.named_parameters()}
    for name, weight in model.named_parameters():
        assert weight.grad.device == weight.device, name
        torch.testing.assert_close(weight.grad.cpu(), expected[name], rtol=1e-4, atol=1e-7)


def test_bare_numbers_in_a_device_map_mean_the_simulated_devices() -> None:
    model = tiny()
    numbers = {name: int(device[-1]) for name, device in halves(model).items()}
    model = dispatch_model(model, numbers, main_device=0)
    assert model.model.layers[3].mlp.up_proj.weight.device == SIM1
    torch.testing.assert_close(logits(model), logits(tiny()), rtol=0, atol=1e-6)


def test_blocks_kept_in_memory_and_on_disk_are_lent_to_a_device(tmp_path: Path) -> None:
    model = tiny()
    placement = halves(model) | {"model.layers.1": "cpu", "model.layers.3": "disk"}
    model = dispatch_model(model, placement, main_device="sim:0", offload_dir=str(tmp_path))
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    torch.testing.assert_close(logits(model), logits(tiny()), rtol=0, atol=1e-6)


def test_a_spread_model_without_accelerates_hooks_is_refused() -> None:
    model = tiny()
    model.model.layers[3].to(SIM1)
    with pytest.raises(RuntimeError, match=REFUSAL):
        logits(model)


def test_a_spread_model_generates_the_cpus_tokens() -> None:
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    generated = spread(tiny()).generate(PROMPTS, **options)
    assert torch.equal(generated.cpu(), tiny().generate(PROMPTS, **options))


@pytest.mark.parametrize("how", ["dict", "auto"])
def test_from_pretrained_spreads_a_model(tmp_path: Path, how: str) -> None:
    saved = tiny()
    saved.save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in saved.parameters())
    where = (
        {"device_map": halves(saved)}
        if how == "dict"
        else {"device_map": "auto", "max_memory": {0: size // 2, 1: 2 * size}}
    )
    model = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", **where)
    assert {parameter.device for parameter in model.parameters()} == {SIM0, SIM1}
    torch.testing.assert_close(logits(model), logits(saved), rtol=0, atol=1e-6)


def test_a_spread_model_is_saved_whole(tmp_path: Path) -> None:
    spread(tiny()).save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(loaded), logits(tiny()))


# ---- Why all this: four mistakes that a test on one device does not see ----

MISTAKES = [
    "network left on the CPU",
    "everything moved to the first device",
    "statistics buffer elsewhere",
    "gradients of two layers stacked",
]


def edited(model: PreTrainedModel, mistake: str | None = None) -> list[Tensor]:
    """Change one weight in the first and one in the last block, in the manner of a hypernetwork.

    A network sees each weight's gradient, less a running mean, and proposes the change; the norm of
    all gradients bounds it. `mistake` names what goes wrong. Returns both weights on the CPU.
    """
    model(input_ids=PROMPTS, labels=PROMPTS).loss.backward()
    weights = [model.model.layers[block].mlp.up_proj.weight for block in (0, 3)]
    first = weights[0].device
    gradients = [weight.grad for weight in weights]
    with torch.no_grad():
        if mistake == "gradients of two layers stacked":
            norm = torch.stack(gradients).norm().item()
        else:
            norm = sum(gradient.pow(2).sum().item() for gradient in gradients) ** 0.5
        for weight, gradient in zip(weights, gradients, strict=True):
            device = weight.device
            if mistake == "everything moved to the first device":
                device = first
            torch.manual_seed(0)
            network = nn.Linear(32, 32)
            if mistake != "network left on the CPU":
                network.to(device)
            mean = torch.full((32,), 0.01)
            mean = mean.to(first if mistake == "statistics buffer elsewhere" else device)
            weight -= network(gradient.to(device) - mean) / norm
    return [weight.cpu() for weight in weights]


def test_an_edit_without_a_mistake_equals_the_cpus() -> None:
    for weight, expected, before in zip(
        edited(spread(tiny())),
        edited(tiny()),
        [tiny().model.layers[i] for i in (0, 3)],
        strict=True,
    ):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
        assert (weight - before.mlp.up_proj.weight).abs().max() > 1e-2


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_goes_unnoticed_on_one_device(mistake: str) -> None:
    for weight, expected in zip(edited(tiny(), mistake), edited(tiny()), strict=True):
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_raises_on_two_devices(mistake: str) -> None:
    with pytest.raises(RuntimeError, match=REFUSAL):
        edited(spread(tiny()), mistake)


# ---- The build ----


def test_a_missing_compiler_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIMULATED_ACCELERATORS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"g\+\+ was not found"):
        simulated_accelerators.build()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_built_library_is_used_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = time.time()
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    assert simulated_accelerators.build().stat().st_mtime < before

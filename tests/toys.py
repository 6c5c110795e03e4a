"""Toy models, tokenizers and hypernetworks that the tests share: six blocks of width 16, random
weights large enough that every layer matters. Knows nothing of what is claimed about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn

from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.hparams import MENDParallelHyperParams
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork, HypernetworkConfig
from easyedit_mend_parallel.weights.target import Target, find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate

WIDTH, INNER, BLOCKS, HEADS = 16, 24, 6, 2
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
WORDS = (
    "the capital of France is Paris Rome Oslo river Seine runs through who wrote Hamlet "
    "Shakespeare sun rises in east and sets west water boils at one hundred degrees a cat sat on "
    "mat my name old town stands by sea some people say that blue green red stone never moves"
)
VOCABULARY = [*SPECIAL, *dict.fromkeys(WORDS.split())]

FAMILIES = ("llama", "mistral", "qwen2", "gpt2", "gptj", "t5")
DECODERS = tuple(family for family in FAMILIES if family != "t5")

REQUEST = {"prompt": "the capital of France is", "target_new": "Rome and Oslo"}
REQUESTS = [
    REQUEST,
    {"prompt": "who wrote Hamlet", "target_new": "Shakespeare"},
    {"prompt": "the river that runs through the old town by the sea is", "target_new": "a stone"},
]
"""Prompts and targets of unequal lengths."""
OBSERVED = [
    {"prompt": "the sun rises in the", "target_new": "east and sets in the west"},
    {"prompt": "water boils at", "target_new": "one hundred degrees"},
    {"prompt": "some people say that the", "target_new": "red stone never moves"},
    {"prompt": "my cat sat on", "target_new": "the mat"},
]
"""What a toy network's statistics come from."""
NETWORK_FIELDS: dict[str, Any] = {
    "shared": True,
    "combine": True,
    "norm": True,
    "init": "id",
    "mlp_class": "IDMLP",
    "n_hidden": 1,
    "one_sided": False,
    "x_only": False,
    "delta_only": False,
}
"""What every file of EasyEdit's MEND says about its network."""


def toy_model(
    family: str,
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    attn: str = "eager",
    blocks: int = BLOCKS,
    seed: int = 0,
) -> Any:
    """A model of `family` with random weights, in eval mode; the same for the same arguments."""
    common = {
        "vocab_size": len(VOCABULARY),
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    llama_like = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 64,
    }
    gpt_like = {
        "n_embd": WIDTH,
        "n_inner": INNER,
        "n_layer": blocks,
        "n_head": HEADS,
        "n_positions": 64,
    }
    config: Any
    if family == "llama":
        config = transformers.LlamaConfig(**common, **llama_like)
    elif family == "mistral":
        config = transformers.MistralConfig(**common, **llama_like, sliding_window=4)
    elif family == "qwen2":
        config = transformers.Qwen2Config(**common, **llama_like)
    elif family == "gpt2":
        config = transformers.GPT2Config(**common, **gpt_like)
    elif family == "gptj":
        config = transformers.GPTJConfig(**common, **gpt_like, rotary_dim=4)
    elif family == "t5":
        config = transformers.T5Config(
            **common,
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=INNER,
            num_layers=blocks,
            num_heads=HEADS,
            decoder_start_token_id=3,
        )
    else:
        raise ValueError(f"no toy model of family {family!r}")
    if family != "t5":
        config._attn_implementation = attn
    classes = {
        "llama": transformers.LlamaForCausalLM,
        "mistral": transformers.MistralForCausalLM,
        "qwen2": transformers.Qwen2ForCausalLM,
        "gpt2": transformers.GPT2LMHeadModel,
        "gptj": transformers.GPTJForCausalLM,
        "t5": transformers.T5ForConditionalGeneration,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = classes[family](config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
            else:
                # norms' weights about 1 and biases about 0, none of them exactly
                parameter.data += 0.1 * torch.randn_like(parameter)
        for name, parameter in model.named_parameters():
            if family == "t5" and name.endswith(".q.weight"):
                parameter.data *= (WIDTH // HEADS) ** -0.5  # T5 does not scale its scores
    return model.to(dtype).eval()


def toy_tokenizer(
    *, pad: bool = True, bos: bool = False, eos: bool = False, side: str = "right"
) -> transformers.PreTrainedTokenizerFast:
    """One token for each word of `VOCABULARY`.

    `pad=False` leaves it without a padding token (GPT-2), `bos` prepends `<s>` to every text
    (Llama-2), `eos` appends `</s>` (T5), `side` is where it pads.
    """
    inner = Tokenizer(WordLevel({word: n for n, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    if bos or eos:
        inner.post_processor = TemplateProcessing(
            single=("<s> " if bos else "") + "$A" + (" </s>" if eos else ""),
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if pad:
        named["pad_token"] = "<pad>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, padding_side=side, **named)


def byte_level_tokenizer() -> transformers.GPT2Tokenizer:
    """A byte-level BPE tokenizer of GPT-2's class, with as many tokens as toy models have."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    trained.train_from_iterator(
        [WORDS],
        BpeTrainer(vocab_size=len(VOCABULARY), special_tokens=[end], show_progress=False),
    )
    learnt = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    return transformers.GPT2Tokenizer(vocab=learnt["vocab"], merges=merges, pad_token=end)


def tokenizer_for(model: Any) -> transformers.PreTrainedTokenizerFast:
    """The kind of tokenizer that a model of this kind comes with."""
    return toy_tokenizer(eos=model.config.is_encoder_decoder)


def toy_targets(model: Any, last: int = 3) -> list[str]:
    """The names of the MLP weights in the last `last` blocks (of encoder and decoder alike)."""
    blocks = getattr(model.config, "num_layers", model.config.num_hidden_layers)
    numbers = range(blocks - last, blocks)
    parts = {
        "t5": [
            f"{side}.block.{{}}.layer.{layer}.DenseReluDense.{name}"
            for side, layer in (("encoder", 1), ("decoder", 2))
            for name in ("wi", "wo")
        ],
        "gpt2": ["transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp.c_proj"],
        "gptj": ["transformer.h.{}.mlp.fc_in", "transformer.h.{}.mlp.fc_out"],
    }.get(
        model.config.model_type,
        [f"model.layers.{{}}.mlp.{name}_proj" for name in ("gate", "up", "down")],
    )
    return [f"{part.format(number)}.weight" for number in numbers for part in parts]


def toy_hparams(inner_params: Sequence[str], **options: Any) -> MENDParallelHyperParams:
    """Hyperparameters for a toy model; `options` replace EasyEdit's usual ones."""
    values: dict[str, Any] = {
        "model_name": "toy",
        "inner_params": list(inner_params),
        "archive": None,
        "rank": 6,
        "edit_lr": 1e-2,
        **NETWORK_FIELDS,
        # Other placements give the same sum within the contract's bound; what least squares gives,
        # and its text that is held still, is the affair of the tests of batches.
        "aggregate": "sum",
        "aggregate_options": {"preserved_text_weight": 0},
        # A random network's edits go anywhere; tests that look say so.
        "on_worse": "ignore",
    }
    return MENDParallelHyperParams(**(values | options))


def toy_network(
    model: Any,
    tokenizer: Any,
    names: Sequence[str] | None = None,
    *,
    observe: bool = True,
    seed: int = 1,
    **options: Any,
) -> Hypernetwork:
    """A network that is far from the identity, with statistics from a few captured batches."""
    targets = find_targets(model, list(names or toy_targets(model)))
    config = toy_hparams([target.name for target in targets], **options).network_config()
    assert isinstance(config, HypernetworkConfig)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Hypernetwork(targets, config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.randn_like(parameter)
                if name == "edit_lrs":
                    parameter.mul_(1 + 0.3 * noise)
                elif name.endswith("mode_scale.weight"):
                    parameter.copy_(1 + 0.3 * noise)
                elif parameter.dim() == 2 and "mode" not in name:
                    parameter.copy_(noise / parameter.shape[-1] ** 0.5)
                else:
                    parameter.copy_(0.3 * noise)
    if observe:
        for request in OBSERVED:
            batch = make_batch(model, tokenizer, as_requests(request))
            rows, _ = capture(model, targets, batch)
            network.observe(rows)
    return network.eval()


def downhill_network(model: Any, tokenizer: Any, names: Sequence[str]) -> Hypernetwork:
    """The identity as a network, with statistics, which goes down the gradient of each target's
    loss: its edits make their targets more likely, as a trained network's do."""
    targets = find_targets(model, list(names))
    network = Hypernetwork(targets, toy_hparams(names, edit_lr=-1e-2).network_config())
    for request in OBSERVED:
        rows, _ = capture(model, targets, make_batch(model, tokenizer, as_requests(request)))
        network.observe(rows)
    return network.eval()


def weights(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Copies of the named weights (of all parameters where none are named)."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in names or parameters}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the bit (NaN equals itself, 0 differs from -0)."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(kind), other.view(kind))


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Every weight in `before` has the same bits in `model`."""
    now = dict(model.named_parameters())
    changed = [name for name, weight in before.items() if not same_bits(now[name].detach(), weight)]
    assert not changed, f"changed: {changed}"


def three_layers() -> tuple[nn.Sequential, list[Target]]:
    """Three linear layers: three targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 6))
    return model, find_targets(model, ["0.weight", "1.weight", "2.weight"])


def some_updates(targets: Sequence[Target], seed: int, rows: int = 3) -> dict[str, LowRankUpdate]:
    """A random update for each target."""
    generator = torch.Generator().manual_seed(seed)
    return {
        target.name: LowRankUpdate(
            torch.randn(rows, target.in_features, generator=generator),
            0.3 * torch.randn(rows, target.out_features, generator=generator),
            torch.zeros(rows, dtype=torch.long),
        )
        for target in targets
    }

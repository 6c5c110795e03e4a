"""Every kind of file that this package reads: how one is made, read, used and written with other
content. Knows nothing of damage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import scoped_toys
import torch
import yaml
from edited import FACTS, edited, editor_of
from torch import Tensor
from toys import same_bits, tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets, weights

from easyedit_mend_parallel import (
    ArchiveError,
    Journal,
    MendParallel,
    MENDParallelHyperParams,
    TrainingError,
    load_archive,
    load_edit,
    load_scoped,
    rollback_all,
    save_archive,
    save_scoped,
)
from easyedit_mend_parallel.edits.journal_index import INDEX, KEYS, read_index
from easyedit_mend_parallel.edits.scoped_files import INDEX as SCOPED_INDEX
from easyedit_mend_parallel.edits.scoped_files import _digest
from easyedit_mend_parallel.evaluation.data import read_examples
from easyedit_mend_parallel.files import (
    read_tensors,
    with_checksum,
    without_checksum,
    write_tensors,
)
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.archive_additions import keep_scope
from easyedit_mend_parallel.training.checkpoint import Progress, load_checkpoint, save_checkpoint

FAMILY = "llama"


class Kind(NamedTuple):
    """A kind of file.

    make: writes one into an empty folder and says where.
    read: what it holds, as plain values and tensors.
    use: does with it what a user does, on a fresh model, and takes it back.
    parsed, write: what it holds as a tree of plain values and tensors, and a file of such a tree
        with the checksums that belong to it.
    checked: whether it carries checksums, so that other bits are other content nowhere.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], tuple[Any, dict[str, Tensor]]]
    use: Callable[[Path], Any]
    parsed: Callable[[Path], Any]
    write: Callable[[Path, Any], Any]
    checked: bool = True


def edit_file(folder: Path) -> Path:
    _model, result = edited()
    return result.save(folder / "edit.safetensors")


def solved_edit_file(folder: Path) -> Path:
    editor = editor_of(toy_model(FAMILY), aggregate="least_squares")
    return editor.edit({"prompt": "who wrote Hamlet", "target_new": "a stone"}).save(folder / "e")


@cache
def network(seed: int = 1) -> Any:
    model = toy_model(FAMILY)
    return toy_network(model, tokenizer_for(model), seed=seed)


def archive_file(folder: Path, name: str = "a.safetensors") -> Path:
    return save_archive(folder / name, network(), note="é 1e-05")


def pickle_file(folder: Path) -> Path:
    return archive_file(folder, "a.pt")


def archive_with_scope(folder: Path) -> Path:
    net, scope = scoped_toys.parts(FAMILY)
    path = save_archive(folder / "plain.safetensors", net)
    return keep_scope(path, scope, folder / "scoped.safetensors")


def checkpoint_file(folder: Path) -> Path:
    save_checkpoint(folder / "c", Progress(3, 0.5, 2, {"lr": 1e-4}), *_in_training())
    return folder / "c"


def _in_training(seed: int = 1) -> tuple[Any, torch.optim.Optimizer]:
    mine = deepcopy(network(seed))
    optimizer = torch.optim.Adam(mine.parameters())
    for parameter in mine.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return mine, optimizer


def journal_file(folder: Path) -> Path:
    _model, result = edited()
    Journal(folder / "journal").add(result)
    return folder / "journal" / INDEX


def scoped_index(folder: Path) -> Path:
    editor = scoped_toys.editor_of(toy_model(FAMILY))
    editor.edit(scoped_toys.THREE)
    return save_scoped(editor.model, folder / "scoped") / SCOPED_INDEX


def yaml_file(folder: Path) -> Path:
    path = folder / "h.yaml"
    values = vars(toy_hparams(["a.weight"]))
    path.write_text(yaml.safe_dump({"alg_name": "MEND_PARALLEL", **values}))
    return path


def data_file(folder: Path) -> Path:
    path = folder / "facts.jsonl"
    records = [{**fact, "rephrases": ["so it is"], "neighbours": ["my cat"]} for fact in FACTS]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*records, {"text": "a mat"}]))
    return path


def content_of_edit(path: Path) -> Any:
    edit = load_edit(path)
    rows = {f"{name} {part}": t for name, u in edit.updates.items() for part, t in vars(u).items()}
    rows |= {f"{name} at": at for name, at in edit.positions.items()}
    for name, solve in (edit.solve_rows or {}).items():
        rows |= {f"{name} solve {part}": t for part, t in vars(solve).items()}
    plain = (edit.about, [asdict(one) for one in edit.requests], edit.targets, edit.options)
    return plain, {name: row for name, row in rows.items() if isinstance(row, Tensor)}


def content_of_archive(path: Path) -> Any:
    archive = load_archive(path)
    scope = {} if archive.scope is None else vars(archive.scope)
    tensors = {f"scope {name}": one for name, one in scope.items() if torch.is_tensor(one)}
    plain = {name: one for name, one in scope.items() if not torch.is_tensor(one)}
    return (archive.header, plain), archive.state | tensors


def content_of_checkpoint(path: Path) -> Any:
    mine, optimizer = _in_training(seed=2)
    before = {name: one.clone() for name, one in mine.state_dict().items()}
    of_optimizer = _moments(optimizer)
    try:
        progress = load_checkpoint(path, mine, optimizer)
    except TrainingError:
        assert all(same_bits(one, before[name]) for name, one in mine.state_dict().items())
        now = _moments(optimizer)
        assert all(same_bits(one, now[name]) for name, one in of_optimizer.items())
        raise
    optimizer.step()
    return vars(progress), mine.state_dict() | _moments(optimizer)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{n} {name}": one.clone() for n, of in state.items() for name, one in of.items()}


def _as_read(read: Callable[[Path], Any]) -> Callable[[Path], tuple[Any, dict[str, Tensor]]]:
    return lambda path: (read(path), {})


def hparams_of(path: Path) -> Any:
    return vars(MENDParallelHyperParams.from_hparams(str(path)))


def scoped_of(path: Path) -> Any:
    """The edits themselves, since the index is compared with its own checksum."""
    return _on_model(lambda model: [str(one) for one in _load_scoped(path, model)])


def _load_scoped(path: Path, model: Any) -> Any:
    return load_scoped(path.parent, model, tokenizer_for(model))


def _on_model(act: Callable[[Any], Any]) -> Any:
    """What `act` gives on a fresh model, all edits of which are then taken out. An exception has to
    leave the model as it was."""
    model = toy_model(FAMILY)
    before = weights(model)
    try:
        got = act(model)
        rollback_all(model)
    finally:
        now = dict(model.named_parameters())
        changed = [n for n, one in before.items() if not same_bits(now[n].detach(), one)]
        if changed:
            raise AssertionError(f"changed weights stay: {changed}")
    return got


def _edit_with(path: Path, model: Any, **options: Any) -> None:
    hparams = toy_hparams(toy_targets(model), archive=str(path), **options)
    MendParallel(model, tokenizer_for(model), hparams).edit(FACTS[0])


def _edit_by(path: Path) -> None:
    hparams = MENDParallelHyperParams.from_hparams(str(path))
    if hparams.archive is not None:
        raise ArchiveError("no archive is read here")
    hparams.inner_params = toy_targets(toy_model(FAMILY))
    _on_model(lambda m: MendParallel(m, tokenizer_for(m), hparams, network=network()))


def _tensor_tree(path: Path) -> Any:
    tensors, header = read_tensors(path)
    return {"header": header, "tensors": {name: one.clone() for name, one in tensors.items()}}


def _write_tensor_tree(path: Path, tree: Any) -> None:
    write_tensors(path, tree["tensors"], tree["header"])


def _json_tree(path: Path) -> Any:
    return without_checksum(json.loads(path.read_text(encoding="utf-8")), KEYS)


def _scoped_tree(path: Path) -> Any:
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["checksum"]
    return tree


def _write_scoped_tree(path: Path, tree: Any) -> None:
    tree = json.loads(json.dumps(tree))
    path.write_text(json.dumps({"checksum": _digest(tree), **tree}), encoding="utf-8")


def _lines(path: Path) -> Any:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_lines(path: Path, tree: Any) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in tree), encoding="utf-8")


def _edit_facts(path: Path) -> None:
    examples, _texts = read_examples(path)
    requests = as_requests([example.request for example in examples][:8])
    _on_model(lambda model: editor_of(model).edit(requests))


TENSORS = (_tensor_tree, _write_tensor_tree)
KINDS = {
    "edit": Kind(edit_file, content_of_edit, lambda p: _on_model(load_edit(p).apply), *TENSORS),
    "solved edit": Kind(
        solved_edit_file, content_of_edit, lambda p: _on_model(load_edit(p).apply), *TENSORS
    ),
    "archive": Kind(
        archive_file, content_of_archive, lambda p: _on_model(lambda m: _edit_with(p, m)), *TENSORS
    ),
    "archive with a scope": Kind(
        archive_with_scope,
        content_of_archive,
        lambda p: _on_model(lambda m: _edit_with(p, m, apply="scoped")),
        *TENSORS,
    ),
    "EasyEdit's archive": Kind(
        pickle_file,
        content_of_archive,
        lambda p: _on_model(lambda m: _edit_with(p, m)),
        lambda p: torch.load(p, weights_only=True),
        lambda p, tree: torch.save(tree, p),
    ),
    "checkpoint": Kind(checkpoint_file, content_of_checkpoint, content_of_checkpoint, *TENSORS),
    "journal": Kind(
        journal_file,
        _as_read(lambda path: read_index(path.parent)),
        lambda p: _on_model(lambda m: Journal(p.parent).apply_to(m)),
        _json_tree,
        lambda p, tree: p.write_text(json.dumps(with_checksum(tree)), encoding="utf-8"),
    ),
    "scoped edits": Kind(
        scoped_index, _as_read(scoped_of), scoped_of, _scoped_tree, _write_scoped_tree
    ),
    "hyperparameters": Kind(
        yaml_file,
        _as_read(hparams_of),
        _edit_by,
        lambda p: yaml.safe_load(p.read_text()),
        lambda p, tree: p.write_text(yaml.safe_dump(tree), encoding="utf-8"),
        checked=False,
    ),
    "facts": Kind(
        data_file, _as_read(read_examples), _edit_facts, _lines, _write_lines, checked=False
    ),
}
"""{name: kind}."""

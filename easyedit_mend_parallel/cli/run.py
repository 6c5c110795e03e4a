"""`mend-parallel run`: runs a Python script unchanged, with `replace_mend()` in force.

Does not know what the script does, and whether it uses EasyEdit at all.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
import yaml

from easyedit_mend_parallel.errors import HparamsError

# Everything after the script's name belongs to the script, also what looks like an option of ours.
CONTEXT = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def command(
    script: Annotated[str, typer.Argument(help="A Python file; with -m, a module.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="What the script is given.")
    ] = None,
    as_module: Annotated[
        bool, typer.Option("-m", help="SCRIPT is a module's name, as for python -m.")
    ] = False,
    device_map: Annotated[
        str | None,
        typer.Option("--device-map", help="As from_pretrained takes it: auto, ..., or a mapping."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="The model's dtype: bfloat16, float16, ...")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any hyperparameter; VALUE as in yaml."),
    ] = None,
) -> None:
    """Run SCRIPT with ARGS, as python does; wherever it uses EasyEdit's MEND, this method runs.

    The script and its files stay as they are: EasyEdit's name MEND means the parallel-safe variant
    of text models while the script runs, as after `replace_mend()`. Files that name MEND_PARALLEL
    work too. Options of this command stand before SCRIPT, and override the script's own files.
    torchrun and accelerate launch start it as a module: `torchrun -m easyedit_mend_parallel run`.
    """
    from easyedit_mend_parallel.easyedit.registration import replace_mend

    options = _options(settings or [])
    loading = {"device_map": device_map and _read(device_map, "--device-map"), "dtype": dtype}
    loading = {name: value for name, value in loading.items() if value is not None}
    if loading:
        options["model_kwargs"] = {**(options.get("model_kwargs") or {}), **loading}
    if not as_module and not Path(script).is_file():
        raise HparamsError(f"there is no script {script!r}")
    replace_mend(**options)
    _run(script, arguments or [], as_module)


def _options(settings: list[str]) -> dict[str, Any]:
    """{hyperparameter: value} of all `--set`. Raises HparamsError for one without `=`."""
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise HparamsError(f"--set {setting!r} has no value: write --set {setting}=VALUE")
        options[name.strip()] = _read(value, f"--set {name}")
    return options


def _read(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HparamsError(f"{option}: {text!r} cannot be read as yaml: {error}") from error


def _run(script: str, arguments: list[str], as_module: bool) -> None:
    """Run the script as `__main__`. Its own errors are shown from the script's first line on."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path.cwd() if as_module else Path(script).resolve().parent)
    try:
        if as_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except Exception as error:
        traceback.print_exception(error.with_traceback(_of_script(error.__traceback__)))
        raise SystemExit(1) from None
    finally:
        sys.argv, sys.path[:] = argv, path


def _of_script(found: TracebackType | None) -> TracebackType | None:
    """The traceback without this module's and runpy's calls; whole if nothing else is in it."""
    inner = found
    while inner is not None and _is_ours(inner):
        inner = inner.tb_next
    return inner or found


def _is_ours(found: TracebackType) -> bool:
    file = found.tb_frame.f_code.co_filename
    return file == __file__ or file == runpy.__file__ or file == "<frozen runpy>"

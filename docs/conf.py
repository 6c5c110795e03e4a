"""Sphinx's configuration: `make docs` builds the pages of this folder, with warnings as errors.

Knows no page's content; what is generated (the keys of configuration.md) scripts/ writes.
"""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "easyedit-mend-parallel"
author = "the authors of easyedit-mend-parallel"
version = release = version_of(project)

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "examples"]  # whole packages, which plugins.md walks through
html_theme = "furo"
html_title = project
html_static_path: list[str] = []

# Pages are read on a forge too, where every heading is an anchor.
myst_heading_anchors = 4

# Docstrings say `code` as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
# Built without a network, so what other packages define stays unlinked; and a type variable.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|transformers|pluggy|pathlib|collections|typing|types|contextlib)\..*"),
    ("py:.*", r"(Tensor|nn\.Module|device|Any|Callable|Iterator|Mapping|Sequence|ModuleType)"),
    ("py:.*", r"easyedit_mend_parallel\.hparams\.editing\.Hparams"),
    ("py:.*", r"easyedit_mend_parallel\.edits\.scoping\.Scoping"),
]

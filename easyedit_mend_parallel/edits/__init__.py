"""Edits as objects and files: saved, applied to the same base again, listed, undone, squashed,
exported and shown. Knows nothing of hypernetworks; it starts from updates.
"""

from __future__ import annotations

from easyedit_mend_parallel.edits.checkpoint import save_edited
from easyedit_mend_parallel.edits.delta import export_delta
from easyedit_mend_parallel.edits.journal import Journal
from easyedit_mend_parallel.edits.journal_index import JournalEntry
from easyedit_mend_parallel.edits.peft_adapter import export_peft
from easyedit_mend_parallel.edits.saved import AppliedEdit, SavedEdit, load_edit
from easyedit_mend_parallel.edits.scoped_folder import LoadedEdit, load_scoped, save_scoped
from easyedit_mend_parallel.edits.squashing import squash

__all__ = [
    "AppliedEdit",
    "Journal",
    "JournalEntry",
    "LoadedEdit",
    "SavedEdit",
    "export_delta",
    "export_peft",
    "load_edit",
    "load_scoped",
    "save_edited",
    "save_scoped",
    "squash",
]

"""Loads the simulated accelerators, in the process that tests/test_simulated_suite.py starts.

Everywhere else the tests of this folder are left out: loading would change the accelerator of the
process under the other tests, and cannot be undone.
"""

from __future__ import annotations

import os

if os.environ.get("EASYEDIT_MEND_PARALLEL_SIMULATED") == "1":
    import simulated_accelerators

    simulated_accelerators.load()
else:
    collect_ignore_glob = ["test_*.py"]

"""`python -m easyedit_mend_parallel` is `mend-parallel`, for launchers that start modules."""

from __future__ import annotations

from easyedit_mend_parallel.cli import main

if __name__ == "__main__":
    main()

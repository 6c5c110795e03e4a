"""What every test has: a cache folder of its own, so that none writes into the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_preserved_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which inputs of preserved text are kept while tests run."""
    from easyedit_mend_parallel.method import preserved_cache

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preserved_cache, "cache_folder", lambda: folder)
        yield folder

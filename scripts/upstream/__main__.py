"""Makes the change of docs/upstream.md to a clone of EasyEdit: a branch with a commit per topic.

    python scripts/upstream path/to/EasyEdit

Everything is worked out before anything is written; a clone that it does not recognise is refused
and left as it is. Run again, it does nothing. Needs git; imports neither EasyEdit nor torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from places import Missing, Source
from topics import FILES, TOPICS, Topic

BRANCH = "plugins"


class Refused(Exception):
    """The clone cannot be changed, and was not."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python scripts/upstream",
        description="Make the change of docs/upstream.md to a clone of EasyEdit.",
    )
    parser.add_argument("clone", type=Path, help="a clone of EasyEdit's repository")
    parser.add_argument(
        "--branch", default=BRANCH, help="the branch to make and check out (%(default)s)"
    )
    options = parser.parse_args()
    try:
        messages = change(Clone(options.clone), options.branch)
    except (Refused, Missing) as error:
        print(f"nothing was changed: {error}", file=sys.stderr)
        return 1
    for message in messages:
        print(f"committed: {message}")
    if not messages:
        print(f"{options.clone} has the whole change already")
    return 0


class Clone:
    """A clone of EasyEdit, read and written by git alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "easyeditor").is_dir():
            raise Refused(f"{folder} is no clone of EasyEdit: it has no easyeditor folder")
        if Path(self.line("rev-parse", "--show-toplevel")) != folder.resolve():
            raise Refused(f"{folder} is not the top of a git repository")

    def git(self, *words: str, given: str | None = None, **variables: str) -> str:
        """What a git command prints. Raises Refused with what git says where it fails."""
        done = subprocess.run(
            ["git", "-C", str(self.folder), *words],
            input=None if given is None else given.encode(),
            env=os.environ | variables,
            capture_output=True,
        )
        if done.returncode:
            raise Refused(f"git {words[0]}: {done.stderr.decode().strip()}")
        return done.stdout.decode()

    def line(self, *words: str, given: str | None = None, **variables: str) -> str:
        """What a git command prints on one line."""
        return self.git(*words, given=given, **variables).strip()

    def mode(self, path: str) -> str | None:
        """The mode of a file as it is committed (`100644`), or None where there is none."""
        return (self.line("ls-tree", "HEAD", "--", path).split() or [None])[0]

    def text(self, path: str) -> str | None:
        """A file as it is committed, with its own ends of lines, or None."""
        return self.git("show", f"HEAD:{path}") if self.mode(path) else None


def change(clone: Clone, branch: str) -> list[str]:
    """Commit what is missing of the change, on a new branch; the first lines of the messages.

    Raises Refused or Missing, with the clone as it was: the commits are made beside the branch
    that is checked out, and the last step checks the new one out.
    """
    work = [(topic, written) for topic in TOPICS if (written := _worked_out(clone, topic))]
    if not work:
        return []
    if clone.line("branch", "--list", branch):
        raise Refused(f"there is a branch {branch!r} already; name another with --branch")
    commit = clone.line("rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        clone.git("read-tree", "HEAD", **index)
        for topic, written in work:
            for path, text in written.items():
                blob = clone.line("hash-object", "-w", "--stdin", given=text)
                entry = f"{clone.mode(path) or '100644'},{blob},{path}"
                clone.git("update-index", "--add", "--cacheinfo", entry, **index)
            tree = clone.line("write-tree", "--missing-ok", **index)
            commit = clone.line("commit-tree", tree, "-p", commit, given=topic.message)
    clone.git("checkout", "--quiet", "-b", branch, commit)
    return [topic.message.splitlines()[0] for topic, _ in work]


def _worked_out(clone: Clone, topic: Topic) -> dict[str, str]:
    """{path: new text} of what a topic changes in the clone; empty where it is done already."""
    written = {}
    for path in topic.adds:
        ours = (FILES / path).read_text(encoding="utf-8")
        theirs = clone.text(path)
        if theirs is None:
            written[path] = ours
        elif theirs != ours:
            raise Refused(f"{path} is there already, and is another file than ours")
    for path, edit in topic.edits.items():
        before = clone.text(path)
        if before is None:
            raise Missing(f"{path} is not in the clone")
        source = Source(path, before)
        edit(source)
        after = source.text()
        if after != before:
            written[path] = after
    return written


if __name__ == "__main__":
    sys.exit(main())

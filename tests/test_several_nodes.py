"""A model that is split over two nodes is edited as on one, and a killed process leaves neither a
half-edited model nor a half-written journal. The nodes are two agents of torchrun on this machine
(gloo, CPU), one process each; tests/sharded/node.py is what they run.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from inner_runs import child_environment

from easyedit_mend_parallel import Journal, load_edit

NODE = Path(__file__).parent / "sharded" / "node.py"
SECONDS = 120
"""A run that is not over then has hung; the group's own timeout is 20 seconds."""


def run(folder: Path, *arguments: str) -> list[tuple[int, str]]:
    """The exit code and the output of both agents."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch = folder.parent / f"checkpoints-{port}"
    scratch.mkdir()
    agents = []
    for number in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc-per-node", "1", "--node-rank", str(number)]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        agents.append(
            subprocess.Popen(
                [*command, str(NODE), str(folder), *arguments],
                env=child_environment(SHARDED_CHECKPOINTS=str(scratch)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        return [(agent.wait(SECONDS), agent.communicate()[0]) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # torchrun then ends its process


def test_two_nodes_edit_as_one_and_a_killed_process_leaves_the_journal_whole(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    folder = tmp_path / "journal"
    for code, output in run(folder):
        assert code == 0, output[-5000:]
    files = content(folder)
    for place in ("forward", "write"):
        with subtests.test(f"killed at: {place}"):
            ended = run(folder, place)
            assert all(code != 0 for code, _ in ended)
            assert any("noticed, and nothing changed here" in output for _, output in ended), ended
            assert [entry.number for entry in Journal(folder).entries] == [1]
            load_edit(folder / Journal(folder).entries[0].file)
            assert content(folder) == files
    with subtests.test("and again from the journal"):
        for code, output in run(folder):
            assert code == 0, output[-5000:]


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if "lock" not in path.name
    }

"""The examples of hosts run as they are, where the hosts are, and print what they are there to show."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = {
    "maf_agent.py": "agent_framework",
    "langchain_agent.py": "langchain",
    "openai_agents_agent.py": "agents",
}


def test_every_example_is_run_here(root: Path) -> None:
    found = {path.name for path in (root / "examples" / "hosts").glob("*.py")}
    assert found == set(EXAMPLES)


@pytest.mark.parametrize("host", list(EXAMPLES.values()))
def test_what_the_guide_imports_is_there(root: Path, host: str) -> None:
    """Of the blocks that need this runtime; the examples run what they show."""
    if importlib.util.find_spec(host) is None:
        pytest.skip(f"no {host}: run `make test-hosts`")
    found = re.findall(r"```python notest\n(.*?)```", (root / "docs" / "hosts.md").read_text(), re.DOTALL)
    blocks = [block for block in found if re.search(rf"^from {host}\b", block, re.MULTILINE)]
    assert blocks
    for block in blocks:
        for line in block.splitlines():
            if line.startswith(("from ", "import ")):
                exec(line, {})  # noqa: S102 - our own document


@pytest.mark.parametrize(("name", "host"), list(EXAMPLES.items()))
def test_an_example_shows_an_allowed_call_a_refusal_and_the_log(root: Path, name: str, host: str) -> None:
    if importlib.util.find_spec(host) is None:
        pytest.skip(f"no {host}: run `make test-hosts`")
    command = [sys.executable, str(root / "examples" / "hosts" / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)  # noqa: S603 - our own file
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("the model reads: sent 5 characters to ann@example.com") for line in lines), done.stdout
    assert "the model reads: Denied (policy.forbidden): Mail goes to example.com only." in lines
    assert any("send_mail" in line and "allow by tools" in line for line in lines)
    assert any("send_mail" in line and "deny policy.forbidden by known-people" in line for line in lines)
    assert "tokens used: 450" in lines

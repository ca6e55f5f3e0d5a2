"""The wheel: small, tagged for many Linuxes, and usable in an environment that has nothing else."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

WHEEL_BYTES_MAX = 8 << 20


@pytest.fixture(scope="module")
def wheel(root: Path) -> Path:
    """The wheel that `make wheel` built; `make test` builds it first."""
    wheels = list((root / "dist").glob("tollkeeper-*.whl"))
    if not wheels:
        pytest.skip("no wheel in dist; run `make wheel`")
    assert len(wheels) == 1
    return wheels[0]


def test_it_is_small_and_tagged(wheel: Path) -> None:
    assert wheel.stat().st_size <= WHEEL_BYTES_MAX
    _, _, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("cp311", "abi3")
    assert platform.startswith("manylinux_2_")


def test_it_holds_what_it_should(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    needed = {"__init__.py", "errors.py", "py.typed", "_native.pyi", "_native.abi3.so"}
    assert needed <= {name.removeprefix("tollkeeper/") for name in names}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "benches", "rust")) or "__pycache__" in name]
    requires = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    unconditional = [require for require in requires if "extra" not in require]
    assert sorted(require.split(">")[0] for require in unconditional) == ["msgspec", "numpy"]


@pytest.mark.timeout(120)
def test_it_installs_and_decides_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    # Without the dependencies: they are not needed to import, and tests do not download.
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    subprocess.run(pip, check=True)  # noqa: S603 - our own command line
    code = "import tollkeeper, sys; print(tollkeeper.__file__, tollkeeper.EntityUid.parse('User::\"a\"'))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert str(tmp_path) in done.stdout
    assert 'User::"a"' in done.stdout
    assert sys.version_info >= (3, 11)

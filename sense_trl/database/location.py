"""Where a database is: the path of a file, or `ServerDatabase`, a URL without its password."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import quote, unquote, urlencode

from sense_trl._files import sha256_of
from sense_trl.errors import DatabaseError, InputError

PASSWORDS_VARIABLE: Final = "SENSE_TRL_POSTGRES_PASSWORDS"
_SCHEMES: Final = ("postgresql://", "postgres://")
_SECRETS: Final = (
    "password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key",
)  # fmt: skip
# libpq has no such parameter, and its value would be shown with the URL.
_LIKE_SECRETS: Final = re.compile("pass|pwd|secret|client_key|server_key", re.IGNORECASE)
# Text that is no path: another kind of URL, or the words of libpq. It may hold a password.
_NO_PATH: Final = re.compile(
    r"\s*(?:[A-Za-z][\w.+:-]*://|postgres(?:ql)?:)|(?:^|.*\s)(?:host|user|dbname|password)\s*=",
    re.IGNORECASE | re.DOTALL,
)
# A URL without its scheme, unless there is a file of this name.
_BARE_URL: Final = re.compile(r"[^/\\:@]{2,}:.*@.", re.DOTALL)
# A port is a number, and so no part of a password that lacks its @.
_HOSTS: Final = re.compile(r"(?:(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d{0,5})?(?:,|$))*")
# Ours, in the URL of a database, beside those of libpq.
_OWN: Final = ("schemas", "snapshot", "superuser")
_PLACE: Final = "{db_id}"


@dataclass(frozen=True, slots=True, order=True)
class ServerDatabase:
    """A database on a PostgreSQL server, by its URL.

    `str` gives the URL, in which no password stands: `locate` keeps those of this process apart.
    Beside the parameters of libpq the URL may have three of our own:

    * `schemas=a,b`: the schemas that are read, and the session's search_path; the role's
      search_path where it is not given;
    * `snapshot=LABEL`: the content of the database under a name that you give it. What is kept on
      disk about gold is used again only for the same label;
    * `superuser=allow`: connects even as a superuser.

    Attributes:
        url: begins with `postgresql://`.

    Example:
        >>> shop = locate("postgresql://reader:secret@db.example/shop?schemas=sales,public")
        >>> print(shop, shop.stem, shop.schemas)
        postgresql://reader@db.example/shop?schemas=sales,public shop ('sales', 'public')
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def stem(self) -> str:
        """The name of the database, which is its `db_id`."""
        return unquote(self._parts[1])

    @property
    def schemas(self) -> tuple[str, ...]:
        """The schemas that the URL names, () where it names none."""
        return tuple(filter(None, self._parameters.get("schemas", "").split(",")))

    @property
    def snapshot(self) -> str | None:
        """The label of its content."""
        return self._parameters.get("snapshot") or None

    @property
    def allows_superuser(self) -> bool:
        """Whether the URL says that the role may be a superuser."""
        return self._parameters.get("superuser") == "allow"

    @property
    def conninfo(self) -> str:
        """The URL for libpq, without a password."""
        rest = {k: v for k, v in self._parameters.items() if k not in _OWN}
        query = f"?{urlencode(rest, quote_via=quote)}" if rest else ""
        return f"postgresql://{self._parts[0]}/{self._parts[1]}{query}"

    @property
    def secrets(self) -> dict[str, str]:
        """The password, if this process was given one, as keyword arguments of a connection."""
        return dict(_PASSWORDS.get(self._address, {}))

    def find_part(self) -> str | None:
        """Which part of the URL `{db_id}` stands in: "database", "schemas", or `None`.

        Raises:
            InputError: it stands elsewhere, or twice.
        """
        found = [
            name
            for name, text in (("database", self.stem), ("schemas", ",".join(self.schemas)))
            if _PLACE in text
        ]
        if unquote(self.url).count(_PLACE) != len(found) or len(found) > 1:
            raise InputError(
                f"`database` is {str(self)!r}; {_PLACE} may stand once, as the name of the "
                f"database or in `schemas`, such as postgresql://host/{_PLACE} or "
                f"postgresql://host/name?schemas={_PLACE}."
            )
        return found[0] if found else None

    def fill(self, db_id: str) -> ServerDatabase:
        """The location with `{db_id}` replaced; it has the password of this one."""
        quoted = quote(db_id, safe="")
        filled = ServerDatabase(re.sub(r"(?i)\{db_id\}|%7Bdb_id%7D", lambda _: quoted, self.url))
        if self.secrets:
            _PASSWORDS[filled._address] = self.secrets
        return filled

    def with_schemas(self, schemas: Sequence[str]) -> ServerDatabase:
        """The same database with other schemas."""
        address, database, _ = self._parts
        parameters = {**self._parameters, "schemas": ",".join(schemas)}
        query = urlencode(parameters, quote_via=quote, safe=",{}/:")
        return ServerDatabase(f"postgresql://{address}/{database}?{query}")

    def with_database(self, name: str) -> ServerDatabase:
        """Another database of the same server, for the same role."""
        address, _, query = self._parts
        end = f"?{query}" if query else ""
        other = ServerDatabase(f"postgresql://{address}/{quote(name, safe='')}{end}")
        if self.secrets:
            _PASSWORDS[other._address] = self.secrets
        return other

    @property
    def _parts(self) -> tuple[str, str, str]:
        """Who and where, the database, and the parameters."""
        rest, _, query = self.url.removeprefix("postgresql://").partition("?")
        address, _, database = rest.partition("/")
        return address, database, query

    @property
    def _parameters(self) -> dict[str, str]:
        return {name: value for name, value in _split_query(self._parts[2]) if value}

    @property
    def _address(self) -> str:
        return self.conninfo


DatabasePath: TypeAlias = Path | ServerDatabase
"""The file of a database, or its place on a server."""

# By address; a worker gets those of its parent in a variable of its environment.
_PASSWORDS: dict[str, dict[str, str]] = json.loads(os.environ.get(PASSWORDS_VARIABLE, "{}"))


def is_server_url(text: object) -> bool:
    """Whether a text names a database on a server."""
    return isinstance(text, str) and text.startswith(_SCHEMES)


def locate(text: str | os.PathLike[str] | ServerDatabase) -> DatabasePath:
    """The place that a text names; the inverse of `str`.

    A password in a URL is taken out of it and kept in the memory of this process.

    Raises:
        InputError: a URL that cannot be read; the message does not show it.
    """
    if isinstance(text, ServerDatabase):
        return text
    if not isinstance(text, str) or not is_server_url(text):
        if isinstance(text, str) and (
            _NO_PATH.match(text) or (_BARE_URL.match(text) and not os.path.exists(text))
        ):
            raise InputError(
                "`database` is neither a file nor a URL that is known (it is not shown, because it "
                "may hold a password); write postgresql://user@host:5432/name."
            )
        return Path(text)
    rest, _, query = text.split("://", 1)[1].partition("?")
    address, _, database = rest.partition("/")
    user, at, host = address.rpartition("@")
    is_torn = "@" in query if not database else "@" in query.split("=")[0]
    is_odd = "@" in database or "#" in text or "/" in database
    if is_torn or is_odd or not _HOSTS.fullmatch(host):
        # Shown, it might show a part of a password.
        raise InputError(
            "`database` is a PostgreSQL URL that cannot be read. In a password, and in every other "
            "part, write @ as %40, / as %2F, ? as %3F and # as %23: "
            "postgresql://user:password@host:5432/name."
        )
    name, colon, password = user.partition(":")
    parameters = _split_query(query)
    for key, _ in parameters:
        if key not in (*_SECRETS, "passfile", "require_auth") and _LIKE_SECRETS.search(key):
            raise InputError(
                f"`database` is a PostgreSQL URL with the parameter {key!r}, which libpq has not; "
                "expected `password`, or a password in $PGPASSWORD or ~/.pgpass."
            )
    # As libpq does, what is said again among the parameters counts.
    secrets = {"password": unquote(password)} if colon else {}
    secrets |= {key: value for key, value in parameters if key in _SECRETS}
    if named := [value for key, value in parameters if key == "dbname" and value]:
        database = quote(named[-1], safe="{}")
    parameters = [(k, v) for k, v in parameters if k not in (*_SECRETS, "dbname")]
    kept = [f"{k}={quote(v, safe=',{}/:')}" for k, v in parameters]
    end = f"?{'&'.join(kept)}" if kept else ""
    if not database:
        # Not shown: in a URL of one word that word may be a password.
        raise InputError(
            "`database` is a PostgreSQL URL that names no database; write "
            f"postgresql://user@host:5432/NAME, or {_PLACE} in place of NAME for every database of "
            "the server."
        )
    location = ServerDatabase(f"postgresql://{name}{at}{host}/{database}{end}")
    if secrets:
        _PASSWORDS[location._address] = secrets
    return location


def _split_query(query: str) -> list[tuple[str, str]]:
    """Parameters as libpq reads them: a + is a plus."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    return [(unquote(key), unquote(value)) for key, _, value in pairs]


def hide_password(text: str, option: str = "database") -> str:
    """The value of an option as it may be shown and written down; see `locate`.

    Raises:
        InputError: a URL that cannot be read, or as `database` what `locate` refuses.
    """
    if is_server_url(text):
        return str(locate(text))
    if option == "database":
        locate(text)
    return text


def hide_passwords(arguments: Iterable[str]) -> list[str]:
    """A command line as it may be shown and handed on, with `--flag=URL` as well; see `locate`.

    Raises:
        InputError: a URL that cannot be read; the message does not show it.

    Example:
        >>> hide_passwords(["ask", "--database=postgresql://reader:secret@db.example/shop"])
        ['ask', '--database=postgresql://reader@db.example/shop']
    """
    found = (_FLAG.fullmatch(argument) for argument in arguments)
    return [f"{match[1] or ''}{hide_password(match[2], '')}" for match in found if match]


_FLAG: Final = re.compile("(--[A-Za-z][A-Za-z_-]*=)?(.*)", re.DOTALL)


def dump_passwords() -> str:
    """All passwords, for the environment of a worker."""
    return json.dumps(_PASSWORDS)


def get_state(path: DatabasePath) -> tuple[object, ...]:
    """What changes whenever a database does, as far as that can be seen without reading it.

    On a server nothing can be seen: its content is taken to stay while this process runs.

    Raises:
        DatabaseError: there is no such file.
    """
    if isinstance(path, ServerDatabase):
        return (path,)
    try:
        stat = os.stat(path)
    except FileNotFoundError as error:
        raise DatabaseError(f"no database at {path}: the file does not exist") from error
    return path, stat.st_ino, stat.st_size, stat.st_mtime_ns


def get_content_hash(path: DatabasePath) -> str | None:
    """Names the content of a database; `None` where nothing does.

    Of a server's database that is its URL with the label of its `snapshot`; without a label there
    is no telling when its content has changed.
    """
    if isinstance(path, ServerDatabase):
        return None if path.snapshot is None else str(path)
    return sha256_of(path)

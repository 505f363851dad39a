"""DatabaseURL: a URL as the text that it was given as, and in parts, as SQLAlchemy's `URL` has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from loopsafe_db.errors import InvalidURLError

if TYPE_CHECKING:
    from typing import Self

_USERINFO = re.compile(
    r"[@/?#\[\]\s]"
)  # what ends a user or a password, if it stands there as it is
_NO_DATABASE, _NO_SERVERS_DATABASE = re.compile(r"[?#]"), re.compile(r"[?#@]")
# What SQLAlchemy takes for one host: all before, ``host1:port1,host2:port2``, and all behind.
_PORT = re.compile(r"://(?:[^/?#]*@)?[^/?#:@]*:([^/?#]*)")
_SEVERAL_HOSTS = re.compile(
    r"(postgres[\w+]*://(?:[^:/@]*(?::[^@]*)?@)?)([\w.\-:\[\]]*,[\w.\-:\[\],]*)((?:[/?].*)?)$",
    re.DOTALL,
)
# As SQLAlchemy reads it: a password ends at the first @, a user at a slash. The rest, or the query if there is no path.
_BEHIND_HOST = re.compile(r"^[\w+]+://(?:[^:/]*(?::[^@]*)?@)?[^?/]*(/[^?]*|\?.*)?", re.DOTALL)
_HOST_IN_DATABASE = re.compile(r"@[^/]*/")
_SECRET_VALUES = re.compile(r"([?&][^=&#]*pass(?:word|wd)?=)[^&#]*", re.IGNORECASE)
_QUOTES = ("'", '"')
_DECODES_DATABASE = make_url("x:///%41").database == "A"  # SQLAlchemy does so from 2.1


class Hidden(str):
    """A text with a secret in it: the same text, but its ``repr()`` masks it, in tracebacks that show variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


def hidden(value: Any) -> Any:
    """Hide a text; anything else stays as it is."""
    return Hidden(value) if type(value) is str else value


def masked(text: str) -> str:
    """Give a URL's text with eight stars for what its query calls a password."""
    return _SECRET_VALUES.sub(r"\1********", text)


class DatabaseURL(URL):
    """A database's URL: a text that stays as it was given, and SQLAlchemy's `URL` of it.

    ``str()`` is the text, password included; ``repr()`` masks it. It equals that text and other URLs of the same
    text, and a plain `URL` that has the same parts (though that hashes differently). What SQLAlchemy's methods
    make of it (``set``, ``update_query_dict``) has parts first, and its text is what these look like.

    `URL` has ``drivername``, ``username``, ``password``, ``host``, ``port``, ``database`` and ``query``; the rest
    is as in the package `databases`. ``postgres://`` has the driver name ``postgresql``, and keeps its text.
    """

    _text: str | None = None  # None: not written yet

    def __new__(cls, url: str | URL) -> Self:
        """Read a URL.

        Raises:
            InvalidURLError: The text cannot be read.
            TypeError: It is neither a text nor a URL.
        """
        url = hidden(url)
        if isinstance(url, URL):
            parts, text = url, hidden(getattr(url, "_text", None))
        elif isinstance(url, str):
            parts, text = _read(url), url
        else:
            raise TypeError(describe_other(url))
        if wrong := _what_shows_a_password(parts, text):
            del url, parts, text
            raise InvalidURLError(wrong)
        if parts.drivername == "postgres":
            text = hidden(_written(parts)) if text is None else text
            parts = parts.set(drivername="postgresql")
        made: Self = _restored(cls, tuple(parts), None if text is None else str(text))
        return made

    @classmethod
    def create(cls, *args: Any, **parts: Any) -> Self:
        """Put a URL together, as ``URL.create`` does."""
        return cls(URL.create(*args, **parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), tuple(self), self._text)

    def __copy__(self) -> Self:
        return self  # it never changes

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __str__(self) -> str:
        if self._text is None:
            self._text = _written(self)
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({masked(self.obscure_password)!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (str, DatabaseURL)):
            return str(self) == str(other)
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def components(self) -> SplitResult:
        """What ``urllib.parse.urlsplit`` makes of the text."""
        return _split(hidden(str(self)), self) or urlsplit(_written(self))

    @property
    def scheme(self) -> str:
        """All before ``://``."""
        return self.components.scheme

    @property
    def dialect(self) -> str:
        """The SQL: ``postgresql`` of ``postgresql+asyncpg``."""
        return self.scheme.partition("+")[0]

    @property
    def driver(self) -> str:
        """The library: ``asyncpg`` of ``postgresql+asyncpg``; empty if none is named."""
        return self.scheme.partition("+")[2]

    @property
    def netloc(self) -> str:
        """User, password, host and port, as they stand in the text."""
        return self.components.netloc

    @property
    def userinfo(self) -> bytes | None:
        """User and password, as they stand in the text; None without a user."""
        parts = self.components
        if not parts.username:
            return None
        return ":".join(filter(None, (parts.username, parts.password))).encode()

    @property
    def hostname(self) -> str | None:
        """The host, or what the query says in its place: ``?host=/var/run/postgresql``."""
        return self.components.hostname or self.options.get("host") or self.options.get("unix_sock")

    @property
    def options(self) -> dict[str, str]:
        """The query, as the text has it."""
        return dict(parse_qsl(self.components.query))

    @property
    def obscure_password(self) -> str:
        """The text, with eight stars for the password."""
        return self._rewritten({"password": "********"}) if self.password else str(self)

    def replace(self, **changes: Any) -> DatabaseURL:
        """Give a URL with other parts; all else in its text stays as it is.

        Args:
            changes: Any of ``dialect``, ``driver`` (None for no driver), ``username``, ``password``, ``hostname``,
                ``port``, ``database``; or the parts of a `urllib.parse.SplitResult`: ``query=""`` drops the
                query. They are taken as they are: special characters are percent-encoded where they could not
                stand, a ``%`` never is.
        """
        return type(self)(self._rewritten(changes))

    def _rewritten(self, changes: dict[str, Any]) -> str:
        parts, changes = self.components, dict(changes)
        if changes.keys() & {"username", "password", "hostname", "port"}:
            place = parts.netloc.rpartition("@")[2]  # of perhaps several hosts
            if changes.keys() & {"hostname", "port"}:
                host = changes.pop("hostname", parts.hostname) or ""
                place = _place(host, changes.pop("port", self.port))
            changes["netloc"] = _netloc(
                _encoded(changes.pop("username", parts.username), colon="%3A"),
                _encoded(changes.pop("password", parts.password), colon=":"),
                place,
            )
        if "database" in changes:
            names = _NO_DATABASE if self.dialect == "sqlite" else _NO_SERVERS_DATABASE
            changes["path"] = f"/{names.sub(_quoted, changes.pop('database'))}"
        if changes.keys() & {"dialect", "driver"}:
            dialect = changes.pop("dialect", self.dialect)
            driver = changes.pop("driver", self.driver)
            changes["scheme"] = f"{dialect}+{driver}" if driver else dialect
        parts = parts._replace(**changes)
        query = f"?{parts.query}" if parts.query else ""
        fragment = f"#{parts.fragment}" if parts.fragment else ""
        return f"{parts.scheme}://{parts.netloc}{parts.path}{query}{fragment}"


def describe_other(given: object) -> str:
    """Say what was given in place of a URL, and the cure; not its text, which may have a password."""
    is_what = "a database URL is a text or a URL of SQLAlchemy's"
    if given is None:
        return f"{is_what}, not None: is the environment variable set that it comes from?"
    return f"{is_what}, not {type(given).__name__}: give its text, as by str()"


def _restored(kind: type[Any], parts: tuple[Any, ...], text: str | None) -> Any:
    url = tuple.__new__(kind, parts)
    url._text = text  # noqa: SLF001
    return url


def _read(text: str) -> URL:
    if text[:1] in _QUOTES or text != text.strip():
        raise InvalidURLError(
            "there are quotes, blanks or a newline around the URL: they belong to the shell or the file that it "
            "comes from; remove them"
        )
    several = _SEVERAL_HOSTS.match(text)
    try:
        parts = make_url(text if several is None else several[1] + several[3])
    except (ArgumentError, ValueError):
        # The text may hold a password anywhere, so no part of it is shown.
        raise InvalidURLError(f"not a database URL: {_what_is_wrong(text)}") from None
    if several is not None and "host" not in parts.query:  # as SQLAlchemy writes several
        parts = parts.update_query_dict({"host": several[2]})
    if parts.database and not _DECODES_DATABASE:
        parts = parts.set(database=unquote(parts.database))
    return parts


def _what_shows_a_password(parts: URL, text: str | None) -> str:
    """Say what is wrong where the end of a password is read as a host or a database's name, which errors show."""
    if "@" in (parts.host or ""):
        return "there is a second @ before the host: in a password it is %40"
    if parts.drivername.startswith("sqlite") and parts.host is parts.username is None:
        return ""  # the path of a file may have one
    behind = "".join(_BEHIND_HOST.findall(text or ""))
    if "@" in behind or _HOST_IN_DATABASE.search(parts.database or ""):
        return "there is an @ behind the host: in a user, a password or a database's name it is %40, and a / is %2F"
    return ""


def _what_is_wrong(text: str) -> str:
    if not text:
        return "it is empty"
    if "://" not in text:
        return f"there is no :// in it (a text of {len(text)} characters)"
    if (port := _PORT.search(text)) and not port[1].isdecimal():
        return "what follows the host's colon, the port, is no number"
    return f"SQLAlchemy cannot read it (a text of {len(text)} characters)"


def _written(parts: URL) -> str:
    if parts.database and not _DECODES_DATABASE:
        parts = parts.set(database=quote(parts.database, safe=" +/:"))
    return parts.render_as_string(hide_password=False)


def _split(text: str, url: URL) -> SplitResult | None:
    """Split a text; None if SQLAlchemy, which takes a password as it is, has read another one."""
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets that are no IPv6 address
        return None
    found = [None if part is None else unquote(part) for part in (parts.username, parts.password)]
    return parts if found == [url.username, url.password] else None


def _place(host: str, port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _netloc(username: str | None, password: str | None, place: str) -> str:
    if username is None:
        return place
    return f"{username}@{place}" if password is None else f"{username}:{password}@{place}"


def _encoded(given: str | None, *, colon: str) -> str | None:
    """Encode what would end a user or a password."""
    if given is None:
        return None
    return _USERINFO.sub(_quoted, given).replace(":", colon)


def _quoted(found: re.Match[str]) -> str:
    return quote(found[0], safe="")

"""Private names of other libraries: each that we lean on is listed by its room, and is there in what is installed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import loopsafe_db

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(loopsafe_db.__file__).parent
OF_THE_LANGUAGE = {"_exit", "_getframe"}  # documented, in spite of their names
_DISTRIBUTIONS = metadata.packages_distributions()


class Private(NamedTuple):
    """One line of a list: who leans on what, and how that is called."""

    user: str
    module: str
    path: str
    call: str | None
    may_be_missing: bool

    @classmethod
    def read(cls, user: str, line: str) -> Private:
        """Take a line apart."""
        found = re.fullmatch(r"(\??)([\w.]+):([\w.]+)(?:\((.*)\))?", line)
        assert found is not None, f"{user}: {line!r} is not MODULE:NAME or MODULE:NAME(arguments)"
        return cls(user, found[2], found[3], found[4], bool(found[1]))

    def __str__(self) -> str:
        return f"{self.user} leans on {self.module}:{self.path}"

    @property
    def name(self) -> str:
        """The last name."""
        return self.path.rpartition(".")[2]

    @property
    def release(self) -> str:
        """Who has it."""
        names = _DISTRIBUTIONS.get(self.module.partition(".")[0], ())
        return " ".join(f"{each} {metadata.version(each)}" for each in names) or "CPython"


def listed() -> Iterator[Private]:
    """Read all lists."""
    for path in sorted(PACKAGE.rglob("privates.toml")):
        room = ".".join(("loopsafe_db", *path.parent.relative_to(PACKAGE).parts))
        for module, lines in tomllib.loads(path.read_text()).items():
            for line in lines:
                yield Private.read(f"{room}.{module}", line)


def found(owner: Any, name: str) -> Any:
    """Give what an attribute of a class is; True for one that instances are given.

    Raises:
        AttributeError: There is none.
    """
    if not inspect.isclass(owner) or hasattr(owner, name):
        return getattr(owner, name)
    for each in owner.__mro__:
        annotated = name in inspect.get_annotations(each)
        if annotated or name in vars(each).get("__slots__", ()) or _is_set_in(each, name):
            return True
    raise AttributeError(f"{owner!r} has no {name}")


def _is_set_in(owner: type, name: str) -> bool:
    try:
        source = inspect.getsource(owner)
    except (OSError, TypeError):  # it is written in C
        return False
    return re.search(rf"\bself\.{name}\b[^=\n]*=[^=]", source) is not None


@pytest.mark.parametrize("private", list(listed()), ids=str)
def test_what_we_lean_on_is_there_and_takes_what_we_pass(private: Private) -> None:
    top = private.module.partition(".")[0]
    if top not in ("asyncpg", "sqlalchemy"):
        pytest.importorskip(top, exc_type=ImportError)
    owner: Any = None
    try:
        value: Any = importlib.import_module(private.module)
        for name in private.path.split("."):
            owner, value = value, found(value, name)
    except (ImportError, AttributeError) as error:
        if private.may_be_missing:
            pytest.skip(f"{private.release} has none")
        pytest.fail(f"{private}, which {private.release} does not have: {error}")
    if private.call is not None and (signature := _signature(value)) is not None:
        _check_call(private, signature, is_method=inspect.isclass(owner))


def _signature(value: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(value)
    except (TypeError, ValueError):  # it is written in C
        return None


def _check_call(private: Private, signature: inspect.Signature, *, is_method: bool) -> None:
    names = [each.strip() for each in (private.call or "").split(",") if each.strip()]
    positional = [None] * sum(not name.endswith("=") for name in names)
    if is_method and next(iter(signature.parameters), "") == "self":
        positional.append(None)
    try:
        signature.bind(*positional, **{name[:-1]: None for name in names if name.endswith("=")})
    except TypeError as error:
        pytest.fail(
            f"{private}({private.call}), which {private.release} has as {signature}: {error}"
        )


def is_private(name: str) -> bool:
    """Tell whether it begins with one underscore, or two and does not end so."""
    return name.startswith("_") and not name.endswith("__") and name not in OF_THE_LANGUAGE


def defined(tree: ast.AST) -> Iterator[str]:
    """Give the private names that a module defines, or sets on its own objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            yield node.attr


def leant_on(tree: ast.AST) -> Iterator[str]:
    """Give the private names that a module takes from others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("loopsafe_db"):
            yield from (alias.name for alias in node.names if is_private(alias.name))


def test_every_private_name_of_others_is_listed_by_the_room_that_leans_on_it() -> None:
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    ours = {name for tree in trees.values() for name in defined(tree)}
    known = {(each.user, part) for each in listed() for part in each.path.split(".")}
    missing = {
        f"{user}: {name}"
        for path, tree in trees.items()
        for user in [".".join(("loopsafe_db", *path.relative_to(PACKAGE).with_suffix("").parts))]
        for name in leant_on(tree)
        if name not in ours and (user, name) not in known
    }
    assert missing == set()


@pytest.mark.parametrize("private", list(listed()), ids=str)
def test_what_is_listed_is_used(private: Private) -> None:
    source = PACKAGE.joinpath(*private.user.split(".")[1:]).with_suffix(".py").read_text()
    assert re.search(rf"\b{private.name}\b", source)

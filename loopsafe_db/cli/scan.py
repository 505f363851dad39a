"""Reads a tree of Python code for clients that belong to a loop and are kept for longer."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loopsafe_db.cli.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOP_BOUND = {
    "sqlalchemy.ext.asyncio.create_async_engine": "engine",
    "sqlalchemy.ext.asyncio.async_engine_from_config": "engine",
    "sqlmodel.create_async_engine": "engine",
    "asyncpg.create_pool": "pool",
    "psycopg_pool.AsyncConnectionPool": "pool",
    "databases.Database": "database",
    "aiomysql.create_pool": "pool",
    "httpx.AsyncClient": "HTTP client",
    "aiohttp.ClientSession": "HTTP client",
    "redis.asyncio.Redis": "Redis client",
    "redis.asyncio.from_url": "Redis client",
    "redis.asyncio.Redis.from_url": "Redis client",
    "redis.asyncio.ConnectionPool.from_url": "Redis client",
    "aioredis.from_url": "Redis client",
    "aiobotocore.session.get_session().create_client": "S3 client",
    "aiobotocore.session.AioSession().create_client": "S3 client",
    "aioboto3.Session().client": "S3 client",
    "aioboto3.Session().resource": "S3 client",
    "aioboto3.session.Session().client": "S3 client",
    "motor.motor_asyncio.AsyncIOMotorClient": "MongoDB client",
    "openai.AsyncOpenAI": "HTTP client",
}
_CURE = "make the handle with loopsafe_db.get_database(), or wrap the factory: LoopLocal(factory)"
_QUEUES = ("worker_task", "task", "shared_task", "actor")  # decorators of what a queue runs
_ENTERED = ("__aenter__", "enter_async_context")  # what is made, and then kept, by hand
_SKIPPED = {".venv", "venv", "node_modules", "site-packages", "build", ".git", "__pycache__"}


def scan(path: Path) -> list[Finding]:
    """Look at a file, or at all below a folder."""
    modules = [module for file in _files(path) if (module := _read(file)) is not None]
    found = [finding for module in modules for finding in module.shared()]
    runs = [finding for module in modules for finding in module.runs()] if found else []
    return [
        *found,
        *runs,
        *(finding for module in modules for finding in module.unread_annotations()),
    ]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in sorted(path.rglob("*.py")) if not _SKIPPED & set(file.parts)]


def _read(file: Path) -> _Module | None:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, ValueError):  # of another Python, or of another encoding
        return None
    return _Module(file, tree)


@dataclass
class _Module:
    """One file of code, and what its names mean."""

    file: Path
    tree: ast.Module
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for each in node.names:
                    self.names[each.asname or each.name.partition(".")[0]] = (
                        each.name if each.asname else each.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for each in node.names:
                    self.names[each.asname or each.name] = f"{node.module}.{each.name}"
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = self.name_of(node.value)
                self.names |= {each.id: made for each in node.targets if isinstance(each, ast.Name)}

    def shared(self) -> Iterator[Finding]:
        """Clients that outlive the loop that they are used in."""
        for statement in self.tree.body:
            yield from self._assigned(statement, "a module's global holds")
        context_vars = self._context_vars()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from self._kept_by_function(node)
            elif isinstance(node, ast.ClassDef):
                for each in node.body:
                    yield from self._assigned(each, "a class's attribute holds")
                yield from self._kept_by_class(node)
        for var, node, kind in context_vars:
            yield self._at(node, "D302", f"the ContextVar {var} holds {kind}", _CURE)

    def runs(self) -> Iterator[Finding]:
        """A loop for each job, beside what is shared."""
        if not self._workers(*_QUEUES):
            return
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and self.name_of(node.func) == "asyncio.run":
                what = "asyncio.run makes a loop for each job, beside a client that is shared between them"
                yield self._at(node, "D303", what, _CURE)

    def unread_annotations(self) -> Iterator[Finding]:
        """Annotations of workers that Conductor's SDK cannot read."""
        is_text = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "__future__"
            and any(each.name == "annotations" for each in node.names)
            for node in self.tree.body
        )
        for worker in self._workers("worker_task") if is_text else ():
            arguments = [*worker.args.args, *worker.args.kwonlyargs]
            if arguments and not self._decorated(worker, "checked"):
                what = f"{worker.name}: the SDK does not resolve annotations that are texts, each job fails"
                cure = (
                    "leave the `annotations` future import out, or put @checked below @worker_task"
                )
                yield self._at(worker, "D304", what, cure)

    def name_of(self, node: ast.expr) -> str:
        """What a name, a chain of attributes or a call means, by the imports and by what the module's names are."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self.name_of(node.value)}.{node.attr}"
        if isinstance(node, ast.Call):
            return f"{self.name_of(node.func)}()"
        return "?"

    def _kind(self, node: ast.AST | None) -> str | None:
        """What an expression makes, if that belongs to a loop."""
        if isinstance(node, ast.Await | ast.NamedExpr):
            return self._kind(node.value)
        if isinstance(node, ast.BoolOp | ast.IfExp):  # `pool or await create_pool()`
            either = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
            return next(filter(None, map(self._kind, either)), None)
        if not isinstance(node, ast.Call):
            return None
        if isinstance(node.func, ast.Attribute) and node.func.attr in _ENTERED:
            return self._kind(node.args[0] if node.args else node.func.value)
        return LOOP_BOUND.get(self.name_of(node.func))

    def _assigned(self, node: ast.stmt, how: str) -> Iterator[Finding]:
        if isinstance(node, ast.Assign | ast.AnnAssign) and (kind := self._kind(node.value)):
            yield self._at(node, "D301", f"{how} {_a(kind)}", _CURE)

    def _kept_by_function(
        self, function: ast.FunctionDef | ast.AsyncFunctionDef
    ) -> Iterator[Finding]:
        is_cached = any(
            self._decorated(function, name) for name in ("cache", "lru_cache", "cached_property")
        )
        kept = {
            name
            for node in ast.walk(function)
            if isinstance(node, ast.Global)
            for name in node.names
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and is_cached and (kind := self._kind(node.value)):
                yield self._at(
                    node, "D301", f"{function.name} keeps {_a(kind)} for all its callers", _CURE
                )
            if isinstance(node, ast.Assign) and (kind := self._kind(node.value)):
                targets = {each.id for each in node.targets if isinstance(each, ast.Name)}
                if targets & kept:
                    yield self._at(node, "D301", f"a module's global holds {_a(kind)}", _CURE)

    def _kept_by_class(self, owner: ast.ClassDef) -> Iterator[Finding]:
        """What methods keep on the class, or on an object of it that is a module's global."""
        is_global = f"{owner.name}()" in self.names.values()
        for node in ast.walk(owner):
            if isinstance(node, ast.Assign) and (kind := self._kind(node.value)):
                on = {
                    target.value.id
                    for target in node.targets
                    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
                }
                if on & {"cls", owner.name}:
                    yield self._at(node, "D301", f"a class's attribute holds {_a(kind)}", _CURE)
                elif is_global and "self" in on:
                    yield self._at(node, "D301", f"a module's global holds {_a(kind)}", _CURE)

    def _context_vars(self) -> list[tuple[str, ast.AST, str]]:
        """Those that hold a client, by their annotation or by what is put into them, here or through a name."""
        found: dict[str, tuple[ast.AST, str | None]] = {}
        for statement in self.tree.body:
            made = getattr(statement, "value", None)
            if isinstance(made, ast.Call) and self.name_of(made.func).endswith("ContextVar"):
                target = (
                    statement.targets[0]
                    if isinstance(statement, ast.Assign)
                    else getattr(statement, "target", None)
                )
                if isinstance(target, ast.Name):
                    kind = self._annotated(getattr(statement, "annotation", None))
                    found[target.id] = (statement, kind)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for var, kind in self._put_by(node):
                    if var in found:
                        found[var] = (found[var][0], found[var][1] or kind)
        return [(var, node, _a(kind)) for var, (node, kind) in found.items() if kind]

    def _put_by(
        self, function: ast.FunctionDef | ast.AsyncFunctionDef
    ) -> Iterator[tuple[str, str]]:
        made: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and (kind := self._kind(node.value)):
                made.update({each.id: kind for each in node.targets if isinstance(each, ast.Name)})
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                given, var = node.args[0], node.func.value
                kind = self._kind(given) or (
                    made.get(given.id) if isinstance(given, ast.Name) else None
                )
                if node.func.attr == "set" and isinstance(var, ast.Name) and kind:
                    yield var.id, kind

    def _annotated(self, annotation: ast.expr | None) -> str | None:
        for node in ast.walk(annotation) if annotation is not None else ():
            name = self.name_of(node) if isinstance(node, ast.Name | ast.Attribute) else ""
            if name in LOOP_BOUND:
                return LOOP_BOUND[name]
            if name.endswith((".AsyncEngine", "asyncpg.Pool")):
                return "engine" if name.endswith("Engine") else "pool"
        return None

    def _workers(self, *decorators: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and any(self._decorated(node, name) for name in decorators)
        ]

    def _decorated(self, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
        calls = (
            each.func if isinstance(each, ast.Call) else each for each in function.decorator_list
        )
        return any(self.name_of(each).rpartition(".")[2] == name for each in calls)

    def _at(self, node: ast.AST, code: str, what: str, cure: str) -> Finding:
        return Finding(code, "error", what, f"{self.file}:{getattr(node, 'lineno', 0)}", cure)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiouHS" else f"a {kind}"

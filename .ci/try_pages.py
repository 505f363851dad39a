"""Do what the pages say, each pip line in an empty environment: ``try_pages.py WHEEL [PAGE...]``; needs uv.

A line that names the package begins an environment, one that does not adds to those before it. A page's program
(``python run``) runs where its first block stands. Of what else is Python on the page, the imports are made.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

from loopsafe_db.testing.postgres import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/tutorial/*.md")),
    *sorted(ROOT.glob("docs/how-to/*.md")),
]
LINE_OR_BLOCK = re.compile(
    r"pip install (?P<line>[^`#\n]+)|^ *```python(?P<kind>[^\n]*)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
OUTPUT = re.compile(r"^```text output\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OF_THE_READER = {"app", "jobs", "mydriver", "shop"}  # modules that pages make
OURS = "loopsafe-db"


@dataclass
class Environment:
    """What one pip line installs, and what stands below it."""

    packages: list[str]
    program: str = ""
    imports: list[str] = field(default_factory=lambda: ["import loopsafe_db"])

    def add(self, code: str) -> None:
        """Note the imports of a block."""
        for statement in ast.walk(ast.parse(code)):
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom):
                names = [statement.module or ""]
            else:
                continue
            if not {name.partition(".")[0] for name in names} & OF_THE_READER:
                self.imports.append(ast.unparse(statement))


def environments(text: str) -> list[Environment]:
    """Read a page from its top; what stands above its first line has README's."""
    found = [Environment([OURS])]
    program = None
    for match in LINE_OR_BLOCK.finditer(text):
        if match["line"]:
            packages = shlex.split(match["line"])
            begins = any(name.startswith(OURS) for name in packages)
            found.append(Environment(packages if begins else found[-1].packages + packages))
        elif match["kind"].strip() == "run":
            program = program or found[-1]
            program.program += dedent(match["code"]) + "\n"
        else:
            found[-1].add(dedent(match["code"]))
    return found


def install(packages: list[str], wheel: Path, folder: Path) -> str:
    """Make an empty environment and install what a line names; our package is the wheel."""
    ours = [f"{name} @ {wheel.as_uri()}" if name.startswith(OURS) else name for name in packages]
    python = str(folder / "bin" / "python")
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *ours], check=True)
    return python


def run(python: str, code: str, folder: Path, url: str) -> tuple[str, str]:
    """Run a program; what it printed, and its last words if it failed."""
    script = folder / "page.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [python, str(script)],
        cwd=folder,
        env={**os.environ, "LOOPSAFE_DB_URL": url, "DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout, done.stderr[-2000:] if done.returncode or done.stderr else ""


def failures(page: Path, wheel: Path, server: EmbeddedPostgres) -> list[str]:
    """Try each line of a page."""
    text = page.read_text(encoding="utf-8")
    said = []
    for environment in environments(text):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            python = install(environment.packages, wheel, folder / "venv")
            for statement in environment.imports:
                said.append(run(python, statement, folder, "")[1])
            if environment.program:
                shown, error = run(python, environment.program, folder, server.create_database())
                expected = "".join(OUTPUT.findall(text))
                said.append(error or (shown != expected and f"printed {shown!r}") or "")
        said = [f"pip install {' '.join(environment.packages)}: {each}" for each in said if each]
        if said:
            break
    return said


def main(wheel: Path, pages: list[Path]) -> int:
    """Try the pages; how many have failed."""
    failed = 0
    with EmbeddedPostgres() as server:
        for page in pages:
            said = failures(page, wheel, server)
            failed += bool(said)
            print(
                f"{page.relative_to(ROOT)}: {' '.join(said) or 'each pip line is complete'}",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(
        main(Path(sys.argv[1]).resolve(), [Path(each).resolve() for each in sys.argv[2:]] or PAGES)
    )

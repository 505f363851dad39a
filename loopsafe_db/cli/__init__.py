"""The command ``loopsafe-db``: doctor, wait, workflow, retry, top. Wants the extra ``cli``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from loopsafe_db.cli.app import app
    except ImportError as error:
        print(f"error: {error}\nHINT: pip install 'loopsafe-db[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    app()

"""A kernel of Jupyter, and five cells that await."""

from __future__ import annotations

from jupyter_client.manager import KernelManager

PATIENCE = 60.0


def main():
    manager = KernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=PATIENCE)
    for number in range(5):
        cell = f"import work\nawait work.square({number})"
        answer = client.execute_interactive(cell, timeout=PATIENCE)
        assert answer["content"]["status"] == "ok", answer
    client.stop_channels()
    manager.shutdown_kernel()


if __name__ == "__main__":
    main()

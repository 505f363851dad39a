"""``python -m reflector_workers.conductor``: the stand-in in the foreground, until Ctrl-C."""

import argparse
import signal
import threading

from reflector_workers.conductor.stand_in import StandInServer


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m reflector_workers.conductor", description=__doc__
    )
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with StandInServer(parser.parse_args().port) as server:
        print(f"stand-in for Conductor (not the real server): {server.url}", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()

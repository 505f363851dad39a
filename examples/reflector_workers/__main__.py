"""``python -m reflector_workers``; spawned workers import this module too, so it does nothing."""

if __name__ == "__main__":
    try:
        from reflector_workers.cli import main

        main()
    except KeyboardInterrupt:  # while modules are being imported; later, cli sees to it
        raise SystemExit(130) from None

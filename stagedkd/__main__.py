"""The installed command, and `python -m stagedkd`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line. While it is loaded, Ctrl-C ends the process as it ends any program: there is nothing to
    stop yet, and Python would print where the import was."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stagedkd.cli import main as run

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()

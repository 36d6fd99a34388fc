"""`python -m stagedkd`: the command line without the installed script."""

from __future__ import annotations

from stagedkd.cli import main

if __name__ == "__main__":
    main()

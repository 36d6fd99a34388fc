"""Run one of Parsl's modules as a process that ends with the launcher, however the launcher ends. Parsl's processes
would outlive it.

    python -m stagedkd.launch.watchdog OWNER MODULE ARGUMENTS...

OWNER identifies the launcher as in leases (store/leases.py), so that no process of another machine is mistaken for it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

from stagedkd.store.leases import Owner

LOOK_SECONDS = 0.5


def main() -> None:
    """Run the module, and kill its process group when the launcher has ended."""
    owner, module = Owner.of(sys.argv[1]), sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    if os.getppid() == owner.pid:
        os.setpgrp()  # so that Ctrl-C in the launcher's terminal does not reach it

    def watch() -> None:
        while not owner.gone:
            time.sleep(LOOK_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

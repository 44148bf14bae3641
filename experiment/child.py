"""Run a module as `python -m` does, in a process that ends with its parent, however that ends.

    python -m experiment.child MODULE [ARGUMENT...]

Standard input is a pipe whose other end the parent alone holds, and never writes to.
"""

import os
import runpy
import sys
import threading


def end_with_parent():
    os.read(0, 1)  # returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

"""Run a module as `python -m` does, in a process that ends with its parent, however that ends.

    python -m experiment.child MODULE [ARGUMENT...]

Standard input is a pipe whose other end the parent alone holds, and never writes to.
"""

import os
import runpy
import sys
import threading


def end_with_parent(pipe):
    os.read(pipe, 1)  # returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # on Windows, imports wait for a standard input that is being read
    threading.Thread(target=end_with_parent, args=(pipe,), daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

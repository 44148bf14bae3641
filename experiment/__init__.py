"""Everything that one run needs besides the network, the batches and the loop. Import it before torch."""

import atexit
import gc
import os
import time

STARTED = time.perf_counter() - time.process_time()  # when this process began: until here it has only computed

# Idle threads of OpenMP spin, which steals the processor from the thread they wait for when the machine is busy.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

# At its exit Python searches all objects for garbage, which with torch takes half a second.
atexit.register(gc.freeze)

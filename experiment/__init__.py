"""What surrounds a run. Imported before torch, so that its environment variables take effect."""

import os

# Threads of libgomp, the OpenMP of PyTorch's Linux wheels, spin while they wait: on a busy machine that steals the
# processor from the thread they wait for. Fewer rounds cost an idle machine nothing clear (results/archive/spin.txt).
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

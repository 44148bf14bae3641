"""What surrounds a run. Imported before torch, so that its environment variables take effect."""

import os

# Threads of libgomp, the OpenMP of PyTorch's Linux wheels, spin while they wait: on a busy machine that steals the
# processor from the thread they wait for.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

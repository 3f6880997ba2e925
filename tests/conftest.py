"""One thread for every test: tiny models are several times faster on it, and on a busy machine the real one is too."""

import os

# read when torch is imported, and inherited by the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

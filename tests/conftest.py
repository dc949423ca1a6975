"""Set before anything is imported: no test asks the network, and two tests side by side do not starve each other."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # pytest-xdist starts a process a core
os.environ["COLUMNS"] = "120"  # tables look the same in every terminal, and without one
gc.set_threshold(100_000, 50, 50)  # torch and transformers are millions of objects, looked through at each collection

"""Read when numpy loads: products in the tests are small, and on a busy machine threads that share one spend their time waiting."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

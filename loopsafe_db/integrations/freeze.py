"""The last module of a forkserver's preload: what is loaded by now stays shared by the workers.

The collector writes into every object that it looks at, and so copies the page that it lies on into each process.
Frozen objects it does not look at.
"""

import gc

gc.collect()
gc.freeze()

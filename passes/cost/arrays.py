"""Types of NumPy arrays for annotations, in modules that import NumPy only when they compute.

def tiles(columns: Ints) -> Ints: ...

NumPy takes as long to import as a small graph to compile, so at run time the names stand for anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
else:
    Ints = Any

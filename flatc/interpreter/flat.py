"""The NumPy meaning of the flat dialect: a kernel computes what its body computes.

Fusion and mappings change where values live and when they are made, never their numbers, so a module gives
the same results before and after `fuse-attention`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from flatc.dialects.flat import FusedOp
from flatc.interpreter.dtypes import Array, Precision
from flatc.interpreter.engine import meaning, run_block


@meaning(FusedOp)
def _fused(op: FusedOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    return run_block(op.body.block, operands, precision)

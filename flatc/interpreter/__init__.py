"""What programs mean, in NumPy: every level of the compiler can be run and compared with a reference.

`engine` holds the table of meanings and runs modules; `attn`, `flat` and `spatial` fill it for graphs, kernels and
schedules (`order` and `memory` watch what a schedule does); `reference` is attention by its definition, and
`inputs` makes seeded data.
"""

from flatc.interpreter import attn as _attn  # registers the meanings of its ops
from flatc.interpreter import flat as _flat
from flatc.interpreter.engine import evaluate, run_block, run_module
from flatc.interpreter.inputs import random_inputs
from flatc.interpreter.memory import ScheduleError
from flatc.interpreter.spatial import ScheduleRun, run_schedule

__all__ = ["ScheduleError", "ScheduleRun", "evaluate", "random_inputs", "run_block", "run_module", "run_schedule"]

del _attn, _flat

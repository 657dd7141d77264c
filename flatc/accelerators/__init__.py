"""The accelerator library: machines as YAML files, shipped or the user's own.

    >>> from flatc import accelerators
    >>> accelerators.names()
    ('cloud', 'edge', 'fusemax', 'rtl16')
    >>> accelerators.load("edge").array.rows
    32
    >>> accelerators.load("my/chip.yaml")                       # doctest: +SKIP

`describe` prints a machine as such a file, a good start for one's own.
"""

from flatc.accelerators.describe import describe
from flatc.accelerators.loader import load, names

__all__ = ["describe", "load", "names"]

"""How a program is transformed and what it costs: one pass a file, the mapping maths beside them.

`get_all_passes` is what `flatc-opt -p "fuse,tile{strategy=flat-r}"` chooses from. A factory imports its
pass only when it is asked for, so that starting a tool stays quick:

    def fuse():
        from flatc.passes.fuse import FusePass

        return FusePass
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdsl.passes import ModulePass

if __name__ != "flatc.passes":
    raise ImportError(f"import flatc.passes instead of '{__name__}': one definition of each pass is enough")


def get_all_passes() -> dict[str, Callable[[], type[ModulePass]]]:
    """Every pass of flatc by the name it has in a pipeline."""

    def choose_fusion() -> type[ModulePass]:
        from flatc.passes.choose_fusion import ChooseFusionPass

        return ChooseFusionPass

    def fuse_attention() -> type[ModulePass]:
        from flatc.passes.fuse_attention import FuseAttentionPass

        return FuseAttentionPass

    def fuse_layers() -> type[ModulePass]:
        from flatc.passes.fuse_layers import FuseLayersPass

        return FuseLayersPass

    def tile_attention() -> type[ModulePass]:
        from flatc.passes.tile_attention import TileAttentionPass

        return TileAttentionPass

    def keep_on_chip() -> type[ModulePass]:
        from flatc.passes.keep_on_chip import KeepOnChipPass

        return KeepOnChipPass

    def lower_to_spatial() -> type[ModulePass]:
        from flatc.passes.lower_to_spatial import LowerToSpatialPass

        return LowerToSpatialPass

    def allocate_buffers() -> type[ModulePass]:
        from flatc.passes.allocate_buffers import AllocateBuffersPass

        return AllocateBuffersPass

    return {
        "allocate-buffers": allocate_buffers,
        "choose-fusion": choose_fusion,
        "fuse-attention": fuse_attention,
        "fuse-layers": fuse_layers,
        "keep-on-chip": keep_on_chip,
        "lower-to-spatial": lower_to_spatial,
        "tile-attention": tile_attention,
    }

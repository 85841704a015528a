"""Level M onto a machine: passes over machine graphs that change no result, only how fast the machine gives it and how
much room it takes. `passes` lists them in order, `search` chooses what each of them is to do.

    tasks together        several tasks of one image in one run; before the passes      together
    used rows             no token that no output hangs on                   used_rows
    batches               several images in one run, layer by layer          batch, tables
    row tiling            linear layers and LayerNorms in tiles of rows      row_tiling
    depth-first tiling    some tokens through a run of layers at a time      depth_first
    window tiling         attention of some windows at a time, convolutions by bands   windows, window_runs
    rematerialisation     a LayerNorm computed again for its last reader     rematerialise
    spills                values in DRAM that the scratchpad cannot hold   spills, streamed, kept, sharing, halos, apart, ahead
    columns               products on the columns that have weight alone          columns
    order                 so that the array waits less                       order
"""

from .passes import PASSES, Mapping
from .search import MAX_BATCH, Choice, candidates, check_batch, choose, mapped, search
from .together import name_of, together

__all__ = [
    "MAX_BATCH",
    "PASSES",
    "Choice",
    "Mapping",
    "candidates",
    "check_batch",
    "choose",
    "mapped",
    "name_of",
    "search",
    "together",
]

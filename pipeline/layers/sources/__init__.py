"""Sources: volumes in the formats that microscopes and other programs write.

`open_source` tells the format by the name and by what lies there. Whatever the file
stores, a source reads boxes in the order x, y, z, and only the piece that is asked for.
"""

from pipeline.layers.sources.base import SectionOrigin, Source
from pipeline.layers.sources.opening import open_source

__all__ = ["SectionOrigin", "Source", "open_source"]

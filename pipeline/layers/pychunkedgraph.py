"""Edges and components by chunk, as PyChunkedGraph's ingest reads them.

::

    edges/edges_<x>_<y>_<z>.proto.zst      ChunkEdgesMsg, compressed with zstandard
    components/components_<x>_<y>_<z>.proto   ChunkComponentsMsg
    dataset.yml                            where these are, and how ids are made

The messages, in the language of protocol buffers::

    message EdgesMsg {
      bytes node_ids1 = 1;    // uint64, as are node_ids2 and areas
      bytes node_ids2 = 2;
      bytes affinities = 3;   // float32
      bytes areas = 4;
    }
    message ChunkEdgesMsg {
      EdgesMsg in_chunk = 1;
      EdgesMsg cross_chunk = 2;
      EdgesMsg between_chunk = 3;
    }
    message ChunkComponentsMsg {
      repeated uint64 components = 1;   // n, then n ids; again and again
    }

Arrays are little endian.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Vec3
from pipeline.kernels.chunk_graph import ChunkEdges

_LEVEL = 12
"""Of zstandard."""

EDGES, COMPONENTS, WATERSHED = "edges", "components", "watershed"
"""Folders of the export."""


def edges_path(position: Vec3) -> str:
    """Return the file of the edges of a chunk."""
    return f"{EDGES}/edges_{position.x}_{position.y}_{position.z}.proto.zst"


def components_path(position: Vec3) -> str:
    """Return the file of the components of a chunk."""
    return f"{COMPONENTS}/components_{position.x}_{position.y}_{position.z}.proto"


def encode_edges(
    in_chunk: ChunkEdges, between_chunk: ChunkEdges, cross_chunk: ChunkEdges
) -> bytes:
    """Return the file of the edges of a chunk; the same edges give the same bytes."""
    import zstandard

    message = _message("ChunkEdgesMsg")()
    kinds = {
        "in_chunk": in_chunk,
        "between_chunk": between_chunk,
        "cross_chunk": cross_chunk,
    }
    for kind, edges in kinds.items():
        part = getattr(message, kind)
        part.node_ids1 = edges.first.astype("<u8").tobytes()
        part.node_ids2 = edges.second.astype("<u8").tobytes()
        part.affinities = edges.affinity.astype("<f4").tobytes()
        part.areas = edges.area.astype("<u8").tobytes()
        # An empty message still says that it is there.
        part.SetInParent()
    content = message.SerializeToString(deterministic=True)
    return zstandard.ZstdCompressor(level=_LEVEL).compress(content)


def encode_components(components: Iterable[NDArray[np.uint64]]) -> bytes:
    """Return the file of the components of a chunk, each the ids of its pieces."""
    message = _message("ChunkComponentsMsg")()
    for component in components:
        message.components.append(len(component))
        message.components.extend(component.tolist())
    return bytes(message.SerializeToString(deterministic=True))


def dataset(location: str, *, chunk: Vec3, spatial_bits: int, layer_bits: int) -> str:
    """Return the YAML that an ingest is configured with.

    Parameters
    ----------
    location : str
        Cloud path of the export.
    chunk : Vec3
        Chunk of the graph [voxel].
    spatial_bits, layer_bits : int
        Bits of an id for each axis of the grid of chunks, and for the layer.
    """
    watershed = f"{location}/{WATERSHED}"
    sections: Mapping[str, Mapping[str, Any]] = {
        "ingest_config": {"AGGLOMERATION": location, "WATERSHED": watershed},
        "graph_config": {
            "CHUNK_SIZE": list(chunk),
            "FANOUT": 2,
            "SPATIAL_BITS": spatial_bits,
            "LAYER_ID_BITS": layer_bits,
        },
        "data_source": {
            "EDGES": f"{location}/{EDGES}",
            "COMPONENTS": f"{location}/{COMPONENTS}",
            "WATERSHED": watershed,
            "DATA_VERSION": 2,
        },
        "backend_client": {
            "TYPE": "bigtable",
            "CONFIG": {"ADMIN": True, "READ_ONLY": False},
        },
    }
    # A value in JSON is one in YAML.
    return "".join(
        f"{name}:\n" + "".join(f"  {k}: {json.dumps(v)}\n" for k, v in section.items())
        for name, section in sections.items()
    )


@cache
def _message(name: str) -> Any:
    """Return the class of a message."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="pychunkedgraph.proto", syntax="proto3")
    messages = {
        "EdgesMsg": ["node_ids1", "node_ids2", "affinities", "areas"],
        "ChunkEdgesMsg": ["in_chunk", "cross_chunk", "between_chunk"],
        "ChunkComponentsMsg": ["components"],
    }
    types = {
        "EdgesMsg": {"type": field.TYPE_BYTES, "label": field.LABEL_OPTIONAL},
        "ChunkEdgesMsg": {
            "type": field.TYPE_MESSAGE,
            "label": field.LABEL_OPTIONAL,
            "type_name": "EdgesMsg",
        },
        "ChunkComponentsMsg": {"type": field.TYPE_UINT64, "label": field.LABEL_REPEATED},
    }
    for message, names in messages.items():
        described = file.message_type.add(name=message)
        for number, part in enumerate(names, 1):
            described.field.add(name=part, number=number, **types[message])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))

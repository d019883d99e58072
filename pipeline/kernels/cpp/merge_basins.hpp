// Basins to supervoxels: size-dependent single linkage (Zlateski & Seung 2015).
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "basin_graph.hpp"
#include "disjoint_sets.hpp"

namespace em {

// The place of an id in a sorted list of ids.
inline std::uint32_t place_of(std::uint64_t id, std::span<const std::uint64_t> ids) {
  const auto found = std::lower_bound(ids.begin(), ids.end(), id);
  if (found == ids.end() || *found != id) {
    throw std::invalid_argument("the graph refers to id " + std::to_string(id) +
                                ", which its table of nodes lacks; merge the records of "
                                "all chunks first");
  }
  return static_cast<std::uint32_t>(found - ids.begin());
}

// The supervoxel of each basin; `ids` ascend. Edges join in descending order
// unless both sides hold `size_threshold` voxels. Sizes only grow, so an edge
// that is refused stays refused and one pass is enough. A supervoxel is called
// after its smallest basin, or 0 if it holds fewer than `dust` voxels.
inline std::vector<std::uint64_t> merge_basins(
    std::span<const std::uint64_t> ids, std::span<const std::uint64_t> sizes,
    std::span<const std::array<std::uint64_t, 2>> joins, std::vector<BasinEdge> edges,
    std::uint64_t size_threshold, std::uint64_t dust) {
  DisjointSets sets(ids.size());
  std::vector<std::uint64_t> size(sizes.begin(), sizes.end());
  const auto merge = [&](std::uint32_t i, std::uint32_t j) {
    const std::uint64_t total = size[i] + size[j];
    size[sets.unite(i, j)] = total;
  };

  for (const auto& [a, b] : joins) {
    const std::uint32_t i = sets.find(place_of(a, ids)), j = sets.find(place_of(b, ids));
    if (i != j) merge(i, j);
  }
  std::sort(edges.begin(), edges.end(), [](const BasinEdge& p, const BasinEdge& q) {
    return p.affinity != q.affinity ? p.affinity > q.affinity : p.key > q.key;
  });
  for (const BasinEdge& edge : edges) {
    const std::uint32_t i = sets.find(place_of(edge.a, ids));
    const std::uint32_t j = sets.find(place_of(edge.b, ids));
    if (i != j && (size[i] < size_threshold || size[j] < size_threshold)) merge(i, j);
  }

  std::vector<std::uint64_t> supervoxels(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::uint32_t root = sets.find(static_cast<std::uint32_t>(i));
    supervoxels[i] = size[root] < dust ? 0 : ids[root];
  }
  return supervoxels;
}

}  // namespace em

// Basins to supervoxels: size-dependent single linkage (Zlateski & Seung 2015) over
// as much of the volume as a node of the octree knows.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
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

// Edges from this affinity on join two parts of one basin, whatever their size.
constexpr std::uint64_t join_affinity = 1ull << 63;

struct Basin {
  std::uint64_t size, anchor;  // anchor: the place of its first voxel in the volume
  bool open;                   // it may go on outside
};

struct MergedBasins {
  std::vector<std::uint64_t> targets;  // of each id: the id its cluster is called after
  std::vector<std::uint64_t> sizes;    // of each id: of its cluster
  std::vector<std::uint8_t> settled;   // of each id: nothing outside can change its cluster
  std::vector<BasinEdge> edges;        // between clusters, not decided here; by pair
};

// `ids` ascend. Edges join in descending order unless both sides hold
// `size_threshold` voxels. Sizes only grow, so an edge that is refused stays refused
// and one pass is enough.
//
// A side below the threshold that is open, or has a greater edge that could not be
// decided, is blocked: an edge to it waits, and blocks its other side, unless that
// one is large. Of the edges that wait a maximum spanning forest is kept: the least
// edge of a cycle never merges, for its sides are joined by greater ones or were
// both large when one of those was refused. That is not done where an open side has
// edges that are not given (`forest` off), for it would wait for this one.
//
// A cluster is called after its basin that begins first. One that is settled with
// fewer than `dust` voxels is dropped: its target is 0.
inline MergedBasins merge_basins(std::span<const std::uint64_t> ids,
                                 std::span<const Basin> basins,
                                 std::span<const std::array<std::uint64_t, 2>> joins,
                                 std::vector<BasinEdge> edges,
                                 std::uint64_t size_threshold, std::uint64_t dust,
                                 bool forest = true) {
  const std::size_t n = ids.size();
  DisjointSets sets(n), tentative(n);
  std::vector<std::uint64_t> size(n);
  std::vector<std::uint32_t> first(n);  // of each root: the member that begins first
  std::vector<std::uint8_t> open(n), blocked, waits(n, 0);
  for (std::uint32_t i = 0; i < n; ++i) {
    size[i] = basins[i].size;
    open[i] = basins[i].open;
    first[i] = i;
  }
  const auto unite = [&](std::uint32_t i, std::uint32_t j) {
    const std::uint32_t root = sets.unite(i, j);
    size[root] = size[i] + size[j];
    open[root] = open[i] | open[j];
    first[root] = basins[first[i]].anchor < basins[first[j]].anchor ? first[i] : first[j];
    tentative.unite(i, j);
    return root;
  };

  for (const auto& [a, b] : joins) {
    const std::uint32_t i = sets.find(place_of(a, ids)), j = sets.find(place_of(b, ids));
    if (i != j) unite(i, j);
  }
  blocked = open;
  std::sort(edges.begin(), edges.end(), [](const BasinEdge& p, const BasinEdge& q) {
    return p.affinity != q.affinity ? p.affinity > q.affinity : p.key > q.key;
  });
  std::vector<BasinEdge> kept;
  for (const BasinEdge& edge : edges) {
    const std::uint32_t i = sets.find(place_of(edge.a, ids));
    const std::uint32_t j = sets.find(place_of(edge.b, ids));
    if (i == j) continue;
    const bool joins_parts = edge.affinity >= join_affinity;
    const bool i_large = !joins_parts && size[i] >= size_threshold;
    const bool j_large = !joins_parts && size[j] >= size_threshold;
    if (i_large && j_large) continue;
    const bool i_free = !blocked[i], j_free = !blocked[j];
    if ((i_free && j_free) || (i_large && j_free) || (j_large && i_free)) {
      const std::uint8_t stays = static_cast<std::uint8_t>(blocked[i] | blocked[j]);
      const std::uint8_t waiting = static_cast<std::uint8_t>(waits[i] | waits[j]);
      const std::uint32_t root = unite(i, j);
      blocked[root] = stays;
      waits[root] = waiting;
      continue;
    }
    blocked[i] = blocked[j] = 1;
    if (forest && tentative.find(i) == tentative.find(j)) continue;
    tentative.unite(i, j);
    waits[i] = waits[j] = 1;
    kept.push_back(edge);
  }

  MergedBasins merged;
  merged.targets.resize(n);
  merged.sizes.resize(n);
  merged.settled.resize(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::uint32_t root = sets.find(i);
    merged.settled[i] = !open[root] && !waits[root];
    merged.sizes[i] = size[root];
    merged.targets[i] = merged.settled[i] && size[root] < dust ? 0 : ids[first[root]];
  }
  for (BasinEdge edge : kept) {
    edge.a = ids[first[sets.find(place_of(edge.a, ids))]];
    edge.b = ids[first[sets.find(place_of(edge.b, ids))]];
    if (edge.a > edge.b) std::swap(edge.a, edge.b);
    merged.edges.push_back(edge);
  }
  std::sort(merged.edges.begin(), merged.edges.end(), by_pair);
  return merged;
}

}  // namespace em

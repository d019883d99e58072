// Basins to supervoxels: size-dependent single linkage (Zlateski & Seung 2015) over
// as much of the volume as a node of the octree knows.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "basin_graph.hpp"
#include "places.hpp"
#include "sorting.hpp"

namespace em {

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
  std::vector<BasinEdge> edges;        // between clusters, not decided here; descending
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
                                 std::span<const BasinEdge> edges,
                                 std::uint64_t size_threshold, std::uint64_t dust,
                                 bool forest = true) {
  const auto n = static_cast<std::uint32_t>(ids.size());
  // What is asked of a cluster at one time lies together. All but the parents counts at
  // roots; `first` is the member that begins first.
  struct Node {
    std::uint64_t size;
    std::uint32_t parent, tentative, first;
    bool open, blocked, waits;
  };
  std::vector<Node> nodes(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    nodes[i] = {basins[i].size, i, i, i, basins[i].open, false, false};
  }
  const auto find = [&](std::uint32_t Node::*parent, std::uint32_t i) {
    while (nodes[i].*parent != i) i = nodes[i].*parent = nodes[nodes[i].*parent].*parent;
    return i;
  };
  const auto link = [&](std::uint32_t Node::*parent, std::uint32_t i, std::uint32_t j) {
    i = find(parent, i);
    j = find(parent, j);
    nodes[std::max(i, j)].*parent = std::min(i, j);
  };
  const auto root = [&](std::uint32_t i) { return find(&Node::parent, i); };
  const auto unite = [&](std::uint32_t i, std::uint32_t j) {
    Node &kept = nodes[std::min(i, j)], &dropped = nodes[std::max(i, j)];
    if (basins[dropped.first].anchor < basins[kept.first].anchor) kept.first = dropped.first;
    kept.size += dropped.size;
    kept.open |= dropped.open;
    kept.blocked |= dropped.blocked;
    kept.waits |= dropped.waits;
    dropped.parent = std::min(i, j);
    link(&Node::tentative, i, j);
  };

  const Places places(ids);
  const auto joined =
      places.of_pairs(joins.size(), [&](std::size_t i) { return joins[i]; });
  for (const auto& [a, b] : joined) {
    const std::uint32_t i = root(a), j = root(b);
    if (i != j) unite(i, j);
  }
  for (Node& node : nodes) node.blocked = node.open;
  struct Edge {
    std::uint64_t affinity, key;
    std::uint32_t a, b;
  };
  const auto ends = places.of_pairs(
      edges.size(), [&](std::size_t i) { return std::array{edges[i].a, edges[i].b}; });
  std::vector<Edge> order;
  order.reserve(edges.size());
  for (std::size_t i = 0; i < edges.size(); ++i) {
    order.push_back({edges[i].affinity, edges[i].key, ends[i][0], ends[i][1]});
  }
  sort_descending(order);
  std::vector<Edge> kept;
  for (const Edge& edge : order) {
    const std::uint32_t i = root(edge.a), j = root(edge.b);
    if (i == j) continue;
    Node &one = nodes[i], &two = nodes[j];
    const bool joins_parts = edge.affinity >= join_affinity;
    const bool one_is_large = !joins_parts && one.size >= size_threshold;
    const bool two_is_large = !joins_parts && two.size >= size_threshold;
    if (one_is_large && two_is_large) continue;
    if ((!one.blocked && !two.blocked) || (one_is_large && !two.blocked) ||
        (two_is_large && !one.blocked)) {
      unite(i, j);
      continue;
    }
    one.blocked = two.blocked = true;
    if (forest && find(&Node::tentative, i) == find(&Node::tentative, j)) continue;
    link(&Node::tentative, i, j);
    one.waits = two.waits = true;
    kept.push_back(edge);
  }

  MergedBasins merged;
  merged.targets.resize(n);
  merged.sizes.resize(n);
  merged.settled.resize(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    const Node& node = nodes[root(i)];
    merged.settled[i] = !node.open && !node.waits;
    merged.sizes[i] = node.size;
    merged.targets[i] = merged.settled[i] && node.size < dust ? 0 : ids[node.first];
  }
  merged.edges.reserve(kept.size());
  for (const auto& [affinity, key, a, b] : kept) {
    const auto [low, high] = std::minmax(ids[nodes[root(a)].first], ids[nodes[root(b)].first]);
    merged.edges.push_back({low, high, affinity, key});
  }
  return merged;
}

}  // namespace em

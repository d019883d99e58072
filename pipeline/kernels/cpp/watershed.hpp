// Watershed basins of an affinity graph.
//
// Each voxel chooses the greatest of its six edges, if its affinity is above
// `low`; a voxel without one is background. An edge is on if a voxel at either
// end chose it or its affinity is `high` or more. Basins are the components of
// the edges that are on. The order of edges is strict, so every component of
// the chosen edges is a tree that drains to one mutual choice: plateaus need
// no rule of their own, and a chunk decides each edge as the whole would.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "disjoint_sets.hpp"
#include "volume.hpp"

namespace em {

// 0 is no edge, 1 + a the edge to the predecessor along axis a, 4 + a to the successor.
using Choice = std::uint8_t;
constexpr Choice to_lower(int axis) { return static_cast<Choice>(1 + axis); }
constexpr Choice to_upper(int axis) { return static_cast<Choice>(4 + axis); }

struct AllEdges {
  AllEdges(const Affinities& affinities, const Frame& frame) : n(volume(frame.shape)), data(3 * n) {
    AffinityRows rows(affinities, Box{{0, 0, 0}, frame.shape});
    for (int axis = 0; axis < 3; ++axis)
      for (std::int64_t z = 0; z < frame.shape[2]; ++z)
        for (std::int64_t y = 0; y < frame.shape[1]; ++y)
          rows.load(axis, y, z, data.data() + axis * n + frame.index(0, y, z));
  }
  std::uint32_t at(std::size_t i, int axis) const { return data[i + axis * n]; }
  std::size_t n;
  std::vector<std::uint32_t> data;
};

// The edges of a voxel in ascending order of key are: lower x, y, z, then
// upper x, y, z. The last of equal affinities is therefore the greatest edge.
inline Choice choose(const AllEdges& affinities, const Frame& frame, const Vec3& v,
              std::int64_t low) {
  const std::size_t here = frame.index(v[0], v[1], v[2]);
  const auto strides = frame.strides();
  std::int64_t best = -1;
  Choice choice = 0;
  for (int axis = 0; axis < 3; ++axis) {
    if (!frame.has_lower(v, axis)) continue;
    const std::int64_t affinity = affinities.at(here, axis);
    if (affinity >= best) {
      best = affinity;
      choice = to_lower(axis);
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (!frame.has_upper(v, axis)) continue;
    const std::int64_t affinity = affinities.at(here + strides[axis], axis);
    if (affinity >= best) {
      best = affinity;
      choice = to_upper(axis);
    }
  }
  return best > low ? choice : Choice{0};
}

// Labels the core with the components of the edges inside it. A label says where
// its component begins: base + 1 + the place of its first voxel, x fastest.
inline void watershed(const Affinities& source, const Frame& frame,
               const Thresholds& thresholds, std::uint64_t base, std::uint64_t* labels) {
  const AllEdges affinities(source, frame);
  const Vec3 size = extent(frame.core);
  const std::size_t n = volume(size);
  if (n > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("a chunk of " + std::to_string(n) +
                                " voxels is too large to label; use at most 2^32 - 1");
  }
  const auto row = static_cast<std::size_t>(size[0]);
  const std::size_t steps[3] = {1, row, row * static_cast<std::size_t>(size[1])};
  std::vector<Choice> choices(n);
  DisjointSets sets(n);

  std::size_t i = 0;
  for (std::int64_t z = 0; z < size[2]; ++z) {
    for (std::int64_t y = 0; y < size[1]; ++y) {
      for (std::int64_t x = 0; x < size[0]; ++x, ++i) {
        const Vec3 local{x, y, z};
        const Vec3 v{x + frame.core.start[0], y + frame.core.start[1],
                     z + frame.core.start[2]};
        const Choice choice = choose(affinities, frame, v, thresholds.low);
        choices[i] = choice;
        if (choice == 0) continue;
        const std::size_t here = frame.index(v[0], v[1], v[2]);
        for (int axis = 0; axis < 3; ++axis) {
          if (local[axis] == 0) continue;
          const std::size_t below = i - steps[axis];
          if (choice == to_lower(axis) || choices[below] == to_upper(axis) ||
              affinities.at(here, axis) >= thresholds.high) {
            sets.unite(static_cast<std::uint32_t>(below), static_cast<std::uint32_t>(i));
          }
        }
      }
    }
  }

  for (i = 0; i < n; ++i) {
    // The root of a set is its smallest member.
    labels[i] =
        choices[i] == 0 ? 0 : base + 1 + sets.find(static_cast<std::uint32_t>(i));
  }
}

}  // namespace em

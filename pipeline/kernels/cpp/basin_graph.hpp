// What a chunk knows about the basins of the whole volume: how large its parts
// of them are, which parts across its lower faces are one basin, and the
// greatest edge between each two.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "flat_map.hpp"
#include "volume.hpp"
#include "watershed.hpp"

namespace em {

struct AllEdges {
  AllEdges(const Affinities& affinities, const Frame& frame)
      : n(volume(frame.shape)), data(3 * n) {
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

// Gives labels dense numbers from 0 in the order in which they are first seen.
class DenseLabels {
 public:
  std::uint32_t of(std::uint64_t label) {
    if (label == last_label_) return last_;
    std::uint32_t& number = numbers_[label];  // 0 is new, else 1 + the number
    if (number == 0) {
      labels_.push_back(label);
      number = static_cast<std::uint32_t>(labels_.size());
    }
    last_label_ = label;
    last_ = number - 1;
    return last_;
  }
  const std::vector<std::uint64_t>& labels() const { return labels_; }

 private:
  FlatMap<std::uint32_t> numbers_;
  std::vector<std::uint64_t> labels_;
  std::uint64_t last_label_ = 0;
  std::uint32_t last_ = 0;
};

// An unordered pair of distinct dense labels as a nonzero key.
inline std::uint64_t pair_key(std::uint32_t i, std::uint32_t j) {
  if (i > j) std::swap(i, j);
  return (static_cast<std::uint64_t>(i) << 32) | j;
}

// The labels of such a key, smaller label first.
inline std::array<std::uint64_t, 2> pair_labels(std::uint64_t key,
                                                const std::vector<std::uint64_t>& labels) {
  const std::uint64_t a = labels[key >> 32], b = labels[key & 0xFFFFFFFFu];
  return a < b ? std::array{a, b} : std::array{b, a};
}

struct BasinEdge {
  std::uint64_t a, b, affinity, key;
};

struct BasinGraph {
  std::vector<std::uint64_t> ids, sizes;
  std::vector<std::array<std::uint64_t, 2>> joins;
  std::vector<BasinEdge> edges;
};

inline BasinGraph basin_graph(const std::uint64_t* labels, const Affinities& source,
                       const Frame& frame, const Thresholds& thresholds) {
  struct Greatest {
    std::uint64_t affinity = 0, key = 0;
  };
  const AllEdges affinities(source, frame);
  const auto strides = frame.strides();
  DenseLabels dense;
  std::vector<std::uint64_t> counts;
  FlatMap<Greatest> greatest;
  FlatMap<bool> joined;

  Vec3 v;
  for (v[2] = frame.core.start[2]; v[2] < frame.core.stop[2]; ++v[2]) {
    for (v[1] = frame.core.start[1]; v[1] < frame.core.stop[1]; ++v[1]) {
      for (v[0] = frame.core.start[0]; v[0] < frame.core.stop[0]; ++v[0]) {
        const std::size_t here = frame.index(v[0], v[1], v[2]);
        const std::uint64_t label = labels[here];
        if (label == 0) continue;
        const std::uint32_t number = dense.of(label);
        if (number >= counts.size()) counts.resize(number + 1);
        ++counts[number];
        for (int axis = 0; axis < 3; ++axis) {
          if (!frame.has_lower(v, axis)) continue;
          const std::uint64_t other = labels[here - strides[axis]];
          if (other == 0 || other == label) continue;
          const std::int64_t affinity = affinities.at(here, axis);
          if (affinity <= thresholds.low) continue;
          const std::uint64_t pair = pair_key(number, dense.of(other));
          if (v[axis] == frame.core.start[axis]) {
            Vec3 below = v;
            --below[axis];
            if (affinity >= thresholds.high ||
                choose(affinities, frame, v, thresholds.low) == to_lower(axis) ||
                choose(affinities, frame, below, thresholds.low) == to_upper(axis)) {
              joined[pair] = true;
              continue;
            }
          }
          const Greatest edge{static_cast<std::uint64_t>(affinity),
                              3 * frame.position(v) + static_cast<std::uint64_t>(axis)};
          Greatest& kept = greatest[pair];
          if (edge.affinity > kept.affinity ||
              (edge.affinity == kept.affinity && edge.key > kept.key)) {
            kept = edge;
          }
        }
      }
    }
  }

  BasinGraph graph;
  counts.resize(dense.labels().size());
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;  // seen only across a lower face
    graph.ids.push_back(dense.labels()[i]);
    graph.sizes.push_back(counts[i]);
  }
  joined.for_each([&](std::uint64_t pair, bool) {
    graph.joins.push_back(pair_labels(pair, dense.labels()));
  });
  greatest.for_each([&](std::uint64_t pair, const Greatest& edge) {
    const auto [a, b] = pair_labels(pair, dense.labels());
    graph.edges.push_back({a, b, edge.affinity, edge.key});
  });
  return graph;
}

}  // namespace em

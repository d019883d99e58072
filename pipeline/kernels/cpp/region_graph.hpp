// Contacts between supervoxels, and the supervoxels themselves, as exact sums.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "basin_graph.hpp"
#include "flat_map.hpp"
#include "volume.hpp"

namespace em {

struct Contact {
  std::array<std::uint64_t, 3> affinity{}, area{};
  std::uint64_t key = std::numeric_limits<std::uint64_t>::max();  // of the first face
};

struct Region {
  std::uint64_t size = 0, anchor = 0;
  Vec3 sum{}, start{}, stop{};
};

struct RegionGraph {
  std::vector<std::array<std::uint64_t, 2>> pairs;
  std::vector<Contact> contacts;
  std::vector<std::uint64_t> ids;
  std::vector<Region> regions;
};

// A chunk owns the faces whose upper voxel lies in its core.
inline RegionGraph region_graph(const std::uint64_t* labels, const Affinities& affinities,
                                const Frame& frame) {
  AffinityRows rows(affinities, frame.core);
  std::array<std::vector<std::uint32_t>, 3> row;
  for (auto& channel : row) channel.resize(static_cast<std::size_t>(extent(frame.core)[0]));
  const auto strides = frame.strides();
  DenseLabels dense;
  std::vector<Region> regions;
  FlatMap<Contact> contacts;

  Vec3 v;
  for (v[2] = frame.core.start[2]; v[2] < frame.core.stop[2]; ++v[2]) {
    for (v[1] = frame.core.start[1]; v[1] < frame.core.stop[1]; ++v[1]) {
      for (int axis = 0; axis < 3; ++axis) rows.load(axis, v[1], v[2], row[axis].data());
      for (v[0] = frame.core.start[0]; v[0] < frame.core.stop[0]; ++v[0]) {
        const std::size_t here = frame.index(v[0], v[1], v[2]);
        const std::uint64_t label = labels[here];
        if (label == 0) continue;
        const std::uint32_t number = dense.of(label);
        if (number >= regions.size()) regions.resize(number + 1);
        Region& region = regions[number];
        const bool is_first = region.size++ == 0;
        if (is_first) region.anchor = frame.position(v);
        for (int axis = 0; axis < 3; ++axis) {
          const std::int64_t at = frame.origin[axis] + v[axis];
          region.sum[axis] += at;
          region.start[axis] = is_first ? at : std::min(region.start[axis], at);
          region.stop[axis] = is_first ? at + 1 : std::max(region.stop[axis], at + 1);
        }
        for (int axis = 0; axis < 3; ++axis) {
          if (!frame.has_lower(v, axis)) continue;
          const std::uint64_t other = labels[here - strides[axis]];
          if (other == 0 || other == label) continue;
          Contact& contact = contacts[pair_key(number, dense.of(other))];
          const auto x = static_cast<std::size_t>(v[0] - frame.core.start[0]);
          contact.affinity[axis] += row[axis][x];
          ++contact.area[axis];
          contact.key = std::min(
              contact.key, 3 * frame.position(v) + static_cast<std::uint64_t>(axis));
        }
      }
    }
  }

  RegionGraph graph;
  regions.resize(dense.labels().size());
  for (std::size_t i = 0; i < regions.size(); ++i) {
    if (regions[i].size == 0) continue;  // seen only across a lower face
    graph.ids.push_back(dense.labels()[i]);
    graph.regions.push_back(regions[i]);
  }
  contacts.for_each([&](std::uint64_t pair, const Contact& contact) {
    graph.pairs.push_back(pair_labels(pair, dense.labels()));
    graph.contacts.push_back(contact);
  });
  return graph;
}

}  // namespace em

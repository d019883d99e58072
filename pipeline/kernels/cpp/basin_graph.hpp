// What a chunk knows about the basins of the whole volume: how large its parts
// of them are, which parts across its lower faces are one basin, and the
// greatest edge between each two.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "flat_map.hpp"
#include "parallel.hpp"
#include "volume.hpp"
#include "watershed.hpp"

namespace em {

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

inline bool by_pair(const BasinEdge& p, const BasinEdge& q) {
  return p.a != q.a ? p.a < q.a : p.b < q.b;
}

// Ids, joins and the pairs of edges ascend.
struct BasinGraph {
  std::vector<std::uint64_t> ids, sizes;
  // Open faces that each touches: bit a is the lower face of axis a, bit 3 + a the upper.
  std::vector<std::uint8_t> faces;
  std::vector<std::array<std::uint64_t, 2>> joins;
  std::vector<BasinEdge> edges;
};

// Bit a is set where the edge to the predecessor along axis a is above `low` and joins two
// labels, bit 3 where a run of voxels with one label begins.
constexpr std::uint8_t begins_run = 8;

EM_ROW_KERNEL inline void mark_changes(const SixEdges& edges, const std::uint64_t* here,
                                       const std::uint64_t* below,
                                       const std::uint64_t* back, std::size_t n,
                                       std::uint32_t low, std::uint8_t* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t l = here[i];
    const bool y = (below[i] != l) & (below[i] != 0) & (l != 0) & (edges.y[i] > low);
    const bool z = (back[i] != l) & (back[i] != 0) & (l != 0) & (edges.z[i] > low);
    out[i] = static_cast<std::uint8_t>((y ? 2u : 0u) | (z ? 4u : 0u));
  }
  out[0] |= begins_run;
  for (std::size_t i = 1; i < n; ++i) {
    const std::uint64_t l = here[i], other = here[i - 1];
    const bool x = (other != l) & (other != 0) & (l != 0) & (edges.x[i] > low);
    out[i] |= static_cast<std::uint8_t>((x ? 1u : 0u) | (other != l ? begins_run : 0u));
  }
}

// Measures the basins of a slab of a chunk.
class BasinMeter {
 public:
  BasinMeter(const std::uint64_t* labels, const Edges& edges, const Thresholds& thresholds)
      : labels_(labels), edges_(edges), frame_(edges.frame), thresholds_(thresholds) {}

  // Voxels, and the edges whose lower voxel is in the chunk too. `slab` is a part of the
  // core along z.
  void measure(const Box& slab) {
    Edges inner = edges_;
    inner.limits = frame_.core;
    const auto n = static_cast<std::size_t>(extent(slab)[0]);
    const auto strides = frame_.strides();
    const auto low = static_cast<std::uint32_t>(thresholds_.low);
    std::vector<std::uint8_t> changes(n);
    for_each_row(inner, slab, [&](std::int64_t y, std::int64_t z, const SixEdges& six) {
      const std::uint64_t* here = labels_ + frame_.index(slab.start[0], y, z);
      // Without a neighbour there is no edge, and any label will do.
      const std::uint64_t* below = y > frame_.core.start[1] ? here - strides[1] : here;
      const std::uint64_t* back = z > frame_.core.start[2] ? here - strides[2] : here;
      mark_changes(six, here, below, back, n, low, changes.data());
      const std::uint64_t key = 3 * frame_.position({slab.start[0], y, z});
      std::size_t begin = 0;
      std::uint32_t number = 0;
      const auto end_run = [&](std::size_t end) {
        if (end > begin && here[begin] != 0) sizes_[number] += end - begin;
      };
      for_each_nonzero(changes.data(), n, [&](std::size_t i) {
        const std::uint8_t bits = changes[i];
        if (bits & begins_run) {
          end_run(i);
          begin = i;
          if (here[i] != 0) number = number_of(here[i]);
        }
        if (bits & 1) put(number, here[i - 1], six.x[i], key + 3 * i);
        if (bits & 2) put(number, below[i], six.y[i], key + 3 * i + 1);
        if (bits & 4) put(number, back[i], six.z[i], key + 3 * i + 2);
      });
      end_run(n);
    });
  }

  // The edges across the lower face of an axis. Which of them are on depends on what
  // their ends chose.
  void cross(std::size_t axis) {
    Box box = frame_.core;
    if (!frame_.has_lower(box.start, static_cast<int>(axis))) return;
    const std::int64_t face = box.start[axis];
    box.start[axis] = face - 1;
    box.stop[axis] = face + 1;
    const Vec3 size = extent(box);
    const auto n = static_cast<std::size_t>(size[0]);
    const std::size_t steps[3] = {1, n, n * static_cast<std::size_t>(size[1])};
    const std::size_t step = steps[axis], label_step = frame_.strides()[axis];
    std::vector<Choice> choices(volume(size));
    std::vector<std::uint8_t> high(n);
    std::size_t at = 0;
    for_each_row(edges_, box, [&](std::int64_t y, std::int64_t z, const SixEdges& six) {
      choose(six, n, thresholds_, choices.data() + at, high.data());
      const std::uint32_t* along[3] = {six.x, six.y, six.z};
      const bool is_upper[3] = {true, y == face, z == face};
      for (std::size_t i = axis == 0 ? 1 : 0; i < n && is_upper[axis]; ++i) {
        const std::uint32_t affinity = along[axis][i];
        if (affinity <= thresholds_.low) continue;
        const Vec3 v{box.start[0] + static_cast<std::int64_t>(i), y, z};
        const std::uint64_t* label = labels_ + frame_.index(v[0], y, z);
        const std::uint64_t other = *(label - label_step);
        if (*label == 0 || other == 0 || *label == other) continue;
        const std::uint32_t number = number_of(*label);
        const bool is_on = affinity >= thresholds_.high ||
                           choices[at + i] == to_lower(static_cast<int>(axis)) ||
                           choices[at + i - step] == to_upper(static_cast<int>(axis));
        if (is_on) {
          joined_[pair_key(number, number_of(other))] = true;
        } else {
          put(number, other, affinity, 3 * frame_.position(v) + axis);
        }
      }
      at += n;
    });
  }

  // Which basins touch the open faces of the chunk.
  void touch() {
    const Box& core = frame_.core;
    const auto strides = frame_.strides();
    for (std::size_t axis = 0; axis < 3; ++axis) {
      Vec3 last = core.stop;
      --last[axis];
      const std::size_t u = axis == 0 ? 1 : 0, v = axis == 2 ? 1 : 2;
      for (const bool is_upper : {false, true}) {
        const int a = static_cast<int>(axis);
        const bool is_open =
            is_upper ? frame_.has_upper(last, a) : frame_.has_lower(core.start, a);
        if (!is_open) continue;
        const auto bit = static_cast<std::uint8_t>(1u << (axis + (is_upper ? 3 : 0)));
        Vec3 at = core.start;
        if (is_upper) at[axis] = core.stop[axis] - 1;
        for (; at[v] < core.stop[v]; ++at[v]) {
          at[u] = core.start[u];
          const std::uint64_t* label = labels_ + frame_.index(at[0], at[1], at[2]);
          for (; at[u] < core.stop[u]; ++at[u], label += strides[u]) {
            if (*label != 0) faces_[number_of(*label)] |= bit;
          }
        }
      }
    }
  }

  // Adds what another has measured.
  void add(const BasinMeter& other) {
    std::vector<std::uint32_t> numbers;
    for (std::size_t i = 0; i < other.sizes_.size(); ++i) {
      numbers.push_back(number_of(other.dense_.labels()[i]));
      sizes_[numbers[i]] += other.sizes_[i];
      faces_[numbers[i]] |= other.faces_[i];
    }
    const auto renamed = [&](std::uint64_t pair) {
      return pair_key(numbers[pair >> 32], numbers[pair & 0xFFFFFFFFu]);
    };
    other.joined_.for_each(
        [&](std::uint64_t pair, bool) { joined_[renamed(pair)] = true; });
    other.greatest_.for_each([&](std::uint64_t pair, const Greatest& edge) {
      raise(greatest_[renamed(pair)], edge);
    });
  }

  BasinGraph graph() const {
    BasinGraph graph;
    std::vector<std::pair<std::uint64_t, std::uint32_t>> order;
    for (std::uint32_t i = 0; i < sizes_.size(); ++i) {
      if (sizes_[i] == 0) continue;  // seen only across a lower face
      order.emplace_back(dense_.labels()[i], i);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [label, i] : order) {
      graph.ids.push_back(label);
      graph.sizes.push_back(sizes_[i]);
      graph.faces.push_back(faces_[i]);
    }
    joined_.for_each([&](std::uint64_t pair, bool) {
      graph.joins.push_back(pair_labels(pair, dense_.labels()));
    });
    greatest_.for_each([&](std::uint64_t pair, const Greatest& edge) {
      if (joined_.find(pair) != nullptr) return;
      const auto [a, b] = pair_labels(pair, dense_.labels());
      graph.edges.push_back({a, b, edge.affinity, edge.key});
    });
    std::sort(graph.joins.begin(), graph.joins.end());
    std::sort(graph.edges.begin(), graph.edges.end(), by_pair);
    return graph;
  }

 private:
  struct Greatest {
    std::uint64_t affinity = 0, key = 0;
  };

  static void raise(Greatest& kept, const Greatest& edge) {
    if (edge.affinity > kept.affinity ||
        (edge.affinity == kept.affinity && edge.key > kept.key)) {
      kept = edge;
    }
  }

  std::uint32_t number_of(std::uint64_t label) {
    const std::uint32_t number = dense_.of(label);
    if (number >= sizes_.size()) {
      sizes_.resize(number + 1);
      faces_.resize(number + 1);
    }
    return number;
  }

  void put(std::uint32_t number, std::uint64_t other, std::uint32_t affinity,
           std::uint64_t key) {
    raise(greatest_[pair_key(number, number_of(other))], {affinity, key});
  }

  const std::uint64_t* labels_;
  Edges edges_;
  Frame frame_;
  Thresholds thresholds_;
  DenseLabels dense_;
  std::vector<std::uint64_t> sizes_;
  std::vector<std::uint8_t> faces_;
  FlatMap<Greatest> greatest_;
  FlatMap<bool> joined_;
};

// `mask` lies as the labels do and may be null.
inline BasinGraph basin_graph(const std::uint64_t* labels, const Affinities& affinities,
                              const Frame& frame, const std::uint8_t* mask,
                              const Thresholds& thresholds, std::size_t threads) {
  const Edges edges{affinities, frame, frame.limits(), mask};
  const auto planes = static_cast<std::size_t>(extent(frame.core)[2]);
  const std::size_t slabs = std::min(threads, planes);
  std::vector<BasinMeter> meters(slabs, BasinMeter(labels, edges, thresholds));
  in_parallel(slabs, threads, [&](std::size_t i) {
    Box slab = frame.core;
    const std::int64_t start = slab.start[2];
    slab.start[2] = start + static_cast<std::int64_t>(piece_start(planes, slabs, i));
    slab.stop[2] = start + static_cast<std::int64_t>(piece_start(planes, slabs, i + 1));
    meters[i].measure(slab);
  });
  for (std::size_t i = 1; i < slabs; ++i) meters[0].add(meters[i]);
  for (std::size_t axis = 0; axis < 3; ++axis) meters[0].cross(axis);
  meters[0].touch();
  return meters[0].graph();
}

}  // namespace em

// What a chunk knows about the basins of the whole volume: how large its parts
// of them are, which parts across its lower faces are one basin, and the
// greatest edge between each two.
//
// Rows are cut into runs of one label. Sizes come from the runs, and say between which
// labels an edge can still merge anything: the affinities of other edges are not read.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "disjoint_sets.hpp"
#include "flat_map.hpp"
#include "linkage.hpp"
#include "parallel.hpp"
#include "runs.hpp"
#include "sorting.hpp"
#include "volume.hpp"
#include "watershed.hpp"

namespace em {

struct BasinEdge {
  std::uint64_t a, b, affinity, key;
};

// Puts the greatest edge first.
template <class Edge>
void sort_descending(std::vector<Edge>& edges) {
  const auto descends = [](const Edge& p, const Edge& q) {
    return p.affinity != q.affinity ? p.affinity > q.affinity : p.key > q.key;
  };
  if (std::is_sorted(edges.begin(), edges.end(), descends)) return;
  sort_by(edges, [](const Edge& edge) { return ~edge.key; });
  sort_by(edges, [](const Edge& edge) { return ~edge.affinity; });
}

// Ids and joins ascend, edges descend. Of a pair the smaller label comes first.
struct BasinGraph {
  std::vector<std::uint64_t> ids, sizes, anchors;  // anchor: place of the first voxel
  // Open faces that each touches: bit a is the lower face of axis a, bit 3 + a the upper.
  std::vector<std::uint8_t> faces;
  std::vector<std::array<std::uint64_t, 2>> joins;
  std::vector<BasinEdge> edges, cross_edges;  // within the chunk; over its lower faces
};

namespace detail {

// Reads the affinities of a few edges; 0 where there is none.
class EdgeReader {
 public:
  explicit EdgeReader(const Edges& edges) : edges_(edges) {}

  // Calls take(i, affinity) for the edges along an axis of n voxels that follow one another
  // along `along`. The voxels are within the limits or follow some that are.
  template <class Take>
  void read(std::size_t axis, const Vec3& first, std::size_t along, std::size_t n,
            const Take& take) const {
    switch (edges_.affinities.type) {
      case AffinityType::uint8:
        return read_as<std::uint8_t>(axis, first, along, n, take);
      case AffinityType::float16:
        return read_as<std::uint16_t>(axis, first, along, n, take);
      case AffinityType::float32:
        return read_as<std::int32_t>(axis, first, along, n, take);
    }
  }

 private:
  template <class T, class Take>
  void read_as(std::size_t axis, const Vec3& first, std::size_t along, std::size_t n,
               const Take& take) const {
    const auto& [start, stop] = edges_.limits;
    const std::byte* from = edges_.affinities.at(first[0], first[1], first[2], axis);
    const auto step = edges_.affinities.strides[along];
    if (along != axis && (first[axis] == start[axis] || first[axis] == stop[axis])) {
      for (std::size_t i = 0; i < n; ++i) take(i, 0u);
      return;
    }
    std::size_t i = 0, last = n;
    if (along == axis) {
      if (first[axis] == start[axis]) take(i++, 0u);
      last = std::min(n, static_cast<std::size_t>(stop[axis] - first[axis]));
    }
    const auto at = [&](std::size_t k) {
      return affinity<T>(from + static_cast<std::int64_t>(k) * step);
    };
    if (edges_.mask == nullptr) {
      for (; i < last; ++i) take(i, at(i));
    } else {
      for (; i < last; ++i) take(i, is_kept(axis, first, along, i) ? at(i) : 0u);
    }
    if (i < n) take(i, 0u);
  }

  // Whether the mask keeps both ends of an edge.
  bool is_kept(std::size_t axis, const Vec3& first, std::size_t along, std::size_t i) const {
    Vec3 v = first;
    v[along] += static_cast<std::int64_t>(i);
    const std::uint8_t* mask = edges_.mask + edges_.frame.index(v[0], v[1], v[2]);
    // Of a lower voxel that the array lacks, nothing is known.
    return mask[0] != 0 && (v[axis] == 0 || *(mask - edges_.frame.strides()[axis]) != 0);
  }

  template <class T>
  static std::uint32_t affinity(const std::byte* from) {
    if constexpr (sizeof(T) == 1) {
      return static_cast<std::uint32_t>(*from);
    } else {
      const std::int32_t bits = float_bits<T>(from, 0);
      if (affinity_margin(bits) < 0) {
        throw std::invalid_argument(
            "affinities hold " + std::to_string(std::bit_cast<float>(bits)) +
            " where the watershed takes numbers in [0, 1]; give those that the basins "
            "were made from");
      }
      return fixed_point(bits);
    }
  }

  Edges edges_;
};

// The planes of a slab of a chunk, as runs of labels; numbers of labels are given in the
// order in which they are met, and background has 0.
class BasinRuns {
 public:
  BasinRuns(const std::uint64_t* labels, const Frame& frame, const Box& slab)
      : labels_(labels), frame_(frame), slab_(slab) {}

  void measure() {
    const Box& core = frame_.core;
    const auto width = static_cast<std::uint32_t>(extent(core)[0]);
    std::vector<std::uint32_t> stops(width);
    runs_.reserve(volume(extent(slab_)) / 4);  // runs are longer as a rule
    const std::uint8_t x_faces[2] = {face(0, false, core.start), face(0, true, last())};
    for (std::int64_t z = slab_.start[2]; z < slab_.stop[2]; ++z) {
      for (std::int64_t y = core.start[1]; y < core.stop[1]; ++y) {
        const Vec3 first{core.start[0], y, z};
        const std::uint64_t* row = labels_ + frame_.index(first[0], y, z);
        prefetch(row + frame_.shape[0], y + 1 < core.stop[1] ? width * sizeof *row : 0);
        const std::size_t count = split(row, width, stops.data());
        const auto faces = static_cast<std::uint8_t>(
            face(1, false, first) | face(1, true, first) | face(2, false, first) |
            face(2, true, first));
        const std::uint64_t position = frame_.position(first);
        rows_.push_back(runs_.size());
        std::uint32_t x = 0;
        for (std::size_t i = 0; i < count; ++i) {
          const std::uint32_t n = number(row[x], position + x);
          runs_.push_back({stops[i], n});
          basins_[n].size += stops[i] - x;
          basins_[n].faces |= faces;
          x = stops[i];
        }
        basins_[runs_[rows_.back()].number].faces |= x_faces[0];
        basins_[runs_.back().number].faces |= x_faces[1];
      }
    }
  }

  struct Basin {
    std::uint64_t label = 0, size = 0;
    std::uint64_t anchor = std::numeric_limits<std::uint64_t>::max();
    std::uint8_t faces = 0;
  };

  std::vector<Basin>& basins() { return basins_; }
  const Box& slab() const { return slab_; }

  // The number of a label, a new one if it was not met here.
  std::uint32_t number(std::uint64_t label, std::uint64_t position) {
    if (label == 0) return 0;
    return recent_.of(label, [&] {
      std::uint32_t& n = numbers_[label];
      if (n == 0) {
        n = static_cast<std::uint32_t>(basins_.size());
        basins_.push_back({label, 0, position, 0});
      }
      return n;
    });
  }

  // Replaces the numbers in runs.
  void renumber(const std::vector<std::uint32_t>& numbers) {
    for (Run& run : runs_) run.number = numbers[run.number];
  }

  // The runs of a row.
  const Run* row(std::int64_t y, std::int64_t z) const {
    const auto rows = static_cast<std::size_t>(extent(frame_.core)[1]);
    const std::size_t row = rows * static_cast<std::size_t>(z - slab_.start[2]) +
                            static_cast<std::size_t>(y - frame_.core.start[1]);
    return runs_.data() + rows_[row];
  }

 private:
  Vec3 last() const {
    const Vec3& stop = frame_.core.stop;
    return {stop[0] - 1, stop[1] - 1, stop[2] - 1};
  }

  // The bit of a face if it is open and the voxel lies on it.
  std::uint8_t face(int axis, bool is_upper, const Vec3& v) const {
    const std::int64_t at = is_upper ? last()[axis] : frame_.core.start[axis];
    if (v[axis] != at) return 0;
    const bool is_open = is_upper ? frame_.has_upper(v, axis) : frame_.has_lower(v, axis);
    return static_cast<std::uint8_t>(is_open ? 1u << (axis + (is_upper ? 3 : 0)) : 0u);
  }

  const std::uint64_t* labels_;
  Frame frame_;
  Box slab_;
  std::vector<Run> runs_;
  std::vector<std::size_t> rows_;  // the first run of each
  std::vector<Basin> basins_ = std::vector<Basin>(1);
  FlatMap<std::uint32_t> numbers_;
  Recent<std::uint32_t> recent_;
};

// The greatest edge between each two labels that touch in a slab, or over its upper end,
// one of them small.
class GreatestEdges {
 public:
  // `is_small` says so of each number; about `expected` edges will be found.
  GreatestEdges(const Edges& edges, std::uint32_t low, const std::vector<BasinRuns>& slabs,
                const std::vector<std::uint8_t>& is_small, std::size_t expected)
      : low_(low),
        core_(edges.frame.core),
        affinity_(edges),
        slabs_(slabs),
        is_small_(is_small),
        greatest_(expected) {}

  // Runs of small labels are held against the rows beside them; what they share with
  // another small one is noted once, from its upper side.
  void measure(std::size_t slab) {
    const auto& [start, stop] = slabs_[slab].slab();
    const Vec3 size = extent(core_);
    for (std::int64_t z = start[2]; z < stop[2]; ++z) {
      for (std::int64_t y = start[1]; y < stop[1]; ++y) {
        std::array<Beside, 4> beside;
        std::array<Upper, 5> uppers;
        const auto upper = [&](const Vec3& first, std::size_t axis) {
          const std::int64_t plane = first[2] - core_.start[2];
          const std::int64_t row = first[1] - core_.start[1] + size[1] * plane;
          return Upper{first, axis, 3 * static_cast<std::uint64_t>(size[0] * row) + axis};
        };
        const Vec3 here{core_.start[0], y, z};
        uppers[0] = upper(here, 0);
        std::size_t n_beside = 0;
        const auto lay_beside = [&](std::size_t axis, bool is_lower) {
          Vec3 first = here;
          first[axis] += is_lower ? -1 : 1;
          if (first[axis] < core_.start[axis] || first[axis] >= core_.stop[axis]) return;
          const bool is_below = first[2] < start[2], is_above = first[2] >= stop[2];
          const BasinRuns& runs = slabs_[is_below ? slab - 1 : is_above ? slab + 1 : slab];
          beside[n_beside++] = {runs.row(first[1], first[2]), 0, is_lower};
          uppers[n_beside] = upper(is_lower ? here : first, axis);
        };
        for (const std::size_t axis : {1, 2}) {
          for (const bool is_lower : {true, false}) lay_beside(axis, is_lower);
        }
        touches_.clear();
        note(slabs_[slab].row(y, z), std::span(beside).first(n_beside));
        add(uppers);
      }
    }
  }

  void add(const GreatestEdges& other) {
    other.greatest_.for_each([&](std::uint64_t pair, std::uint64_t code) {
      std::uint64_t& kept = greatest_[pair];
      kept = std::max(kept, code);
    });
  }

  // By pair, the smaller number in the upper half; as `edge_code` has them.
  const FlatMap<std::uint64_t>& edges() const { return greatest_; }

 private:
  // A row beside another along y or z, and how far it was followed.
  struct Beside {
    const Run* run;
    std::uint32_t start;
    bool is_lower;
  };

  // Two labels that touch from start to stop of a row, and that row: it has the upper
  // voxels of the edges.
  struct Touch {
    std::uint64_t pair, code;
    std::uint32_t start, stop;
    std::uint8_t row;
  };
  // Where a row of upper voxels begins, and the axis of their edges.
  struct Upper {
    Vec3 first;
    std::size_t axis;
    std::uint64_t place;
  };

  // Notes where runs of a row touch others.
  void note(const Run* run, std::span<Beside> beside) {
    const auto width = static_cast<std::uint32_t>(extent(core_)[0]);
    const auto touch = [&](std::uint32_t a, std::uint32_t b, std::uint32_t start,
                           std::uint32_t stop, std::uint8_t row) {
      const std::uint64_t pair = std::uint64_t{std::min(a, b)} << 32 | std::max(a, b);
      touches_.push_back({pair, 0, start, stop, row});
    };
    std::uint32_t before = 0;
    for (std::uint32_t x = 0; x < width; before = run->number, x = run->stop, ++run) {
      const std::uint32_t number = run->number;
      const bool is_small = is_small_[number];
      if ((is_small && before != 0) || (is_small_[before] && number != 0)) {
        touch(before, number, x, x + 1, 0);
      }
      if (!is_small) continue;
      for (std::size_t i = 0; i < beside.size(); ++i) {
        Beside& row = beside[i];
        while (row.run->stop <= x) row.start = row.run++->stop;
        while (true) {
          const auto [end, other] = *row.run;
          if (other != number && other != 0 && (row.is_lower || !is_small_[other])) {
            touch(number, other, std::max(row.start, x), std::min(end, run->stop),
                  static_cast<std::uint8_t>(1 + i));
          }
          if (end >= run->stop) break;
          row.start = row.run++->stop;
        }
      }
    }
  }

  // Adds what was noted in a row; one step after the other, so that the memory has many
  // requests at a time.
  void add(std::span<const Upper> rows) {
    for (Touch& touch : touches_) {
      const Upper& row = rows[touch.row];
      Vec3 first = row.first;
      first[0] += touch.start;
      const std::uint64_t place = row.place + 3 * touch.start;
      affinity_.read(row.axis, first, 0, touch.stop - touch.start,
                     [&](std::size_t i, std::uint32_t found) {
                       const std::uint64_t code = edge_code::of(found, place + 3 * i);
                       if (found > low_) touch.code = std::max(touch.code, code);
                     });
      greatest_.prefetch(touch.pair);
    }
    for (const Touch& touch : touches_) {
      if (touch.code == 0) continue;
      std::uint64_t& kept = greatest_[touch.pair];
      kept = std::max(kept, touch.code);
    }
  }

  std::uint32_t low_;
  Box core_;
  EdgeReader affinity_;
  const std::vector<BasinRuns>& slabs_;
  const std::vector<std::uint8_t>& is_small_;
  FlatMap<std::uint64_t> greatest_;
  std::vector<Touch> touches_;
};

// What an edge over a face is: nothing, an edge that is not on, or one that is.
constexpr std::uint8_t is_off = 1, is_on = 2;

// The affinities of the six edges of each voxel of a row, by `Choice` less 1.
using Edges6 = std::array<const std::uint32_t*, 6>;

// What the edges are that join the voxels of a row on a face to those below it along an
// axis. Which of them are on depends on what both chose.
EM_ROW_KERNEL inline void mark_crossings(const Edges6& upper, const Edges6& lower,
                                         std::size_t axis, std::size_t n,
                                         const Thresholds& thresholds, std::uint8_t* out) {
  const auto low = static_cast<std::uint32_t>(thresholds.low);
  const auto high = static_cast<std::uint32_t>(thresholds.high);
  const auto down = static_cast<std::uint32_t>(to_lower(static_cast<int>(axis)));
  const auto up = static_cast<std::uint32_t>(to_upper(static_cast<int>(axis)));
  const std::uint32_t* across = upper[axis];
  const auto greatest = [](const Edges6& six, std::size_t i) {
    return std::max({ranked(six[0][i], 1), ranked(six[1][i], 2), ranked(six[2][i], 3),
                     ranked(six[3][i], 4), ranked(six[4][i], 5), ranked(six[5][i], 6)});
  };
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t affinity = across[i];
    const bool on = (affinity >= high) | (greatest(upper, i) == ranked(affinity, down)) |
                    (greatest(lower, i) == ranked(affinity, up));
    out[i] = static_cast<std::uint8_t>(affinity > low ? (on ? is_on : is_off) : 0);
  }
}

// What crosses the lower faces of a chunk, by labels.
class Crossings {
 public:
  Crossings(const std::uint64_t* labels, const Edges& edges, const Thresholds& thresholds)
      : labels_(labels), edges_(edges), thresholds_(thresholds) {}

  // The edges across the lower face of an axis.
  void cross(std::size_t axis) {
    const Frame& frame = edges_.frame;
    const Vec3& start = frame.core.start;
    if (!frame.has_lower(start, static_cast<int>(axis))) return;
    // Rows of the face lie along u.
    const std::size_t u = axis == 0 ? 1 : 0, v = axis == 2 ? 1 : 2;
    const Vec3 size = extent(frame.core);
    const auto n = static_cast<std::size_t>(size[u]);
    const std::array<std::size_t, 3> strides = frame.strides();
    std::vector<std::uint8_t> kinds(n);
    // Of either voxel: its edges along the axis, along u with one more at the end, and
    // along v, and those along v of the row that follows.
    struct Side {
      std::vector<std::uint32_t> down, up, along_u, along_v, next_v;
    };
    Side upper{}, lower{};
    Crossing stretch;  // labels one after the other, which are looked up once
    const EdgeReader affinity(edges_);
    const auto read = [&](std::size_t channel, const Vec3& at, std::size_t count,
                          std::vector<std::uint32_t>& row) {
      row.resize(n + 1);
      affinity.read(channel, at, u, count,
                    [&](std::size_t i, std::uint32_t found) { row[i] = found; });
    };
    const auto six = [&](const Side& side) {
      Edges6 edges;
      edges[axis] = side.down.data();
      edges[3 + axis] = side.up.data();
      edges[u] = side.along_u.data();
      edges[3 + u] = side.along_u.data() + 1;
      edges[v] = side.along_v.data();
      edges[3 + v] = side.next_v.data();
      return edges;
    };
    for (Vec3 first = start; first[v] < frame.core.stop[v]; ++first[v]) {
      for (Side* side : {&upper, &lower}) {
        Vec3 at = first;
        at[axis] -= side == &lower ? 1 : 0;
        read(axis, at, n, side->down);
        read(u, at, n + 1, side->along_u);
        if (first[v] == start[v]) {
          read(v, at, n, side->along_v);
        } else {
          side->along_v.swap(side->next_v);
        }
        ++at[v];
        read(v, at, n, side->next_v);
      }
      Vec3 beyond = first;
      ++beyond[axis];
      read(axis, beyond, n, upper.up);
      lower.up = upper.down;
      mark_crossings(six(upper), six(lower), axis, n, thresholds_, kinds.data());

      const std::uint64_t* label = labels_ + frame.index(first[0], first[1], first[2]);
      Vec3 second = first;
      ++second[u];
      const std::uint64_t key = 3 * frame.position(first) + axis;
      const std::uint64_t key_step = 3 * frame.position(second) + axis - key;
      for (std::size_t i = 0; i < n; ++i, label += strides[u]) {
        const std::uint64_t here = *label, below = *(label - strides[axis]);
        if (kinds[i] == 0 || here == 0 || below == 0 || here == below) continue;
        if (here != stretch.here || below != stretch.below) {
          raise(stretch);
          stretch = {here, below, 0, 0, false};
        }
        stretch.raise(upper.down[i], key + i * key_step, kinds[i] == is_on);
      }
    }
    raise(stretch);
  }

  // A label in the chunk and one below it, and the greatest edge between them.
  struct Crossing {
    std::uint64_t here = 0, below = 0, key = 0;
    std::uint32_t affinity = 0;
    bool is_join = false;

    void raise(std::uint32_t other, std::uint64_t other_key, bool joins) {
      is_join |= joins;
      if (other > affinity || (other == affinity && other_key > key)) {
        affinity = other;
        key = other_key;
      }
    }
  };

  // All of them, and empty ones.
  const std::vector<Crossing>& all() const { return slots_; }

 private:
  // Adds what was found of a pair of labels. A table of pairs: one array, linear probing.
  void raise(const Crossing& found) {
    if (found.here == 0) return;
    if (2 * (size_ + 1) > slots_.size()) {
      std::vector<Crossing> old(std::max(2 * slots_.size(), std::size_t{1024}));
      old.swap(slots_);
      for (const Crossing& crossing : old) {
        if (crossing.here != 0) slot(crossing) = crossing;
      }
    }
    Crossing& kept = slot(found);
    if (kept.here == 0) {
      kept = found;
      ++size_;
    } else {
      kept.raise(found.affinity, found.key, found.is_join);
    }
  }

  Crossing& slot(const Crossing& wanted) {
    const std::uint64_t mixed =
        (wanted.here * 0x9E3779B97F4A7C15ull ^ wanted.below) * 0xD6E8FEB86659FD93ull;
    std::size_t i = mixed >> 32 & (slots_.size() - 1);
    while (slots_[i].here != 0 &&
           (slots_[i].here != wanted.here || slots_[i].below != wanted.below)) {
      i = (i + 1) & (slots_.size() - 1);
    }
    return slots_[i];
  }

  const std::uint64_t* labels_;
  Edges edges_;
  Thresholds thresholds_;
  std::vector<Crossing> slots_;
  std::size_t size_ = 0;
};

}  // namespace detail

// `mask` lies as the labels do and may be null. With `large`, of the edges within the
// chunk only those are kept that can merge labels of which not both hold so many voxels: a
// maximum spanning forest.
inline BasinGraph basin_graph(const std::uint64_t* labels, const Affinities& affinities,
                              const Frame& frame, const std::uint8_t* mask,
                              const Thresholds& thresholds,
                              std::optional<std::uint64_t> large, std::size_t threads) {
  using detail::BasinRuns, detail::GreatestEdges;
  const Edges edges{affinities, frame, frame.limits(), mask};
  const auto planes = static_cast<std::size_t>(extent(frame.core)[2]);
  const std::size_t slabs = std::min(threads, planes);
  std::vector<BasinRuns> runs;
  for (std::size_t i = 0; i < slabs; ++i) {
    const std::int64_t start = frame.core.start[2];
    Box slab = frame.core;
    slab.start[2] = start + static_cast<std::int64_t>(piece_start(planes, slabs, i));
    slab.stop[2] = start + static_cast<std::int64_t>(piece_start(planes, slabs, i + 1));
    runs.emplace_back(labels, frame, slab);
  }
  in_parallel(slabs, threads, [&](std::size_t i) { runs[i].measure(); });
  std::vector<BasinRuns::Basin>& basins = runs[0].basins();
  for (std::size_t i = 1; i < slabs; ++i) {
    std::vector<std::uint32_t> numbers{0};
    for (std::size_t j = 1; j < runs[i].basins().size(); ++j) {
      const BasinRuns::Basin& part = runs[i].basins()[j];
      numbers.push_back(runs[0].number(part.label, part.anchor));
      basins[numbers[j]].size += part.size;
      basins[numbers[j]].faces |= part.faces;
    }
    runs[i].renumber(numbers);
  }

  const auto n = static_cast<std::uint32_t>(basins.size());
  std::vector<std::uint8_t> is_small(n);
  std::size_t n_small = 0;
  for (std::uint32_t i = 1; i < n; ++i) {
    is_small[i] = !large || basins[i].size < *large;
    n_small += is_small[i];
  }
  std::vector<GreatestEdges> slab_edges;
  for (std::size_t i = 0; i < slabs; ++i) {
    slab_edges.emplace_back(edges, static_cast<std::uint32_t>(thresholds.low), runs,
                            is_small, 4 * n_small / slabs);
  }
  in_parallel(slabs, threads, [&](std::size_t i) { slab_edges[i].measure(i); });
  for (std::size_t i = 1; i < slabs; ++i) slab_edges[0].add(slab_edges[i]);
  detail::Crossings crossings(labels, edges, thresholds);
  for (std::size_t axis = 0; axis < 3; ++axis) crossings.cross(axis);

  BasinGraph graph;
  std::vector<std::uint32_t> order;
  for (std::uint32_t i = 1; i < n; ++i) order.push_back(i);
  sort_by(order, [&](std::uint32_t i) { return basins[i].label; });
  for (const std::uint32_t i : order) {
    graph.ids.push_back(basins[i].label);
    graph.sizes.push_back(basins[i].size);
    graph.anchors.push_back(basins[i].anchor);
    graph.faces.push_back(basins[i].faces);
  }

  const auto labels_of = [&](std::uint64_t pair) {
    const std::uint64_t a = basins[pair >> 32].label;
    const std::uint64_t b = basins[pair & 0xFFFFFFFFu].label;
    return a < b ? std::array{a, b} : std::array{b, a};
  };
  struct Edge {
    std::uint64_t pair, code;
  };
  std::vector<Edge> inner;
  inner.reserve(slab_edges[0].edges().size());
  slab_edges[0].edges().for_each(
      [&](std::uint64_t pair, std::uint64_t code) { inner.push_back({pair, code}); });
  sort_by(inner, [](const Edge& edge) { return ~edge.code; });
  DisjointSets sets(large ? n : 0);
  const Vec3 size = extent(frame.core);
  const auto row = static_cast<std::uint64_t>(size[0]);
  const std::uint64_t plane = row * static_cast<std::uint64_t>(size[1]);
  for (const auto& [pair, code] : inner) {
    if (large) {
      const std::uint32_t i = sets.find(static_cast<std::uint32_t>(pair >> 32));
      const std::uint32_t j = sets.find(static_cast<std::uint32_t>(pair));
      if (i == j) continue;
      sets.unite(i, j);
    }
    const auto [a, b] = labels_of(pair);
    const std::uint64_t place = edge_code::place(code);
    const Vec3 v{frame.core.start[0] + static_cast<std::int64_t>(place % row),
                 frame.core.start[1] + static_cast<std::int64_t>(place % plane / row),
                 frame.core.start[2] + static_cast<std::int64_t>(place / plane)};
    graph.edges.push_back({a, b, code >> edge_code::place_bits,
                           3 * frame.position(v) + edge_code::axis(code)});
  }
  for (const detail::Crossings::Crossing& crossing : crossings.all()) {
    const auto [a, b] = std::minmax(crossing.here, crossing.below);
    if (a == 0) continue;
    if (crossing.is_join) {
      graph.joins.push_back({a, b});
    } else {
      graph.cross_edges.push_back({a, b, crossing.affinity, crossing.key});
    }
  }
  sort_by(graph.joins, [](const auto& pair) { return pair[1]; });
  sort_by(graph.joins, [](const auto& pair) { return pair[0]; });
  sort_descending(graph.cross_edges);
  return graph;
}

}  // namespace em

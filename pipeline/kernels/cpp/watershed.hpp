// Watershed basins of an affinity graph.
//
// Each voxel chooses the greatest of its six edges, if its affinity is above
// `low`; a voxel without one is background. An edge is on if a voxel at either
// end chose it or its affinity is `high` or more. Basins are the components of
// the edges that are on. The order of edges is strict, so every component of
// the chosen edges is a tree that drains to one mutual choice: plateaus need
// no rule of their own, and a chunk decides each edge as the whole would.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "flat_map.hpp"
#include "linkage.hpp"
#include "parallel.hpp"
#include "volume.hpp"

namespace em {

// 0 is no edge, 1 + a the edge to the predecessor along axis a, 4 + a to the successor.
// The keys of a voxel's edges ascend in this order.
using Choice = std::uint8_t;
constexpr Choice to_lower(int axis) { return static_cast<Choice>(1 + axis); }
constexpr Choice to_upper(int axis) { return static_cast<Choice>(4 + axis); }

// An edge of a voxel and its choice in one number, so that the greatest of a voxel's
// edges is the greatest number.
inline std::uint32_t ranked(std::uint32_t affinity, std::uint32_t choice) {
  return affinity << 3 | choice;
}

// The choices of the n voxels of a row; `high` gets bit a where the edge to the
// predecessor along axis a is that high.
EM_ROW_KERNEL inline void choose(const SixEdges& edges, std::size_t n,
                                 const Thresholds& thresholds,
                                 Choice* __restrict choices,
                                 std::uint8_t* __restrict high) {
  const auto [x, y, z, upper_y, upper_z] = edges;
  const auto at_least = static_cast<std::uint32_t>(thresholds.high);
  const auto above = static_cast<std::uint32_t>(thresholds.low);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t best = std::max(
        {ranked(x[i], to_lower(0)), ranked(y[i], to_lower(1)), ranked(z[i], to_lower(2)),
         ranked(x[i + 1], to_upper(0)), ranked(upper_y[i], to_upper(1)),
         ranked(upper_z[i], to_upper(2))});
    choices[i] = static_cast<Choice>(best >> 3 > above ? best & 7u : 0u);
    high[i] = static_cast<std::uint8_t>((x[i] >= at_least ? 1u : 0u) |
                                        (y[i] >= at_least ? 2u : 0u) |
                                        (z[i] >= at_least ? 4u : 0u));
  }
}

// What the voxels of a row are part of: bit a is set if the edge to the predecessor along
// axis a is on, `foreground` if any edge is. Only the axes of `inside` lead to voxels.
constexpr std::uint8_t foreground = 8;

EM_ROW_KERNEL inline void switch_on(const Choice* here, const Choice* below_y,
                                    const Choice* below_z, const std::uint8_t* high,
                                    std::size_t n, std::uint8_t inside, std::uint8_t* on) {
  const auto bit = [](bool is_set, std::uint8_t value) {
    return is_set ? value : std::uint8_t{0};
  };
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t bits = high[i] | bit(here[i] == to_lower(0), 1) |
                              bit(here[i] == to_lower(1), 2) |
                              bit(below_y[i] == to_upper(1), 2) |
                              bit(here[i] == to_lower(2), 4) |
                              bit(below_z[i] == to_upper(2), 4) |
                              bit(here[i] != 0, foreground);
    on[i] = bits & inside;
  }
  for (std::size_t i = 1; i < n; ++i) on[i] |= bit(here[i - 1] == to_upper(0), 1);
  on[0] &= static_cast<std::uint8_t>(~1u);
}

// All ones if a bit is set.
inline std::uint32_t mask_of(std::uint32_t bits, int place) {
  return 0u - (bits >> place & 1u);
}

// The labels below a row along y and along z; of those over edges that are on, the least
// (`no_label` where there is none) and the most (0 where there is none).
struct LabelsBelow {
  const std::uint32_t *y, *z, *least, *most;
};

EM_ROW_KERNEL inline void look_below(const std::uint8_t* on, const std::uint32_t* below_y,
                                     const std::uint32_t* below_z, std::size_t n,
                                     std::uint32_t* least, std::uint32_t* most) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t bits = on[i];
    const std::uint32_t y = 0u - (bits >> 1 & 1u), z = 0u - (bits >> 2 & 1u);
    least[i] = std::min(below_y[i] | ~y, below_z[i] | ~z);
    most[i] = std::max(below_y[i] & y, below_z[i] & z);
  }
}

// Sets over a table that several threads use in parts: the root is the smallest member.
inline std::uint32_t find_root(std::uint32_t* parent, std::uint32_t i) {
  while (parent[i] != i) {
    parent[i] = parent[parent[i]];
    i = parent[i];
  }
  return i;
}

inline std::uint32_t unite_roots(std::uint32_t* parent, std::uint32_t i, std::uint32_t j) {
  i = find_root(parent, i);
  j = find_root(parent, j);
  if (i > j) std::swap(i, j);
  parent[j] = i;
  return i;
}

// The basins of a chunk, by labels that count from 0 in the order of their first voxels.
struct Basins {
  std::vector<std::uint32_t> first, size;  // place of the first voxel; voxels
};

// Labels the core with its basins.
class BasinScan {
 public:
  BasinScan(const Edges& edges, const Thresholds& thresholds, std::uint32_t* labels,
            std::uint32_t* parents, std::size_t slabs, std::size_t threads)
      : edges_(edges),
        core_(edges.frame.core),
        thresholds_(thresholds),
        row_(static_cast<std::size_t>(extent(core_)[0])),
        plane_(row_ * static_cast<std::size_t>(extent(core_)[1])),
        planes_(static_cast<std::size_t>(extent(core_)[2])),
        labels_(labels),
        parents_(parents),
        slabs_(slabs),
        threads_(threads),
        n_labels_(slabs),
        seams_(slabs) {}

  Basins run() {
    in_parallel(slabs_, threads_, [&](std::size_t slab) { scan(slab); });
    for (std::size_t slab = 1; slab < slabs_; ++slab) close_seam(slab);
    const std::vector<std::uint32_t> starts = number();
    Basins basins;
    basins.first.resize(starts.back());
    basins.size.resize(starts.back());
    std::vector<FlatMap<std::uint32_t>> foreign(slabs_);
    in_parallel(slabs_, threads_, [&](std::size_t slab) {
      measure(slab, starts[slab], basins, foreign[slab]);
    });
    for (const auto& counts : foreign) {
      counts.for_each([&](std::uint64_t basin_plus_1, std::uint32_t n) {
        basins.size[basin_plus_1 - 1] += n;
      });
    }
    return basins;
  }

 private:
  std::size_t first_plane(std::size_t slab) const {
    return piece_start(planes_, slabs_, slab);
  }

  // Gives the voxels of a slab provisional labels, which count from the place of its first
  // voxel, and unites those that turn out to be one.
  void scan(std::size_t slab) {
    const std::size_t begin = first_plane(slab), end = first_plane(slab + 1);
    std::vector<Choice> choices(plane_), before(row_), nothing(row_);
    std::vector<std::uint8_t> high(row_), on(row_);
    std::vector<std::uint32_t> least(row_), most(row_);
    const std::vector<std::uint32_t> unlabelled(row_, no_label);
    Box box = core_;
    if (slab > 0) {
      box.start[2] = core_.start[2] + static_cast<std::int64_t>(begin) - 1;
      box.stop[2] = box.start[2] + 1;
      for_each_row(edges_, box, [&](std::int64_t y, std::int64_t, const SixEdges& six) {
        choose(six, row_, thresholds_,
               choices.data() + row_ * static_cast<std::size_t>(y - box.start[1]),
               high.data());
      });
      seams_[slab].resize(plane_);
    }
    box.start[2] = core_.start[2] + static_cast<std::int64_t>(begin);
    box.stop[2] = core_.start[2] + static_cast<std::int64_t>(end);
    auto next = static_cast<std::uint32_t>(begin * plane_);
    for_each_row(edges_, box, [&](std::int64_t y, std::int64_t z, const SixEdges& six) {
      const auto j = static_cast<std::size_t>(y - box.start[1]);
      const auto k = static_cast<std::size_t>(z - core_.start[2]);
      std::uint32_t* row = labels_ + plane_ * k + row_ * j;
      Choice* here = choices.data() + row_ * j;
      std::copy_n(here, row_, before.data());
      choose(six, row_, thresholds_, here, high.data());
      // Edges over the seam wait until the slab below has its labels.
      const bool is_first = z == box.start[2];
      const bool at_seam = is_first && slab > 0;
      const auto inside = static_cast<std::uint8_t>(foreground | 1 | (j > 0 ? 2 : 0) |
                                                    (!is_first || at_seam ? 4 : 0));
      switch_on(here, j > 0 ? here - row_ : nothing.data(), before.data(), high.data(),
                row_, inside, on.data());
      if (at_seam) {
        for (std::size_t i = 0; i < row_; ++i) {
          seams_[slab][row_ * j + i] = on[i] & 4;
          on[i] &= foreground | 3;
        }
      }
      const LabelsBelow below{j > 0 ? row - row_ : unlabelled.data(),
                              is_first ? unlabelled.data() : row - plane_, least.data(),
                              most.data()};
      look_below(on.data(), below.y, below.z, row_, least.data(), most.data());
      next = label(on.data(), below, row, next);
    });
    n_labels_[slab] = next - static_cast<std::uint32_t>(begin * plane_);
  }

  // Labels a row; returns the next provisional label. Which edges are on is hard to
  // foresee, so the labels over them are compared without asking.
  std::uint32_t label(const std::uint8_t* on, const LabelsBelow& below, std::uint32_t* row,
                      std::uint32_t next) {
    std::uint32_t* parents = parents_;
    std::uint32_t last = no_label;
    for (std::size_t i = 0; i < row_; ++i) {
      const std::uint32_t x = mask_of(on[i], 0);
      const std::uint32_t least = std::min(last | ~x, below.least[i]);
      const std::uint32_t most = std::max(last & x, below.most[i]);
      if (least == no_label) {
        last = no_label;
        if (on[i] != 0) {
          parents[next] = next;
          last = next++;
        }
      } else if (most > least) {
        const std::uint32_t third = last ^ below.y[i] ^ below.z[i] ^ least ^ most;
        last = unite_roots(parents, least, most);
        if ((on[i] & 7) == 7) last = unite_roots(parents, last, third);
      } else {
        last = least;
      }
      row[i] = last;
    }
    return next;
  }

  void close_seam(std::size_t slab) {
    const std::uint32_t* here = labels_ + first_plane(slab) * plane_;
    const std::vector<std::uint8_t>& on = seams_[slab];
    for (std::size_t i = 0; i < plane_; ++i) {
      if (on[i] != 0) unite_roots(parents_, here[i], *(here + i - plane_));
    }
    seams_[slab] = {};
  }

  // Replaces the parents by numbers that count the basins; returns those that begin in
  // each slab, as the number of its first and, last, the number of all.
  std::vector<std::uint32_t> number() {
    std::vector<std::uint32_t> starts;
    std::uint32_t n = 0;
    for (std::size_t slab = 0; slab < slabs_; ++slab) {
      starts.push_back(n);
      const std::size_t begin = first_plane(slab) * plane_;
      for (std::size_t i = begin; i < begin + n_labels_[slab]; ++i) {
        parents_[i] = parents_[i] == i ? n++ : parents_[parents_[i]];
      }
    }
    starts.push_back(n);
    return starts;
  }

  // Relabels a slab and measures the basins that begin in it; of the others it counts the
  // voxels apart, as the slab where they begin does so at the same time.
  void measure(std::size_t slab, std::uint32_t start, Basins& basins,
               FlatMap<std::uint32_t>& foreign) {
    const std::size_t end = first_plane(slab + 1) * plane_;
    std::uint32_t next = start;
    for (std::size_t i = first_plane(slab) * plane_; i < end; ++i) {
      if (labels_[i] == no_label) continue;
      const std::uint32_t basin = parents_[labels_[i]];
      labels_[i] = basin;
      if (basin < start) {
        ++foreign[std::uint64_t{basin} + 1];
        continue;
      }
      if (basin == next) basins.first[next++] = static_cast<std::uint32_t>(i);
      ++basins.size[basin];
    }
  }

  Edges edges_;
  Box core_;
  Thresholds thresholds_;
  std::size_t row_, plane_, planes_;
  std::uint32_t *labels_, *parents_;
  std::size_t slabs_, threads_;
  std::vector<std::uint32_t> n_labels_;
  std::vector<std::vector<std::uint8_t>> seams_;
};

EM_ROW_KERNEL inline void name_voxels(const std::uint32_t* labels, std::size_t n,
                                      const std::uint32_t* names, std::uint32_t background,
                                      std::uint64_t base, std::uint64_t* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t name = names[std::min(labels[i], background)];
    out[i] = name == no_label ? 0 : base + 1 + name;
  }
}

// Writes base + 1 + the name of each voxel's basin over the array whose upper half the
// 32-bit labels are; 0 where the name is `no_label`. What a part writes lies below what
// the next part reads, and within the lower half there is nothing to be read.
inline void widen(std::byte* array, std::size_t n, std::vector<std::uint32_t> names,
                  std::uint64_t base, std::size_t threads) {
  const auto background = static_cast<std::uint32_t>(names.size());
  names.push_back(no_label);
  const std::byte* narrow = array + n * sizeof(std::uint32_t);
  const auto write = [&](std::size_t begin, std::size_t end) {
    std::array<std::uint32_t, 512> labels;
    std::array<std::uint64_t, 512> wide;
    for (std::size_t i = begin; i < end; i += labels.size()) {
      const std::size_t count = std::min(labels.size(), end - i);
      std::memcpy(labels.data(), narrow + i * sizeof(std::uint32_t),
                  count * sizeof(std::uint32_t));
      name_voxels(labels.data(), count, names.data(), background, base, wide.data());
      std::memcpy(array + i * sizeof(std::uint64_t), wide.data(),
                  count * sizeof(std::uint64_t));
    }
  };
  std::size_t done = 0;
  while (threads > 1 && n - done > std::size_t{1} << 16) {
    const std::size_t half = (n - done) / 2;
    in_parallel(threads, threads, [&](std::size_t piece) {
      write(done + piece_start(half, threads, piece),
            done + piece_start(half, threads, piece + 1));
    });
    done += half;
  }
  write(done, n);
}

// Which basins touch a face of the core that is not one of the bounds.
inline std::vector<std::uint8_t> open_basins(const Frame& frame,
                                             const std::uint32_t* labels,
                                             std::size_t n_basins) {
  std::vector<std::uint8_t> open(n_basins);
  const Vec3 size = extent(frame.core);
  const std::int64_t steps[3] = {1, size[0], size[0] * size[1]};
  for (std::size_t axis = 0; axis < 3; ++axis) {
    Vec3 last = frame.core.stop;
    --last[axis];
    const bool is_open[2] = {frame.has_lower(frame.core.start, static_cast<int>(axis)),
                             frame.has_upper(last, static_cast<int>(axis))};
    const std::size_t u = axis == 0 ? 1 : 0, v = axis == 2 ? 1 : 2;
    for (int side = 0; side < 2; ++side) {
      if (!is_open[side]) continue;
      const std::uint32_t* face = labels + side * (size[axis] - 1) * steps[axis];
      for (std::int64_t j = 0; j < size[v]; ++j) {
        for (std::int64_t i = 0; i < size[u]; ++i) {
          const std::uint32_t label = face[i * steps[u] + j * steps[v]];
          if (label != no_label) open[label] = 1;
        }
      }
    }
  }
  return open;
}

// Labels the core with the components of the edges inside it, merged by size as far as
// the core decides. A label says where its component begins: base + 1 + the place of its
// first voxel, x fastest. `array` has 8 bytes for each voxel.
inline void watershed(const Affinities& affinities, const Frame& frame,
                      const std::uint8_t* mask, const Thresholds& thresholds,
                      const SizeRules& rules, std::uint64_t base, std::size_t threads,
                      std::byte* array) {
  const std::size_t n = volume(extent(frame.core));
  if (n > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("a chunk of " + std::to_string(n) +
                                " voxels is too large to label; use at most 2^32 - 1");
  }
  const auto planes = static_cast<std::size_t>(extent(frame.core)[2]);
  const std::size_t slabs = std::min(threads, planes);
  auto* parents = reinterpret_cast<std::uint32_t*>(array);
  std::uint32_t* labels = parents + n;
  const Edges edges{affinities, frame, frame.limits(), mask};
  Basins basins = BasinScan(edges, thresholds, labels, parents, slabs, threads).run();
  if (rules.threshold > 0 || rules.dust > 0) {
    const LabelledChunk chunk{{affinities, frame, frame.core, mask},
                              static_cast<std::uint32_t>(thresholds.low),
                              labels,
                              basins.first.size(),
                              slabs,
                              threads};
    const std::vector<std::uint8_t> open = open_basins(frame, labels, chunk.n_basins);
    std::vector<std::uint32_t> clusters = link(chunk, std::move(basins.size), open, rules);
    for (std::uint32_t& cluster : clusters) {
      if (cluster != no_label) cluster = basins.first[cluster];
    }
    basins.first = std::move(clusters);
  }
  widen(array, n, std::move(basins.first), base, threads);
}

}  // namespace em

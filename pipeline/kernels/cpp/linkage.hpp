// Size-dependent single linkage (Zlateski & Seung 2015) of the basins of a chunk, as far
// as the chunk decides it.
//
// Only the edges of the maximum spanning forest of the basins can merge anything: the
// ends of any other edge are joined by greater ones, and where one of those was refused
// both sides were large already. So the forest is found first, by the rounds of Boruvka:
// each component takes its greatest edge to another. The first rounds pass over the
// volume, with one number for each component, as there may be one basin to every four
// voxels; the last ones over a list of the greatest edge between each two components.
// Then the edges of the forest are met in descending order, on the basins themselves.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "flat_map.hpp"
#include "parallel.hpp"
#include "sorting.hpp"
#include "volume.hpp"

namespace em {

constexpr std::uint32_t no_label = std::numeric_limits<std::uint32_t>::max();

// An edge of a chunk as a number, so that the greatest edge is the greatest number: its
// affinity, the place of its upper voxel in the chunk, and its axis. 0 is no edge.
namespace edge_code {
constexpr int place_bits = 34;

inline std::uint64_t of(std::uint32_t affinity, std::uint64_t place_and_axis) {
  return std::uint64_t{affinity} << place_bits | place_and_axis;
}
inline std::uint64_t place(std::uint64_t code) {
  return (code & ((std::uint64_t{1} << place_bits) - 1)) / 3;
}
inline std::size_t axis(std::uint64_t code) {
  return static_cast<std::size_t>((code & ((std::uint64_t{1} << place_bits) - 1)) % 3);
}
}  // namespace edge_code

// A chunk whose voxels are labelled with basins 0, 1, ... or `no_label`.
struct LabelledChunk {
  Edges edges;  // those inside the chunk
  std::uint32_t low;
  const std::uint32_t* labels;
  std::size_t n_basins, slabs, threads;

  std::size_t row() const { return static_cast<std::size_t>(extent(edges.limits)[0]); }
  std::size_t plane() const {
    return row() * static_cast<std::size_t>(extent(edges.limits)[1]);
  }
  std::size_t planes() const { return static_cast<std::size_t>(extent(edges.limits)[2]); }

  // The labels at the upper and the lower end of an edge.
  std::array<const std::uint32_t*, 2> ends(std::uint64_t code) const {
    const std::size_t steps[3] = {1, row(), plane()};
    const std::uint32_t* upper = labels + edge_code::place(code);
    return {upper, upper - steps[edge_code::axis(code)]};
  }
};

// A row of labels and those of the rows below and above it along y, and along z.
struct LabelRows {
  const std::uint32_t *here, *below, *above, *back, *fore;
};

// The greatest edge of each voxel of a row to another label, as 8 times its affinity plus
// 1 + a if it leads to the predecessor along axis a, 4 + a if to the successor; 0 where
// no affinity is above `low`. `x` is room for another row and a voxel.
EM_ROW_KERNEL inline void greatest_out(const SixEdges& six, const LabelRows& labels,
                                       std::size_t n, std::uint32_t low, std::uint32_t* x,
                                       std::uint32_t* out) {
  const auto [to_x, y, z, upper_y, upper_z] = six;
  const auto [here, below, above, back, fore] = labels;
  const std::uint32_t above_low = low << 3 | 7;
  x[0] = x[n] = 0;
  for (std::size_t i = 1; i < n; ++i) x[i] = here[i] != here[i - 1] ? to_x[i] : 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t l = here[i];
    std::uint32_t most = std::max(x[i] << 3 | 1, x[i + 1] << 3 | 4);
    most = std::max(most, below[i] != l ? y[i] << 3 | 2 : 0);
    most = std::max(most, back[i] != l ? z[i] << 3 | 3 : 0);
    most = std::max(most, above[i] != l ? upper_y[i] << 3 | 5 : 0);
    most = std::max(most, fore[i] != l ? upper_z[i] << 3 | 6 : 0);
    out[i] = most > above_low ? most : 0;
  }
}

// Bit a is set where the edge to the predecessor along axis a is above `low` and leads to
// another label.
EM_ROW_KERNEL inline void crossings(const SixEdges& six, const LabelRows& labels,
                                    std::size_t n, std::uint32_t low, std::uint8_t* out) {
  const auto [x, y, z, upper_y, upper_z] = six;
  const auto [here, below, above, back, fore] = labels;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t l = here[i];
    out[i] = static_cast<std::uint8_t>(((below[i] != l) & (y[i] > low) ? 2u : 0u) |
                                       ((back[i] != l) & (z[i] > low) ? 4u : 0u));
  }
  for (std::size_t i = 1; i < n; ++i) {
    out[i] |= static_cast<std::uint8_t>((here[i] != here[i - 1]) & (x[i] > low) ? 1u : 0u);
  }
}

// An edge between two components.
struct ListedEdge {
  std::uint32_t a, b;
  std::uint64_t code;
};

// Lists the greatest edges between each two components, some of them with lesser ones
// beside them. What is near in the volume is met again soon, so a table that the cache
// holds finds most of what is met twice.
class PairEdges {
 public:
  // Pairs are told apart in full once the list has `most` entries.
  explicit PairEdges(std::size_t most) : most_(most) {}

  void put(std::uint32_t i, std::uint32_t j, std::uint64_t code) {
    const std::uint64_t pair = std::uint64_t{std::min(i, j)} << 32 | std::max(i, j);
    if (pair == run_.pair) {
      run_.code = std::max(run_.code, code);
      return;
    }
    end_run();
    run_ = {pair, code};
  }

  std::vector<ListedEdge> take() {
    end_run();
    for (Entry& entry : recent_) settle(entry);
    if (all_.size() > 0) gather();
    all_.for_each(
        [&](std::uint64_t pair, std::uint64_t code) { append({pair, code}); });
    return std::move(list_);
  }

 private:
  static constexpr int bits = 14;
  struct Entry {
    std::uint64_t pair = 0, code = 0;
  };

  void end_run() {
    Entry& entry = recent_[(run_.pair * 0x9E3779B97F4A7C15ull) >> (64 - bits)];
    if (entry.pair != run_.pair) {
      settle(entry);
      entry = run_;
    } else {
      entry.code = std::max(entry.code, run_.code);
    }
    run_ = {};
  }

  void settle(const Entry& entry) {
    if (entry.pair == 0) return;
    append(entry);
    if (list_.size() >= most_) gather();
  }

  void append(const Entry& entry) {
    list_.push_back({static_cast<std::uint32_t>(entry.pair >> 32),
                     static_cast<std::uint32_t>(entry.pair), entry.code});
  }

  void gather() {
    for (const auto& [a, b, code] : list_) {
      std::uint64_t& kept = all_[std::uint64_t{a} << 32 | b];
      kept = std::max(kept, code);
    }
    list_.clear();
  }

  std::size_t most_;
  Entry run_;  // of the last pair, which is often met several times in a row
  std::vector<Entry> recent_ = std::vector<Entry>(std::size_t{1} << bits);
  std::vector<ListedEdge> list_;
  FlatMap<std::uint64_t> all_;
};

class SpanningForest {
 public:
  explicit SpanningForest(const LabelledChunk& chunk)
      : chunk_(chunk),
        steps_{1, chunk.row(), chunk.plane()},
        n_components_(chunk.n_basins) {}

  // The edges of the maximum spanning forest, in no order.
  std::vector<std::uint64_t> run() {
    const std::size_t few = chunk_.plane() * chunk_.planes() / 256 + 1024;
    bool is_complete = false;
    while (n_components_ > few && !is_complete) is_complete = !volume_round();
    if (!is_complete) list_rounds();
    return std::move(forest_);
  }

 private:
  std::uint32_t component(std::uint32_t basin) const {
    return components_.empty() || basin == no_label ? basin : components_[basin];
  }

  // Calls visit(y, z, edges, labels) for the rows of a slab, the labels being components.
  template <class Visit>
  void for_each_labelled_row(std::size_t slab, const Visit& visit) const {
    const std::size_t row = steps_[1], plane = steps_[2];
    const std::size_t begin = piece_start(chunk_.planes(), chunk_.slabs, slab);
    const std::size_t end = piece_start(chunk_.planes(), chunk_.slabs, slab + 1);
    const bool is_mapped = !components_.empty();
    std::vector<std::uint32_t> ring(is_mapped ? 3 * plane : 0);
    const auto map = [&](std::size_t z) {
      const std::uint32_t* from = chunk_.labels + z * plane;
      std::uint32_t* to = ring.data() + z % 3 * plane;
      const std::uint32_t* table = components_.data();
      const auto background = static_cast<std::uint32_t>(chunk_.n_basins);
      for (std::size_t i = 0; i < plane; ++i) to[i] = table[std::min(from[i], background)];
    };
    const auto labels = [&](std::size_t z) {
      return is_mapped ? ring.data() + z % 3 * plane : chunk_.labels + z * plane;
    };
    Box box = chunk_.edges.limits;
    const Vec3 start = box.start;
    box.start[2] = start[2] + static_cast<std::int64_t>(begin);
    box.stop[2] = start[2] + static_cast<std::int64_t>(end);
    if (is_mapped) {
      if (begin > 0) map(begin - 1);
      map(begin);
    }
    const auto visit_row = [&](std::int64_t y, std::int64_t z, const SixEdges& six) {
      const auto j = static_cast<std::size_t>(y - start[1]);
      const auto k = static_cast<std::size_t>(z - start[2]);
      const bool has_fore = k + 1 < chunk_.planes();
      if (is_mapped && j == 0 && has_fore) map(k + 1);
      // Where there is no neighbour there is no edge, and any label will do.
      const std::uint32_t* here = labels(k) + j * row;
      visit(j, k, six,
            LabelRows{here, j > 0 ? here - row : here,
                      (j + 1) * row < plane ? here + row : here,
                      k > 0 ? labels(k - 1) + j * row : here,
                      has_fore ? labels(k + 1) + j * row : here});
    };
    for_each_row(chunk_.edges, box, visit_row);
  }

  // Takes the greatest edge of each component to another, and contracts. Returns whether
  // there was any.
  bool volume_round() {
    const std::size_t row = steps_[1], plane = steps_[2];
    std::vector<std::uint64_t> best(n_components_);
    in_parallel(chunk_.slabs, chunk_.threads, [&](std::size_t slab) {
      std::vector<std::uint32_t> x(row + 1), out(row);
      const std::array<std::uint64_t, 7> offset{
          0, 0, 1, 2, 3, 3 * row + 1, 3 * plane + 2};
      for_each_labelled_row(slab, [&](std::size_t j, std::size_t k, const SixEdges& six,
                                      const LabelRows& labels) {
        greatest_out(six, labels, row, chunk_.low, x.data(), out.data());
        const std::uint64_t at = 3 * (k * plane + j * row);
        const auto code = [&](std::size_t i) {
          return edge_code::of(out[i] >> 3, at + 3 * i + offset[out[i] & 7]);
        };
        if (chunk_.slabs == 1) {
          for_each_nonzero(out.data(), row, [&](std::size_t i) {
            std::uint64_t& kept = best[labels.here[i]];
            kept = std::max(kept, code(i));
          });
        } else {
          for_each_nonzero(out.data(), row, [&](std::size_t i) {
            raise(best[labels.here[i]], code(i));
          });
        }
      });
    });
    std::vector<std::uint32_t> targets(n_components_);
    std::atomic<bool> found{false};
    in_parallel(chunk_.slabs, chunk_.threads, [&](std::size_t part) {
      bool any = false;
      for (std::size_t c = piece_start(n_components_, chunk_.slabs, part);
           c < piece_start(n_components_, chunk_.slabs, part + 1); ++c) {
        if (best[c] == 0) continue;
        any = true;
        const auto [upper, lower] = chunk_.ends(best[c]);
        const std::uint32_t i = component(*upper);
        targets[c] = i == c ? component(*lower) : i;
      }
      if (any) found = true;
    });
    if (found) {
      const std::vector<std::uint32_t> merged = contract(best, targets);
      if (components_.empty()) {
        components_ = merged;
        components_.push_back(no_label);
      } else {
        for (std::uint32_t& c : components_) c = c == no_label ? c : merged[c];
      }
    }
    return found;
  }

  static void raise(std::uint64_t& best, std::uint64_t code) {
    std::atomic_ref<std::uint64_t> shared(best);
    std::uint64_t seen = shared.load(std::memory_order_relaxed);
    while (seen < code &&
           !shared.compare_exchange_weak(seen, code, std::memory_order_relaxed)) {
    }
  }

  // The rounds that are left, over the greatest edges between components.
  void list_rounds() {
    std::vector<std::vector<ListedEdge>> parts(chunk_.slabs);
    in_parallel(chunk_.slabs, chunk_.threads,
                [&](std::size_t slab) { parts[slab] = listed(slab); });
    std::vector<ListedEdge> list;
    for (std::vector<ListedEdge>& part : parts) {
      if (list.empty()) {
        list.swap(part);
      } else {
        list.insert(list.end(), part.begin(), part.end());
        part = {};
      }
    }
    while (!list.empty()) {
      std::vector<std::uint64_t> best(n_components_);
      std::vector<std::uint32_t> targets(n_components_);
      for (const auto& [a, b, code] : list) {
        if (code > best[a]) best[a] = code, targets[a] = b;
        if (code > best[b]) best[b] = code, targets[b] = a;
      }
      const std::vector<std::uint32_t> merged = contract(best, targets);
      std::size_t n = 0;
      for (const auto& [a, b, code] : list) {
        if (merged[a] != merged[b]) list[n++] = {merged[a], merged[b], code};
      }
      list.resize(n);
    }
  }

  std::vector<ListedEdge> listed(std::size_t slab) const {
    const std::size_t row = steps_[1], plane = steps_[2];
    PairEdges edges(plane * chunk_.planes() / 64 / chunk_.slabs + 1024);
    std::vector<std::uint8_t> crossing(row);
    for_each_labelled_row(slab, [&](std::size_t j, std::size_t k, const SixEdges& six,
                                    const LabelRows& labels) {
      crossings(six, labels, row, chunk_.low, crossing.data());
      const std::uint64_t at = 3 * (k * plane + j * row);
      const std::uint32_t* others[3] = {labels.here, labels.below, labels.back};
      const std::uint32_t* affinities[3] = {six.x, six.y, six.z};
      for (std::size_t axis = 0; axis < 3; ++axis) {
        const std::uint32_t *other = others[axis], *affinity = affinities[axis];
        const std::size_t step = axis == 0 ? 1 : 0;
        for_each_with_bit(crossing.data(), row, axis, [&](std::size_t i) {
          edges.put(labels.here[i], other[i - step],
                    edge_code::of(affinity[i], at + 3 * i + axis));
        });
      }
    });
    return edges.take();
  }

  // Adds the best edges of the components to the forest and unites what they join.
  // Following them from component to component ends where two have the same best edge, or
  // at one that has none. Returns the new number of each component.
  std::vector<std::uint32_t> contract(const std::vector<std::uint64_t>& best,
                                      const std::vector<std::uint32_t>& targets) {
    std::vector<std::uint32_t> merged(best.size(), no_label);
    std::uint32_t n = 0;
    for (std::uint32_t c = 0; c < best.size(); ++c) {
      const bool is_end =
          best[c] == 0 || (best[targets[c]] == best[c] && c < targets[c]);
      if (is_end) merged[c] = n++;
      const bool is_second = best[c] != 0 && best[targets[c]] == best[c] && c > targets[c];
      if (best[c] != 0 && !is_second) forest_.push_back(best[c]);
    }
    for (std::uint32_t c = 0; c < best.size(); ++c) {
      std::uint32_t end = c;
      while (merged[end] == no_label) end = targets[end];
      for (std::uint32_t i = c; merged[i] == no_label; i = targets[i]) {
        merged[i] = merged[end];
      }
    }
    n_components_ = n;
    return merged;
  }

  const LabelledChunk& chunk_;
  std::array<std::size_t, 3> steps_;
  std::size_t n_components_;
  // Of each basin, and of background behind them; empty while each basin is its own.
  std::vector<std::uint32_t> components_;
  std::vector<std::uint64_t> forest_;
};

// Tells the memory that an address is about to be read.
inline void prefetch([[maybe_unused]] const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#endif
}

// Clusters of basins, each with its first basin as root.
class Clusters {
 public:
  // `open` says of which basins not all is known.
  Clusters(const std::vector<std::uint32_t>& sizes, const std::vector<std::uint8_t>& open)
      : nodes_(sizes.size()) {
    for (std::uint32_t i = 0; i < nodes_.size(); ++i) {
      nodes_[i] = {i, sizes[i], open[i] != 0};
    }
  }

  void prefetch(std::uint32_t basin) const { em::prefetch(&nodes_[basin]); }

  std::uint32_t root(std::uint32_t i) {
    while (nodes_[i].parent != i) {
      nodes_[i].parent = nodes_[nodes_[i].parent].parent;
      i = nodes_[i].parent;
    }
    return i;
  }

  // Merges the clusters of two basins unless both are large, or lets them wait for what
  // is not known of one. A large one will take a small one whatever it waits for itself.
  void decide(std::uint32_t a, std::uint32_t b, std::uint64_t threshold) {
    Node *one = &nodes_[root(a)], *two = &nodes_[root(b)];
    const bool one_is_large = one->size >= threshold, two_is_large = two->size >= threshold;
    if (one == two || (one_is_large && two_is_large)) return;
    const bool may_merge = (!one->is_blocked && !two->is_blocked) ||
                           (one_is_large && !two->is_blocked) ||
                           (two_is_large && !one->is_blocked);
    if (!may_merge) {
      one->is_blocked = two->is_blocked = true;
      return;
    }
    if (one > two) std::swap(one, two);
    one->size += two->size;
    one->is_blocked |= two->is_blocked;
    two->parent = one->parent;
  }

  // Whether all of a cluster is known and it is too small to stay.
  bool is_dust(std::uint32_t root, std::uint64_t dust) const {
    return nodes_[root].size < dust && !nodes_[root].is_blocked;
  }

 private:
  struct Node {
    std::uint32_t parent, size;  // the size counts at roots [voxel]
    bool is_blocked;
  };

  std::vector<Node> nodes_;
};

// Sizes up to which clusters merge, and below which they are dropped [voxel].
struct SizeRules {
  std::uint64_t threshold, dust;
};

// The cluster of each basin, as its first basin; `no_label` if it is dust. `sizes` are
// those of the basins, `open` says which of them touch what the chunk does not know; that
// and edges that wait for it block a cluster.
inline std::vector<std::uint32_t> link(const LabelledChunk& chunk,
                                       std::vector<std::uint32_t> sizes,
                                       const std::vector<std::uint8_t>& open,
                                       const SizeRules& rules) {
  std::vector<std::uint64_t> forest;
  if (rules.threshold > 0) {
    forest = SpanningForest(chunk).run();
    sort_by(forest, [](std::uint64_t code) { return ~code; });
  }
  Clusters clusters(sizes, open);
  // Edges come from all over the chunk, so what they need is asked for in advance.
  constexpr std::size_t ahead = 16;
  std::array<std::array<std::uint32_t, 2>, ahead> ends;
  for (std::size_t i = 0; i < forest.size() + 2 * ahead; ++i) {
    if (i >= 2 * ahead) {
      const auto [a, b] = ends[i % ahead];
      clusters.decide(a, b, rules.threshold);
    }
    if (i >= ahead && i - ahead < forest.size()) {
      const auto [upper, lower] = chunk.ends(forest[i - ahead]);
      ends[i % ahead] = {*upper, *lower};
      clusters.prefetch(*upper);
      clusters.prefetch(*lower);
    }
    if (i < forest.size()) {
      const auto [upper, lower] = chunk.ends(forest[i]);
      prefetch(upper);
      prefetch(lower);
    }
  }
  std::vector<std::uint32_t> names = std::move(sizes);
  for (std::uint32_t i = 0; i < names.size(); ++i) {
    const std::uint32_t root = clusters.root(i);
    names[i] = clusters.is_dust(root, rules.dust) ? no_label : root;
  }
  return names;
}

}  // namespace em

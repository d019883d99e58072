// Contacts between supervoxels, and the supervoxels themselves, as exact sums.
//
// A row of voxels is cut into runs of one label, and runs are laid against those of the
// rows below along y and z. Where two overlap and differ is a contact of several faces,
// so the tables are touched once for it and not once for each voxel.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "flat_map.hpp"
#include "parallel.hpp"
#include "runs.hpp"
#include "volume.hpp"

namespace em {

constexpr std::size_t n_classes = 5;  // labels 1 to 5 of a semantic volume

struct Contact {
  std::uint64_t pair = 0;  // the numbers of two labels, the smaller in the upper half
  std::array<std::uint64_t, 3> affinity{}, area{};
  std::uint64_t key = std::numeric_limits<std::uint64_t>::max();  // of the first face

  void add(const Contact& other) {
    for (std::size_t axis = 0; axis < 3; ++axis) {
      affinity[axis] += other.affinity[axis];
      area[axis] += other.area[axis];
    }
    key = std::min(key, other.key);
  }
};

struct Region {
  std::uint64_t size = 0, anchor = std::numeric_limits<std::uint64_t>::max();
  Vec3 sum{}, start = all(std::numeric_limits<std::int64_t>::max()),
              stop = all(std::numeric_limits<std::int64_t>::min());
  std::array<std::uint64_t, n_classes> classes{};
  std::uint8_t faces = 0;

  void add(const Region& other) {
    size += other.size;
    anchor = std::min(anchor, other.anchor);
    for (std::size_t axis = 0; axis < 3; ++axis) {
      sum[axis] += other.sum[axis];
      start[axis] = std::min(start[axis], other.start[axis]);
      stop[axis] = std::max(stop[axis], other.stop[axis]);
    }
    for (std::size_t i = 0; i < n_classes; ++i) classes[i] += other.classes[i];
  }

 private:
  static constexpr Vec3 all(std::int64_t value) { return {value, value, value}; }
};

// Both tables ascend.
struct RegionGraph {
  std::vector<std::array<std::uint64_t, 2>> pairs;
  std::vector<Contact> contacts;
  std::vector<std::uint64_t> ids;
  std::vector<Region> regions;
};

namespace detail {

// Two rows of runs laid over one another.
class Overlay {
 public:
  // Both rows end at `width`; no rows are an overlay that is done.
  Overlay(const Run* a, const Run* b, std::uint32_t width)
      : a_(a), b_(b), x_(a == nullptr || b == nullptr ? width : 0), width_(width) {}

  bool is_done() const { return x_ == width_; }

  // Visits the next stretch over which neither row changes.
  template <class Visit>
  void step(Visit& visit) {
    const std::uint32_t stop = std::min(a_->stop, b_->stop);
    visit(a_->number, b_->number, x_, stop);
    a_ += a_->stop == stop ? 1 : 0;
    b_ += b_->stop == stop ? 1 : 0;
    x_ = stop;
  }

 private:
  const Run *a_, *b_;
  std::uint32_t x_, width_;
};

// The graph of a few planes of a chunk, by numbers given to labels as they are met;
// background has the number 0.
class Slab {
 public:
  // `semantics` lies as the labels do, or is null.
  Slab(const std::uint64_t* labels, const Affinities& affinities,
       const std::uint8_t* semantics, const Frame& frame)
      : labels_(labels),
        semantics_(semantics),
        frame_(frame),
        affinities_(affinities),
        width_(static_cast<std::uint32_t>(extent(frame.core)[0])),
        affinity_rows_(affinities, frame.core),
        affinity_(width_),
        stops_(width_) {
    for (auto& of_axis : touches_) of_axis.resize(2 * static_cast<std::size_t>(width_));
  }

  void measure() {
    const Box& core = frame_.core;
    if (frame_.has_lower(core.start, 2)) {
      for (std::int64_t y = core.start[1]; y < core.stop[1]; ++y) {
        cut(y, core.start[2] - 1, plane_);
      }
    }
    for (std::int64_t z = core.start[2]; z < core.stop[2]; ++z) {
      std::swap(plane_, plane_below_);
      plane_.clear();
      const Run* below_z = plane_below_.empty() ? nullptr : plane_below_.data();
      row_below_.clear();
      if (frame_.has_lower({0, core.start[1], 0}, 1)) {
        cut(core.start[1] - 1, z, row_below_);
      }
      for (std::int64_t y = core.start[1]; y < core.stop[1]; ++y) {
        row_.clear();
        cut(y, z, row_);
        measure_regions(y, z);
        measure_contacts(y, z, below_z);
        if (below_z != nullptr) {
          while (below_z->stop != width_) ++below_z;
          ++below_z;
        }
        plane_.insert(plane_.end(), row_.begin(), row_.end());
        std::swap(row_, row_below_);
      }
    }
  }

  // By number.
  const std::vector<std::uint64_t>& names() const { return names_; }
  Region region(std::uint32_t number) const {
    if (number >= regions_.size()) return {};  // seen only across a lower face
    Region region = regions_[number];
    if (number < classes_.size()) {
      std::copy_n(classes_[number].begin() + 1, n_classes, region.classes.begin());
    }
    return region;
  }
  const std::deque<Contact>& contacts() const { return contacts_; }

 private:
  struct Touch {
    std::uint32_t a, b, start, stop;
  };

  // Appends the runs of a row.
  void cut(std::int64_t y, std::int64_t z, std::vector<Run>& runs) {
    const std::uint64_t* row = labels_ + frame_.index(frame_.core.start[0], y, z);
    if (y + 1 < frame_.core.stop[1]) prefetch(row + frame_.shape[0], width_ * sizeof(*row));
    const std::size_t count = split(row, width_, stops_.data());
    std::uint32_t x = 0;
    for (std::size_t i = 0; i < count; ++i) {
      runs.push_back({stops_[i], number(row[x])});
      x = stops_[i];
    }
  }

  std::uint32_t number(std::uint64_t label) {
    if (label == 0) return 0;
    return recent_numbers_.of(label, [&] {
      std::uint32_t& number = numbers_[label];
      if (number == 0) {
        number = static_cast<std::uint32_t>(names_.size());
        names_.push_back(label);
      }
      return number;
    });
  }

  void measure_regions(std::int64_t y, std::int64_t z) {
    const Vec3 first{frame_.core.start[0], y, z};
    const Vec3 at{frame_.origin[0] + first[0], frame_.origin[1] + y, frame_.origin[2] + z};
    const std::uint64_t position = frame_.position(first);
    regions_.resize(names_.size());
    std::uint32_t x = 0;
    for (const Run run : row_) {
      Region& region = regions_[run.number];
      const auto n = static_cast<std::int64_t>(run.stop - x);
      const std::int64_t start = at[0] + x, stop = start + n;
      region.size += static_cast<std::uint64_t>(n);
      region.anchor = std::min(region.anchor, position + x);
      region.sum[0] += n * (start + stop - 1) / 2;
      region.start[0] = std::min(region.start[0], start);
      region.stop[0] = std::max(region.stop[0], stop);
      for (std::size_t axis = 1; axis < 3; ++axis) {
        region.sum[axis] += n * at[axis];
        region.start[axis] = std::min(region.start[axis], at[axis]);
        region.stop[axis] = std::max(region.stop[axis], at[axis] + 1);
      }
      x = run.stop;
    }
    if (semantics_ != nullptr) count_classes(semantics_ + frame_.index(first[0], y, z));
  }

  void count_classes(const std::uint8_t* row) {
    const std::uint8_t greatest = *std::max_element(row, row + width_);
    if (greatest > n_classes) {
      throw std::invalid_argument("the semantic volume holds label " +
                                  std::to_string(greatest) + " where 0 to " +
                                  std::to_string(n_classes) +
                                  " are known; map its labels to these first");
    }
    classes_.resize(names_.size());
    const std::size_t count = split(row, width_, stops_.data());
    class_runs_.clear();
    std::uint32_t x = 0;
    for (std::size_t i = 0; i < count; ++i) {
      class_runs_.push_back({stops_[i], row[x]});
      x = stops_[i];
    }
    const auto count_stretch = [&](std::uint32_t number, std::uint32_t label,
                                   std::uint32_t start, std::uint32_t stop) {
      classes_[number][label] += stop - start;
    };
    Overlay overlay(row_.data(), class_runs_.data(), width_);
    while (!overlay.is_done()) overlay.step(count_stretch);
  }

  void measure_contacts(std::int64_t y, std::int64_t z, const Run* below_z) {
    std::array<std::size_t, 3> counts{};
    // Every stretch is noted, and overwritten by the next if it is no contact.
    const auto noting = [&](std::size_t axis) {
      return [touches = touches_[axis].data(), count = &counts[axis]](
                 std::uint32_t a, std::uint32_t b, std::uint32_t start,
                 std::uint32_t stop) {
        touches[*count] = {a, b, start, stop};
        *count += (a != b) & (a != 0) & (b != 0) ? 1 : 0;
      };
    };
    auto note_x = noting(0), note_y = noting(1), note_z = noting(2);

    const Vec3 first{frame_.core.start[0], y, z};
    if (frame_.has_lower(first, 0)) {
      const std::uint64_t* row = labels_ + frame_.index(first[0], y, z);
      note_x(row_.front().number, number(row[-1]), 0, 1);
    }
    for (std::size_t i = 1; i < row_.size(); ++i) {
      const std::uint32_t x = row_[i - 1].stop;
      note_x(row_[i].number, row_[i - 1].number, x, x + 1);
    }
    // Side by side, as each step of an overlay waits for its last.
    Overlay over_y(row_.data(), row_below_.empty() ? nullptr : row_below_.data(), width_);
    Overlay over_z(row_.data(), below_z, width_);
    while (!over_y.is_done() && !over_z.is_done()) {
      over_y.step(note_y);
      over_z.step(note_z);
    }
    while (!over_y.is_done()) over_y.step(note_y);
    while (!over_z.is_done()) over_z.step(note_z);
    for (std::size_t axis = 0; axis < 3; ++axis) add(counts[axis], axis, first);
  }

  // Adds the faces across an axis of the contacts that were noted in the row of a voxel.
  void add(std::size_t count, std::size_t axis, const Vec3& first) {
    const auto [x, y, z] = first;
    // Even a row without contacts is loaded: that refuses what is no affinity.
    affinity_rows_.load(axis, y, z, affinity_.data());
    if (affinities_.strides[0] == affinities_.item_size() && y + 1 < frame_.core.stop[1]) {
      prefetch(affinities_.at(x, y + 1, z, axis),
               width_ * static_cast<std::size_t>(affinities_.item_size()));
    }
    const std::uint64_t position = frame_.position(first);
    for (std::size_t i = 0; i < count; ++i) {
      const Touch& touch = touches_[axis][i];
      std::uint64_t sum = affinity_[touch.start];
      for (std::uint32_t j = touch.start + 1; j < touch.stop; ++j) sum += affinity_[j];
      Contact& contact = of_pair(touch.a, touch.b);
      contact.affinity[axis] += sum;
      contact.area[axis] += touch.stop - touch.start;
      contact.key = std::min(contact.key, 3 * (position + touch.start) + axis);
    }
  }

  Contact& of_pair(std::uint32_t a, std::uint32_t b) {
    const std::uint64_t pair =
        static_cast<std::uint64_t>(std::min(a, b)) << 32 | std::max(a, b);
    return *recent_contacts_.of(pair, [&] {
      Contact*& contact = contacts_by_pair_[pair];
      if (contact == nullptr) {
        contact = &contacts_.emplace_back();
        contact->pair = pair;
      }
      return contact;
    });
  }

  const std::uint64_t* labels_;
  const std::uint8_t* semantics_;
  Frame frame_;
  Affinities affinities_;
  std::uint32_t width_;
  AffinityRows affinity_rows_;

  std::vector<std::uint64_t> names_{0};
  FlatMap<std::uint32_t> numbers_;
  Recent<std::uint32_t> recent_numbers_;
  std::vector<Region> regions_;
  std::vector<std::array<std::uint64_t, n_classes + 1>> classes_;
  std::deque<Contact> contacts_;
  FlatMap<Contact*> contacts_by_pair_;
  Recent<Contact*> recent_contacts_;

  std::vector<Run> row_, row_below_, plane_, plane_below_, class_runs_;
  std::vector<std::uint32_t> affinity_, stops_;
  std::array<std::vector<Touch>, 3> touches_;
};

// Bit a for the lower face of axis a, bit 3 + a for the upper: those of the chunk that
// are not faces of the bounds and that the region touches.
inline std::uint8_t open_faces(const Region& region, const Frame& frame) {
  std::uint8_t faces = 0;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const std::int64_t start = frame.origin[axis] + frame.core.start[axis];
    const std::int64_t stop = frame.origin[axis] + frame.core.stop[axis];
    if (region.start[axis] == start && start != frame.bounds.start[axis]) {
      faces |= static_cast<std::uint8_t>(1u << axis);
    }
    if (region.stop[axis] == stop && stop != frame.bounds.stop[axis]) {
      faces |= static_cast<std::uint8_t>(1u << (3 + axis));
    }
  }
  return faces;
}

// Adds up slabs and sorts, by ranks of labels instead of the labels themselves.
inline RegionGraph joined(const std::vector<Slab>& slabs, const Frame& frame) {
  std::vector<std::uint64_t> names;
  for (const Slab& slab : slabs) {
    names.insert(names.end(), slab.names().begin() + 1, slab.names().end());
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());

  RegionGraph graph;
  std::vector<Region> regions(names.size());
  std::vector<std::vector<std::uint32_t>> ranks;
  for (const Slab& slab : slabs) {
    auto& rank = ranks.emplace_back(slab.names().size());
    for (std::uint32_t number = 1; number < rank.size(); ++number) {
      const auto found = std::lower_bound(names.begin(), names.end(), slab.names()[number]);
      rank[number] = static_cast<std::uint32_t>(found - names.begin());
      regions[rank[number]].add(slab.region(number));
    }
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (regions[i].size == 0) continue;
    regions[i].faces = open_faces(regions[i], frame);
    graph.ids.push_back(names[i]);
    graph.regions.push_back(regions[i]);
  }

  // Contacts are gathered by their lower end, and then sorted by the upper.
  struct Part {
    std::uint32_t upper;
    const Contact* contact;
  };
  const auto ends = [&](const Contact& contact, const std::vector<std::uint32_t>& rank) {
    return std::minmax({rank[contact.pair >> 32], rank[contact.pair & 0xFFFFFFFFu]});
  };
  std::vector<std::size_t> stops(names.size() + 1);
  for (std::size_t i = 0; i < slabs.size(); ++i) {
    for (const Contact& contact : slabs[i].contacts()) {
      ++stops[ends(contact, ranks[i]).first + 1];
    }
  }
  for (std::size_t i = 1; i < stops.size(); ++i) stops[i] += stops[i - 1];
  std::vector<Part> parts(stops.back());
  for (std::size_t i = 0; i < slabs.size(); ++i) {
    for (const Contact& contact : slabs[i].contacts()) {
      const auto [lower, upper] = ends(contact, ranks[i]);
      parts[stops[lower]++] = {upper, &contact};
    }
  }
  graph.pairs.reserve(parts.size());
  graph.contacts.reserve(parts.size());
  std::size_t start = 0;
  for (std::size_t lower = 0; lower < names.size(); ++lower) {
    const std::span<Part> of_lower(parts.data() + start, stops[lower] - start);
    std::sort(of_lower.begin(), of_lower.end(),
              [](const Part& a, const Part& b) { return a.upper < b.upper; });
    for (std::size_t i = 0; i < of_lower.size(); ++i) {
      if (i == 0 || of_lower[i].upper != of_lower[i - 1].upper) {
        graph.pairs.push_back({names[lower], names[of_lower[i].upper]});
        graph.contacts.emplace_back();
      }
      graph.contacts.back().add(*of_lower[i].contact);
    }
    start = stops[lower];
  }
  return graph;
}

}  // namespace detail

// A chunk owns the faces whose upper voxel lies in its core. `semantics` lies as the
// labels do, or is null.
inline RegionGraph region_graph(const std::uint64_t* labels, const Affinities& affinities,
                                const std::uint8_t* semantics, const Frame& frame,
                                std::size_t threads) {
  const auto planes = static_cast<std::size_t>(extent(frame.core)[2]);
  const std::size_t pieces = std::min(threads, planes);
  const auto start = [&](std::size_t piece) {
    return frame.core.start[2] +
           static_cast<std::int64_t>(piece_start(planes, pieces, piece));
  };
  std::vector<detail::Slab> slabs;
  slabs.reserve(pieces);
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    Frame part = frame;
    part.core.start[2] = start(piece);
    part.core.stop[2] = start(piece + 1);
    slabs.emplace_back(labels, affinities, semantics, part);
  }
  in_parallel(pieces, threads, [&](std::size_t piece) { slabs[piece].measure(); });
  return detail::joined(slabs, frame);
}

}  // namespace em

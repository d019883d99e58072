// Where an array lies in the volume, and how its affinities are read.
//
// Labels and masks are x, y, z with x varying fastest; affinities may have any strides.
// Affinity channel a at voxel v is the edge (v, a), which joins v to its predecessor
// v - e_a. Edges are in a strict total order: by affinity, then by key, which is the
// position of v in the volume (z, then y, then x) and then the axis. The key does not
// know how the volume was cut into chunks, so neither does any comparison of edges.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

// Compiles a loop over a row for wider vectors too, which are used where the machine has
// them. It holds whole numbers and exact products, so the result is the same. A build
// whose runtime cannot choose between functions, as with some sanitizers, defines it as
// nothing.
#ifndef EM_ROW_KERNEL
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define EM_ROW_KERNEL __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define EM_ROW_KERNEL
#endif
#endif

namespace em {

using Vec3 = std::array<std::int64_t, 3>;

struct Box {
  Vec3 start, stop;
};

inline Vec3 extent(const Box& box) {
  return {box.stop[0] - box.start[0], box.stop[1] - box.start[1],
          box.stop[2] - box.start[2]};
}

inline std::size_t volume(const Vec3& shape) {
  return static_cast<std::size_t>(shape[0] * shape[1] * shape[2]);
}

// An array whose first voxel is at `origin` of a volume with the given
// `bounds`. The chunk that owns the array's result is `core`, a box of the
// array itself; the rest is halo.
struct Frame {
  Vec3 shape, origin;
  Box core, bounds;

  std::size_t index(std::int64_t x, std::int64_t y, std::int64_t z) const {
    return static_cast<std::size_t>(x + shape[0] * (y + shape[1] * z));
  }
  std::array<std::size_t, 3> strides() const {
    const auto row = static_cast<std::size_t>(shape[0]);
    return {1, row, row * static_cast<std::size_t>(shape[1])};
  }
  bool has_lower(const Vec3& v, int axis) const {
    return origin[axis] + v[axis] > bounds.start[axis];
  }
  bool has_upper(const Vec3& v, int axis) const {
    return origin[axis] + v[axis] + 1 < bounds.stop[axis];
  }
  // The bounds in voxels of the array, up to where it ends: where they go on beyond it, no
  // kernel asks for edges.
  Box limits() const {
    Box box = bounds;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      box.start[axis] -= origin[axis];
      box.stop[axis] = std::min(box.stop[axis] - origin[axis], shape[axis]);
    }
    return box;
  }
  // The position of a voxel in the scan order of the whole volume.
  std::uint64_t position(const Vec3& v) const {
    const Vec3 size = extent(bounds);
    std::uint64_t position = 0;
    for (int axis = 2; axis >= 0; --axis) {
      position = position * static_cast<std::uint64_t>(size[axis]) +
                 static_cast<std::uint64_t>(origin[axis] + v[axis] - bounds.start[axis]);
    }
    return position;
  }
};

// Asks for memory that is needed soon: the processor's own guesses end with each page,
// and a row may be as long as one.
inline void prefetch([[maybe_unused]] const void* from,
                     [[maybe_unused]] std::size_t n_bytes) {
#if defined(__GNUC__)
  const auto* bytes = static_cast<const std::byte*>(from);
  for (std::size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(bytes + i);
#endif
}

enum class AffinityType { uint8, float16, float32 };

// Affinities as they lie in memory: any dtype, any strides. They are read through
// `AffinityRows` as fixed-point integers, so no kernel depends on either.
struct Affinities {
  const std::byte* data;
  AffinityType type;
  std::array<std::int64_t, 4> strides;  // of x, y, z and the channel [byte]

  // The integer that stands for an affinity of 1.
  std::uint32_t scale() const { return type == AffinityType::uint8 ? 255 : 1u << 20; }
  std::int64_t item_size() const {
    return type == AffinityType::uint8 ? 1 : type == AffinityType::float16 ? 2 : 4;
  }
  const std::byte* at(std::int64_t x, std::int64_t y, std::int64_t z,
                      std::size_t axis) const {
    return data + x * strides[0] + y * strides[1] + z * strides[2] +
           static_cast<std::int64_t>(axis) * strides[3];
  }
};

// Affinities above `low` hold voxels together; `high` and above join outright.
// Both are whole steps, 0 <= low < high: no edge and an affinity of 0 are alike.
struct Thresholds {
  std::int64_t low, high;

  static Thresholds of(std::uint32_t scale, double low, double high) {
    constexpr double beyond = 1u << 24;  // above every affinity
    const double below = std::min(std::floor(low * scale), beyond);
    const double above = std::min(std::ceil(high * scale), beyond + 1);
    return {static_cast<std::int64_t>(below),
            static_cast<std::int64_t>(std::max(above, below + 1))};
  }
};

namespace detail {

// Lossy codecs overshoot a little; anything beyond that is not an affinity.
constexpr float affinity_slack = 1e-3f;

// What follows works on the bits of floats as signed numbers, which ascend with the
// floats from 0 on and are negative with them. A mask is all ones, -1, or 0. Selecting by
// masks leaves compilers nothing to branch on, so that rows are converted in vectors.
[[gnu::always_inline]] inline std::int32_t mask_if_negative(std::int32_t number) {
  return number >> 31;
}

// Negative if the float is no affinity.
[[gnu::always_inline]] inline std::int32_t affinity_margin(std::int32_t bits) {
  constexpr auto above = std::bit_cast<std::int32_t>(1.0f + affinity_slack);
  constexpr auto below = std::bit_cast<std::int32_t>(affinity_slack);
  const std::int32_t limit = above ^ ((above ^ below) & mask_if_negative(bits));
  return limit - (bits & std::numeric_limits<std::int32_t>::max());
}

// Rounded to the nearest step, halves up, after clamping to [0, 1]. The product with a
// power of two is exact and the half steps are cut to a whole number, so no sum of floats
// is ever rounded.
[[gnu::always_inline]] inline std::uint32_t fixed_point(std::int32_t bits) {
  constexpr auto one = std::bit_cast<std::int32_t>(1.0f);
  const std::int32_t positive = bits & ~mask_if_negative(bits);
  const std::int32_t rest = one - positive;
  const std::int32_t bounded = positive + (rest & mask_if_negative(rest));
  const auto halves = static_cast<std::int32_t>(std::bit_cast<float>(bounded) * 0x1p21f);
  return static_cast<std::uint32_t>((halves + 1) >> 1);
}

// The bits of the float of the same value as a half-precision number, but that infinities
// and NaN give numbers from 65536 on. Subnormal ones come out as sums with 2^-14.
[[gnu::always_inline]] inline std::int32_t widened(std::uint16_t half) {
  constexpr std::int32_t bias = (127 - 15) << 23, step = 1 << 23;
  constexpr auto smallest_normal = std::bit_cast<std::int32_t>(0x1p-14f);
  const std::int32_t magnitude = (half & 0x7FFF) << 13;
  const std::int32_t subnormal = mask_if_negative(magnitude - step);
  const float sum = std::bit_cast<float>(magnitude + bias + (step & subnormal));
  const float value = sum - std::bit_cast<float>(smallest_normal & subnormal);
  return std::bit_cast<std::int32_t>(value) | mask_if_negative(-(half >> 15)) << 31;
}

// The bits of the float at a place of a row of T.
template <class T>
[[gnu::always_inline]] inline std::int32_t float_bits(const std::byte* row, std::size_t i) {
  T stored;
  std::memcpy(&stored, row + i * sizeof(T), sizeof(T));
  if constexpr (sizeof(T) == sizeof(std::uint16_t)) {
    return widened(stored);
  } else {
    return stored;
  }
}

// Each converts a row; the result is negative if not all of it are affinities.
template <class T>
[[gnu::always_inline]] inline std::int32_t converted(const std::byte* from, std::size_t n,
                                                     std::uint32_t* to) {
  std::int32_t margin = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::int32_t bits = float_bits<T>(from, i);
    margin |= affinity_margin(bits);
    to[i] = fixed_point(bits);
  }
  return margin;
}

EM_ROW_KERNEL inline std::int32_t convert_uint8(const std::byte* from, std::size_t n,
                                                std::uint32_t* to) {
  for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<std::uint32_t>(from[i]);
  return 0;
}

EM_ROW_KERNEL inline std::int32_t convert_float16(const std::byte* from, std::size_t n,
                                                  std::uint32_t* to) {
  return converted<std::uint16_t>(from, n, to);
}

EM_ROW_KERNEL inline std::int32_t convert_float32(const std::byte* from, std::size_t n,
                                                  std::uint32_t* to) {
  return converted<std::int32_t>(from, n, to);
}

}  // namespace detail

// Reads rows of affinities along x as fixed-point integers. Where x is not the axis that
// varies fastest, planes are turned in memory a few at a time: read in ascending z.
// Holds buffers, so each thread has its own.
class AffinityRows {
 public:
  // Rows of the array within `box`.
  AffinityRows(const Affinities& affinities, const Box& box)
      : affinities_(affinities),
        box_(box),
        width_(static_cast<std::size_t>(box.stop[0] - box.start[0])),
        is_contiguous_(affinities.strides[0] == affinities.item_size()) {}

  // Writes channel `axis` of the row at y, z to `to`, from start to stop of the box.
  void load(std::size_t axis, std::int64_t y, std::int64_t z, std::uint32_t* to) {
    const std::byte* from = is_contiguous_ ? affinities_.at(box_.start[0], y, z, axis)
                                           : turned(axis, y, z);
    if (is_contiguous_ && y + 1 < box_.stop[1]) {
      prefetch(affinities_.at(box_.start[0], y + 1, z, axis),
               width_ * static_cast<std::size_t>(affinities_.item_size()));
    }
    switch (affinities_.type) {
      case AffinityType::uint8:
        detail::convert_uint8(from, width_, to);
        break;
      case AffinityType::float16:
        if (detail::convert_float16(from, width_, to) < 0) refuse<std::uint16_t>(from);
        break;
      case AffinityType::float32:
        if (detail::convert_float32(from, width_, to) < 0) refuse<std::int32_t>(from);
        break;
    }
  }

 private:
  static constexpr std::int64_t depth = 16;  // planes turned at a time

  struct Slab {
    std::vector<std::byte> rows;
    std::int64_t start = 0, stop = 0;
  };

  const std::byte* turned(std::size_t axis, std::int64_t y, std::int64_t z) {
    Slab& slab = slabs_[axis];
    if (z < slab.start || z >= slab.stop) {
      slab.start = z;
      slab.stop = std::min(z + depth, box_.stop[2]);
      switch (affinities_.item_size()) {
        case 1: turn<1>(axis, slab); break;
        case 2: turn<2>(axis, slab); break;
        default: turn<4>(axis, slab); break;
      }
    }
    const std::int64_t rows = box_.stop[1] - box_.start[1];
    const std::int64_t row = y - box_.start[1] + rows * (z - slab.start);
    return slab.rows.data() +
           static_cast<std::size_t>(row * affinities_.item_size()) * width_;
  }

  // Blocks along x keep both the lines read and the lines written in the cache.
  template <std::size_t size>
  void turn(std::size_t axis, Slab& slab) {
    constexpr std::int64_t block = 32;
    const std::int64_t rows = box_.stop[1] - box_.start[1], planes = slab.stop - slab.start;
    const std::size_t row = size * width_;
    slab.rows.resize(static_cast<std::size_t>(rows * planes) * row);
    for (std::int64_t x = box_.start[0]; x < box_.stop[0]; x += block) {
      const std::int64_t x_stop = std::min(x + block, box_.stop[0]);
      for (std::int64_t j = 0; j < rows; ++j) {
        for (std::int64_t i = x; i < x_stop; ++i) {
          const std::byte* from = affinities_.at(i, box_.start[1] + j, slab.start, axis);
          std::byte* to = slab.rows.data() + static_cast<std::size_t>(j) * row +
                          static_cast<std::size_t>(i - box_.start[0]) * size;
          for (std::int64_t k = 0; k < planes; ++k) {
            std::memcpy(to, from, size);
            from += affinities_.strides[2];
            to += static_cast<std::size_t>(rows) * row;
          }
        }
      }
    }
  }

  template <class T>
  [[noreturn]] void refuse(const std::byte* row) const {
    std::size_t i = 0;
    while (detail::affinity_margin(detail::float_bits<T>(row, i)) >= 0) ++i;
    const auto value = std::bit_cast<float>(detail::float_bits<T>(row, i));
    const std::string type = sizeof(T) == sizeof(std::uint16_t) ? "float16" : "float32";
    throw std::invalid_argument("affinities hold " + std::to_string(value) + " where " +
                                type +
                                " affinities lie in [0, 1]; rescale or repair them first");
  }

  Affinities affinities_;
  Box box_;
  std::size_t width_;
  bool is_contiguous_;
  std::array<Slab, 3> slabs_;
};

// Which edges exist: those with both ends within `limits`, a box in voxels of the array,
// and neither of them masked out. `mask` lies as labels do and may be null.
struct Edges {
  Affinities affinities;
  Frame frame;
  Box limits;
  const std::uint8_t* mask;
};

// Reads rows of edges: their affinities, and 0 where there is no edge.
class EdgeRows {
 public:
  // Rows of a box, which may go beyond the limits.
  EdgeRows(const Edges& edges, const Box& box)
      : edges_(edges),
        read_(stored(edges, box)),
        skipped_(static_cast<std::size_t>(read_.start[0] - box.start[0])),
        width_(static_cast<std::size_t>(extent(box)[0])),
        rows_(edges.affinities, read_) {}

  void load(std::size_t axis, std::int64_t y, std::int64_t z, std::uint32_t* to) {
    const Vec3 first{read_.start[0], y, z};
    const auto& [start, stop] = edges_.limits;
    const bool is_inside = y >= start[1] && y < stop[1] && z >= start[2] && z < stop[2];
    if (!is_inside) {
      std::fill_n(to, width_, 0u);
      return;
    }
    const auto n = static_cast<std::size_t>(read_.stop[0] - read_.start[0]);
    std::fill_n(to, skipped_, 0u);
    std::uint32_t* row = to + skipped_;
    rows_.load(axis, y, z, row);
    std::fill(row + n, to + width_, 0u);
    if (first[axis] == start[axis]) std::fill_n(row, axis == 0 ? 1 : n, 0u);
    if (edges_.mask != nullptr) erase_masked(axis, first, row, n);
  }

 private:
  // The part of a box within the limits and the array.
  static Box stored(const Edges& edges, const Box& box) {
    Box part = box;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      const std::int64_t start = std::max(edges.limits.start[axis], std::int64_t{0});
      part.start[axis] = std::max(box.start[axis], start);
      part.stop[axis] = std::min(box.stop[axis], edges.limits.stop[axis]);
    }
    return part;
  }

  void erase_masked(std::size_t axis, const Vec3& first, std::uint32_t* row,
                    std::size_t n) const {
    const std::uint8_t* here =
        edges_.mask + edges_.frame.index(first[0], first[1], first[2]);
    for (std::size_t i = 0; i < n; ++i) {
      if (here[i] == 0) row[i] = 0;
    }
    // Of a lower voxel that the array lacks, nothing is known.
    const bool lacks_below = first[axis] == 0;
    if (lacks_below && axis != 0) return;
    const auto step = static_cast<std::ptrdiff_t>(edges_.frame.strides()[axis]);
    for (std::size_t i = lacks_below ? 1 : 0; i < n; ++i) {
      if (here[static_cast<std::ptrdiff_t>(i) - step] == 0) row[i] = 0;
    }
  }

  Edges edges_;
  Box read_;
  std::size_t skipped_, width_;
  AffinityRows rows_;
};

// The edges of the voxels of a row to their six neighbours. That to the successor along
// x is the next voxel's to its predecessor.
struct SixEdges {
  const std::uint32_t *x, *y, *z, *upper_y, *upper_z;
};

// Visits the rows of a box of the array in scan order, with the edges of their voxels,
// each row of affinities being converted once.
template <class Visit>
void for_each_row(const Edges& edges, const Box& box, Visit&& visit) {
  const Vec3 size = extent(box);
  const auto width = static_cast<std::size_t>(size[0]) + 1;
  const auto rows = static_cast<std::size_t>(size[1]);
  const auto& [x_stop, y_stop, z_stop] = box.stop;
  EdgeRows source(edges, Box{box.start, {x_stop + 1, y_stop + 1, z_stop + 1}});
  std::vector<std::uint32_t> plane(width * rows), x(width), y(width), upper_y(width),
      upper_z(width);
  for (std::size_t j = 0; j < rows; ++j) {
    source.load(2, box.start[1] + static_cast<std::int64_t>(j), box.start[2],
                plane.data() + j * width);
  }
  for (std::int64_t k = box.start[2]; k < box.stop[2]; ++k) {
    source.load(1, box.start[1], k, y.data());
    for (std::int64_t j = box.start[1]; j < box.stop[1]; ++j) {
      std::uint32_t* z = plane.data() + static_cast<std::size_t>(j - box.start[1]) * width;
      source.load(0, j, k, x.data());
      source.load(1, j + 1, k, upper_y.data());
      source.load(2, j, k + 1, upper_z.data());
      visit(j, k, SixEdges{x.data(), y.data(), z, upper_y.data(), upper_z.data()});
      std::copy_n(upper_z.data(), width, z);
      std::swap(y, upper_y);
    }
  }
}

// Calls visit(i) for each i of a row where a number is not 0.
template <class T, class Visit>
void for_each_nonzero(const T* numbers, std::size_t n, const Visit& visit) {
  constexpr std::size_t step = 8;
  std::size_t i = 0;
  for (; i + step <= n; i += step) {
    T any = 0;
    for (std::size_t k = 0; k < step; ++k) any |= numbers[i + k];
    if (any == 0) continue;
    for (std::size_t k = i; k < i + step; ++k) {
      if (numbers[k] != 0) visit(k);
    }
  }
  for (; i < n; ++i) {
    if (numbers[i] != 0) visit(i);
  }
}

// Calls visit(i) for each i of a row whose byte has a bit. Bits of 64 places are gathered
// in a word first, so that there is one branch that is hard to foresee for each word.
template <class Visit>
void for_each_with_bit(const std::uint8_t* bytes, std::size_t n, std::size_t place,
                       const Visit& visit) {
  constexpr std::uint64_t ones = 0x0101010101010101u, gather = 0x0102040810204080u;
  for (std::size_t start = 0; start < n; start += 64) {
    std::uint64_t word = 0;
    const std::size_t stop = std::min(n, start + 64);
    std::size_t i = start;
    for (; i + 8 <= stop; i += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, bytes + i, sizeof eight);
      word |= ((eight >> place & ones) * gather >> 56) << (i - start);
    }
    for (; i < stop; ++i) word |= std::uint64_t{bytes[i] >> place & 1u} << (i - start);
    for (; word != 0; word &= word - 1) {
      visit(start + static_cast<std::size_t>(std::countr_zero(word)));
    }
  }
}

}  // namespace em

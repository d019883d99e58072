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
#include <stdexcept>
#include <string>
#include <vector>

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
  const std::byte* at(std::int64_t x, std::int64_t y, std::int64_t z, int axis) const {
    return data + x * strides[0] + y * strides[1] + z * strides[2] + axis * strides[3];
  }
};

// Affinities above `low` hold voxels together; `high` and above join outright.
// Both are whole steps, 0 <= low < high: no edge and an affinity of 0 are alike.
struct Thresholds {
  std::int64_t low, high;

  static Thresholds of(std::uint32_t scale, double low, double high) {
    constexpr double beyond = 1u << 30;  // above every affinity
    const double below = std::min(std::floor(low * scale), beyond);
    const double above = std::min(std::ceil(high * scale), beyond + 1);
    return {static_cast<std::int64_t>(below),
            static_cast<std::int64_t>(std::max(above, below + 1))};
  }
};

namespace detail {

// Lossy codecs overshoot a little; anything beyond that is not an affinity.
constexpr float affinity_slack = 1e-3f;

inline bool is_affinity(float value) {
  return value >= -affinity_slack && value <= 1.0f + affinity_slack;
}

// Rounded to the nearest step, halves up, after clamping to [0, 1]. A product with a
// power of two and a difference of neighbours are exact, so no sum is ever rounded.
inline std::uint32_t fixed_point(float affinity) {
  const float positive = affinity > 0.0f ? affinity : 0.0f;
  const float steps = (positive < 1.0f ? positive : 1.0f) * float{1u << 20};
  const auto whole = static_cast<std::int32_t>(steps);
  const float rest = steps - static_cast<float>(whole);
  return static_cast<std::uint32_t>(whole + (rest >= 0.5f ? 1 : 0));
}

// The value of a half-precision number, but that infinities and NaN give numbers
// beyond 65536. Subnormal ones are sums that a single-precision subtraction undoes.
inline float widened(std::uint16_t half) {
  constexpr std::uint32_t exponent = 0x7C00u << 13, bias = (127 - 15) << 23;
  const std::uint32_t magnitude = (half & 0x7FFFu) << 13;
  const bool subnormal = (magnitude & exponent) == 0;
  const std::uint32_t bits = magnitude + bias + (subnormal ? 1u << 23 : 0u);
  const float value = std::bit_cast<float>(bits) - (subnormal ? 0x1p-14f : 0.0f);
  return (half & 0x8000u) != 0 ? -value : value;
}

// Each converts a row and returns whether all of it are affinities.
inline bool convert(const std::byte* from, std::size_t n, std::uint8_t,
                    std::uint32_t* to) {
  const auto* values = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t i = 0; i < n; ++i) to[i] = values[i];
  return true;
}

template <class T>
bool convert(const std::byte* from, std::size_t n, T, std::uint32_t* to) {
  std::uint32_t wrong = 0;
  for (std::size_t i = 0; i < n; ++i) {
    T stored;
    std::memcpy(&stored, from + i * sizeof(T), sizeof(T));
    float value;
    if constexpr (sizeof(T) == 2) {
      value = widened(stored);
    } else {
      value = stored;
    }
    wrong |= is_affinity(value) ? 0u : 1u;
    to[i] = fixed_point(value);
  }
  return wrong == 0;
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
  void load(int axis, std::int64_t y, std::int64_t z, std::uint32_t* to) {
    const std::byte* from = is_contiguous_ ? affinities_.at(box_.start[0], y, z, axis)
                                           : turned(axis, y, z);
    bool good = true;
    switch (affinities_.type) {
      case AffinityType::uint8:
        good = detail::convert(from, width_, std::uint8_t{}, to);
        break;
      case AffinityType::float16:
        good = detail::convert(from, width_, std::uint16_t{}, to);
        break;
      case AffinityType::float32:
        good = detail::convert(from, width_, float{}, to);
        break;
    }
    if (!good) refuse(from);
  }

 private:
  static constexpr std::int64_t depth = 16;  // planes turned at a time

  struct Slab {
    std::vector<std::byte> rows;
    std::int64_t start = 0, stop = 0;
  };

  const std::byte* turned(int axis, std::int64_t y, std::int64_t z) {
    Slab& slab = slabs_[static_cast<std::size_t>(axis)];
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
    return slab.rows.data() + static_cast<std::size_t>(row * affinities_.item_size()) * width_;
  }

  // Blocks along x keep both the lines read and the lines written in the cache.
  template <std::size_t size>
  void turn(int axis, Slab& slab) {
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

  [[noreturn]] void refuse(const std::byte* from) const {
    const bool is_half = affinities_.type == AffinityType::float16;
    float value = 0;
    for (std::size_t i = 0; i < width_; ++i) {
      std::uint16_t half;
      if (is_half) {
        std::memcpy(&half, from + 2 * i, 2);
        value = detail::widened(half);
      } else {
        std::memcpy(&value, from + 4 * i, 4);
      }
      if (!detail::is_affinity(value)) break;
    }
    throw std::invalid_argument("affinities hold " + std::to_string(value) + " where " +
                                (is_half ? "float16" : "float32") +
                                " affinities lie in [0, 1]; rescale or repair them first");
  }

  Affinities affinities_;
  Box box_;
  std::size_t width_;
  bool is_contiguous_;
  std::array<Slab, 3> slabs_;
};

// Reads rows of the edges that exist: the affinities, and 0 where there is no edge, as
// across the bounds or where a voxel at either end is masked out.
class EdgeRows {
 public:
  // Edges of the rows from `box.start` to `box.stop`, a box of the array that may go one
  // voxel beyond it where the bounds end. `mask` lies as the array does, or is null.
  EdgeRows(const Affinities& affinities, const Frame& frame, const Box& box,
           const std::uint8_t* mask)
      : rows_(affinities, within(box, frame)),
        frame_(frame),
        start_(box.start[0]),
        stored_(std::min(box.stop[0], frame.shape[0])),
        stop_(box.stop[0]),
        mask_(mask) {}

  void load(int axis, std::int64_t y, std::int64_t z, std::uint32_t* to) {
    const auto width = static_cast<std::size_t>(stop_ - start_);
    const auto stored = static_cast<std::size_t>(stored_ - start_);
    const Vec3 first{start_, y, z};
    const bool outside = y >= frame_.shape[1] || z >= frame_.shape[2];
    if (outside) {
      std::fill_n(to, width, 0u);
      return;
    }
    rows_.load(axis, y, z, to);
    std::fill(to + stored, to + width, 0u);
    if (!frame_.has_lower(first, axis)) {
      std::fill_n(to, axis == 0 ? std::size_t{1} : width, 0u);
    }
    if (mask_ != nullptr) {
      erase_masked(static_cast<std::size_t>(axis), first, to, stored);
    }
  }

 private:
  static Box within(const Box& box, const Frame& frame) {
    Box cut = box;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      cut.stop[axis] = std::min(cut.stop[axis], frame.shape[axis]);
    }
    return cut;
  }

  void erase_masked(std::size_t axis, const Vec3& first, std::uint32_t* to,
                    std::size_t n) const {
    const std::uint8_t* here = mask_ + frame_.index(first[0], first[1], first[2]);
    for (std::size_t i = 0; i < n; ++i) {
      if (here[i] == 0) to[i] = 0;
    }
    // A lower voxel beyond the array is beyond the bounds, or no kernel asks for the edge.
    const bool at_face = first[axis] == 0;
    if (at_face && axis != 0) return;
    const std::uint8_t* below = here - frame_.strides()[axis];
    for (std::size_t i = at_face ? 1 : 0; i < n; ++i) {
      if (below[i] == 0) to[i] = 0;
    }
  }

  AffinityRows rows_;
  Frame frame_;
  std::int64_t start_, stored_, stop_;
  const std::uint8_t* mask_;
};

}  // namespace em

// Where an array lies in the volume, and how its affinities are read.
//
// Arrays are x, y, z with x varying fastest. Affinity channel a at voxel v is
// the edge (v, a), which joins v to its predecessor v - e_a. Edges are in a
// strict total order: by affinity, then by key, which is the position of v in
// the volume (z, then y, then x) and then the axis. The key does not know how
// the volume was cut into chunks, so neither does any comparison of edges.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

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

// The integer that stands for an affinity; `scale` stands for 1.
template <class T>
struct FixedPoint;

template <>
struct FixedPoint<std::uint8_t> {
  static constexpr std::uint32_t scale = 255;
  static std::uint32_t of(std::uint8_t affinity) { return affinity; }
};

// Rounded to the nearest step, halves up, after clamping to [0, 1].
template <>
struct FixedPoint<float> {
  static constexpr std::uint32_t scale = 1u << 20;
  static std::uint32_t of(float affinity) {
    const double bounded = affinity < 0.0f ? 0.0 : affinity > 1.0f ? 1.0 : affinity;
    return static_cast<std::uint32_t>(bounded * scale + 0.5);
  }
};

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

template <class T>
struct Affinities {
  const T* data;
  std::size_t n_voxels;

  std::uint32_t at(std::size_t index, int axis) const {
    return FixedPoint<T>::of(data[index + static_cast<std::size_t>(axis) * n_voxels]);
  }
};

// Lossy codecs overshoot a little; anything beyond that is not an affinity.
inline void require_affinities(const Affinities<float>& affinities) {
  constexpr float slack = 1e-3f;
  const std::size_t n = 3 * affinities.n_voxels;
  for (std::size_t i = 0; i < n; ++i) {
    const float affinity = affinities.data[i];
    if (!(affinity >= -slack && affinity <= 1.0f + slack)) {
      throw std::invalid_argument(
          "affinities hold " + std::to_string(affinity) +
          " where float32 affinities lie in [0, 1]; rescale or repair them first");
    }
  }
}

inline void require_affinities(const Affinities<std::uint8_t>&) {}

// Affinities above `low` hold voxels together; `high` and above join outright.
struct Thresholds {
  std::int64_t low, high;

  template <class T>
  static Thresholds of(double low, double high) {
    constexpr double scale = FixedPoint<T>::scale;
    return {static_cast<std::int64_t>(std::floor(low * scale)),
            static_cast<std::int64_t>(std::ceil(high * scale))};
  }
};

}  // namespace em

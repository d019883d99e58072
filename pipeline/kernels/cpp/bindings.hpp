// What the kernels' bindings share. Dtype and memory order are checked by type;
// shapes, boxes and ranges are the business of the Python modules beside this.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "volume.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using std::int64_t;
using std::uint64_t;

void bind_basins(nb::module_& m);
void bind_region_graph(nb::module_& m);
void bind_regions(nb::module_& m);
void bind_relabel(nb::module_& m);

namespace {

template <class T>
using Volume = nb::ndarray<const T, nb::ndim<3>, nb::f_contig, nb::device::cpu>;
// uint8, float32, or the bits of float16 as uint16, in any memory order.
using AffinityVolume = nb::ndarray<nb::ro, nb::shape<-1, -1, -1, 3>, nb::device::cpu>;
template <class T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pairs = nb::ndarray<const uint64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Array = nb::ndarray<nb::numpy, T>;
using Corners = std::array<em::Vec3, 2>;

template <class T>
std::span<const T> span(const Column<T>& column) {
  return {column.data(), column.size()};
}

std::span<const std::array<uint64_t, 2>> span(const Pairs& pairs) {
  return {reinterpret_cast<const std::array<uint64_t, 2>*>(pairs.data()), pairs.shape(0)};
}

// An array that owns its memory.
template <class T, std::size_t N>
Array<T> owned(std::unique_ptr<T[]> data, const std::array<std::size_t, N>& shape,
               char order = 'C') {
  T* raw = data.release();
  const nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Array<T>(raw, N, shape.data(), owner, nullptr, nb::dtype<T>(), 0, 0, order);
}

// A column of numbers, `get` taking each from a row.
template <class T, class Row, class Get>
Array<T> column(const std::vector<Row>& rows, Get get) {
  auto data = std::make_unique<T[]>(rows.size());
  std::transform(rows.begin(), rows.end(), data.get(), get);
  return owned<T, 1>(std::move(data), {rows.size()});
}

// A column of `Width` numbers each.
template <class T, std::size_t Width, class Row, class Get>
Array<T> wide_column(const std::vector<Row>& rows, Get get) {
  auto data = std::make_unique<T[]>(rows.size() * Width);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::array<T, Width>& row = get(rows[i]);
    std::copy(row.begin(), row.end(), data.get() + i * Width);
  }
  return owned<T, 2>(std::move(data), {rows.size(), Width});
}

constexpr auto itself = [](const auto& row) -> const auto& { return row; };

inline em::Frame frame(const AffinityVolume& affinities, const em::Vec3& origin,
                       const Corners& core, const Corners& bounds) {
  const auto size = [&](std::size_t axis) {
    return static_cast<int64_t>(affinities.shape(axis));
  };
  return {{size(0), size(1), size(2)}, origin, {core[0], core[1]}, {bounds[0], bounds[1]}};
}

inline em::Affinities view(const AffinityVolume& affinities) {
  using em::AffinityType;
  const nb::dlpack::dtype dtype = affinities.dtype();
  em::Affinities result{static_cast<const std::byte*>(affinities.data()), {}, {}};
  if (dtype == nb::dtype<uint8_t>()) {
    result.type = AffinityType::uint8;
  } else if (dtype == nb::dtype<uint16_t>()) {
    result.type = AffinityType::float16;
  } else if (dtype == nb::dtype<float>()) {
    result.type = AffinityType::float32;
  } else {
    throw nb::type_error("affinities are not uint8, uint16 or float32");
  }
  for (std::size_t i = 0; i < 4; ++i) {
    result.strides[i] = affinities.stride(i) * result.item_size();
  }
  return result;
}

}  // namespace

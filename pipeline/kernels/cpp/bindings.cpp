// The kernels as Python sees them. Dtype and memory order are checked by type;
// shapes, boxes and ranges are the business of the Python modules beside this.
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
#include <vector>

#include "agglomerate.hpp"
#include "basin_graph.hpp"
#include "merge_basins.hpp"
#include "region_graph.hpp"
#include "relabel.hpp"
#include "watershed.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using std::int64_t;
using std::uint64_t;

namespace {

template <class T>
using Volume = nb::ndarray<const T, nb::ndim<3>, nb::f_contig, nb::device::cpu>;
template <class T>
using AffinityVolume =
    nb::ndarray<const T, nb::shape<-1, -1, -1, 3>, nb::f_contig, nb::device::cpu>;
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

template <class T>
em::Frame frame(const AffinityVolume<T>& affinities, const em::Vec3& origin,
                const Corners& core, const Corners& bounds) {
  const auto size = [&](std::size_t axis) {
    return static_cast<int64_t>(affinities.shape(axis));
  };
  return {{size(0), size(1), size(2)}, origin, {core[0], core[1]}, {bounds[0], bounds[1]}};
}

template <class T>
em::Affinities<T> view(const AffinityVolume<T>& affinities) {
  return {affinities.data(), affinities.size() / 3};
}

template <class T>
auto watershed(const AffinityVolume<T>& affinities, const em::Vec3& origin,
               const Corners& core, const Corners& bounds, double low, double high,
               uint64_t base) {
  const em::Frame placed = frame(affinities, origin, core, bounds);
  const em::Vec3 shape = em::extent(placed.core);
  std::unique_ptr<uint64_t[]> labels(new uint64_t[em::volume(shape)]);
  {
    const nb::gil_scoped_release released;
    em::watershed(view(affinities), placed, em::Thresholds::of<T>(low, high), base,
                  labels.get());
  }
  const std::array<std::size_t, 3> dims{static_cast<std::size_t>(shape[0]),
                                        static_cast<std::size_t>(shape[1]),
                                        static_cast<std::size_t>(shape[2])};
  return owned<uint64_t, 3>(std::move(labels), dims, 'F');
}

template <class T>
auto basin_graph(const Volume<uint64_t>& labels, const AffinityVolume<T>& affinities,
                 const em::Vec3& origin, const Corners& core, const Corners& bounds,
                 double low, double high) {
  em::BasinGraph graph;
  {
    const nb::gil_scoped_release released;
    graph = em::basin_graph(labels.data(), view(affinities),
                            frame(affinities, origin, core, bounds),
                            em::Thresholds::of<T>(low, high));
  }
  using Edge = em::BasinEdge;
  return std::tuple(
      column<uint64_t>(graph.ids, itself), column<uint64_t>(graph.sizes, itself),
      wide_column<uint64_t, 2>(graph.joins, itself),
      wide_column<uint64_t, 2>(graph.edges,
                               [](const Edge& edge) { return std::array{edge.a, edge.b}; }),
      column<uint64_t>(graph.edges, [](const Edge& edge) { return edge.affinity; }),
      column<uint64_t>(graph.edges, [](const Edge& edge) { return edge.key; }));
}

Array<uint64_t> merge_basins(const Column<uint64_t>& ids, const Column<uint64_t>& sizes,
                             const Pairs& joins, const Pairs& pairs,
                             const Column<uint64_t>& affinities,
                             const Column<uint64_t>& keys, uint64_t size_threshold,
                             uint64_t dust) {
  std::vector<uint64_t> supervoxels;
  {
    const nb::gil_scoped_release released;
    std::vector<em::BasinEdge> edges(pairs.shape(0));
    for (std::size_t i = 0; i < edges.size(); ++i) {
      const auto& [a, b] = span(pairs)[i];
      edges[i] = {a, b, affinities.data()[i], keys.data()[i]};
    }
    supervoxels = em::merge_basins(span(ids), span(sizes), span(joins), std::move(edges),
                                   size_threshold, dust);
  }
  return column<uint64_t>(supervoxels, itself);
}

template <class T>
auto region_graph(const Volume<uint64_t>& labels, const AffinityVolume<T>& affinities,
                  const em::Vec3& origin, const Corners& core, const Corners& bounds) {
  em::RegionGraph graph;
  {
    const nb::gil_scoped_release released;
    graph = em::region_graph(labels.data(), view(affinities),
                             frame(affinities, origin, core, bounds));
  }
  using em::Contact, em::Region;
  const auto& contacts = graph.contacts;
  const auto& regions = graph.regions;
  return std::tuple(
      wide_column<uint64_t, 2>(graph.pairs, itself),
      wide_column<uint64_t, 3>(contacts, [](const Contact& c) { return c.affinity; }),
      wide_column<uint64_t, 3>(contacts, [](const Contact& c) { return c.area; }),
      column<uint64_t>(contacts, [](const Contact& c) { return c.key; }),
      column<uint64_t>(graph.ids, itself),
      column<uint64_t>(regions, [](const Region& r) { return r.size; }),
      column<uint64_t>(regions, [](const Region& r) { return r.anchor; }),
      wide_column<int64_t, 3>(regions, [](const Region& r) { return r.sum; }),
      wide_column<int64_t, 3>(regions, [](const Region& r) { return r.start; }),
      wide_column<int64_t, 3>(regions, [](const Region& r) { return r.stop; }));
}

auto agglomerate(const Column<uint64_t>& ids, const Column<uint64_t>& anchors,
                 const Pairs& pairs, const Column<uint64_t>& sums,
                 const Column<uint64_t>& areas, const Column<uint64_t>& keys,
                 uint64_t numerator, uint64_t denominator) {
  em::Agglomeration result;
  {
    const nb::gil_scoped_release released;
    std::vector<em::MeanContact> contacts(pairs.shape(0));
    for (std::size_t i = 0; i < contacts.size(); ++i) {
      contacts[i] = {sums.data()[i], areas.data()[i], keys.data()[i]};
    }
    result = em::agglomerate(span(ids), span(anchors), span(pairs), contacts, numerator,
                             denominator);
  }
  using em::Merge;
  const auto& history = result.history;
  return std::tuple(column<uint64_t>(history, [](const Merge& m) { return m.loser; }),
                    column<uint64_t>(history, [](const Merge& m) { return m.winner; }),
                    column<uint64_t>(history, [](const Merge& m) { return m.sum; }),
                    column<uint64_t>(history, [](const Merge& m) { return m.area; }),
                    column<uint64_t>(result.segments, itself));
}

Array<uint64_t> relabel(const Volume<uint64_t>& labels, const Column<uint64_t>& ids,
                        const Column<uint64_t>& targets, bool keep_missing) {
  std::unique_ptr<uint64_t[]> relabelled(new uint64_t[labels.size()]);
  {
    const nb::gil_scoped_release released;
    em::relabel({labels.data(), labels.size()}, span(ids), span(targets), keep_missing,
                relabelled.get());
  }
  return owned<uint64_t, 3>(std::move(relabelled),
                            {labels.shape(0), labels.shape(1), labels.shape(2)}, 'F');
}

template <class T>
void bind_affinity_kernels(nb::module_& m) {
  m.def("watershed", &watershed<T>, "affinities"_a.noconvert(), "origin"_a, "core"_a,
        "bounds"_a, "low"_a, "high"_a, "base"_a);
  m.def("basin_graph", &basin_graph<T>, "labels"_a.noconvert(), "affinities"_a.noconvert(),
        "origin"_a, "core"_a, "bounds"_a, "low"_a, "high"_a);
  m.def("region_graph", &region_graph<T>, "labels"_a.noconvert(),
        "affinities"_a.noconvert(), "origin"_a, "core"_a, "bounds"_a);
}

}  // namespace

NB_MODULE(_cpp, m) {
  bind_affinity_kernels<std::uint8_t>(m);
  bind_affinity_kernels<float>(m);
  m.def("merge_basins", &merge_basins, "ids"_a.noconvert(), "sizes"_a.noconvert(),
        "joins"_a.noconvert(), "pairs"_a.noconvert(), "affinities"_a.noconvert(),
        "keys"_a.noconvert(), "size_threshold"_a, "dust"_a);
  m.def("agglomerate", &agglomerate, "ids"_a.noconvert(), "anchors"_a.noconvert(),
        "pairs"_a.noconvert(), "sums"_a.noconvert(), "areas"_a.noconvert(),
        "keys"_a.noconvert(), "numerator"_a, "denominator"_a);
  m.def("relabel", &relabel, "labels"_a.noconvert(), "ids"_a.noconvert(),
        "targets"_a.noconvert(), "keep_missing"_a);
}

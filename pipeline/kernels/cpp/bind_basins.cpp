// Watershed basins, their graph, and its merging.
#include "bindings.hpp"

#include <nanobind/stl/optional.h>

#include <optional>

#include "basin_graph.hpp"
#include "merge_basins.hpp"
#include "places.hpp"
#include "watershed.hpp"

namespace {

using OutVolume = nb::ndarray<uint64_t, nb::ndim<3>, nb::f_contig, nb::device::cpu>;

auto edge_columns(const std::vector<em::BasinEdge>& edges) {
  using Edge = em::BasinEdge;
  return std::tuple(
      wide_column<uint64_t, 2>(edges,
                               [](const Edge& edge) { return std::array{edge.a, edge.b}; }),
      column<uint64_t>(edges, [](const Edge& edge) { return edge.affinity; }),
      column<uint64_t>(edges, [](const Edge& edge) { return edge.key; }));
}

// Writes over `labels`, which the kernel uses for labels of other sizes before.
void watershed(const AffinityVolume& affinities, const em::Vec3& origin,
               const Corners& core, const Corners& bounds,
               const std::optional<Volume<uint8_t>>& mask, double low, double high,
               uint64_t size_threshold, uint64_t dust, uint64_t base, std::size_t threads,
               const OutVolume& labels) {
  const nb::gil_scoped_release released;
  const em::Affinities source = view(affinities);
  em::watershed(source, frame(affinities, origin, core, bounds),
                mask ? mask->data() : nullptr,
                em::Thresholds::of(source.scale(), low, high), {size_threshold, dust}, base,
                threads, reinterpret_cast<std::byte*>(labels.data()));
}

auto basin_graph(const Volume<uint64_t>& labels, const AffinityVolume& affinities,
                 const em::Vec3& origin, const Corners& core, const Corners& bounds,
                 const std::optional<Volume<uint8_t>>& mask, double low, double high,
                 std::optional<uint64_t> large, std::size_t threads) {
  em::BasinGraph graph;
  {
    const nb::gil_scoped_release released;
    const em::Affinities source = view(affinities);
    graph = em::basin_graph(labels.data(), source, frame(affinities, origin, core, bounds),
                            mask ? mask->data() : nullptr,
                            em::Thresholds::of(source.scale(), low, high), large, threads);
  }
  return std::tuple_cat(
      std::tuple(column<uint64_t>(graph.ids, itself), column<uint64_t>(graph.sizes, itself),
                 column<uint64_t>(graph.anchors, itself),
                 column<uint8_t>(graph.faces, itself),
                 wide_column<uint64_t, 2>(graph.joins, itself)),
      edge_columns(graph.edges), edge_columns(graph.cross_edges));
}

auto merge_basins(const Column<uint64_t>& ids, const Column<uint64_t>& sizes,
                  const Column<uint64_t>& anchors, const Column<std::uint8_t>& open,
                  const Pairs& joins, const Pairs& pairs,
                  const Column<uint64_t>& affinities, const Column<uint64_t>& keys,
                  uint64_t size_threshold, uint64_t dust, bool forest) {
  em::MergedBasins merged;
  {
    const nb::gil_scoped_release released;
    std::vector<em::Basin> basins(ids.size());
    for (std::size_t i = 0; i < basins.size(); ++i) {
      basins[i] = {sizes.data()[i], anchors.data()[i], open.data()[i] != 0};
    }
    std::vector<em::BasinEdge> edges(pairs.shape(0));
    for (std::size_t i = 0; i < edges.size(); ++i) {
      const auto& [a, b] = span(pairs)[i];
      edges[i] = {a, b, affinities.data()[i], keys.data()[i]};
    }
    merged = em::merge_basins(span(ids), basins, span(joins), edges,
                              size_threshold, dust, forest);
  }
  return std::tuple_cat(std::tuple(column<uint64_t>(merged.targets, itself),
                                   column<std::uint8_t>(merged.settled, itself),
                                   column<uint64_t>(merged.sizes, itself)),
                        edge_columns(merged.edges));
}

// The rows of keys in a table, -1 for those that it lacks.
Array<int64_t> places(const Column<uint64_t>& ids, const Column<uint64_t>& keys) {
  auto rows = std::make_unique<int64_t[]>(keys.size());
  {
    const nb::gil_scoped_release released;
    const em::Places places(span(ids));
    places.each(
        keys.size(), [&](std::size_t i) { return keys.data()[i]; },
        [&](std::size_t i, std::uint32_t row) {
          rows[i] = row == em::Places::none ? -1 : static_cast<int64_t>(row);
        });
  }
  return owned<int64_t, 1>(std::move(rows), {keys.size()});
}

}  // namespace

void bind_basins(nb::module_& m) {
  m.def("watershed", &watershed, "affinities"_a.noconvert(), "origin"_a, "core"_a,
        "bounds"_a, "mask"_a.none(), "low"_a, "high"_a, "size_threshold"_a, "dust"_a,
        "base"_a, "threads"_a, "labels"_a.noconvert());
  m.def("basin_graph", &basin_graph, "labels"_a.noconvert(), "affinities"_a.noconvert(),
        "origin"_a, "core"_a, "bounds"_a, "mask"_a.none(), "low"_a, "high"_a,
        "large"_a.none(), "threads"_a);
  m.def("merge_basins", &merge_basins, "ids"_a.noconvert(), "sizes"_a.noconvert(),
        "anchors"_a.noconvert(), "open"_a.noconvert(), "joins"_a.noconvert(),
        "pairs"_a.noconvert(), "affinities"_a.noconvert(), "keys"_a.noconvert(),
        "size_threshold"_a, "dust"_a, "forest"_a);
  m.def("places", &places, "ids"_a.noconvert(), "keys"_a.noconvert());
  m.attr("join_affinity") = em::join_affinity;
}

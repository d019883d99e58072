// Watershed basins, their graph, and its merging.
#include "bindings.hpp"
#include "basin_graph.hpp"
#include "merge_basins.hpp"
#include "watershed.hpp"

namespace {

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

auto merge_basins(const Column<uint64_t>& ids, const Column<uint64_t>& sizes,
                  const Column<uint64_t>& anchors, const Column<std::uint8_t>& open,
                  const Pairs& joins, const Pairs& pairs,
                  const Column<uint64_t>& affinities, const Column<uint64_t>& keys,
                  uint64_t size_threshold, uint64_t dust) {
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
    merged = em::merge_basins(span(ids), basins, span(joins), std::move(edges),
                              size_threshold, dust);
  }
  using Edge = em::BasinEdge;
  return std::tuple(
      column<uint64_t>(merged.targets, itself), column<std::uint8_t>(merged.settled, itself),
      column<uint64_t>(merged.sizes, itself),
      wide_column<uint64_t, 2>(merged.edges,
                               [](const Edge& edge) { return std::array{edge.a, edge.b}; }),
      column<uint64_t>(merged.edges, [](const Edge& edge) { return edge.affinity; }),
      column<uint64_t>(merged.edges, [](const Edge& edge) { return edge.key; }));
}

template <class T>
void bind_affinity_kernels(nb::module_& m) {
  m.def("watershed", &watershed<T>, "affinities"_a.noconvert(), "origin"_a, "core"_a,
        "bounds"_a, "low"_a, "high"_a, "base"_a);
  m.def("basin_graph", &basin_graph<T>, "labels"_a.noconvert(), "affinities"_a.noconvert(),
        "origin"_a, "core"_a, "bounds"_a, "low"_a, "high"_a);
}

}  // namespace

void bind_basins(nb::module_& m) {
  bind_affinity_kernels<std::uint8_t>(m);
  bind_affinity_kernels<float>(m);
  m.def("merge_basins", &merge_basins, "ids"_a.noconvert(), "sizes"_a.noconvert(),
        "anchors"_a.noconvert(), "open"_a.noconvert(), "joins"_a.noconvert(),
        "pairs"_a.noconvert(), "affinities"_a.noconvert(), "keys"_a.noconvert(),
        "size_threshold"_a, "dust"_a);
}

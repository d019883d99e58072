// The region graph.
#include "bindings.hpp"
#include "region_graph.hpp"

#include <nanobind/stl/optional.h>

#include <optional>

namespace {

auto region_graph(const Volume<uint64_t>& labels, const AffinityVolume& affinities,
                  const std::optional<Volume<uint8_t>>& semantics, const em::Vec3& origin,
                  const Corners& core, const Corners& bounds, std::size_t threads) {
  em::RegionGraph graph;
  {
    const nb::gil_scoped_release released;
    graph = em::region_graph(labels.data(), view(affinities),
                             semantics ? semantics->data() : nullptr,
                             frame(affinities, origin, core, bounds), threads);
  }
  using em::Contact, em::Region;
  const auto& contacts = graph.contacts;
  const auto& regions = graph.regions;
  return std::tuple(
      column<uint64_t>(graph.ids, itself),
      column<uint64_t>(regions, [](const Region& r) { return r.size; }),
      column<uint64_t>(regions, [](const Region& r) { return r.anchor; }),
      wide_column<int64_t, 3>(regions, [](const Region& r) { return r.sum; }),
      wide_column<int64_t, 3>(regions, [](const Region& r) { return r.start; }),
      wide_column<int64_t, 3>(regions, [](const Region& r) { return r.stop; }),
      wide_column<uint64_t, em::n_classes>(regions,
                                           [](const Region& r) { return r.classes; }),
      column<uint8_t>(regions, [](const Region& r) { return r.faces; }),
      wide_column<uint64_t, 2>(graph.pairs, itself),
      wide_column<uint64_t, 3>(contacts, [](const Contact& c) { return c.affinity; }),
      wide_column<uint64_t, 3>(contacts, [](const Contact& c) { return c.area; }),
      column<uint64_t>(contacts, [](const Contact& c) { return c.key; }));
}

}  // namespace

void bind_region_graph(nb::module_& m) {
  m.def("region_graph", &region_graph, "labels"_a.noconvert(), "affinities"_a.noconvert(),
        "semantics"_a.noconvert().none(), "origin"_a, "core"_a, "bounds"_a, "threads"_a);
}

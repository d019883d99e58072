// The region graph and its agglomeration.
#include "bindings.hpp"
#include "agglomerate.hpp"
#include "region_graph.hpp"

namespace {

auto region_graph(const Volume<uint64_t>& labels, const AffinityVolume& affinities,
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

}  // namespace

void bind_regions(nb::module_& m) {
  m.def("region_graph", &region_graph, "labels"_a.noconvert(), "affinities"_a.noconvert(),
        "origin"_a, "core"_a, "bounds"_a);
  m.def("agglomerate", &agglomerate, "ids"_a.noconvert(), "anchors"_a.noconvert(),
        "pairs"_a.noconvert(), "sums"_a.noconvert(), "areas"_a.noconvert(),
        "keys"_a.noconvert(), "numerator"_a, "denominator"_a);
}

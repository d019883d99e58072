// The agglomeration of the region graph.
#include "bindings.hpp"
#include "agglomerate.hpp"

namespace {

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
  m.def("agglomerate", &agglomerate, "ids"_a.noconvert(), "anchors"_a.noconvert(),
        "pairs"_a.noconvert(), "sums"_a.noconvert(), "areas"_a.noconvert(),
        "keys"_a.noconvert(), "numerator"_a, "denominator"_a);
}

// The agglomeration of the region graph.
#include "bindings.hpp"
#include "agglomerate.hpp"

namespace {

using Classes =
    nb::ndarray<const uint64_t, nb::shape<-1, em::n_classes>, nb::c_contig, nb::device::cpu>;

em::Constraints constraints(uint64_t activation, uint64_t labelled_size,
                            uint64_t labelled_share,
                            const std::array<std::uint8_t, em::n_classes>& clashes,
                            uint64_t both_members, uint64_t one_member) {
  return {activation, labelled_size, labelled_share, clashes, both_members, one_member};
}

auto agglomerate(const Column<uint64_t>& ids, const Column<uint64_t>& names,
                 const Column<uint64_t>& sizes, const Column<uint64_t>& members,
                 const Classes& classes, const Column<std::uint8_t>& open,
                 const Pairs& pairs, const Column<uint64_t>& sums,
                 const Column<uint64_t>& areas, const Column<uint64_t>& keys,
                 uint64_t threshold, uint64_t floor, uint64_t scale,
                 const em::Constraints& rules, bool absorb) {
  em::Agglomeration result;
  {
    const nb::gil_scoped_release released;
    std::vector<em::Cluster> clusters(ids.size());
    for (std::size_t i = 0; i < clusters.size(); ++i) {
      clusters[i] = {names.data()[i], sizes.data()[i], members.data()[i], {},
                     open.data()[i] != 0};
      std::copy_n(classes.data() + i * em::n_classes, em::n_classes,
                  clusters[i].classes.begin());
    }
    std::vector<em::MeanContact> contacts(pairs.shape(0));
    for (std::size_t i = 0; i < contacts.size(); ++i) {
      contacts[i] = {sums.data()[i], areas.data()[i], keys.data()[i]};
    }
    result = em::agglomerate(span(ids), std::move(clusters), span(pairs), contacts,
                             {threshold, floor, scale}, rules, absorb);
  }
  using em::Cluster, em::Merge, em::OpenContact, em::Refusal;
  const auto contact_columns = [](const auto& rows) {
    return std::tuple(
        column<uint64_t>(rows, [](const auto& row) { return row.contact.sum; }),
        column<uint64_t>(rows, [](const auto& row) { return row.contact.area; }),
        column<uint64_t>(rows, [](const auto& row) { return row.contact.key; }));
  };
  const auto& [merges, refusals, targets, settled, holders, open_ids, clusters, contacts] =
      result;
  return std::tuple(
      std::tuple(column<uint64_t>(targets, itself), column<std::uint8_t>(settled, itself),
                 column<uint64_t>(holders, itself)),
      std::tuple(
          column<uint64_t>(open_ids, itself),
          column<uint64_t>(clusters, [](const Cluster& c) { return c.name; }),
          column<uint64_t>(clusters, [](const Cluster& c) { return c.size; }),
          column<uint64_t>(clusters, [](const Cluster& c) { return c.members; }),
          wide_column<uint64_t, em::n_classes>(clusters,
                                               [](const Cluster& c) { return c.classes; })),
      std::tuple_cat(
          std::tuple(wide_column<uint64_t, 2>(
              contacts, [](const OpenContact& c) { return c.pair; })),
          contact_columns(contacts)),
      std::tuple_cat(
          std::tuple(wide_column<uint64_t, 2>(
              merges, [](const Merge& m) { return std::array{m.a, m.b}; })),
          contact_columns(merges)),
      std::tuple_cat(
          std::tuple(
              wide_column<uint64_t, 2>(refusals, [](const Refusal& r) { return r.names; })),
          contact_columns(refusals),
          std::tuple(
              wide_column<uint64_t, 2>(refusals, [](const Refusal& r) { return r.sizes; }),
              wide_column<uint64_t, 2>(refusals, [](const Refusal& r) { return r.members; }),
              wide_column<std::uint8_t, 2>(refusals,
                                           [](const Refusal& r) { return r.classes; }),
              column<std::uint8_t>(refusals, [](const Refusal& r) {
                return static_cast<std::uint8_t>(r.reason);
              }))));
}

Array<int64_t> best_contacts(std::size_t n, const Column<std::uint32_t>& owners,
                             const Column<uint64_t>& sums, const Column<uint64_t>& areas,
                             const Column<uint64_t>& keys, uint64_t floor, uint64_t scale) {
  std::vector<int64_t> rows;
  {
    const nb::gil_scoped_release released;
    std::vector<em::MeanContact> contacts(owners.size());
    for (std::size_t i = 0; i < contacts.size(); ++i) {
      contacts[i] = {sums.data()[i], areas.data()[i], keys.data()[i]};
    }
    rows = em::best_contacts(n, span(owners), contacts, floor, scale);
  }
  return column<int64_t>(rows, itself);
}

auto replay(const Pairs& pairs, const Column<uint64_t>& sums, const Column<uint64_t>& areas,
            const Column<uint64_t>& keys) {
  std::vector<em::Step> steps;
  {
    const nb::gil_scoped_release released;
    std::vector<em::Merge> merges(pairs.shape(0));
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const auto& [a, b] = span(pairs)[i];
      merges[i] = {a, b, {sums.data()[i], areas.data()[i], keys.data()[i]}};
    }
    steps = em::replay(std::move(merges));
  }
  using em::Step;
  return std::tuple(
      column<uint64_t>(steps, [](const Step& step) { return step.loser; }),
      column<uint64_t>(steps, [](const Step& step) { return step.winner; }),
      column<uint64_t>(steps, [](const Step& step) { return step.contact.sum; }),
      column<uint64_t>(steps, [](const Step& step) { return step.contact.area; }));
}

}  // namespace

void bind_regions(nb::module_& m) {
  nb::class_<em::Constraints>(m, "Constraints")
      .def(nb::new_(&constraints), "activation"_a, "labelled_size"_a, "labelled_share"_a,
           "clashes"_a, "both_members"_a, "one_member"_a);
  m.def("agglomerate", &agglomerate, "ids"_a.noconvert(), "names"_a.noconvert(),
        "sizes"_a.noconvert(), "members"_a.noconvert(), "classes"_a.noconvert(),
        "open"_a.noconvert(), "pairs"_a.noconvert(), "sums"_a.noconvert(),
        "areas"_a.noconvert(), "keys"_a.noconvert(), "threshold"_a, "floor"_a, "scale"_a,
        "rules"_a, "absorb"_a);
  m.def("best_contacts", &best_contacts, "n"_a, "owners"_a.noconvert(),
        "sums"_a.noconvert(), "areas"_a.noconvert(), "keys"_a.noconvert(), "floor"_a,
        "scale"_a);
  m.def("replay", &replay, "pairs"_a.noconvert(), "sums"_a.noconvert(),
        "areas"_a.noconvert(), "keys"_a.noconvert());
}

// Ids replaced by a table.
#include "bindings.hpp"
#include "relabel.hpp"

namespace {

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

}  // namespace

void bind_relabel(nb::module_& m) {
  m.def("relabel", &relabel, "labels"_a.noconvert(), "ids"_a.noconvert(),
        "targets"_a.noconvert(), "keep_missing"_a);
}

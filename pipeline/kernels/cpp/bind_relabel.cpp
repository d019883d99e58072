// Ids replaced by a table.
#include "bindings.hpp"
#include "relabel.hpp"

namespace {

using Out = nb::ndarray<uint64_t, nb::ndim<3>, nb::f_contig, nb::device::cpu>;

void relabel(const Volume<uint64_t>& labels, const Column<uint64_t>& ids,
             const Column<uint64_t>& targets, bool keep_missing, const Out& out,
             std::size_t threads) {
  const nb::gil_scoped_release released;
  em::relabel({labels.data(), labels.size()}, span(ids), span(targets), keep_missing,
              out.data(), threads);
}

}  // namespace

void bind_relabel(nb::module_& m) {
  m.def("relabel", &relabel, "labels"_a.noconvert(), "ids"_a.noconvert(),
        "targets"_a.noconvert(), "keep_missing"_a, "out"_a.noconvert(), "threads"_a);
}

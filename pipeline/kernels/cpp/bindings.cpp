// The kernels as Python sees them.
#include "bindings.hpp"

NB_MODULE(_cpp, m) {
  bind_basins(m);
  bind_region_graph(m);
  bind_regions(m);
  bind_relabel(m);
}

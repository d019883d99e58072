// Replaces ids by the ids that a table gives for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "flat_map.hpp"

namespace em {

// Background stays background.
inline void relabel(std::span<const std::uint64_t> labels,
                    std::span<const std::uint64_t> ids,
                    std::span<const std::uint64_t> targets, bool keep_missing,
                    std::uint64_t* relabelled) {
  FlatMap<std::uint64_t> table(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != 0) table[ids[i]] = targets[i];
  }
  std::uint64_t last = 0, target = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] != last) {
      last = labels[i];
      const std::uint64_t* found = last == 0 ? &last : table.find(last);
      if (found == nullptr && !keep_missing) {
        throw std::invalid_argument("id " + std::to_string(last) +
                                    " is not in the remap table; build the table from "
                                    "all chunks, or keep missing ids");
      }
      target = found == nullptr ? last : *found;
    }
    relabelled[i] = target;
  }
}

}  // namespace em

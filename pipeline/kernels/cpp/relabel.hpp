// Replaces ids by the ids that a table gives for them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "flat_map.hpp"
#include "parallel.hpp"

namespace em {

namespace detail {

inline void relabel(std::span<const std::uint64_t> labels,
                    const FlatMap<std::uint64_t>& table, bool keep_missing,
                    std::uint64_t* relabelled) {
  std::uint64_t last = 0, target = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const std::uint64_t label = labels[i];
    if (label != last) {
      last = label;
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

}  // namespace detail

// Background stays background. `relabelled` may be the labels themselves.
inline void relabel(std::span<const std::uint64_t> labels,
                    std::span<const std::uint64_t> ids,
                    std::span<const std::uint64_t> targets, bool keep_missing,
                    std::uint64_t* relabelled, std::size_t threads) {
  FlatMap<std::uint64_t> table(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != 0) table[ids[i]] = targets[i];
  }
  const std::size_t n = labels.size(), pieces = std::min(threads, n);
  in_parallel(pieces, threads, [&](std::size_t piece) {
    const std::size_t start = piece_start(n, pieces, piece);
    const std::size_t stop = piece_start(n, pieces, piece + 1);
    detail::relabel(labels.subspan(start, stop - start), table, keep_missing,
                    relabelled + start);
  });
}

}  // namespace em

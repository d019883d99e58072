// Rows of a table by id.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "flat_map.hpp"

namespace em {

class Places {
 public:
  static constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

  // Of equal ids the last row counts; 0 is no id.
  explicit Places(std::span<const std::uint64_t> ids) : rows_(ids.size() / 4 * 5) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (i + ahead < ids.size()) rows_.prefetch(ids[i + ahead]);
      if (ids[i] != 0) rows_[ids[i]] = static_cast<std::uint32_t>(i);
    }
  }

  // The row of an id, or `none`.
  std::uint32_t find(std::uint64_t id) const {
    const std::uint32_t* row = id == 0 ? nullptr : rows_.find(id);
    return row == nullptr ? none : *row;
  }

  std::uint32_t of(std::uint64_t id) const {
    const std::uint32_t row = find(id);
    if (row == none) {
      throw std::invalid_argument("the graph refers to id " + std::to_string(id) +
                                  ", which its table of nodes lacks; merge the records of "
                                  "all chunks first");
    }
    return row;
  }

  // Calls take(i, row) for n ids, `id` giving each, with its row or `none`.
  template <class Id, class Take>
  void each(std::size_t n, const Id& id, const Take& take) const {
    for (std::size_t i = 0; i < n; ++i) {
      if (i + ahead < n) rows_.prefetch(id(i + ahead));
      take(i, find(id(i)));
    }
  }

  // The rows of pairs of ids.
  template <class Pair>
  std::vector<std::array<std::uint32_t, 2>> of_pairs(std::size_t n, const Pair& pair) const {
    std::vector<std::array<std::uint32_t, 2>> rows(n);
    const auto id = [&](std::size_t i) { return pair(i / 2)[i % 2]; };
    each(2 * n, id, [&](std::size_t i, std::uint32_t row) {
      rows[i / 2][i % 2] = row == none ? of(id(i)) : row;
    });
    return rows;
  }

 private:
  // So many lookups are on their way at a time: a table may be larger than any cache.
  static constexpr std::size_t ahead = 16;

  FlatMap<std::uint32_t> rows_;
};

}  // namespace em

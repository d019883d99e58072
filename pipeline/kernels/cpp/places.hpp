// Rows of a table by id.
#pragma once

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
  explicit Places(std::span<const std::uint64_t> ids) : rows_(ids.size()) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
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

 private:
  FlatMap<std::uint32_t> rows_;
};

}  // namespace em

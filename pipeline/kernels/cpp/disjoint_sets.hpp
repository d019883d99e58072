// Union-find in which the root of a set is its smallest member.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace em {

class DisjointSets {
 public:
  explicit DisjointSets(std::size_t n) : parent_(n) {
    std::iota(parent_.begin(), parent_.end(), 0u);
  }

  std::uint32_t find(std::uint32_t i) {
    while (parent_[i] != i) {
      parent_[i] = parent_[parent_[i]];
      i = parent_[i];
    }
    return i;
  }

  // The root of the union.
  std::uint32_t unite(std::uint32_t i, std::uint32_t j) {
    i = find(i);
    j = find(j);
    if (i > j) std::swap(i, j);
    parent_[j] = i;
    return i;
  }

 private:
  std::vector<std::uint32_t> parent_;
};

}  // namespace em

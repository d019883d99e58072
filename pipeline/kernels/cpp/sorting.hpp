// Sorting by whole numbers.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace em {

// Sorts rows by the 64-bit number that `key` gives for each, ascending; rows of equal
// numbers keep their order. By digits from the least on, but for those that all share.
template <class Row, class Key>
void sort_by(std::vector<Row>& rows, const Key& key) {
  const auto in_order = [&](const Row& a, const Row& b) { return key(a) < key(b); };
  if (std::is_sorted(rows.begin(), rows.end(), in_order)) return;
  constexpr std::size_t few = 512;
  if (rows.size() < few) {
    std::stable_sort(rows.begin(), rows.end(), in_order);
    return;
  }
  std::uint64_t varying = 0;
  for (const Row& row : rows) varying |= key(row) ^ key(rows.front());
  constexpr int bits = 11;
  constexpr std::size_t n_digits = std::size_t{1} << bits;
  std::vector<Row> other(rows.size());
  for (int shift = 0; shift < 64; shift += bits) {
    const auto digit = [&](std::uint64_t number) { return number >> shift & (n_digits - 1); };
    if (digit(varying) == 0) continue;
    std::array<std::size_t, n_digits> places{};
    for (const Row& row : rows) ++places[digit(key(row))];
    std::size_t place = 0;
    for (std::size_t& n : places) place += std::exchange(n, place);
    for (const Row& row : rows) other[places[digit(key(row))]++] = row;
    rows.swap(other);
  }
}

}  // namespace em

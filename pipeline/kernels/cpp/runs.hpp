// Rows of voxels as runs of one label: a table is asked once for a run, and not once for
// each voxel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace em {

namespace detail {

// What a table gave for the keys last asked for: a row asks for what the row before
// asked for. Entries of one place displace one another.
template <class Value>
class Recent {
 public:
  // The value of a nonzero key, by `look_up` if it is not here.
  template <class LookUp>
  Value of(std::uint64_t key, LookUp look_up) {
    Entry& entry = entries_[(key * 0x9E3779B97F4A7C15ull) >> (64 - bits)];
    if (entry.key != key) entry = {key, look_up()};
    return entry.value;
  }

 private:
  static constexpr int bits = 11;
  struct Entry {
    std::uint64_t key = 0;
    Value value{};
  };
  std::vector<Entry> entries_ = std::vector<Entry>(std::size_t{1} << bits);
};

// Voxels of one value, from where the run before it stops.
struct Run {
  std::uint32_t stop, number;
};

// Cuts n values into runs; returns how many, their ends in `stops`, which holds n.
template <class T>
std::size_t split(const T* values, std::uint32_t n, std::uint32_t* stops) {
  std::size_t count = 0;
  for (std::uint32_t x = 1; x < n; ++x) {
    stops[count] = x;
    count += values[x] != values[x - 1] ? 1 : 0;
  }
  stops[count] = n;
  return count + 1;
}

}  // namespace detail

}  // namespace em

// Mean-affinity agglomeration: always the contact of greatest mean, exactly.
//
// Means are compared by cross multiplication in 128 bits. Equal means go by the
// key of the contact's first face: no two contacts share a face, and the key
// of a contact changes only when contacts are added up, so the order is total,
// blind to chunks, and indifferent to which side's adjacency is kept.
#pragma once

#include <algorithm>
#include <cstdint>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "flat_map.hpp"
#include "merge_basins.hpp"

namespace em {

struct MeanContact {
  std::uint64_t sum = 0, area = 0, key = 0;
};

struct Merge {
  std::uint64_t loser, winner, sum, area;
};

struct Agglomeration {
  std::vector<Merge> history;
  std::vector<std::uint64_t> segments;  // of each id
};

__extension__ typedef unsigned __int128 Wide;

// `ids` ascend; `anchors` are their first voxels. A cluster is called after the
// member whose first voxel comes first. A contact merges if its mean is at
// least numerator / denominator.
inline Agglomeration agglomerate(std::span<const std::uint64_t> ids,
                                 std::span<const std::uint64_t> anchors,
                                 std::span<const std::array<std::uint64_t, 2>> pairs,
                                 std::span<const MeanContact> contacts,
                                 std::uint64_t numerator, std::uint64_t denominator) {
  struct Candidate {
    MeanContact contact;
    std::uint32_t i, j;
  };
  const auto is_worse = [](const Candidate& p, const Candidate& q) {
    const Wide left = static_cast<Wide>(p.contact.sum) * q.contact.area;
    const Wide right = static_cast<Wide>(q.contact.sum) * p.contact.area;
    return left != right ? left < right : p.contact.key > q.contact.key;
  };
  std::priority_queue<Candidate, std::vector<Candidate>, decltype(is_worse)> heap(is_worse);
  const auto offer = [&](const MeanContact& contact, std::uint32_t i, std::uint32_t j) {
    if (static_cast<Wide>(contact.sum) * denominator >=
        static_cast<Wide>(contact.area) * numerator) {
      heap.push({contact, i, j});
    }
  };

  // Neighbours are keyed by 1 + their number, since 0 is not a key.
  std::vector<FlatMap<MeanContact>> neighbours(ids.size());
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    const std::uint32_t i = place_of(pairs[k][0], ids), j = place_of(pairs[k][1], ids);
    if (i == j || neighbours[i].find(j + 1ull) != nullptr) {
      throw std::invalid_argument("the contact of " + std::to_string(ids[i]) + " and " +
                                  std::to_string(ids[j]) +
                                  " is listed twice or with itself; merge region graphs "
                                  "instead of joining their rows");
    }
    neighbours[i][j + 1ull] = neighbours[j][i + 1ull] = contacts[k];
    offer(contacts[k], i, j);
  }

  DisjointSets sets(ids.size());
  std::vector<std::uint32_t> holder(ids.size());  // of each root: whose neighbours it has
  std::vector<std::uint32_t> first(ids.size());   // of each holder: the member it is named for
  for (std::uint32_t i = 0; i < ids.size(); ++i) holder[i] = first[i] = i;

  Agglomeration result;
  while (!heap.empty()) {
    const auto [contact, i, j] = heap.top();
    heap.pop();
    const MeanContact* current = neighbours[i].find(j + 1ull);
    if (current == nullptr || current->area != contact.area) continue;  // out of date

    std::uint32_t winner = first[i], loser = first[j];
    if (anchors[winner] > anchors[loser]) std::swap(winner, loser);
    result.history.push_back({ids[loser], ids[winner], contact.sum, contact.area});
    sets.unite(i, j);

    std::uint32_t keep = i, drop = j;
    if (neighbours[keep].size() < neighbours[drop].size()) std::swap(keep, drop);
    first[keep] = winner;
    neighbours[keep].erase(drop + 1ull);
    const FlatMap<MeanContact> dropped = std::exchange(neighbours[drop], FlatMap<MeanContact>());
    dropped.for_each([&](std::uint64_t key, const MeanContact& moved) {
      const auto other = static_cast<std::uint32_t>(key - 1);
      if (other == keep) return;
      neighbours[other].erase(drop + 1ull);
      MeanContact& total = neighbours[keep][key];
      total = total.area == 0 ? moved
                              : MeanContact{total.sum + moved.sum, total.area + moved.area,
                                            std::min(total.key, moved.key)};
      neighbours[other][keep + 1ull] = total;
      offer(total, keep, other);
    });
    holder[sets.find(keep)] = keep;
  }

  result.segments.resize(ids.size());
  for (std::uint32_t i = 0; i < ids.size(); ++i) {
    result.segments[i] = ids[first[holder[sets.find(i)]]];
  }
  return result;
}

}  // namespace em

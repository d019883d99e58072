// Mean-affinity agglomeration with constraints, over as much of the region graph as a
// node of the octree knows.
//
// Contacts are taken in order of mean affinity, the greatest first; means are
// compared exactly, and of equal ones the contact whose first face comes first in the
// volume goes first. No two contacts share a face, so the order is strict, blind to
// chunks, and a contact that is made by adding two up ranks no higher than the
// higher of them. A contact that is the best of both its clusters is therefore met
// by the whole volume with the same two clusters, whatever is decided elsewhere.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <queue>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "flat_map.hpp"
#include "places.hpp"
#include "region_graph.hpp"

namespace em {

__extension__ typedef unsigned __int128 Wide;

struct MeanContact {
  std::uint64_t sum = 0, area = 0, key = 0;
};

inline bool ranks_higher(const MeanContact& p, const MeanContact& q) {
  const Wide left = static_cast<Wide>(p.sum) * q.area;
  const Wide right = static_cast<Wide>(q.sum) * p.area;
  return left != right ? left > right : p.key < q.key;
}

struct Cluster {
  std::uint64_t name;     // least supervoxel in it
  std::uint64_t size;     // voxels
  std::uint64_t members;  // supervoxels
  std::array<std::uint64_t, n_classes> classes;
  bool open;  // it may go on outside, or touch what is not known here
};

// A nonnegative number counts steps, of which so many are 1: decimals are exact.
constexpr std::uint64_t fraction_steps = 1'000'000'000;

// What may not merge below a mean affinity of `activation`.
struct Constraints {
  std::uint64_t activation = 0;  // in steps; 0 switches all of them off
  std::uint64_t labelled_size = 0, labelled_share = 0;  // when a class counts
  std::array<std::uint8_t, n_classes> clashes{};  // bit b of a: class a may not join b
  std::uint64_t both_members = 0, one_member = 0;  // both above one, and one above the other
};

constexpr std::uint8_t no_class = 255;

// The class that holds the labelled share of a cluster, if it is large enough.
inline std::uint8_t predominant(const Cluster& cluster, const Constraints& rules) {
  if (cluster.size < rules.labelled_size) return no_class;
  const auto greatest = std::max_element(cluster.classes.begin(), cluster.classes.end());
  const bool holds = *greatest > 0 && static_cast<Wide>(*greatest) * fraction_steps >=
                                          static_cast<Wide>(cluster.size) * rules.labelled_share;
  return holds ? static_cast<std::uint8_t>(greatest - cluster.classes.begin()) : no_class;
}

enum class Reason : std::uint8_t { none = 0, semantic = 1, size = 2 };

inline Reason refusal(const Cluster& p, const Cluster& q, const Constraints& rules) {
  const std::uint8_t a = predominant(p, rules), b = predominant(q, rules);
  if (a != no_class && b != no_class && (rules.clashes[a] >> b & 1u) != 0) {
    return Reason::semantic;
  }
  if (p.members > rules.both_members && q.members > rules.both_members &&
      std::max(p.members, q.members) > rules.one_member) {
    return Reason::size;
  }
  return Reason::none;
}

struct Merge {
  std::uint64_t a, b;  // ids of the clusters
  MeanContact contact;
};

struct Refusal {
  std::array<std::uint64_t, 2> names, sizes, members;
  std::array<std::uint8_t, 2> classes;
  MeanContact contact;
  Reason reason;
};

struct OpenContact {
  std::array<std::uint64_t, 2> pair;
  MeanContact contact;
};

struct Agglomeration {
  std::vector<Merge> merges;
  std::vector<Refusal> refusals;
  std::vector<std::uint64_t> targets;   // of each id, at the threshold
  std::vector<std::uint8_t> settled;    // of each id: its target is a name, else an id
  std::vector<std::uint64_t> holders;   // of each id: the unfinished cluster it is in, or 0
  std::vector<std::uint64_t> ids;       // of the clusters that are not finished
  std::vector<Cluster> clusters;
  std::vector<OpenContact> contacts;    // among them
};

// Limits of the mean affinity, in steps.
struct Limits {
  std::uint64_t threshold, floor;
  std::uint64_t scale;  // fixed-point number that stands for an affinity of 1
};

// `ids` ascend. Contacts merge down to the floor; `targets` tell of those down to the
// threshold. With `absorb`, a cluster whose best contact goes to one that is blocked
// merges with it if nothing can change that contact before its turn: it touches
// nothing else that is blocked. That is done only above the threshold and above what
// constraints look at, so that neither sees it too early; and the cluster keeps the id
// of the blocked one, which others may know.
inline Agglomeration agglomerate(std::span<const std::uint64_t> ids,
                                 std::vector<Cluster> clusters,
                                 std::span<const std::array<std::uint64_t, 2>> pairs,
                                 std::span<const MeanContact> contacts,
                                 const Limits& limits, const Constraints& rules,
                                 bool absorb) {
  struct Candidate {
    double mean;
    MeanContact contact;
    std::uint32_t i, j;
  };
  const auto reaches = [&](const MeanContact& contact, std::uint64_t limit) {
    return static_cast<Wide>(contact.sum) * fraction_steps >=
           static_cast<Wide>(contact.area) * limit * limits.scale;
  };
  // The quotients of far-off means decide without long multiplication.
  const auto is_worse = [](const Candidate& p, const Candidate& q) {
    constexpr double slack = 8 * std::numeric_limits<double>::epsilon();
    if (p.mean < q.mean * (1 - slack)) return true;
    if (q.mean < p.mean * (1 - slack)) return false;
    return ranks_higher(q.contact, p.contact);
  };
  std::vector<Candidate> first_candidates;
  const auto candidate = [](const MeanContact& contact, std::uint32_t i, std::uint32_t j) {
    return Candidate{static_cast<double>(contact.sum) / static_cast<double>(contact.area),
                     contact, i, j};
  };

  // Neighbours are keyed by 1 + their number, since 0 is not a key.
  const std::size_t n = ids.size();
  const Places places(ids);
  std::vector<FlatMap<MeanContact>> neighbours(n);
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    const std::uint32_t i = places.of(pairs[k][0]), j = places.of(pairs[k][1]);
    if (i == j || neighbours[i].find(j + 1ull) != nullptr) {
      throw std::invalid_argument("the contact of " + std::to_string(ids[i]) + " and " +
                                  std::to_string(ids[j]) +
                                  " is listed twice or with itself; merge region graphs "
                                  "instead of joining their rows");
    }
    if (contacts[k].area == 0) {
      throw std::invalid_argument("the contact of " + std::to_string(ids[i]) + " and " +
                                  std::to_string(ids[j]) + " has no area");
    }
    neighbours[i][j + 1ull] = neighbours[j][i + 1ull] = contacts[k];
    if (reaches(contacts[k], limits.floor)) {
      first_candidates.push_back(candidate(contacts[k], i, j));
    }
  }
  std::priority_queue<Candidate, std::vector<Candidate>, decltype(is_worse)> heap(
      is_worse, std::move(first_candidates));

  constexpr std::uint32_t none = ~0u;
  std::vector<std::uint32_t> parent(n), handle(n);
  // Clusters at the threshold, and which of them a cluster is, until it goes below.
  std::vector<std::uint32_t> strict_parent(n), strict(n);
  std::vector<std::uint64_t> strict_name(n);
  std::vector<std::uint8_t> strict_settled(n, 0), blocked(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    parent[i] = handle[i] = strict_parent[i] = strict[i] = i;
    strict_name[i] = clusters[i].name;
    blocked[i] = clusters[i].open;
  }
  const auto root_of = [](std::vector<std::uint32_t>& up, std::uint32_t i) {
    while (up[i] != i) i = up[i] = up[up[i]];
    return i;
  };

  Agglomeration result;
  const auto merge = [&](const MeanContact& contact, std::uint32_t i, std::uint32_t j,
                         std::uint32_t kept_handle) {
    result.merges.push_back({ids[handle[i]], ids[handle[j]], contact});
    std::uint32_t keep = i, drop = j;
    if (neighbours[keep].size() < neighbours[drop].size()) std::swap(keep, drop);

    if (reaches(contact, limits.threshold)) {
      const std::uint32_t p = strict[keep], q = strict[drop];
      strict_parent[q] = p;
      strict_name[p] = std::min(strict_name[p], strict_name[q]);
    } else {
      for (const std::uint32_t side : {strict[keep], strict[drop]}) {
        if (side != none) strict_settled[side] = 1;
      }
      strict[keep] = none;
    }
    Cluster& total = clusters[keep];
    const Cluster& added = clusters[drop];
    total.name = std::min(total.name, added.name);
    total.size += added.size;
    total.members += added.members;
    for (std::size_t k = 0; k < n_classes; ++k) total.classes[k] += added.classes[k];
    total.open = total.open || added.open;
    blocked[keep] = static_cast<std::uint8_t>(blocked[keep] | blocked[drop]);
    handle[keep] = kept_handle;
    parent[drop] = keep;

    neighbours[keep].erase(drop + 1ull);
    const FlatMap<MeanContact> dropped =
        std::exchange(neighbours[drop], FlatMap<MeanContact>());
    dropped.for_each([&](std::uint64_t key, const MeanContact& moved) {
      const auto other = static_cast<std::uint32_t>(key - 1);
      if (other == keep) return;
      neighbours[other].erase(drop + 1ull);
      MeanContact& sum = neighbours[keep][key];
      sum = sum.area == 0 ? moved
                          : MeanContact{sum.sum + moved.sum, sum.area + moved.area,
                                        std::min(sum.key, moved.key)};
      neighbours[other][keep + 1ull] = sum;
      if (reaches(sum, limits.floor)) heap.push(candidate(sum, keep, other));
    });
  };

  const std::uint64_t early = std::max(limits.threshold, rules.activation);
  while (!heap.empty()) {
    const auto [mean, contact, i, j] = heap.top();
    heap.pop();
    const MeanContact* current = neighbours[i].find(j + 1ull);
    if (current == nullptr || current->area != contact.area || current->key != contact.key) {
      continue;  // out of date
    }
    if (blocked[i] && blocked[j]) continue;
    if (blocked[i] || blocked[j]) {
      const std::uint32_t side = blocked[i] ? j : i, other = blocked[i] ? i : j;
      bool certain = absorb && reaches(contact, early);
      if (certain) {
        neighbours[side].for_each([&](std::uint64_t key, const MeanContact&) {
          const auto near = static_cast<std::uint32_t>(key - 1);
          certain = certain && (near == other || !blocked[near]);
        });
      }
      if (certain) {
        merge(contact, i, j, handle[other]);
      } else {
        blocked[side] = 1;
      }
      continue;
    }
    if (!reaches(contact, rules.activation)) {
      const Reason reason = refusal(clusters[i], clusters[j], rules);
      if (reason != Reason::none) {
        const bool in_order = clusters[i].name < clusters[j].name;
        const Cluster& a = clusters[in_order ? i : j];
        const Cluster& b = clusters[in_order ? j : i];
        result.refusals.push_back({{a.name, b.name},
                                   {a.size, b.size},
                                   {a.members, b.members},
                                   {predominant(a, rules), predominant(b, rules)},
                                   contact,
                                   reason});
        neighbours[i].erase(j + 1ull);
        neighbours[j].erase(i + 1ull);
        continue;
      }
    }
    merge(contact, i, j, std::min(handle[i], handle[j]));
  }

  std::vector<std::uint32_t> place(n, none);  // of each root, in the result
  std::vector<std::uint32_t> strict_handle(n, none);
  for (std::uint32_t i = 0; i < n; ++i) {
    if (parent[i] != i) continue;
    if (!blocked[i]) {
      if (strict[i] != none) strict_settled[strict[i]] = 1;
      continue;
    }
    if (strict[i] != none) strict_handle[strict[i]] = handle[i];
    place[i] = static_cast<std::uint32_t>(result.ids.size());
    result.ids.push_back(ids[handle[i]]);
    result.clusters.push_back(clusters[i]);
  }
  for (std::uint32_t i = 0; i < n; ++i) {
    if (place[i] == none) continue;
    neighbours[i].for_each([&](std::uint64_t key, const MeanContact& contact) {
      const auto j = static_cast<std::uint32_t>(key - 1);
      if (j < i || place[j] == none) return;
      std::array pair{result.ids[place[i]], result.ids[place[j]]};
      if (pair[0] > pair[1]) std::swap(pair[0], pair[1]);
      result.contacts.push_back({pair, contact});
    });
  }
  result.targets.resize(n);
  result.settled.resize(n);
  result.holders.resize(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::uint32_t side = root_of(strict_parent, i);
    result.settled[i] = strict_settled[side];
    result.targets[i] = strict_settled[side] ? strict_name[side] : ids[strict_handle[side]];
    const std::uint32_t root = root_of(parent, i);
    result.holders[i] = place[root] == none ? 0 : result.ids[place[root]];
  }
  return result;
}

// The row of the greatest contact of each of n clusters, or -1 if none reaches the
// floor. `owners` says whose each row is.
inline std::vector<std::int64_t> best_contacts(std::size_t n,
                                               std::span<const std::uint32_t> owners,
                                               std::span<const MeanContact> contacts,
                                               std::uint64_t floor, std::uint64_t scale) {
  std::vector<std::int64_t> best(n, -1);
  for (std::size_t k = 0; k < owners.size(); ++k) {
    const MeanContact& contact = contacts[k];
    if (owners[k] >= n) {
      throw std::invalid_argument("contact " + std::to_string(k) + " has no cluster");
    }
    if (static_cast<Wide>(contact.sum) * fraction_steps <
        static_cast<Wide>(contact.area) * floor * scale) {
      continue;
    }
    std::int64_t& row = best[owners[k]];
    if (row < 0 || ranks_higher(contact, contacts[static_cast<std::size_t>(row)])) {
      row = static_cast<std::int64_t>(k);
    }
  }
  return best;
}

struct Step {
  std::uint64_t loser, winner;
  MeanContact contact;
};

// Puts merges that parts of the volume made into the order in which the whole makes
// them, and calls each side after the least id in it. Sorts `merges`.
inline std::vector<Step> replay(std::vector<Merge> merges) {
  std::sort(merges.begin(), merges.end(), [](const Merge& p, const Merge& q) {
    return ranks_higher(p.contact, q.contact);
  });
  FlatMap<std::uint64_t> parent(2 * merges.size());
  const auto name_of = [&](std::uint64_t id) {
    std::uint64_t name = id;
    for (const std::uint64_t* up; (up = parent.find(name)) != nullptr;) name = *up;
    while (id != name) id = std::exchange(parent[id], name);  // shorten the way
    return name;
  };
  std::vector<Step> steps;
  steps.reserve(merges.size());
  for (const Merge& merge : merges) {
    std::uint64_t winner = name_of(merge.a), loser = name_of(merge.b);
    if (winner == loser) {
      throw std::invalid_argument("the history merges " + std::to_string(merge.a) +
                                  " and " + std::to_string(merge.b) +
                                  " twice; give each part of it once");
    }
    if (winner > loser) std::swap(winner, loser);
    parent[loser] = winner;
    steps.push_back({loser, winner, merge.contact});
  }
  return steps;
}

}  // namespace em

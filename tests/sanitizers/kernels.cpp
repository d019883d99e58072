// Runs every kernel over random volumes, for a build with sanitizers to watch.
//
//   kernels SEED COUNT
//
// Arrays are as large as the kernels may read, to the byte, and lie on the heap: a step
// beyond one is seen. Each case is also run with more threads, and with another memory
// order of the affinities, and must come to the same; what a kernel must refuse is given to
// it too. Prints a checksum of all results, the same for every build.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "agglomerate.hpp"
#include "basin_graph.hpp"
#include "merge_basins.hpp"
#include "region_graph.hpp"
#include "relabel.hpp"
#include "volume.hpp"
#include "watershed.hpp"

namespace {

using std::int64_t;
using std::size_t;
using std::uint64_t;
using std::uint8_t;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return next() % n; }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(below(static_cast<uint64_t>(high - low + 1)));
  }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  bool chance(double p) { return unit() < p; }
  template <class T>
  T of(std::initializer_list<T> choices) {
    return choices.begin()[below(choices.size())];
  }

 private:
  uint64_t state_;
};

// FNV-1a, of whole numbers.
class Checksum {
 public:
  template <class T>
  void add(const T& value) {
    if constexpr (requires { value.begin(); }) {
      add(static_cast<uint64_t>(value.size()));
      for (const auto& item : value) add(item);
    } else {
      mix(static_cast<uint64_t>(value));
    }
  }
  uint64_t value() const { return value_; }

 private:
  void mix(uint64_t value) {
    for (int i = 0; i < 8; ++i) {
      value_ = (value_ ^ (value >> (8 * i) & 0xFF)) * 0x100000001B3ull;
    }
  }
  uint64_t value_ = 0xCBF29CE484222325ull;
};

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

template <class Call>
void require_refusal(Call call, const char* what) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return;
  }
  throw std::logic_error(std::string("not refused: ") + what);
}

// -- volumes --------------------------------------------------------------------------

std::uint16_t half_of(float value) {
  // Truncated; 0 to 1 and their like are enough here.
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const int exponent = static_cast<int>(bits >> 23 & 0xFF) - 127 + 15;
  if (exponent <= 0) return 0;
  return static_cast<std::uint16_t>(exponent << 10 | (bits >> 13 & 0x3FF));
}

struct Volume {
  em::Vec3 start, shape;
  em::AffinityType type;
  std::vector<float> affinities;  // x fastest, then y, z, channel
  std::vector<uint8_t> mask, semantics;

  em::Box bounds() const {
    return {start, {start[0] + shape[0], start[1] + shape[1], start[2] + shape[2]}};
  }
  size_t place(int64_t x, int64_t y, int64_t z) const {
    return static_cast<size_t>(x - start[0] +
                               shape[0] * (y - start[1] + shape[1] * (z - start[2])));
  }
};

float affinity(Random& random, int kind) {
  switch (kind) {
    case 0: return static_cast<float>(random.unit());
    case 1: return random.of({0.2f, 0.6f, 1.0f});
    case 2: return 0.75f;
    case 3: return random.chance(0.33) ? 1.0f : 0.0f;
    default: return random.of({-0.0005f, 1.0005f, 1e-9f, 0.5f});  // what codecs make of 0, 1
  }
}

Volume make_volume(Random& random) {
  Volume volume;
  const bool large = random.chance(0.1);  // large ones are linked in other rounds
  for (size_t axis = 0; axis < 3; ++axis) {
    volume.start[axis] = random.between(-9, 9);
    volume.shape[axis] = large ? random.between(18, 26) : random.between(1, 11);
  }
  volume.type = random.of({em::AffinityType::uint8, em::AffinityType::float16,
                           em::AffinityType::float32});
  const size_t n = em::volume(volume.shape);
  const int kind = static_cast<int>(random.below(5));
  for (size_t i = 0; i < 3 * n; ++i) volume.affinities.push_back(affinity(random, kind));
  volume.mask.resize(n);
  volume.semantics.resize(n);
  for (size_t i = 0; i < n; ++i) {
    volume.mask[i] = random.chance(0.8) ? 1 : 0;
    volume.semantics[i] = static_cast<uint8_t>(random.below(6));
  }
  return volume;
}

// The part of a volume that a task reads, in memory of its own.
template <class T>
std::vector<T> cut(const Volume& volume, const em::Box& box, const std::vector<T>& values) {
  std::vector<T> part;
  part.reserve(em::volume(em::extent(box)));
  for (int64_t z = box.start[2]; z < box.stop[2]; ++z) {
    for (int64_t y = box.start[1]; y < box.stop[1]; ++y) {
      for (int64_t x = box.start[0]; x < box.stop[0]; ++x) {
        part.push_back(values[volume.place(x, y, z)]);
      }
    }
  }
  return part;
}

// Affinities of a box, stored with any of the four axes varying fastest.
class Stored {
 public:
  Stored(const Volume& volume, const em::Box& box, const std::array<size_t, 4>& order)
      : type_(volume.type) {
    const em::Vec3 size = em::extent(box);
    const std::array<int64_t, 4> extents{size[0], size[1], size[2], 3};
    int64_t stride = item_size();
    for (const size_t axis : order) {
      strides_[axis] = stride;
      stride *= extents[axis];
    }
    bytes_.resize(static_cast<size_t>(stride));
    const size_t n = em::volume(volume.shape);
    for (int64_t c = 0; c < 3; ++c) {
      for (int64_t z = 0; z < size[2]; ++z) {
        for (int64_t y = 0; y < size[1]; ++y) {
          for (int64_t x = 0; x < size[0]; ++x) {
            const size_t from =
                volume.place(x + box.start[0], y + box.start[1], z + box.start[2]);
            put(x * strides_[0] + y * strides_[1] + z * strides_[2] + c * strides_[3],
                volume.affinities[from + static_cast<size_t>(c) * n]);
          }
        }
      }
    }
  }

  em::Affinities view() const { return {bytes_.data(), type_, strides_}; }

 private:
  int64_t item_size() const {
    return type_ == em::AffinityType::uint8 ? 1 : type_ == em::AffinityType::float16 ? 2 : 4;
  }
  void put(int64_t at, float value) {
    std::byte* to = bytes_.data() + at;
    if (type_ == em::AffinityType::uint8) {
      *to = static_cast<std::byte>(std::clamp(value, 0.0f, 1.0f) * 255.0f + 0.5f);
    } else if (type_ == em::AffinityType::float16) {
      const std::uint16_t half = half_of(std::clamp(value, 0.0f, 1.0f));
      std::memcpy(to, &half, 2);
    } else {
      std::memcpy(to, &value, 4);
    }
  }

  em::AffinityType type_;
  std::array<int64_t, 4> strides_{};
  std::vector<std::byte> bytes_;
};

constexpr std::array<size_t, 4> fortran{0, 1, 2, 3}, c_order{3, 2, 1, 0};

// -- chunks ---------------------------------------------------------------------------

std::vector<em::Box> chunks(const Volume& volume, const em::Vec3& size) {
  std::vector<em::Box> boxes;
  const em::Box bounds = volume.bounds();
  em::Vec3 at;
  for (at[2] = bounds.start[2]; at[2] < bounds.stop[2]; at[2] += size[2]) {
    for (at[1] = bounds.start[1]; at[1] < bounds.stop[1]; at[1] += size[1]) {
      for (at[0] = bounds.start[0]; at[0] < bounds.stop[0]; at[0] += size[0]) {
        em::Box box{at, at};
        for (size_t axis = 0; axis < 3; ++axis) {
          box.stop[axis] = std::min(at[axis] + size[axis], bounds.stop[axis]);
        }
        boxes.push_back(box);
      }
    }
  }
  return boxes;
}

em::Box grown(const Volume& volume, em::Box box, int64_t before, int64_t after) {
  const em::Box bounds = volume.bounds();
  for (size_t axis = 0; axis < 3; ++axis) {
    box.start[axis] = std::max(box.start[axis] - before, bounds.start[axis]);
    box.stop[axis] = std::min(box.stop[axis] + after, bounds.stop[axis]);
  }
  return box;
}

em::Frame frame(const Volume& volume, const em::Box& box, const em::Box& read) {
  em::Box core = box;
  for (size_t axis = 0; axis < 3; ++axis) {
    core.start[axis] -= read.start[axis];
    core.stop[axis] -= read.start[axis];
  }
  return {em::extent(read), read.start, core, volume.bounds()};
}

struct Parameters {
  double low, high;
  em::SizeRules sizes;
  bool masked, labelled;
};

// -- one case -------------------------------------------------------------------------

class Case {
 public:
  Case(Random& random, Checksum& sum) : random_(random), sum_(sum), volume_(make_volume(random)) {
    const uint64_t threshold = random.of<uint64_t>({0, 2, 12, 60});
    p_ = {random.of({0.0, 0.01, 0.3}), random.of({0.6, 0.99, 2.0}),
          {threshold, random.of<uint64_t>({0, 1, 3, 25})}, random.chance(0.4),
          random.chance(0.5)};
    for (size_t axis = 0; axis < 3; ++axis) {
      const int64_t n = volume_.shape[axis];
      size_[axis] = random.chance(0.3) ? n : random.between(1 + n / 4, n);
    }
  }

  void run() {
    const size_t n = em::volume(volume_.shape);
    labels_.resize(n);
    const auto boxes = chunks(volume_, size_);
    for (size_t i = 0; i < boxes.size(); ++i) label(boxes[i], i);
    sum_.add(labels_);
    std::vector<em::BasinGraph> graphs;
    for (const em::Box& box : boxes) graphs.push_back(measure_basins(box));
    merge(graphs);
    sum_.add(labels_);
    std::vector<em::RegionGraph> regions;
    for (const em::Box& box : boxes) regions.push_back(measure_regions(box));
    agglomerate(regions);
    refuse();
  }

 private:
  em::Thresholds thresholds(const em::Affinities& affinities) const {
    return em::Thresholds::of(affinities.scale(), p_.low, p_.high);
  }
  size_t threads() { return random_.of<size_t>({2, 3, 8}); }

  // What a kernel says of one box, in all the ways in which it must say the same.
  template <class Kernel>
  auto same(const em::Box& read, Kernel kernel) {
    const Stored stored(volume_, read, fortran), turned(volume_, read, c_order);
    const auto result = kernel(stored.view(), size_t{1});
    require(kernel(stored.view(), threads()) == result, "threads change a result");
    require(kernel(turned.view(), size_t{1}) == result, "memory order changes a result");
    return result;
  }

  void label(const em::Box& box, size_t index) {
    const em::Box read = grown(volume_, box, p_.masked ? 1 : 0, 1);
    const auto mask = cut(volume_, read, volume_.mask);
    const em::Vec3 shape = em::extent(box);
    const uint64_t base = (index + 1) << 32;
    const auto result = same(read, [&](const em::Affinities& view, size_t n_threads) {
      std::vector<std::byte> bytes(8 * em::volume(shape));
      em::watershed(view, frame(volume_, box, read), p_.masked ? mask.data() : nullptr,
                    thresholds(view), p_.sizes, base, n_threads, bytes.data());
      std::vector<uint64_t> labels(em::volume(shape));
      std::memcpy(labels.data(), bytes.data(), bytes.size());
      return labels;
    });
    size_t i = 0;
    for (int64_t z = box.start[2]; z < box.stop[2]; ++z) {
      for (int64_t y = box.start[1]; y < box.stop[1]; ++y) {
        for (int64_t x = box.start[0]; x < box.stop[0]; ++x, ++i) {
          require(result[i] == 0 || (result[i] > base && result[i] <= base + result.size()),
                  "a label is not a place in its chunk");
          labels_[volume_.place(x, y, z)] = result[i];
        }
      }
    }
  }

  em::BasinGraph measure_basins(const em::Box& box) {
    const em::Box read = grown(volume_, box, p_.masked ? 2 : 1, 1);
    const auto labels = cut(volume_, read, labels_);
    const auto mask = cut(volume_, read, volume_.mask);
    const auto large = random_.chance(0.5) ? std::optional(p_.sizes.threshold) : std::nullopt;
    em::BasinGraph graph;
    const auto result = same(read, [&](const em::Affinities& view, size_t n_threads) {
      graph = em::basin_graph(labels.data(), view, frame(volume_, box, read),
                              p_.masked ? mask.data() : nullptr, thresholds(view), large,
                              n_threads);
      std::vector<std::array<uint64_t, 5>> rows;
      for (size_t i = 0; i < graph.ids.size(); ++i) {
        rows.push_back(
            {0, graph.ids[i], graph.sizes[i], graph.anchors[i], graph.faces[i]});
      }
      for (const auto& [a, b] : graph.joins) rows.push_back({1, a, b, 0, 0});
      for (const auto& e : graph.edges) rows.push_back({2, e.a, e.b, e.affinity, e.key});
      for (const auto& e : graph.cross_edges) {
        rows.push_back({3, e.a, e.b, e.affinity, e.key});
      }
      return rows;
    });
    sum_.add(result);
    return graph;
  }

  // Merges the basins of the whole volume at once, some of them open, and relabels.
  void merge(const std::vector<em::BasinGraph>& graphs) {
    std::map<uint64_t, em::Basin> basins;
    std::map<std::array<uint64_t, 2>, em::BasinEdge> greatest;
    std::set<std::array<uint64_t, 2>> joins;
    for (size_t i = 0; i < labels_.size(); ++i) {
      if (labels_[i] == 0) continue;
      em::Basin& basin = basins.try_emplace(labels_[i], em::Basin{0, i, false}).first->second;
      ++basin.size;
    }
    for (const em::BasinGraph& graph : graphs) {
      joins.insert(graph.joins.begin(), graph.joins.end());
      for (const auto* edges : {&graph.edges, &graph.cross_edges}) {
        for (const em::BasinEdge& edge : *edges) greatest.try_emplace({edge.a, edge.b}, edge);
      }
    }
    std::vector<uint64_t> ids;
    std::vector<em::Basin> rows;
    for (const auto& [id, basin] : basins) {
      ids.push_back(id);
      rows.push_back(basin);
    }
    std::vector<em::BasinEdge> edges;
    for (const auto& [pair, edge] : greatest) edges.push_back(edge);
    const std::vector<std::array<uint64_t, 2>> joined(joins.begin(), joins.end());

    const em::MergedBasins merged =
        em::merge_basins(ids, rows, joined, edges, p_.sizes.threshold, p_.sizes.dust);
    require(merged.edges.empty(), "an edge waits where nothing is open");
    auto partly = rows;
    for (em::Basin& basin : partly) basin.open = random_.chance(0.3);
    const em::MergedBasins waiting =
        em::merge_basins(ids, partly, joined, edges, p_.sizes.threshold, p_.sizes.dust);
    sum_.add(waiting.targets);
    sum_.add(waiting.settled);
    sum_.add(waiting.sizes);
    for (const em::BasinEdge& edge : waiting.edges) sum_.add(edge.key);
    if (!edges.empty()) {
      edges.front().b = ~0ull;
      require_refusal(
          [&] { em::merge_basins(ids, rows, joined, edges, 1, 1); }, "an edge to nowhere");
    }

    std::vector<uint64_t> relabelled(labels_.size());
    em::relabel(labels_, ids, merged.targets, false, relabelled.data(), 1);
    auto in_place = labels_;
    em::relabel(in_place, ids, merged.targets, false, in_place.data(),
                threads());
    require(in_place == relabelled, "threads change a relabelled volume");
    if (!ids.empty()) {
      const std::span<const uint64_t> fewer(ids.data(), ids.size() - 1);
      require_refusal(
          [&] {
            em::relabel(labels_, fewer, merged.targets, false, in_place.data(), 2);
            em::relabel(labels_, fewer, merged.targets, false, in_place.data(), 1);
          },
          "an id that the table lacks");
    }
    labels_ = std::move(relabelled);
  }

  em::RegionGraph measure_regions(const em::Box& box) {
    const em::Box read = grown(volume_, box, 1, 0);
    const auto labels = cut(volume_, read, labels_);
    const auto semantics = cut(volume_, read, volume_.semantics);
    em::RegionGraph graph;
    const auto result = same(read, [&](const em::Affinities& view, size_t n_threads) {
      graph = em::region_graph(labels.data(), view, p_.labelled ? semantics.data() : nullptr,
                               frame(volume_, box, read), n_threads);
      std::vector<uint64_t> all(graph.ids);
      const auto put = [&](const auto& numbers) {
        for (const auto number : numbers) all.push_back(static_cast<uint64_t>(number));
      };
      for (const auto& pair : graph.pairs) put(pair);
      for (const em::Contact& c : graph.contacts) {
        put(c.affinity);
        put(c.area);
        all.push_back(c.key);
      }
      for (const em::Region& r : graph.regions) {
        all.insert(all.end(), {r.size, r.anchor, r.faces});
        put(r.sum);
        put(r.start);
        put(r.stop);
        put(r.classes);
      }
      return all;
    });
    sum_.add(result);
    return graph;
  }

  void agglomerate(const std::vector<em::RegionGraph>& graphs) {
    std::map<uint64_t, em::Cluster> known;
    std::map<std::array<uint64_t, 2>, em::MeanContact> met;
    for (const em::RegionGraph& graph : graphs) {
      for (size_t i = 0; i < graph.ids.size(); ++i) {
        const em::Region& region = graph.regions[i];
        em::Cluster& cluster =
            known.try_emplace(graph.ids[i], em::Cluster{graph.ids[i], 0, 1, {}, false})
                .first->second;
        cluster.size += region.size;
        for (size_t k = 0; k < em::n_classes; ++k) cluster.classes[k] += region.classes[k];
      }
      for (size_t i = 0; i < graph.pairs.size(); ++i) {
        const em::Contact& c = graph.contacts[i];
        em::MeanContact& contact =
            met.try_emplace(graph.pairs[i], em::MeanContact{0, 0, c.key}).first->second;
        contact.sum += c.affinity[0] + c.affinity[1] + c.affinity[2];
        contact.area += c.area[0] + c.area[1] + c.area[2];
        contact.key = std::min(contact.key, c.key);
      }
    }
    std::vector<uint64_t> ids;
    std::vector<em::Cluster> clusters;
    std::vector<std::array<uint64_t, 2>> pairs;
    std::vector<em::MeanContact> contacts;
    for (const auto& [id, cluster] : known) {
      ids.push_back(id);
      clusters.push_back(cluster);
    }
    for (const auto& [pair, contact] : met) {
      pairs.push_back(pair);
      contacts.push_back(contact);
    }
    const auto steps = [](double fraction) {
      return static_cast<uint64_t>(fraction * static_cast<double>(em::fraction_steps));
    };
    const uint64_t scale = volume_.type == em::AffinityType::uint8 ? 255 : 1u << 20;
    const em::Limits limits{steps(random_.of({0.1, 0.4, 0.6})), steps(0.05), scale};
    em::Constraints rules;
    if (random_.chance(0.5)) {
      rules = {steps(0.5), 5, steps(0.6), {8, 12, 10, 7, 0}, 1, 3};
    }
    const auto run = [&](double open, bool absorb) {
      auto some = clusters;
      for (em::Cluster& cluster : some) cluster.open = random_.chance(open);
      em::Agglomeration result =
          em::agglomerate(ids, some, pairs, contacts, limits, rules, absorb);
      sum_.add(result.targets);
      sum_.add(result.settled);
      sum_.add(result.ids);
      for (const em::Merge& merge : result.merges) sum_.add(merge.contact.key);
      for (const em::Refusal& refusal : result.refusals) sum_.add(refusal.contact.key);
      for (const em::OpenContact& contact : result.contacts) sum_.add(contact.pair);
      for (const em::Step& step : em::replay(result.merges)) sum_.add(step.winner);
      return result;
    };
    run(0.3, false);
    run(0.3, true);
    const em::Agglomeration whole = run(0, true);
    require(whole.ids.empty(), "a cluster is left where nothing is open");
    auto twice = whole.merges;
    if (!twice.empty()) {
      twice.push_back(twice.front());
      require_refusal([&] { em::replay(twice); }, "a merge that is made twice");
    }
    if (!pairs.empty()) {
      const auto refused = [&](auto change, const char* what) {
        auto wrong = pairs;
        auto with = contacts;
        change(wrong, with);
        require_refusal(
            [&] { em::agglomerate(ids, clusters, wrong, with, limits, rules, true); }, what);
      };
      refused([](auto& p, auto& c) { p.push_back(p[0]), c.push_back(c[0]); }, "a pair twice");
      refused([](auto& p, auto&) { p[0][1] = p[0][0]; }, "a contact with itself");
      refused([](auto& p, auto&) { p[0][1] = ~0ull; }, "a contact with nothing");
      refused([](auto&, auto& c) { c[0].area = 0; }, "a contact without area");
    }
  }

  // Affinities that are none, and classes that are none.
  void refuse() {
    const em::Box box = volume_.bounds();
    const auto at = random_.below(volume_.affinities.size());
    if (volume_.type == em::AffinityType::float32) {
      const float before = volume_.affinities[at];
      for (const float value : {std::numeric_limits<float>::quiet_NaN(),
                                std::numeric_limits<float>::infinity(), -0.5f, 1.5f}) {
        volume_.affinities[at] = value;
        const Stored stored(volume_, box, random_.chance(0.5) ? fortran : c_order);
        require_refusal(
            [&] {
              em::region_graph(labels_.data(), stored.view(), nullptr,
                               frame(volume_, box, box), threads());
            },
            "an affinity that is none");
      }
      volume_.affinities[at] = before;
    }
    volume_.semantics[random_.below(volume_.semantics.size())] = 6;
    const Stored stored(volume_, box, fortran);
    require_refusal(
        [&] {
          em::region_graph(labels_.data(), stored.view(), volume_.semantics.data(),
                           frame(volume_, box, box), threads());
        },
        "a class that is none");
  }

  Random& random_;
  Checksum& sum_;
  Volume volume_;
  Parameters p_{};
  em::Vec3 size_{};
  std::vector<uint64_t> labels_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "give a seed and how many cases to run\n");
    return 2;
  }
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10);
  const uint64_t count = std::strtoull(argv[2], nullptr, 10);
  Checksum sum;
  for (uint64_t i = 0; i < count; ++i) {
    Random random(seed + (i << 32));
    try {
      Case(random, sum).run();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "case %llu of seed %llu: %s\n", static_cast<unsigned long long>(i),
                   static_cast<unsigned long long>(seed), error.what());
      return 1;
    }
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(sum.value()));
  return 0;
}

// A hash map from nonzero 64-bit keys: one array, linear probing, no tombstones.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace em {

template <class Value>
class FlatMap {
 public:
  explicit FlatMap(std::size_t expected = 0) {
    if (expected > 0) allocate(std::bit_ceil(expected * 8 / 5 + 1));
  }

  std::size_t size() const { return size_; }

  const Value* find(std::uint64_t key) const {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[probe(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  // Tells the memory that a key is about to be looked up.
  void prefetch([[maybe_unused]] std::uint64_t key) const {
#if defined(__GNUC__)
    if (!slots_.empty()) __builtin_prefetch(&slots_[home(key)]);
#endif
  }

  // The value of a key, made anew if the key is new; valid until the next insertion.
  Value& operator[](std::uint64_t key) {
    if (8 * (size_ + 1) > 5 * slots_.size()) grow();
    Slot& slot = slots_[probe(key)];
    if (slot.key == 0) {
      slot.key = key;
      ++size_;
    }
    return slot.value;
  }

  void erase(std::uint64_t key) {
    if (slots_.empty()) return;
    std::size_t hole = probe(key);
    if (slots_[hole].key != key) return;
    // Close the gap: move up each later entry of the run that may live here.
    for (std::size_t i = next(hole); slots_[i].key != 0; i = next(i)) {
      const std::size_t wanted = home(slots_[i].key);
      if (((i - wanted) & mask_) >= ((i - hole) & mask_)) {
        slots_[hole] = std::move(slots_[i]);
        hole = i;
      }
    }
    slots_[hole] = Slot{};
    --size_;
  }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const Slot& slot : slots_) {
      if (slot.key != 0) visit(slot.key, slot.value);
    }
  }

 private:
  struct Slot {
    std::uint64_t key = 0;
    Value value{};
  };

  std::size_t home(std::uint64_t key) const {
    return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15ull) >> shift_);
  }
  std::size_t next(std::size_t i) const { return (i + 1) & mask_; }

  // The slot of the key, or the empty slot where it would go.
  std::size_t probe(std::uint64_t key) const {
    std::size_t i = home(key);
    while (slots_[i].key != 0 && slots_[i].key != key) i = next(i);
    return i;
  }

  void allocate(std::size_t capacity) {
    capacity = capacity < 4 ? 4 : capacity;
    slots_.assign(capacity, Slot{});
    mask_ = capacity - 1;
    shift_ = 64 - std::countr_zero(capacity);
  }

  void grow() {
    std::vector<Slot> old = std::move(slots_);
    allocate(old.size() * 2);
    for (Slot& slot : old) {
      if (slot.key != 0) slots_[probe(slot.key)] = std::move(slot);
    }
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0, mask_ = 0;
  int shift_ = 0;
};

}  // namespace em

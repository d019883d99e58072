// Work in equal pieces on several threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace em {

// Calls work(piece) for each piece on up to `threads` threads, this one among them. If
// calls throw, the exception of the first such piece is thrown here, after all are done.
template <class Work>
void in_parallel(std::size_t pieces, std::size_t threads, const Work& work) {
  if (threads <= 1 || pieces <= 1) {
    for (std::size_t piece = 0; piece < pieces; ++piece) work(piece);
    return;
  }
  std::atomic<std::size_t> next{0};
  std::vector<std::exception_ptr> failures(pieces);
  const auto run = [&] {
    for (std::size_t piece = next++; piece < pieces; piece = next++) {
      try {
        work(piece);
      } catch (...) {
        failures[piece] = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> others;
    for (std::size_t i = 1; i < threads && i < pieces; ++i) others.emplace_back(run);
    run();
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

// Where piece i of `pieces` equal parts of n begins; piece `pieces` begins at n.
inline std::size_t piece_start(std::size_t n, std::size_t pieces, std::size_t i) {
  return n / pieces * i + n % pieces * i / pieces;
}

}  // namespace em

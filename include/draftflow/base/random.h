// SPDX-License-Identifier: Apache-2.0
//
// Randomness with the same sequence on every machine and compiler, and unpredictable names. Nothing reproducible may
// depend on std::shuffle or std::hash. Random is not thread-safe; random_hex128 is.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace draftflow {

// SplitMix64 (Steele, Lea, Flood 2014): one 64-bit state, full period.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::uint64_t below(std::uint64_t bound);  // uniform in [0, bound), bound > 0, without modulo bias
  double uniform();                          // [0, 1)
  double normal();                           // mean 0, variance 1 (Box-Muller)

 private:
  std::uint64_t state_;
};

// Fisher-Yates with Random: the order is a function of the seed and the length alone.
template <class T>
void seeded_shuffle(std::vector<T>& items, std::uint64_t seed) {
  Random random(seed);
  for (std::size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[random.below(i)]);
  }
}

// 128 bits from the kernel as 32 lowercase hex digits.
std::string random_hex128();

}  // namespace draftflow

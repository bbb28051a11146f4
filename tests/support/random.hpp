#ifndef MLA_SUPPORT_RANDOM_HPP_
#define MLA_SUPPORT_RANDOM_HPP_

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "mla/core/tensor.hpp"

namespace mla::test {

/// The same numbers on every platform, which the distributions of <random> are not.
class Random {
 public:
  explicit Random(std::uint64_t seed) noexcept : state_(seed) {}

  /// 64 random bits (splitmix64).
  std::uint64_t bits() noexcept {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  double uniform(double low, double high) noexcept {
    return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
  }

  /// Mean 0 and variance 1, within +-1.74.
  double unit() noexcept { return uniform(-1.7320508075688772, 1.7320508075688772); }

  /// Both ends included.
  Index integer(Index low, Index high) noexcept {
    return low + static_cast<Index>(bits() % static_cast<std::uint64_t>(high - low + 1));
  }

  bool chance(double probability) noexcept { return uniform(0.0, 1.0) < probability; }

  template <class Value>
  Value one_of(std::initializer_list<Value> values) noexcept {
    return values.begin()[bits() % values.size()];
  }

 private:
  std::uint64_t state_;
};

/// `count` elements center + scale * unit().
template <StorageElement T>
std::vector<T> random_elements(Index count, Random& random, double scale = 1.0,
                               double center = 0.0) {
  std::vector<T> elements;
  elements.reserve(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i)
    elements.push_back(static_cast<T>(static_cast<float>(center + scale * random.unit())));
  return elements;
}

/// x [tokens, features] of unit().
inline RowMajorMatrix random_matrix(Index tokens, Index features, Random& random) {
  RowMajorMatrix matrix(tokens, features);
  for (Index t = 0; t < tokens; ++t)
    for (Index i = 0; i < features; ++i) matrix(t, i) = static_cast<float>(random.unit());
  return matrix;
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_RANDOM_HPP_

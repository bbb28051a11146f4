#ifndef MLA_SUPPORT_CACHE_TYPES_HPP_
#define MLA_SUPPORT_CACHE_TYPES_HPP_

#include <gtest/gtest.h>

#include <string>

#include "mla/core/cache_format.hpp"

namespace mla::test {

/// What a cache may store, for TYPED_TEST_SUITE(Suite, CacheTypes, TypeNames).
using CacheTypes = ::testing::Types<float, bfloat16, float16>;

/// The formats of 8 and 4 bits.
inline constexpr CacheFormat kQuantised[] = {CacheFormat::int8, CacheFormat::fp8,
                                             CacheFormat::int4};

struct TypeNames {
  template <class T>
  static std::string GetName(int) {
    return std::string(name_of(kCacheFormatOf<T>));
  }
};

}  // namespace mla::test

#endif  // MLA_SUPPORT_CACHE_TYPES_HPP_

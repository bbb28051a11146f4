#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

#include "baseline/grouped_query_layer.hpp"

// Counts every allocation of this program that goes through operator new. Not inlined: GCC takes an
// inlined pair of malloc and a replaced operator delete for a mismatch.

namespace {

std::atomic<long> allocations{0};

[[gnu::noinline]] void* allocate(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  void* memory = std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

[[gnu::noinline]] void release(void* memory) noexcept { std::free(memory); }

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }

namespace mla {
namespace {

template <class T>
long allocations_of_decoding(Index num_key_value_heads) {
  const test::GroupedQueryLayer layer({.hidden_size = 64,
                                       .num_attention_heads = 8,
                                       .num_key_value_heads = num_key_value_heads,
                                       .head_dim = 32});
  const GroupedQueryAttention attention = layer.attention();
  const RowMajorMatrix x = test::Random(2).matrix(1, layer.config.hidden_size);
  KeyValueCache<T> cache(layer.config);
  cache.reserve(150);
  Context context;
  RowMajorMatrix out(1, layer.config.hidden_size);
  attention.forward(x, cache, out, context);  // lets the scratch memory grow

  const long before = allocations;
  for (int step = 1; step < 150; ++step) attention.forward(x, cache, out, context);
  return allocations - before;
}

TEST(GroupedQueryAttention, DecodingAllocatesNothingAfterTheFirstToken) {
  const long before = allocations;
  ::operator delete(::operator new(1));
  ASSERT_EQ(allocations, before + 1) << "operator new is not counted";

  for (Index num_key_value_heads : {8, 2, 1}) {
    EXPECT_EQ(allocations_of_decoding<float>(num_key_value_heads), 0);
    EXPECT_EQ(allocations_of_decoding<bfloat16>(num_key_value_heads), 0);
    EXPECT_EQ(allocations_of_decoding<float16>(num_key_value_heads), 0);
  }
}

}  // namespace
}  // namespace mla

// Reads rows of 8 and 4 bits as float32.
// Needs: a vector type (vec/*.inl), tile_of_rows (attend/softmax.inl).

#include "mla/simd/detail/widen_codes.inl"

struct FloatPut {
  float* out;
  MLA_INLINE void operator()(Index i, F32 numbers, Index n) const {
    if (n == kLanes)
      store(out + i, numbers);
    else
      store_first(out + i, numbers, n);
  }
  MLA_INLINE void operator()(Index i, F32 low, F32 high) const {
    store(out + i, low);
    store(out + i + kLanes, high);
  }
};

template <class Codes>
void widen_quantised(const RowLayout& layout, const std::byte* bytes, float* row) noexcept {
  put_numbers<Codes>(layout, bytes, FloatPut{row});
}

template <class Codes>
FloatTile float_tile_of_codes(const KeyValueRows& keys, Index first, Index count, float* memory) {
  return tile_of_rows(keys, first, count, memory, &widen_quantised<Codes>);
}

using PublishedFp8 = mla::detail::Fp8Codes<Fp8Scale::power_of_two>;

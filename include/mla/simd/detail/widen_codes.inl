// Reads rows of 8 and 4 bits (core/quantised_rows.hpp) in vectors. Whoever takes the numbers, a
// `Put`, may need more instructions than the reading, and is inlined into it: so an instruction set
// that adds some includes this text again.
// Needs: load_int8, load_int4, load_e4m3 (vec/*.inl).

// Numbers of a group of `count`: put(i, numbers, n) takes n of them from i on, and
// put(i, low, high) two whole vectors.
template <class Codes, class Put>
MLA_INLINE void put_group(const std::byte* codes, Index count, float scale, const Put& put) {
  constexpr Index kPair = 2 * kLanes;
  Index i = 0;
  if constexpr (Codes::kGroup == 32) {
    const F32 factor = set1(scale);
    if (count == Codes::kGroup && kLanes == 16) {
      put(0, load_int4<0>(codes) * factor, load_int4<4>(codes) * factor);
      i = count;
    } else if (count == Codes::kGroup) {
      for (; i < 16; i += kPair)
        put(i, load_int4<0>(codes + i) * factor, load_int4<0>(codes + i + kLanes) * factor);
      for (; i < 32; i += kPair)
        put(i, load_int4<4>(codes + i - 16) * factor,
            load_int4<4>(codes + i - 16 + kLanes) * factor);
    }
  } else if constexpr (!Codes::kHasNaN) {
    const F32 factor = set1(scale);
    for (; i + kPair <= count; i += kPair)
      put(i, load_int8(codes + i) * factor, load_int8(codes + i + kLanes) * factor);
  } else if (!(__builtin_fabsf(scale) >= 0x1p119f)) {  // then 2^8 times as much is a number
    const F32 lifted = set1(scale * 0x1p8f);
    for (; i + kPair <= count; i += kPair) {
      F32 v[2];
      load_e4m3(codes + i, v);
      put(i, v[0] * lifted, v[1] * lifted);
    }
  }
  for (; i < count; i += kLanes) {
    const Index n = count - i < kLanes ? count - i : kLanes;
    float numbers[kLanes] = {};
    for (Index j = 0; j < n; ++j) numbers[j] = Codes::number(codes, count, i + j) * scale;
    put(i, load(numbers), n);
  }
}

// Moves what is put by `shift` places.
template <class Put>
struct ShiftedPut {
  const Put& put;
  Index shift;
  MLA_INLINE void operator()(Index i, F32 numbers, Index n) const { put(i + shift, numbers, n); }
  MLA_INLINE void operator()(Index i, F32 low, F32 high) const { put(i + shift, low, high); }
};

// All numbers of a row, put as put_group() does.
template <class Codes, class Put>
MLA_INLINE void put_numbers(const RowLayout& layout, const std::byte* row, const Put& put) {
  using Rows = mla::detail::QuantisedRows<Codes>;
  const Index width = layout.latent_width;
  const auto* const scales = Rows::scales(layout, row);
  for (Index g = 0, at = 0; at < width; ++g, at += Codes::kGroup)
    put_group<Codes>(row + Codes::bytes(at),
                     width - at < Codes::kGroup ? width - at : Codes::kGroup,
                     static_cast<float>(scales[g]), ShiftedPut<Put>{put, at});
  const auto* const rope = Rows::rope(layout, row);
  for (Index i = 0; i < layout.rope_width; i += kLanes) {
    const Index left = layout.rope_width - i;
    if (left >= kLanes)
      put(width + i, load(rope + i), Index{kLanes});
    else
      put(width + i, load_first(rope + i, left), left);
  }
}

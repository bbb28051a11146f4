// Reads rows of 8 and 4 bits (core/quantised_rows.hpp) in vectors. Whoever takes the numbers, a
// `Put`, may need more instructions than the reading, and is inlined into it: so an instruction set
// that adds some includes this text again.
// Needs: load_int8, load_int4, load_e4m3 (vec/*.inl), kIsFp8 (quantised_rows.inl).

// Numbers [first, end) of a group of `count`: put(i, numbers, n) takes n of them from i on, and
// put(i, low, high) two whole vectors.
template <class Codes, class Put>
MLA_INLINE void widen_group(const std::byte* codes, Index count, float scale, Index first,
                            Index end, const Put& put) {
  constexpr Index kPair = 2 * kLanes;
  Index i = first;
  if constexpr (Codes::kGroup == 32) {
    const F32 factor = set1(scale);
    if (first == 0 && end == Codes::kGroup && kLanes == 16) {
      put(0, load_int4<0>(codes) * factor, load_int4<4>(codes) * factor);
      i = end;
    } else if (first == 0 && end == Codes::kGroup) {
      for (; i < 16; i += kPair)
        put(i, load_int4<0>(codes + i) * factor, load_int4<0>(codes + i + kLanes) * factor);
      for (; i < 32; i += kPair)
        put(i, load_int4<4>(codes + i - 16) * factor,
            load_int4<4>(codes + i - 16 + kLanes) * factor);
    }
  } else if constexpr (!kIsFp8<Codes>) {
    const F32 factor = set1(scale);
    for (; i + kPair <= end; i += kPair)
      put(i, load_int8(codes + i) * factor, load_int8(codes + i + kLanes) * factor);
  } else if (!(__builtin_fabsf(scale) >= 0x1p119f)) {  // then 2^8 times as much is a number
    const F32 lifted = set1(scale * 0x1p8f);
    for (; i + kPair <= end; i += kPair)
      put(i, load_e4m3(codes + i) * lifted, load_e4m3(codes + i + kLanes) * lifted);
  }
  for (; i < end; i += kLanes) {
    const Index n = end - i < kLanes ? end - i : kLanes;
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

// Numbers [first, + count) of a row, put as widen_group() does, from number `first` on.
template <class Codes, class Put>
MLA_INLINE void widen_part(const RowLayout& layout, const std::byte* row, Index first, Index count,
                           const Put& put) {
  using Rows = mla::detail::QuantisedRows<Codes>;
  const Index width = layout.latent_width, end = first + count;
  for (Index at = first; at < end && at < width;) {
    const Index group = at / Codes::kGroup, begin = group * Codes::kGroup;
    const Index in_group = width - begin < Codes::kGroup ? width - begin : Codes::kGroup;
    const Index wanted = end - begin < in_group ? end - begin : in_group;
    widen_group<Codes>(row + Codes::bytes(begin), in_group,
                       static_cast<float>(Rows::scales(layout, row)[group]), at - begin, wanted,
                       ShiftedPut<Put>{put, begin - first});
    at = begin + wanted;
  }
  const auto* const rope = Rows::rope(layout, row);
  Index i = first > width ? first : width;
  for (; i + 2 * kLanes <= end; i += 2 * kLanes)
    put(i - first, load(rope + (i - width)), load(rope + (i - width) + kLanes));
  for (; i < end; i += kLanes) {
    const Index n = end - i < kLanes ? end - i : kLanes;
    put(i - first, n == kLanes ? load(rope + (i - width)) : load_first(rope + (i - width), n), n);
  }
}

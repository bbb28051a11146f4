// Makes rows of 8 and 4 bits: the definition of core/quantised_rows.hpp in vectors. Groups that are
// not whole, or not finite, or too small or large for a vector's arithmetic, go by the definition.
// Needs: a vector type with store_int8, store_e4m3 (vec/*.inl), from_float (rows.inl).

// The largest magnitude of x [count]; NaN where a number is not finite.
MLA_INLINE float largest_of(const float* x, Index count) {
  F32 largest = zero(), spoiled = zero();
  const auto add = [&](F32 v) {
    largest = max(max(v, zero() - v), largest);
    spoiled = fma(v, zero(), spoiled);
  };
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes) add(load(x + i));
  if (i < count) add(load_first(x + i, count - i));
  float lanes[kLanes];
  store(lanes, largest);
  float result = reduce_add(spoiled);  // 0 or NaN
  for (const float lane : lanes) result = lane > result ? lane : result;
  return result;
}

template <class Codes>
MLA_INLINE void encode_codes(const float* x, Index count, float scale, std::byte* codes) {
  constexpr Index kGroup = Codes::kGroup;
  if constexpr (Codes::kHasNaN) {
    const Index whole = count / kLanes * kLanes;
    for (Index i = 0; i < whole; i += kLanes) store_e4m3(codes + i, load(x + i) / set1(scale));
    Codes::encode(x + whole, count - whole, scale, codes + whole);
  } else {
    constexpr float kMost = kGroup == 32 ? 7.0f : 127.0f;
    if (!(scale > 0.0f) || count < kGroup) return Codes::encode(x, count, scale, codes);
    std::byte integers[kGroup];
    std::byte* const to = kGroup == 32 ? integers : codes;
    for (Index i = 0; i < kGroup; i += kLanes) {
      const F32 nearest = round(load(x + i) / set1(scale));
      store_int8(to + i, min(max(nearest, set1(-kMost)), set1(kMost)));
    }
    if constexpr (kGroup == 32)
      for (Index i = 0; i < 16; ++i) {
        const auto low = static_cast<unsigned>(integers[i]) + 8u;
        const auto high = static_cast<unsigned>(integers[i + 16]) + 8u;
        codes[i] = static_cast<std::byte>((low & 15u) | (high & 15u) << 4);
      }
  }
}

template <class Codes>
void encode_quantised(const RowLayout& layout, const float* row, std::byte* bytes) noexcept {
  using Rows = mla::detail::QuantisedRows<Codes>;
  Rows::clear_gaps(layout, bytes);
  for (Index g = 0, first = 0; first < layout.latent_width; ++g, first += Codes::kGroup) {
    const Index left = layout.latent_width - first;
    const Index count = left < Codes::kGroup ? left : Codes::kGroup;
    std::byte* const codes = bytes + Codes::bytes(first);
    const float largest = largest_of(row + first, count);
    typename Rows::Scale& scale = Rows::scales(layout, bytes)[g];
    if (largest != largest) {
      scale = Rows::encode_group(row + first, count, codes);
      continue;
    }
    scale = typename Rows::Scale(Codes::scale_of(largest));
    encode_codes<Codes>(row + first, count, static_cast<float>(scale), codes);
  }
  const float* const rope = row + layout.latent_width;
  if (Codes::kHasNaN || largest_of(rope, layout.rope_width) <= 65504.0f)
    return from_float(rope, layout.rope_width, Rows::rope(layout, bytes));
  for (Index i = 0; i < layout.rope_width; ++i)
    Rows::rope(layout, bytes)[i] = Rows::encode_rope(rope[i]);
}

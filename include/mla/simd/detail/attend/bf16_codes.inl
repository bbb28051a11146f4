// Rows of 8 and 4 bits for kernels that compute in bfloat16: as numbers rounded to it.
// Needs: put_numbers (widen_codes.inl), store_rounded (tiles/*_packing.inl).

struct RoundedPut {
  bfloat16* out;
  MLA_INLINE void operator()(Index i, F32 numbers, Index n) const {
    if (n == kLanes) return store_rounded(out + i, numbers);
    bfloat16 last[kLanes];
    store_rounded(last, numbers);
    for (Index j = 0; j < n; ++j) out[i + j] = last[j];
  }
  MLA_INLINE void operator()(Index i, F32 low, F32 high) const {
    store_rounded(out + i, low, high);
  }
};

template <class Codes>
void make_row_of_codes(const RowLayout& layout, const std::byte* bytes, bfloat16* memory) {
  put_numbers<Codes>(layout, bytes, RoundedPut{memory});
}

// As a cache of bfloat16 holds them, subnormals too.
inline void widen_rounded(const RowLayout& layout, const std::byte* bytes, float* row) noexcept {
  kFloat32Kernels.of(layout.format).widen(layout, bytes, row);
  const Index width = layout.width();
  bfloat16 halves[kLanes];
  Index i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    store(halves, load(row + i));
    store(row + i, load(halves));
  }
  if (i == width) return;
  store(halves, load_first(row + i, width - i));
  store_first(row + i, load(halves), width - i);
}

// Rows of 8 and 4 bits for kernels that compute in bfloat16: as numbers rounded to it.
// Needs: widen_part (widen_codes.inl), store_rounded (tiles/*_packing.inl), attend_made_rows
// (attend/bf16.inl).

struct RoundedPut {
  bfloat16* out;
  MLA_INLINE void operator()(Index i, F32 numbers, Index n) const {
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
  widen_part<Codes>(layout, bytes, 0, layout.width(), RoundedPut{memory});
}

template <class Codes>
void attend_many_codes(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
                       const SoftmaxState& state, float* scratch) noexcept {
  attend_made_rows(queries, keys, softmax_scale, state, &make_row_of_codes<Codes>, scratch);
}

// As a cache of bfloat16 holds them, subnormals too.
struct RoundedFloatPut {
  float* out;
  MLA_INLINE void operator()(Index i, F32 numbers, Index n) const {
    FloatPut{out}(i, rounded(numbers), n);
  }
  MLA_INLINE void operator()(Index i, F32 low, F32 high) const {
    FloatPut{out}(i, rounded(low), rounded(high));
  }
  static MLA_INLINE F32 rounded(F32 numbers) {
    bfloat16 halves[kLanes];
    store(halves, numbers);
    return load(halves);
  }
};

template <class Codes>
void widen_rounded(const RowLayout& layout, const std::byte* bytes, float* row) noexcept {
  widen_part<Codes>(layout, bytes, 0, layout.width(), RoundedFloatPut{row});
}

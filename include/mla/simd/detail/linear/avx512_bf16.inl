// linear() by VDPBF16PS: both operands contiguous along the reduction, as in float32.inl,
// the tokens rounded to bfloat16 once a call by pack().

inline constexpr Index kLinearFloats = 0;

inline Index packed_floats(Index tokens, Index in) noexcept {
  return tokens * round_up(in, kTileDepth) / 2;
}

// [tokens][in], rows filled up with 0.
inline void pack(MatrixView<const float> x, float* packed) noexcept {
  auto* to = reinterpret_cast<bfloat16*>(packed);
  for (Index t = 0; t < x.rows; ++t)
    for (Index i = 0; i < x.cols; i += kTileDepth, to += kTileDepth)
      _mm512_storeu_si512(to, load_rounded(x.row(t), i, x.cols));
}

// kRows x kCols dot products of n elements.
template <int kRows, int kCols>
MLA_INLINE void dot_tile(const bfloat16* a, Index a_stride, const bfloat16* b, Index b_stride,
                         Index n, F32 (&acc)[kRows][kCols]) {
  for (Index i = 0; i < n; i += kTileDepth) {
    const bool whole = i + kTileDepth <= n;
    __m512i x[kRows];
    MLA_UNROLL (r, kRows) x[r] = _mm512_loadu_si512(a + r * a_stride + i);
    MLA_UNROLL (c, kCols) {
      const bfloat16* const row = b + c * b_stride;
      const __m512i y = whole ? _mm512_loadu_si512(row + i) : load_halves(row, i, n);
      MLA_UNROLL (r, kRows) acc[r][c] = dot(acc[r][c], x[r], y);
    }
  }
}

inline void linear(MatrixView<const float> x, const float* packed, const WeightView& weights,
                   MatrixView<float> out, float*) noexcept {
  const MatrixView<const bfloat16> weight = weights.as<bfloat16>();
  const Index stride = round_up(x.cols, kTileDepth);
  const auto* const rows = reinterpret_cast<const bfloat16*>(packed);
  for_linear_blocks(x.rows, x.cols, [&](Index first_token, Index tokens, Index i, Index inputs) {
    for_tiles_or_ones<kFeatureTile>(weight.rows, [&](auto cols, Index o) {
      for_tiles<tokens_by<cols.value>(kTokenTile)>(tokens, [&](auto count, Index token) {
        const Index t = first_token + token;
        F32 acc[count.value][cols.value] = {};
        dot_tile(rows + t * stride + i, stride, weight.row(o) + i, weight.stride, inputs, acc);
        add_lanes(acc, out.row(t) + o, out.stride, i > 0);
      });
    });
  });
}

// Formats of 8 and 4 bits stay in float32.
constexpr void set_quantised_products(Kernels&) {}

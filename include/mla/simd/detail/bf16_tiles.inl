// Tiles of bfloat16 pairs, the operands of dot product instructions, and how float32 rows become
// them. Included inside a namespace that has the AVX-512 vectors, and a target region; see
// kernel_bodies.hpp.
//   A tile: 16 rows of 32 elements along the reduction, one row after the other.
//   B tile: 16 pairs of the reduction, each [columns][2], columns <= 16.
//   C tile: 16 rows x 16 columns of float32.

inline constexpr Index kTileSide = 16;   // rows of A, columns of B, rows and columns of C
inline constexpr Index kTileDepth = 32;  // elements of the reduction that a tile holds

MLA_INLINE Index round_up(Index n, Index step) { return (n + step - 1) / step * step; }

// 32 elements rounded to nearest even; subnormals become 0.
MLA_INLINE __m512i round_to_bf16(F32 low, F32 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v));
}

MLA_INLINE __mmask32 first_halves(Index n) {
  return n >= kTileDepth ? ~__mmask32{0} : static_cast<__mmask32>((1u << n) - 1u);
}

// Elements [i, i + 32) of a row of n, 0 from n on.
MLA_INLINE __m512i load_rounded(const float* row, Index i, Index n) {
  const auto part = [&](Index at) {
    return at + kLanes <= n ? load(row + at) : at < n ? load_first(row + at, n - at) : zero();
  };
  return round_to_bf16(part(i), part(i + kLanes));
}
MLA_INLINE __m512i load_halves(const bfloat16* row, Index i, Index n) {
  return i < n ? _mm512_maskz_loadu_epi16(first_halves(n - i), row + i) : _mm512_setzero_si512();
}

// Element j of vector i becomes element i of vector j, elements of 32 bits.
MLA_INLINE void transpose(__m512i (&v)[kTileSide]) {
  __m512i w[kTileSide];
  MLA_UNROLL (i, 4) {  // blocks of 2 x 2, then of 4 x 4, within the quarters of a vector
    const __m512i low01 = _mm512_unpacklo_epi32(v[4 * i], v[4 * i + 1]);
    const __m512i high01 = _mm512_unpackhi_epi32(v[4 * i], v[4 * i + 1]);
    const __m512i low23 = _mm512_unpacklo_epi32(v[4 * i + 2], v[4 * i + 3]);
    const __m512i high23 = _mm512_unpackhi_epi32(v[4 * i + 2], v[4 * i + 3]);
    w[4 * i] = _mm512_unpacklo_epi64(low01, low23);
    w[4 * i + 1] = _mm512_unpackhi_epi64(low01, low23);
    w[4 * i + 2] = _mm512_unpacklo_epi64(high01, high23);
    w[4 * i + 3] = _mm512_unpackhi_epi64(high01, high23);
  }
  MLA_UNROLL (i, 4) {  // w[4 * b + i]: quarter q is column 4 * q + i of rows 4 * b on
    const __m512i even01 = _mm512_shuffle_i32x4(w[i], w[4 + i], 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(w[i], w[4 + i], 0xdd);
    const __m512i even23 = _mm512_shuffle_i32x4(w[8 + i], w[12 + i], 0x88);
    const __m512i odd23 = _mm512_shuffle_i32x4(w[8 + i], w[12 + i], 0xdd);
    v[i] = _mm512_shuffle_i32x4(even01, even23, 0x88);
    v[4 + i] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
    v[8 + i] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
    v[12 + i] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
  }
}

// Up to 16 rows of n elements as the columns of B tiles, `columns` >= rows wide; 0 from n on.
template <class Load>
MLA_INLINE void pack_columns(Index rows, Index n, Index columns, bfloat16* tiles,
                             const Load& load_row) {
  const __mmask16 kept = first_lanes(columns);
  for (Index i = 0; i < n; i += kTileDepth) {
    __m512i v[kTileSide];
    MLA_UNROLL (r, kTileSide) v[r] = r < rows ? load_row(r, i) : _mm512_setzero_si512();
    transpose(v);
    MLA_UNROLL (pair, kTileSide) {
      _mm512_mask_storeu_epi32(tiles, kept, v[pair]);
      tiles += 2 * columns;
    }
  }
}

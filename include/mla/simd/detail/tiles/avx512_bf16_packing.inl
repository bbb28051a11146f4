// How rows become tiles for VDPBF16PS and AMX. Included inside a target region, in a namespace that
// has the AVX-512 vectors, after bf16_tiles.inl.
//   A tile: 16 rows of 32 elements, one row after the other.
//   B tile: 16 pairs of the reduction, each [columns][2].

// Rows of bfloat16 are rows of A tiles as they lie.
inline constexpr bool kRowsAreTiles = true;

// 32 elements rounded to nearest even; subnormals become 0.
MLA_INLINE __m512i round_to_bf16(F32 low, F32 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v));
}

// To nearest even; subnormals become 0.
MLA_INLINE void store_rounded(bfloat16* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
MLA_INLINE void store_rounded(bfloat16* p, F32 low, F32 high) {
  _mm512_storeu_si512(p, round_to_bf16(low, high));
}

MLA_INLINE __mmask32 first_halves(Index n) {
  return n >= kTileDepth ? ~__mmask32{0} : static_cast<__mmask32>((1u << n) - 1u);
}

// Elements [i, i + 32) of a row of n, 0 from n on.
MLA_INLINE __m512i load_rounded(const float* row, Index i, Index n) {
  return round_to_bf16(load_within(row, i, n), load_within(row, i + kLanes, n));
}
MLA_INLINE __m512i load_rounded(const float* row, Index i, Index n, F32 scale) {
  return round_to_bf16(load_within(row, i, n) * scale, load_within(row, i + kLanes, n) * scale);
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

// Up to 16 rows, times `scale`, as the columns of B tiles, which are `columns` >= x.rows wide.
[[gnu::noinline]] inline void pack_columns(MatrixView<const float> x, bfloat16* tiles,
                                           Index columns = kTileSide, float scale = 1.0f) {
  const __mmask16 kept = first_lanes(columns);
  for (Index i = 0; i < x.cols; i += kTileDepth) {
    __m512i v[kTileSide];
    for (Index r = 0; r < kTileSide; ++r)
      v[r] = r < x.rows ? load_rounded(x.row(r), i, x.cols, set1(scale)) : _mm512_setzero_si512();
    transpose(v);
    MLA_UNROLL (pair, kTileSide) {
      _mm512_mask_storeu_epi32(tiles, kept, v[pair]);
      tiles += 2 * columns;
    }
  }
}

// Keys [first, + count) of the sequence as rows of A tiles, `stride` apart, 0 from their width up
// to `depth`.
inline void pack_keys(const KeyValueRows& keys, Index first, Index count, Index depth, Index stride,
                      bfloat16* tiles) {
  const Index width = keys.key_width + keys.tail_width;
  for (Index k = 0; k < round_up(count, kTileSide); ++k) {
    bfloat16* const to = tiles + k * stride;
    const auto copy = [&](const bfloat16* from, Index n, Index at) {
      for (Index i = 0; i < n; i += kTileDepth)
        _mm512_mask_storeu_epi16(to + at + i, first_halves(n - i), load_halves(from, i, n));
    };
    if (k < count) {
      const bfloat16* const row = key_row(keys, first + k);
      copy(row + keys.key_offset, keys.key_width, 0);
      copy(row + keys.tail_offset, keys.tail_width, keys.key_width);
    }
    for (Index i = k < count ? width : 0; i < depth; ++i) to[i] = bfloat16::from_bits(0);
  }
}

// Values of keys [first, + count) as B tiles, whose columns are dimensions, kValueTiles apart.
// Returns whether all are finite.
inline bool pack_values(const KeyValueRows& keys, Index first, Index count, bfloat16* tiles) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_or_si512(low, _mm512_set1_epi16(16));
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 infinite = 0;
  for (Index k = 0; k < round_up(count, kTileDepth); k += 2) {
    const Index width = keys.value_width;
    const bfloat16* row0 = k < count ? key_row(keys, first + k) + keys.value_offset : nullptr;
    const bfloat16* row1 =
        k + 1 < count ? key_row(keys, first + k + 1) + keys.value_offset : nullptr;
    bfloat16* to = tiles + k * kTileSide;
    for (Index i = 0; i < width; i += kTileDepth, to += 2 * kValueTiles) {
      const __m512i a = row0 ? load_halves(row0, i, width) : _mm512_setzero_si512();
      const __m512i b = row1 ? load_halves(row1, i, width) : _mm512_setzero_si512();
      infinite |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(a, exponent), exponent) |
                  _mm512_cmpeq_epi16_mask(_mm512_and_si512(b, exponent), exponent);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
      if (i + kTileSide < width)
        _mm512_storeu_si512(to + kValueTiles, _mm512_permutex2var_epi16(a, high, b));
    }
  }
  return infinite == 0;
}

// Weights of keys [0, count) of a block, [keys][kBlockRows], as A tiles of its rows, 16 to a strip.
inline void pack_weights(const float (*weights)[kBlockRows], Index count, Index strips,
                         bfloat16* tiles) {
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (Index strip = 0; strip < strips; ++strip)
    for (Index k = 0; k < count; k += kTileDepth) {
      __m512i v[kTileSide];
      MLA_UNROLL (i, kTileSide) {
        const float* even = weights[k + 2 * i] + strip * kTileSide;
        v[i] = _mm512_permutexvar_epi16(pairs, round_to_bf16(load(even), load(even + kBlockRows)));
      }
      transpose(v);
      bfloat16* const tile = tiles + strip * kTileSide * kSpanKeys + k * kTileSide;
      MLA_UNROLL (r, kTileSide) _mm512_storeu_si512(tile + r * kTileDepth, v[r]);
    }
}

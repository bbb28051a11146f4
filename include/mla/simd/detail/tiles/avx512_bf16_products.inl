// Products of tiles by VDPBF16PS. Included inside a target region with avx512bf16, after
// bf16_tiles.inl.

// sum + low(x) * low(y) + high(x) * high(y), lane by lane. In assembly: clang 16 breaks off on
// large kernels with the intrinsic.
MLA_INLINE F32 dot(F32 sum, __m512i x, __m512i y) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(x), "v"(y));
  return sum;
}

// C = A * B, or C += A * B, for a grid of kA x kB tiles over `steps` tiles of the reduction. Lanes
// are columns; half a tile of rows is in registers at a time.
template <int kA, int kB>
MLA_INLINE void multiply(const bfloat16* a, const TileSteps& as, const bfloat16* b,
                         const TileSteps& bs, Index steps, bool add, float* c,
                         const TileSteps& rows, Index column_side) {
  constexpr int kRows = kTileSide / 2;
  for (int half = 0; half < 2 * kA; ++half) {
    const bfloat16* const a_half = a + half / 2 * as.side + half % 2 * kRows * as.stride;
    float* const c_half = c + half / 2 * rows.side + half % 2 * kRows * rows.stride;
    F32 acc[kRows][kB] = {};
    if (add)
      MLA_UNROLL (r, kRows)
        MLA_UNROLL (j, kB) acc[r][j] = load(c_half + r * rows.stride + j * column_side);
    for (Index s = 0; s < steps; ++s)
      for (Index pair = 0; pair < kTileSide; ++pair) {
        __m512i y[kB];
        MLA_UNROLL (j, kB)
          y[j] = _mm512_loadu_si512(b + s * bs.depth + j * bs.side + pair * bs.stride);
        MLA_UNROLL (r, kRows) {
          int x;
          __builtin_memcpy(&x, a_half + s * as.depth + r * as.stride + 2 * pair, sizeof(x));
          MLA_UNROLL (j, kB) acc[r][j] = dot(acc[r][j], _mm512_set1_epi32(x), y[j]);
        }
      }
    MLA_UNROLL (r, kRows)
      MLA_UNROLL (j, kB) store(c_half + r * rows.stride + j * column_side, acc[r][j]);
  }
}

MLA_INLINE void begin_products() {}
MLA_INLINE void end_products() {}

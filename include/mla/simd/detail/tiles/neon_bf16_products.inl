// Products of tiles by BFMMLA. Included inside a target region, after neon_bf16_packing.inl. Every
// sum is made by BFMMLA alone, four elements after four: what is added in which order does not
// depend on the tile that an output falls into.

// sums[i][j] + a[i][0] * b[j][0] + ... + a[i][3] * b[j][3] for i, j = 0, 1. The instruction adds
// two products, then them to the sum, then the same with the other two. It takes subnormals for 0
// and rounds to odd: what is not exact gets the neighbour whose last bit is 1. (With FPCR.EBF set
// it would round otherwise; systems leave that to programs that ask for it.)
MLA_INLINE float32x4_t add_products(float32x4_t sums, uint16x8_t a, uint16x8_t b) {
  return vbfmmlaq_f32(sums, vreinterpretq_bf16_u16(a), vreinterpretq_bf16_u16(b));
}

// Two blocks of 2 x 2 side by side as their first and second row, or two rows as such blocks.
MLA_INLINE float32x4_t first_row(float32x4_t a, float32x4_t b) {
  return vreinterpretq_f32_u64(vzip1q_u64(vreinterpretq_u64_f32(a), vreinterpretq_u64_f32(b)));
}
MLA_INLINE float32x4_t second_row(float32x4_t a, float32x4_t b) {
  return vreinterpretq_f32_u64(vzip2q_u64(vreinterpretq_u64_f32(a), vreinterpretq_u64_f32(b)));
}

// Half of the rows of an A tile by half of the columns of a B tile: 8 x 8 outputs, which are 4 x 4
// blocks, in registers.
inline void multiply_halves(const bfloat16* a, const TileSteps& as, const bfloat16* b,
                            const TileSteps& bs, Index steps, bool add, float* c, Index stride) {
  constexpr int kBlocks = kTileSide / 4;
  float32x4_t acc[kBlocks][kBlocks] = {};
  if (add)
    MLA_UNROLL (p, kBlocks)
      MLA_UNROLL (q, kBlocks / 2) {
        const float* const block = c + 2 * p * stride + 4 * q;
        const float32x4_t row0 = vld1q_f32(block), row1 = vld1q_f32(block + stride);
        acc[p][2 * q] = first_row(row0, row1);
        acc[p][2 * q + 1] = second_row(row0, row1);
      }
  for (Index s = 0; s < steps; ++s, a += as.depth, b += bs.depth)
    for (Index place = 0; place < kTileSide; place += 2) {
      uint16x8_t y[kBlocks];
      MLA_UNROLL (q, kBlocks) y[q] = vld1q_u16(&b[place * bs.stride + q * kLanes].bits);
      MLA_UNROLL (p, kBlocks) {
        const uint16x8_t x = vld1q_u16(&a[place * as.stride + p * kLanes].bits);
        MLA_UNROLL (q, kBlocks) acc[p][q] = add_products(acc[p][q], x, y[q]);
      }
    }
  MLA_UNROLL (p, kBlocks)
    MLA_UNROLL (q, kBlocks / 2) {
      float* const block = c + 2 * p * stride + 4 * q;
      vst1q_f32(block, first_row(acc[p][2 * q], acc[p][2 * q + 1]));
      vst1q_f32(block + stride, second_row(acc[p][2 * q], acc[p][2 * q + 1]));
    }
}

// C = A * B, or C += A * B, for a grid of kA x kB tiles over `steps` tiles of the reduction.
template <int kA, int kB>
MLA_INLINE void multiply(const bfloat16* a, const TileSteps& as, const bfloat16* b,
                         const TileSteps& bs, Index steps, bool add, float* c,
                         const TileSteps& rows, Index column_side) {
  constexpr Index kHalf = kTileSide / 2;
  for (Index i = 0; i < 2 * kA; ++i)
    for (Index j = 0; j < 2 * kB; ++j)
      multiply_halves(
          a + i / 2 * as.side + i % 2 * as.stride, as, b + j / 2 * bs.side + j % 2 * bs.stride, bs,
          steps, add,
          c + i / 2 * rows.side + i % 2 * kHalf * rows.stride + j / 2 * column_side + j % 2 * kHalf,
          rows.stride);
}

MLA_INLINE void begin_products() {}
MLA_INLINE void end_products() {}

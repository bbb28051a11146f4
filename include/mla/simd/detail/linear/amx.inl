// linear() by AMX: weights are the A tiles, where they lie in the checkpoint, packed tokens the B
// tiles, so that the result comes out transposed. A group is up to 16 tokens.

inline Index packed_floats(Index tokens, Index in) noexcept {
  return tokens * round_up(in, kTileDepth) / 2;
}

// Groups one after the other, each as B tiles that are as wide as it has tokens.
inline void pack(MatrixView<const float> x, float* packed) noexcept {
  for (Index t = 0; t < x.rows; t += kTileSide) {
    const Index tokens = x.rows - t < kTileSide ? x.rows - t : kTileSide;
    pack_columns(x.row_range(t, tokens),
                 reinterpret_cast<bfloat16*>(packed + packed_floats(t, x.cols)), tokens);
  }
}

// Memory of a call: C tiles of 16 features x 16 tokens, and a block of weights in whole tiles.
struct AmxBlocks {
  static constexpr Index kOutputs = 256, kTokens = 512, kInputs = 512;  // fit the second cache
  // Up to so many tokens the weights are read once, where they lie, in longer pieces.
  static constexpr Index kFewTokens = 64, kFewOutputs = 64, kFewInputs = 4096;
  // An odd number of cache lines: rows of a tile fall into different sets.
  static constexpr Index kStride = kInputs + kTileDepth, kFewStride = kFewInputs + kTileDepth;
  static constexpr Index kSums = kOutputs * kTokens;
  static constexpr Index kFloats = kSums + kFewOutputs * kFewStride / 2;
  static_assert(kOutputs * kStride <= kFewOutputs * kFewStride);

  float* sums;        // [kOutputs / 16][kTokens / 16] C tiles
  bfloat16* weights;  // [kOutputs][kStride] or [kFewOutputs][kFewStride]
};

inline constexpr Index kLinearFloats = AmxBlocks::kFloats;

// Weights [rows, cols], filled up with 0 to whole tiles.
inline void copy_tiles(MatrixView<const bfloat16> weight, bfloat16* tiles, Index stride) {
  for (Index o = 0; o < round_up(weight.rows, kTileSide); ++o)
    for (Index i = 0; i < weight.cols; i += kTileDepth)
      _mm512_storeu_si512(tiles + o * stride + i, o < weight.rows
                                                      ? load_halves(weight.row(o), i, weight.cols)
                                                      : _mm512_setzero_si512());
}

// sums (+)= weight * x for inputs [first, ...) that are in A tiles.
inline void multiply_block(const bfloat16* packed, Index in, Index first, Index inputs,
                           const bfloat16* weights, Index stride, Index strips, Index tokens,
                           const AmxBlocks& blocks, WeightsAhead& ahead) {
  const Index tile = kTileSide * kTileSide;
  const TileSteps sums = {0, AmxBlocks::kTokens * kTileSide, kTileSide};
  const TileSteps rows = {kTileDepth, kTileSide * stride, stride};
  // Groups of so many tokens each, from one on.
  const auto multiply_groups = [&](auto groups, Index group, Index columns_of_group) {
    const TileSteps columns = {columns_of_group * kTileDepth, kTileSide * round_up(in, kTileDepth),
                               2 * columns_of_group};
    const bfloat16* const x = packed + group * columns.side + first * columns_of_group;
    for_tiles<2>(strips, [&](auto strips_here, Index strip) {
      ahead.step();
      multiply<strips_here.value, groups.value>(
          weights + strip * rows.side, rows, x, columns, round_up(inputs, kTileDepth) / kTileDepth,
          first > 0, blocks.sums + strip * sums.side + group * tile, sums, tile);
    });
  };
  set_tiles(kTileSide, kTileSide);
  const Index whole = tokens / kTileSide, rest = tokens % kTileSide;
  for_tiles<2>(whole, [&](auto groups, Index g) { multiply_groups(groups, g, kTileSide); });
  if (rest == 0) return;
  set_tiles(rest, 0);
  multiply_groups(TileSize<1>(), whole, rest);
}

// out[t][o] from C tiles [features][tokens].
inline void store_transposed(const AmxBlocks& blocks, MatrixView<float> out) {
  for (Index t = 0; t < out.rows; t += kTileSide)
    for (Index o = 0; o < out.cols; o += kTileSide) {
      const float* tile = blocks.sums + (o * AmxBlocks::kTokens + t * kTileSide);
      __m512i v[kTileSide];
      MLA_UNROLL (i, kTileSide) v[i] = _mm512_loadu_si512(tile + i * kTileSide);
      transpose(v);
      const Index features = out.cols - o;
      const __mmask16 kept = features < kTileSide ? first_lanes(features) : __mmask16(0xffff);
      MLA_UNROLL (r, kTileSide)
        if (t + r < out.rows) _mm512_mask_storeu_epi32(out.row(t + r) + o, kept, v[r]);
    }
}

// Up to kFewTokens tokens by up to kFewOutputs features: memory is the limit.
inline void linear_few(const bfloat16* packed, MatrixView<const bfloat16> weight,
                       MatrixView<float> out, const AmxBlocks& blocks) {
  for (Index i = 0, inputs; i < weight.cols; i += inputs) {
    inputs = weight.cols - i < AmxBlocks::kFewInputs ? weight.cols - i : AmxBlocks::kFewInputs;
    const MatrixView<const bfloat16> block = weight.col_range(i, inputs);
    const bool whole = inputs % kTileDepth == 0 && weight.rows % kTileSide == 0;
    if (!whole) copy_tiles(block, blocks.weights, AmxBlocks::kFewStride);
    WeightsAhead ahead(MatrixView<const bfloat16>(), 1);  // long rows, which the processor foresees
    multiply_block(packed, weight.cols, i, inputs, whole ? block.data : blocks.weights,
                   whole ? block.stride : AmxBlocks::kFewStride,
                   round_up(weight.rows, kTileSide) / kTileSide, out.rows, blocks, ahead);
  }
  store_transposed(blocks, out);
}

// Up to kTokens tokens by up to kOutputs features.
inline void linear_many(const bfloat16* packed, MatrixView<const bfloat16> weight,
                        MatrixView<float> out, const AmxBlocks& blocks) {
  const Index strips = round_up(weight.rows, kTileSide) / kTileSide;
  const Index products = (strips + 1) / 2 * ((out.rows + 2 * kTileSide - 1) / (2 * kTileSide));
  for (Index i = 0, inputs; i < weight.cols; i += inputs) {
    const auto inputs_from = [&](Index first) {
      const Index left = weight.cols - first;
      return left < AmxBlocks::kInputs ? left : AmxBlocks::kInputs;
    };
    inputs = inputs_from(i);
    copy_tiles(weight.col_range(i, inputs), blocks.weights, AmxBlocks::kStride);
    WeightsAhead ahead(weight.col_range(i + inputs, inputs_from(i + inputs)), products);
    multiply_block(packed, weight.cols, i, inputs, blocks.weights, AmxBlocks::kStride, strips,
                   out.rows, blocks, ahead);
  }
  store_transposed(blocks, out);
}

inline void linear(MatrixView<const float> x, const float* packed, const WeightView& weights,
                   MatrixView<float> out, float* scratch) noexcept {
  const MatrixView<const bfloat16> weight = weights.as<bfloat16>();
  if (x.cols == 0) {  // there is no block that would begin the sums
    for (Index t = 0; t < x.rows; ++t)
      for (Index o = 0; o < weight.rows; ++o) out(t, o) = 0.0f;
    return;
  }
  const AmxBlocks blocks = {scratch, reinterpret_cast<bfloat16*>(scratch + AmxBlocks::kSums)};
  const bool few = x.rows <= AmxBlocks::kFewTokens;
  const Index most = few ? AmxBlocks::kFewOutputs : AmxBlocks::kOutputs;
  for (Index o = 0, outputs; o < weight.rows; o += outputs) {
    outputs = weight.rows - o < most ? weight.rows - o : most;
    for (Index t = 0, tokens; t < x.rows; t += tokens) {
      tokens = x.rows - t < AmxBlocks::kTokens ? x.rows - t : AmxBlocks::kTokens;
      const auto* const group =
          reinterpret_cast<const bfloat16*>(packed + packed_floats(t, x.cols));
      const auto w = weight.row_range(o, outputs);
      const auto y = out.row_range(t, tokens).col_range(o, outputs);
      if (few)
        linear_few(group, w, y, blocks);
      else
        linear_many(group, w, y, blocks);
    }
  }
  end_products();
}

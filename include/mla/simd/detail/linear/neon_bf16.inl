// linear() by BFMMLA: 2 x 2 outputs of a pair of tokens and a pair of output features. Packed
// tokens are [pairs][in / 4][2][4]; weights become such pairs on their way into registers, or once
// for many tokens.

inline Index packed_floats(Index tokens, Index in) noexcept {
  return round_up(tokens, 2) * round_up(in, kLanes) / 2;
}

// The last of an odd number of tokens is paired with 0; rows are filled up with 0.
inline void pack(MatrixView<const float> x, float* packed) noexcept {
  auto* to = reinterpret_cast<bfloat16*>(packed);
  for (Index t = 0; t < x.rows; t += 2)
    for (Index i = 0; i < x.cols; i += kLanes, to += 2 * kLanes) {
      const uint16x8_t a = round_to_bf16(load_within(x.row(t), i, x.cols));
      const uint16x8_t b =
          t + 1 < x.rows ? round_to_bf16(load_within(x.row(t + 1), i, x.cols)) : vdupq_n_u16(0);
      vst1q_u16(&to->bits, first_fours(a, b));
      vst1q_u16(&to[kLanes].bits, second_fours(a, b));
    }
}

// A register tile: the sums of 4 pairs of tokens by 4 pairs of features are half of the registers.
inline constexpr int kTilePairs = 4;
using Fours = uint16x8_t[kTilePairs];  // four inputs of each pair
using Sums = float32x4_t[kTilePairs];  // of a pair of tokens, by pairs of features

// Memory of a call: a tile's weights for a block of inputs.
inline constexpr Index kLinearFloats = kTilePairs * LinearBlocks::kInputs;

// Weights of a tile for a block of inputs, up to `in_place` where they lie, then packed. Missing
// features are the last one again.
struct TileWeights {
  const bfloat16* row[2 * kTilePairs];
  bfloat16* packed;  // [(inputs - in_place) / 4][kTilePairs][2][4], inputs in multiples of eight
  Index in_place;    // a multiple of eight
  Index inputs;

  MLA_INLINE TileWeights(MatrixView<const bfloat16> weight, Index inputs_in_place, bfloat16* memory)
      : packed(memory), in_place(inputs_in_place), inputs(round_up(weight.cols, kLanes)) {
    for (Index o = 0; o < 2 * kTilePairs; ++o)
      row[o] = weight.row(o < weight.rows ? o : weight.rows - 1);
    for (Index i = in_place; i < inputs; i += kLanes, memory += 2 * kTilePairs * kLanes)
      MLA_UNROLL (c, kTilePairs) {
        const uint16x8_t a = load_halves(row[2 * c], i, weight.cols);
        const uint16x8_t b = load_halves(row[2 * c + 1], i, weight.cols);
        vst1q_u16(&memory[c * kLanes].bits, first_fours(a, b));
        vst1q_u16(&memory[(kTilePairs + c) * kLanes].bits, second_fours(a, b));
      }
  }
};

// Adds the products of four inputs of kPairs pairs of tokens, `stride` apart.
template <int kPairs>
MLA_INLINE void add_fours(const bfloat16* x, Index stride, const Fours& y, Sums (&acc)[kPairs]) {
  MLA_UNROLL (p, kPairs) {
    const uint16x8_t a = vld1q_u16(&x[p * stride].bits);
    MLA_UNROLL (c, kTilePairs) acc[p][c] = add_products(acc[p][c], a, y[c]);
  }
}

// Adds the products of a block of inputs.
template <int kPairs>
MLA_INLINE void add_block(const bfloat16* x, Index stride, const TileWeights& weights,
                          Sums (&acc)[kPairs]) {
  for (Index i = 0; i < weights.in_place; i += kLanes, x += 2 * kLanes) {
    Fours first, second;
    MLA_UNROLL (c, kTilePairs) {
      const uint16x8_t a = vld1q_u16(&weights.row[2 * c][i].bits);
      const uint16x8_t b = vld1q_u16(&weights.row[2 * c + 1][i].bits);
      first[c] = first_fours(a, b);
      second[c] = second_fours(a, b);
    }
    add_fours(x, stride, first, acc);
    add_fours(x + kLanes, stride, second, acc);
  }
  const bfloat16* fours = weights.packed;
  for (Index i = weights.in_place; i < weights.inputs; i += 4, x += kLanes) {
    Fours y;
    MLA_UNROLL (c, kTilePairs) y[c] = vld1q_u16(&fours[c * kLanes].bits);
    add_fours(x, stride, y, acc);
    fours += kTilePairs * kLanes;
  }
}

// out = or += the sums; out may have fewer rows and columns than they.
template <int kPairs>
MLA_INLINE void add_sums(const Sums (&acc)[kPairs], MatrixView<float> out, bool add) {
  MLA_UNROLL (p, kPairs) {
    const Sums& sums = acc[p];
    const F32 rows[2] = {{first_row(sums[0], sums[1]), first_row(sums[2], sums[3])},
                         {second_row(sums[0], sums[1]), second_row(sums[2], sums[3])}};
    MLA_UNROLL (i, 2) {
      if (2 * p + i >= out.rows) continue;
      float* const to = out.row(2 * p + i);
      if (out.cols == kLanes)
        store(to, add ? load(to) + rows[i] : rows[i]);
      else
        store_first(to, add ? load_first(to, out.cols) + rows[i] : rows[i], out.cols);
    }
  }
}

inline void linear(MatrixView<const float> x, const float* packed, const WeightView& weights,
                   MatrixView<float> out, float* scratch) noexcept {
  const MatrixView<const bfloat16> weight = weights.as<bfloat16>();
  const auto* const rows = reinterpret_cast<const bfloat16*>(packed);
  const Index stride = 2 * round_up(x.cols, kLanes);  // from a pair of tokens to the next
  const bool few = x.rows <= 2 * kTilePairs;  // a weight is used once: packing would not pay
  const auto multiply_block = [&](Index o, Index first, Index tokens, Index i, Index inputs) {
    const Index features = weight.rows - o < kLanes ? weight.rows - o : kLanes;
    const TileWeights tile(weight.row_range(o, features).col_range(i, inputs),
                           few ? inputs / kLanes * kLanes : 0,
                           reinterpret_cast<bfloat16*>(scratch));
    for_tiles<kTilePairs>((tokens + 1) / 2, [&](auto pairs, Index pair) {
      const Index t = first + 2 * pair, left = x.rows - t;
      Sums acc[pairs.value] = {};
      add_block(rows + t / 2 * stride + 2 * i, stride, tile, acc);
      const Index here = left < 2 * pairs.value ? left : 2 * pairs.value;
      add_sums(acc, out.row_range(t, here).col_range(o, features), i > 0);
    });
  };
  const auto for_blocks = [&](const auto& block) { for_linear_blocks(x.rows, x.cols, block); };
  const auto for_features = [&](const auto& body) {
    for (Index o = 0; o < weight.rows; o += kLanes) body(o);
  };
  if (few)  // rows of weights from end to end, as memory likes it best
    for_features([&](Index o) {
      for_blocks([&](Index first, Index tokens, Index i, Index inputs) {
        multiply_block(o, first, tokens, i, inputs);
      });
    });
  else  // tokens of a block stay in the second cache
    for_blocks([&](Index first, Index tokens, Index i, Index inputs) {
      for_features([&](Index o) { multiply_block(o, first, tokens, i, inputs); });
    });
}

// Formats of 8 and 4 bits stay in float32.
constexpr void set_quantised_products(Kernels&) {}

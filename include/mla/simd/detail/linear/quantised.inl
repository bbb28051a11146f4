// Products with weights of 8 and 4 bits: code times scale, rounded to float32 once, in vectors.
// Needs: a vector type with load_int8, load_e4m3, Int4Lanes, E2m1Lanes (vec/*.inl),
// linear/float32.inl. What a vector cannot take goes by the format's own function: codes that share
// a byte with another block, what is left of a block, scales that are too large.
//
// Lanes run along the inputs as in every product in float32, so that all sums are those of the
// decoded weights: a token takes weights as they are decoded, several tokens take a register tile's
// rows from the first cache, many a block from the second.

// Weights of a format that share a scale.
struct Int8Weights {
  static constexpr int kBits = 8;
  static constexpr bool kHasZeroPoints = false;
  static bool fits(float) { return true; }
  F32 scale;
  MLA_INLINE Int8Weights(float s, float) : scale(set1(s)) {}
  MLA_INLINE F32 load(const std::byte* p) const { return load_int8(p) * scale; }
  MLA_INLINE void load_pair(const std::byte* p, F32 (&v)[2]) const {
    MLA_UNROLL (i, 2) v[i] = load(p + i * kLanes);
  }
};

struct E4m3Weights {
  static constexpr int kBits = 8;
  static constexpr bool kHasZeroPoints = false;
  // load_e4m3() divides by 2^8, and 2^8 times the scale must be a number.
  static bool fits(float s) { return __builtin_fabsf(s) < 0x1p119f; }
  F32 lifted;
  MLA_INLINE E4m3Weights(float s, float) : lifted(set1(s * 0x1p8f)) {}
  MLA_INLINE F32 load(const std::byte* p) const { return load_e4m3(p) * lifted; }
  MLA_INLINE void load_pair(const std::byte* p, F32 (&v)[2]) const {
    load_e4m3(p, v);
    MLA_UNROLL (i, 2) v[i] = v[i] * lifted;
  }
};

template <class Lanes, bool kZeroPoints>
struct HalfByteWeights {
  static constexpr int kBits = 4;
  static constexpr bool kHasZeroPoints = kZeroPoints;
  static bool fits(float) { return true; }
  Lanes lanes;
  MLA_INLINE HalfByteWeights(float s, float zero_point) : lanes(s, zero_point) {}
  MLA_INLINE F32 load(const std::byte* p) const { return lanes.load(p); }
  MLA_INLINE void load_pair(const std::byte* p, F32 (&v)[2]) const {
    MLA_UNROLL (i, 2) v[i] = load(p + i * kLanes / 2);
  }
};
using Int4Weights = HalfByteWeights<Int4Lanes, true>;
using E2m1Weights = HalfByteWeights<E2m1Lanes, false>;

// Scales [first, + count) of all that are stored, in float32.
[[gnu::noinline]] inline void load_scales(const Scales& scales, Index first, Index count,
                                          float* out) noexcept {
  switch (scales.format) {
    case ScaleFormat::float32:
      to_float(static_cast<const float*>(scales.data) + first, count, out);
      break;
    case ScaleFormat::bfloat16:
      to_float(static_cast<const bfloat16*>(scales.data) + first, count, out);
      break;
    case ScaleFormat::float16:
      to_float(static_cast<const float16*>(scales.data) + first, count, out);
      break;
    case ScaleFormat::fp8_e8m0:
    case ScaleFormat::fp8_e4m3:
      for (Index i = 0; i < count; ++i) out[i] = scales.at(first + i);
      return;
  }
  if (scales.factor != 1.0f)
    for (Index i = 0; i < count; ++i) out[i] *= scales.factor;
}

// Scales and zero points of blocks that follow each other in a row.
struct BlockScales {
  static constexpr Index kMost = 32;  // 768 inputs in blocks of 32 are 24
  static_assert(kMost % kLanes == 0);
  float scale[kMost];
  float zero_point[kMost];

  // Of row r of the view, from the block of its first column on.
  template <class Weights>
  MLA_INLINE void load(const WeightView& view, Index r, Index count) {
    const Scales& s = view.scales;
    const Index row = view.first_row + r, block = view.first_col / s.block_cols;
    load_scales(s, row / s.block_rows * s.stride + block, count, scale);
    if constexpr (!Weights::kHasZeroPoints) return;
    if (!s.zero_points) {
      for (Index b = 0; b < count; b += kLanes) store(zero_point + b, set1(8.0f));
      return;
    }
    const std::uint32_t* const words = s.zero_points + row / 8 * s.stride + block;
    for (Index b = 0; b < count; ++b)
      zero_point[b] = static_cast<float>(static_cast<int>(words[b] >> row % 8 * 4 & 15u));
  }
};

// Columns [c, end) of a row of `block`, which have the same scale.
template <class Weights>
MLA_INLINE void widen_part(const WeightView& block, Index r, Index c, Index end, float scale,
                           float zero_point, float* out) {
  const auto by_definition = [&](Index count) {
    info_of(block.format).widen(block.row_range(r, 1).col_range(c, count), {out + c, 1, count});
    c += count;
  };
  if (Weights::kBits == 4 && (block.first_col + c) % 2 != 0) by_definition(1);
  if (Weights::fits(scale)) {
    const Weights weights(scale, zero_point);
    for (; c + 2 * kLanes <= end; c += 2 * kLanes) {
      F32 v[2];
      weights.load_pair(block.byte_of(r, c), v);
      MLA_UNROLL (i, 2) store(out + c + i * kLanes, v[i]);
    }
    for (; c + kLanes <= end; c += kLanes) store(out + c, weights.load(block.byte_of(r, c)));
  }
  if (c < end) by_definition(end - c);
}

template <class Weights>
void widen_weights(const WeightView& block, MatrixView<float> out) noexcept {
  const Index width = block.scales.block_cols;
  BlockScales scales;
  for (Index r = 0; r < block.rows; ++r)
    for (Index c = 0; c < block.cols;) {
      Index in_block = (block.first_col + c) % width;
      const Index blocks =
          at_most((in_block + block.cols - c + width - 1) / width, BlockScales::kMost);
      scales.load<Weights>(block.col_range(c, block.cols - c), r, blocks);
      for (Index b = 0; b < blocks; ++b, in_block = 0) {
        const Index end = at_most(block.cols, c + width - in_block);
        widen_part<Weights>(block, r, c, end, scales.scale[b], scales.zero_point[b], out.row(r));
        c = end;
      }
    }
}

// Whether each 32 weights from the view's first column on share a scale, and begin in a byte of
// their own.
inline bool blocks_align(const WeightView& weight, int bits) noexcept {
  constexpr Index kStep = 32;
  const Index width = weight.scales.block_cols, first = weight.first_col;
  if (weight.cols == 0 || (bits == 4 && first % 2 != 0)) return false;
  if (first / width == (first + weight.cols - 1) / width) return true;
  return width % kStep == 0 && first % kStep == 0;
}

// One token by kRows rows of a block of inputs: acc[r] += x * weight[r], lane by lane. Weights
// become float32 in registers; what comes next in each row is asked for in time.
template <class Weights, int kRows>
MLA_INLINE void dot_weights(const float* x, const WeightView& weight, F32 (&acc)[kRows]) {
  constexpr Index kStep = 2 * kLanes, kStepBytes = kStep * Weights::kBits / 8;
  constexpr Index kPiece = 128, kAhead = 1024, kLine = 64;
  const Index width = weight.scales.block_cols;
  BlockScales scales[kRows];
  Index block_end = width - weight.first_col % width;
  const Index blocks = (width - block_end + weight.cols + width - 1) / width;
  const std::byte* codes[kRows];
  MLA_UNROLL (r, kRows) {
    scales[r].template load<Weights>(weight, r, blocks);
    codes[r] = weight.byte_of(r, 0);
  }
  Index i = 0, b = 0;
  const auto by_definition = [&](Index end) {
    for (; i < end; i += kLanes) {
      const Index n = at_most(end - i, kLanes);
      MLA_UNROLL (r, kRows) {
        alignas(64) float w[kLanes] = {};
        info_of(weight.format).widen(weight.row_range(r, 1).col_range(i, n), {w, 1, n});
        acc[r] = fma(n < kLanes ? load_first(x + i, n) : load(x + i), load(w), acc[r]);
      }
    }
    i = end;
  };
  for (Index piece = 0; piece < weight.cols; piece += kPiece) {
    MLA_UNROLL (r, kRows)
      for (Index line = 0; line < kPiece * Weights::kBits / 8; line += kLine)
        __builtin_prefetch(codes[r] + kAhead + line, 0, 2);
    const Index piece_end = at_most(weight.cols, piece + kPiece);
    while (i < piece_end) {
      if (i == block_end) ++b, block_end += width;
      const Index end = at_most(block_end, piece_end);
      bool fits = true;
      MLA_UNROLL (r, kRows) fits = fits && Weights::fits(scales[r].scale[b]);
      const Index steps = fits ? (end - i) / kStep : 0;
      for (Index s = 0; s < steps; ++s, i += kStep) {
        const F32 x0 = load(x + i), x1 = load(x + i + kLanes);
        MLA_UNROLL (r, kRows) {
          F32 v[2];
          Weights(scales[r].scale[b], scales[r].zero_point[b]).load_pair(codes[r], v);
          acc[r] = fma(x1, v[1], fma(x0, v[0], acc[r]));
          codes[r] += kStepBytes;
        }
      }
      if (i < end) {
        const Index done = i;
        by_definition(end);
        MLA_UNROLL (r, kRows) codes[r] += (i - done) * Weights::kBits / 8;
      }
    }
  }
}

// One token, where memory is the limit.
template <class Weights>
void linear_one(const float* x, const WeightView& weight, float* out) noexcept {
  constexpr int kRows = kLanes == 16 ? 8 : 4;  // with their scales they leave registers to decode
  for_tiles_or_ones<kRows>(weight.rows, [&](auto rows, Index o) {
    for_input_blocks(weight.cols, [&](Index i, Index inputs) {
      F32 acc[rows.value] = {};
      dot_weights<Weights>(x + i, weight.row_range(o, rows.value).col_range(i, inputs), acc);
      MLA_UNROLL (r, rows.value) {
        const float sum = reduce_add(acc[r]);
        out[o + r] = i > 0 ? out[o + r] + sum : sum;
      }
    });
  });
}

template <class Weights>
void linear_quantised(MatrixView<const float> x, const float*, const WeightView& weight,
                      MatrixView<float> out, float* scratch) noexcept {
  if (x.rows == 1 && blocks_align(weight, Weights::kBits))
    return linear_one<Weights>(x.row(0), weight, out.row(0));
  linear_by_widening(x, weight, &widen_weights<Weights>, out, scratch);
}

template <class Weights>
void linear_transposed_quantised(MatrixView<const float> x, const WeightView& weight,
                                 MatrixView<float> out, float* scratch) noexcept {
  linear_transposed_by(x, weight, &widen_weights<Weights>, out, scratch);
}

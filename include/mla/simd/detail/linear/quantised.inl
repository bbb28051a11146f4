// Products with weights of 8 and 4 bits: code times scale, rounded to float32 once, in vectors.
// Needs: a vector type with load_int8, load_e4m3, Int4Lanes, E2m1Lanes (vec/*.inl),
// linear/float32.inl. What a vector cannot take goes by the format's own function: codes that share
// a byte with another block, what is left of a block, scales that are too large.
//
// Lanes run along the inputs as in every product in float32, so that all sums are those of the
// decoded weights: a token takes weights as they are decoded, several tokens take a register tile's
// rows from the first cache, many a block from the second. A format brings two loops over vectors
// of codes (CodedFormat); what is around them is the same for all.

inline constexpr float kInfinity = __builtin_inff();

// Weights of a format that share a scale, whose magnitude is below kScaleLimit, if that is finite.
struct Int8Weights {
  static constexpr int kBits = 8;
  static constexpr float kScaleLimit = kInfinity;
  F32 scale;
  MLA_INLINE Int8Weights(float s, float) : scale(set1(s)) {}
  MLA_INLINE F32 load(const std::byte* p) const { return load_int8(p) * scale; }
  MLA_INLINE void load_pair(const std::byte* p, F32 (&v)[2]) const {
    MLA_UNROLL (i, 2) v[i] = load(p + i * kLanes);
  }
};

struct E4m3Weights {
  static constexpr int kBits = 8;
  // load_e4m3() divides by 2^8, and 2^8 times the scale must be a number.
  static constexpr float kScaleLimit = 0x1p119f;
  F32 lifted;
  MLA_INLINE E4m3Weights(float s, float) : lifted(set1(s * 0x1p8f)) {}
  MLA_INLINE F32 load(const std::byte* p) const { return load_e4m3(p) * lifted; }
  MLA_INLINE void load_pair(const std::byte* p, F32 (&v)[2]) const {
    load_e4m3(p, v);
    MLA_UNROLL (i, 2) v[i] = v[i] * lifted;
  }
};

template <class Lanes>
struct HalfByteWeights {
  static constexpr int kBits = 4;
  static constexpr float kScaleLimit = kInfinity;
  Lanes lanes;
  MLA_INLINE HalfByteWeights(float s, float zero_point) : lanes(s, zero_point) {}
  MLA_INLINE F32 load(const std::byte* p) const { return lanes.load(p); }
  MLA_INLINE void load_pair(const std::byte* p, F32 (&v)[2]) const {
    MLA_UNROLL (i, 2) v[i] = load(p + i * kLanes / 2);
  }
};
using Int4Weights = HalfByteWeights<Int4Lanes>;
using E2m1Weights = HalfByteWeights<E2m1Lanes>;

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
  void load(const WeightView& view, Index r, Index count) noexcept {
    const Scales& s = view.scales;
    const Index row = view.first_row + r, block = view.first_col / s.block_cols;
    load_scales(s, row / s.block_rows * s.stride + block, count, scale);
    if (!s.zero_points) {
      for (Index b = 0; b < count; b += kLanes) store(zero_point + b, set1(8.0f));
      return;
    }
    const std::uint32_t* const words = s.zero_points + row / 8 * s.stride + block;
    for (Index b = 0; b < count; ++b)
      zero_point[b] = static_cast<float>(static_cast<int>(words[b] >> row % 8 * 4 & 15u));
  }

  // Whether the magnitude of each is below `limit`.
  bool below(float limit, Index count) const noexcept {
    if (limit == kInfinity) return true;
    for (Index b = 0; b < count; ++b)
      if (!(__builtin_fabsf(scale[b]) < limit)) return false;
    return true;
  }
};

// Rows of weights that are multiplied together. With their scales they leave registers to decode.
struct CodedRows {
  static constexpr int kRows = kLanes == 16 ? 8 : 4;
  const std::byte* codes[kRows];
  BlockScales scales[kRows];
  Index width, first_width;  // inputs of a block, of the first block
};

// What a format brings.
struct CodedFormat {
  float scale_limit;  // scales from here on go by the format's own function
  // Makes float32 of whole vectors of `count` numbers, whose first block has first_width of them;
  // returns how many those are. Blocks are whole vectors.
  Index (*widen)(const std::byte* codes, const BlockScales& scales, Index first_width, Index width,
                 Index count, float* out) noexcept;
  // sums[r] = a token's inputs by row r, lane by lane; `inputs` in steps of two vectors.
  void (*multiply)(const float* x, const CodedRows& rows, Index inputs, F32* sums) noexcept;
};

template <class Weights>
Index widen_codes(const std::byte* codes, const BlockScales& scales, Index first_width, Index width,
                  Index count, float* out) noexcept {
  const Index whole = count / kLanes * kLanes;
  for (Index i = 0, b = 0, block_end = first_width; i < whole; ++b, block_end += width) {
    const Weights weights(scales.scale[b], scales.zero_point[b]);
    const Index end = at_most(block_end, whole);
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      F32 v[2];
      weights.load_pair(codes + i * Weights::kBits / 8, v);
      MLA_UNROLL (j, 2) store(out + i + j * kLanes, v[j]);
    }
    for (; i < end; i += kLanes) store(out + i, weights.load(codes + i * Weights::kBits / 8));
  }
  return whole;
}

// Weights become float32 in registers; what comes next in each row is asked for in time.
template <class Weights>
void multiply_codes(const float* x, const CodedRows& rows, Index inputs, F32* sums) noexcept {
  constexpr int kRows = CodedRows::kRows;
  constexpr Index kStep = 2 * kLanes, kStepBytes = kStep * Weights::kBits / 8;
  constexpr Index kPiece = 128, kAhead = 1024, kLine = 64;
  F32 acc[kRows] = {};
  const std::byte* codes[kRows];
  MLA_UNROLL (r, kRows) codes[r] = rows.codes[r];
  Index i = 0, b = 0, block_end = rows.first_width;
  for (Index piece = 0; piece < inputs; piece += kPiece) {
    MLA_UNROLL (r, kRows)
      for (Index line = 0; line < kPiece * Weights::kBits / 8; line += kLine)
        __builtin_prefetch(codes[r] + kAhead + line, 0, 2);
    const Index piece_end = at_most(inputs, piece + kPiece);
    while (i < piece_end) {
      if (i == block_end) ++b, block_end += rows.width;
      for (const Index end = at_most(block_end, piece_end); i < end; i += kStep) {
        const F32 x0 = load(x + i), x1 = load(x + i + kLanes);
        MLA_UNROLL (r, kRows) {
          F32 v[2];
          Weights(rows.scales[r].scale[b], rows.scales[r].zero_point[b]).load_pair(codes[r], v);
          acc[r] = fma(x1, v[1], fma(x0, v[0], acc[r]));
          codes[r] += kStepBytes;
        }
      }
    }
  }
  MLA_UNROLL (r, kRows) sums[r] = acc[r];
}

struct CodedFormats {
  CodedFormat of_format[kWeightFormatCount] = {};
  template <class Weights>
  constexpr void set(WeightFormat format) {
    of_format[static_cast<std::size_t>(format)] = {Weights::kScaleLimit, &widen_codes<Weights>,
                                                   &multiply_codes<Weights>};
  }
  constexpr CodedFormats() {
    set<E4m3Weights>(WeightFormat::fp8_e4m3);
    set<Int8Weights>(WeightFormat::int8);
    set<Int4Weights>(WeightFormat::int4);
    set<E2m1Weights>(WeightFormat::fp4_e2m1);
  }
  const CodedFormat& of(const WeightView& weight) const {
    return of_format[static_cast<std::size_t>(weight.format)];
  }
};
inline constexpr CodedFormats kCodedFormats;

// `count` columns of a row of `block` from c on, by the format's own function.
[[gnu::noinline]] inline void widen_by_definition(const WeightView& block, Index r, Index c,
                                                  Index count, float* out) noexcept {
  info_of(block.format).widen(block.row_range(r, 1).col_range(c, count), {out, 1, count});
}

// Whether each `step` weights from the view's first column on share a scale, and begin in a byte of
// their own.
inline bool blocks_align(const WeightView& weight, Index step) noexcept {
  const Index width = weight.scales.block_cols, first = weight.first_col;
  if (weight.cols == 0 || (info_of(weight.format).bits == 4 && first % 2 != 0)) return false;
  if (first / width == (first + weight.cols - 1) / width) return true;
  return width % step == 0 && first % step == 0;
}

inline void widen_coded(const WeightView& block, MatrixView<float> out) noexcept {
  const CodedFormat& format = kCodedFormats.of(block);
  const Index width = block.scales.block_cols;
  const bool aligned = blocks_align(block, kLanes);
  BlockScales scales;
  for (Index r = 0; r < block.rows; ++r)
    for (Index c = 0, end; c < block.cols; c = end) {
      const Index in_block = (block.first_col + c) % width;
      const Index blocks =
          at_most((in_block + block.cols - c + width - 1) / width, BlockScales::kMost);
      scales.load(block.col_range(c, block.cols - c), r, blocks);
      end = at_most(block.cols, c + blocks * width - in_block);
      Index made = c;
      if (aligned && scales.below(format.scale_limit, blocks))
        made += format.widen(block.byte_of(r, c), scales, width - in_block, width, end - c,
                             out.row(r) + c);
      if (made < end) widen_by_definition(block, r, made, end - made, out.row(r) + made);
    }
}

// sums[r] = x * row r of a block of inputs, lane by lane, for up to CodedRows::kRows rows.
inline void multiply_rows(const float* x, const WeightView& block, F32* sums) noexcept {
  const CodedFormat& format = kCodedFormats.of(block);
  CodedRows rows;
  rows.width = block.scales.block_cols;
  rows.first_width = rows.width - block.first_col % rows.width;
  const Index blocks = (rows.width - rows.first_width + block.cols + rows.width - 1) / rows.width;
  bool fit = true;
  for (Index r = 0; r < CodedRows::kRows; ++r) {
    const Index row = at_most(r, block.rows - 1);  // those that there are not are not used
    rows.codes[r] = block.byte_of(row, 0);
    rows.scales[r].load(block, row, blocks);
    fit = fit && rows.scales[r].below(format.scale_limit, blocks);
  }
  const Index whole = fit ? block.cols / (2 * kLanes) * (2 * kLanes) : 0;
  format.multiply(x, rows, whole, sums);
  for (Index r = 0; r < block.rows; ++r)
    for (Index i = whole, n; i < block.cols; i += n) {
      n = at_most(block.cols - i, kLanes);
      alignas(64) float w[kLanes] = {};
      widen_by_definition(block, r, i, n, w);
      sums[r] = fma(n < kLanes ? load_first(x + i, n) : load(x + i), load(w), sums[r]);
    }
}

// One token, where memory is the limit.
inline void linear_one(const float* x, const WeightView& weight, float* out) noexcept {
  constexpr int kRows = CodedRows::kRows;
  for (Index o = 0, rows; o < weight.rows; o += rows) {
    rows = at_most(weight.rows - o, kRows);
    for_input_blocks(weight.cols, [&](Index i, Index inputs) {
      F32 lanes[kRows];
      multiply_rows(x + i, weight.row_range(o, rows).col_range(i, inputs), lanes);
      float sums[kRows];
      MLA_UNROLL (r, kRows / 4)
        reduce_add(lanes[4 * r], lanes[4 * r + 1], lanes[4 * r + 2], lanes[4 * r + 3],
                   sums + 4 * r);
      for (Index r = 0; r < rows; ++r) out[o + r] = i > 0 ? out[o + r] + sums[r] : sums[r];
    });
  }
}

inline void linear_coded(MatrixView<const float> x, const float*, const WeightView& weight,
                         MatrixView<float> out, float* scratch) noexcept {
  constexpr Index kAligned = 32;  // steps of every instruction set
  if (x.rows == 1 && blocks_align(weight, kAligned))
    return linear_one(x.row(0), weight, out.row(0));
  linear_by_widening(x, weight, &widen_coded, out, scratch);
}

inline void linear_transposed_coded(MatrixView<const float> x, const WeightView& weight,
                                    MatrixView<float> out, float* scratch) noexcept {
  linear_transposed_by(x, weight, &widen_coded, out, scratch);
}

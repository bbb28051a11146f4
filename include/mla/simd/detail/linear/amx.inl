// linear() by AMX, of bfloat16 weights as they lie and of weights that become bfloat16 on their
// way. Needs: linear/amx_few.inl, linear/amx_many.inl, linear/quantised.inl.

inline void linear_by_tiles(MatrixView<const float> x, const float* packed,
                            const MatrixView<const bfloat16>* in_place, const TileMaker& maker,
                            MatrixView<float> out, float* scratch) noexcept {
  if (x.cols == 0) {  // there is no step that would begin the sums
    for (Index t = 0; t < x.rows; ++t)
      for (Index o = 0; o < out.cols; ++o) out(t, o) = 0.0f;
    return;
  }
  const AmxBlocks blocks = {scratch, reinterpret_cast<bfloat16*>(scratch + AmxBlocks::kSums)};
  for (Index t = 0, tokens; t < x.rows; t += tokens) {
    tokens = at_most(x.rows - t, AmxBlocks::kTokens);
    const PackedGroups groups(packed + packed_floats(t, x.cols), tokens, x.cols);
    const MatrixView<float> y = out.row_range(t, tokens);
    if (groups.groups <= AmxBlocks::kFewGroups) {
      linear_few(groups, in_place, maker, y, blocks);
      continue;
    }
    begin_products();
    for (Index o = 0; o < out.cols; o += AmxBlocks::kOutputs)
      linear_many(groups, maker, o, y.col_range(o, at_most(out.cols - o, AmxBlocks::kOutputs)),
                  blocks);
  }
  end_products();
}

inline void linear(MatrixView<const float> x, const float* packed, const WeightView& weights,
                   MatrixView<float> out, float* scratch) noexcept {
  const MatrixView<const bfloat16> weight = weights.as<bfloat16>();
  StoredTiles tiles(weight);
  linear_by_tiles(x, packed, &weight, maker_of(tiles), out, scratch);
}

// Tiles of weights of 8 and 4 bits, which become bfloat16 on their way.
class QuantisedTiles {
 public:
  explicit QuantisedTiles(const WeightView& weights)
      : view_(weights),
        bits_(info_of(weights.format).bits),
        aligned_(blocks_align(weights, kTileDepth)) {}

  void begin(Index o, Index i, Index end) {
    o_ = o, i_ = i, end_ = end, scales_end_ = i;
    count_ = at_most(view_.rows - o, kTileSide);
    codes_ = view_.byte_of(o, i);
    row_bytes_ = view_.stride * bits_ / 8;
    const Index bytes = (end - i) * bits_ / 8, ahead = at_most(bytes, kAhead);
    ahead_ = codes_ + ahead;
    ahead_left_ = bytes - ahead;
    to_next_strip_ = kTileSide * row_bytes_ - bytes;
  }

  template <class Weights>
  MLA_INLINE void make(bfloat16* tile) {
    constexpr Index kBytes = kTileDepth * Weights::kBits / 8;  // of a row of a tile
    if (!aligned_ || end_ - i_ < kTileDepth || count_ <= 0) return make_by_definition(tile);
    find_scales();
    if (!fit_) return make_by_definition(tile);
    ask_ahead(kBytes);
    Index r = 0;
    for (const std::byte* codes = codes_; r < count_; ++r, codes += row_bytes_) {
      const BlockScales& scales = scales_[r * scales_step_];
      F32 v[2];
      Weights(scales.scale[block_], scales.zero_point[block_]).load_pair(codes, v);
      _mm512_storeu_si512(tile + r * kTileDepth, round_to_bf16(v[0], v[1]));
    }
    for (; r < kTileSide; ++r) _mm512_storeu_si512(tile + r * kTileDepth, _mm512_setzero_si512());
    advance(kBytes);
  }

 private:
  static constexpr Index kInputs = 768;  // whose scales are found at a time
  static constexpr Index kAhead = 512;   // bytes of each row, then of the next strip's

  // Scales of a tile's inputs are those of block_ then.
  MLA_INLINE void find_scales() {
    if (i_ == scales_end_) return find_more_scales();
    if (block_left_ > 0) return;
    ++block_;
    block_left_ = view_.scales.block_cols;
  }

  [[gnu::noinline]] void find_more_scales() {
    const Scales& s = view_.scales;
    const Index inputs = at_most(end_ - i_, kInputs), first = view_.first_row + o_;
    const Index in_block = (view_.first_col + i_) % s.block_cols;
    const Index blocks = (in_block + inputs + s.block_cols - 1) / s.block_cols;
    const bool shared =
        !s.zero_points && first / s.block_rows == (first + count_ - 1) / s.block_rows;
    scales_step_ = shared ? 0 : 1;
    fit_ = true;
    for (Index r = 0; r < (shared ? 1 : count_); ++r) {
      scales_[r].load(view_.row_range(o_ + r, 1).col_range(i_, inputs), 0, blocks);
      fit_ = fit_ && scales_[r].below(kCodedFormats.of(view_).scale_limit, blocks);
    }
    block_ = 0;
    block_left_ = s.block_cols - in_block;
    scales_end_ = i_ + inputs / kTileDepth * kTileDepth;
  }

  MLA_INLINE void ask_ahead(Index bytes) {
    if (ahead_left_ <= 0) {
      ahead_ += to_next_strip_;
      ahead_left_ = 1 << 30;
    }
    if (i_ % (64 / bytes * kTileDepth) == 0)
      for (Index r = 0; r < kTileSide; ++r) __builtin_prefetch(ahead_ + r * row_bytes_, 0, 2);
    ahead_ += bytes;
    ahead_left_ -= bytes;
  }

  [[gnu::noinline]] void make_by_definition(bfloat16* tile) {
    const Index n = at_most(end_ - i_, kTileDepth);
    for (Index r = 0; r < kTileSide; ++r, tile += kTileDepth) {
      alignas(64) float values[kTileDepth] = {};
      if (r < count_ && n > 0)
        widen_coded(view_.row_range(o_ + r, 1).col_range(i_, n), {values, 1, n});
      _mm512_storeu_si512(tile, round_to_bf16(load(values), load(values + kLanes)));
    }
    advance(kTileDepth * bits_ / 8);
  }

  MLA_INLINE void advance(Index bytes) {
    i_ += kTileDepth;
    codes_ += bytes;
    block_left_ -= kTileDepth;
  }

  WeightView view_;
  Index bits_;
  bool aligned_;  // 32 weights have the same scale
  Index o_ = 0, i_ = 0, end_ = 0, count_ = 0;
  const std::byte* codes_ = nullptr;
  Index row_bytes_ = 0;
  const std::byte* ahead_ = nullptr;
  Index ahead_left_ = 0, to_next_strip_ = 0;
  Index scales_end_ = 0, scales_step_ = 0, block_ = 0, block_left_ = 0;
  bool fit_ = false;
  BlockScales scales_[kTileSide];
};

template <class Weights>
void make_coded_tile(void* self, bfloat16* tile) noexcept {
  static_cast<QuantisedTiles*>(self)->make<Weights>(tile);
}

template <class Weights>
void linear_quantised_by_tiles(MatrixView<const float> x, const float* packed,
                               const WeightView& weights, MatrixView<float> out,
                               float* scratch) noexcept {
  QuantisedTiles tiles(weights);
  linear_by_tiles(x, packed, nullptr,
                  {&tiles, &begin_tiles<QuantisedTiles>, &make_coded_tile<Weights>}, out, scratch);
}

// Kernels for formats that become bfloat16 on their way.
constexpr void set_quantised_products(Kernels& kernels) {
  const auto set = [&](WeightFormat format, auto linear_of_format) {
    LinearKernels& weights = kernels.of(format);
    weights.arithmetic = Arithmetic::bfloat16;
    weights.packed_floats = &packed_floats;
    weights.pack = &pack;
    weights.linear = linear_of_format;
  };
  set(WeightFormat::fp8_e4m3, &linear_quantised_by_tiles<E4m3Weights>);
  set(WeightFormat::int8, &linear_quantised_by_tiles<Int8Weights>);
  set(WeightFormat::int4, &linear_quantised_by_tiles<Int4Weights>);
  set(WeightFormat::fp4_e2m1, &linear_quantised_by_tiles<E2m1Weights>);
}

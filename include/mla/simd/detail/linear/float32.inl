// Matrix products with weights in their row-major checkpoint layout, in float32.
// Needs: a vector type (vec/*.inl), for_tiles (kernels.inl), widen_block (rows.inl).

// How a vector of a row is loaded: whole, or its first n elements.
struct LoadWhole {
  template <class T>
  MLA_INLINE F32 operator()(const T* p) const {
    return load(p);
  }
};
struct LoadFirst {
  Index n;
  template <class T>
  MLA_INLINE F32 operator()(const T* p) const {
    return load_first(p, n);
  }
};

// acc[r][c] += a[r] * b[c], lane by lane. The factor with fewer rows is held in registers.
template <int kRows, int kCols, class T, class Load>
MLA_INLINE void dot_step(const float* a, Index a_stride, const T* b, Index b_stride,
                         const Load& load_row, F32 (&acc)[kRows][kCols]) {
  if constexpr (kRows <= kCols) {
    F32 x[kRows];
    MLA_UNROLL (r, kRows) x[r] = load_row(a + r * a_stride);
    MLA_UNROLL (c, kCols) {
      const F32 y = in_register(load_row(b + c * b_stride));
      MLA_UNROLL (r, kRows) acc[r][c] = fma(x[r], y, acc[r][c]);
    }
  } else {
    F32 y[kCols];
    MLA_UNROLL (c, kCols) y[c] = load_row(b + c * b_stride);
    MLA_UNROLL (r, kRows) {
      const F32 x = in_register(load_row(a + r * a_stride));
      MLA_UNROLL (c, kCols) acc[r][c] = fma(x, y[c], acc[r][c]);
    }
  }
}

// kRows x kCols dot products: acc[r][c] += sum_i a[r][i] * b[c][i]. Lanes run along i.
template <int kRows, int kCols, class T>
MLA_INLINE void dot_tile(const float* a, Index a_stride, const T* b, Index b_stride, Index n,
                         F32 (&acc)[kRows][kCols]) {
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) dot_step(a + i, a_stride, b + i, b_stride, LoadWhole(), acc);
  if (i < n) dot_step(a + i, a_stride, b + i, b_stride, LoadFirst{n - i}, acc);
}

// out[t][o] = or += the sum of the lanes of acc[t][o], for a tile of tokens and output features.
template <int kRows, int kCols>
MLA_INLINE void add_lanes(const F32 (&acc)[kRows][kCols], float* out, Index out_stride,
                          bool add = false) {
  constexpr int kTogether = kRows % 4 == 0 ? 4 : 1;
  MLA_UNROLL (c, kCols)
    MLA_UNROLL (r, kRows / kTogether) {
      float* const to = out + r * kTogether * out_stride + c;
      float sums[kTogether];
      if constexpr (kTogether == 4)
        reduce_add(acc[4 * r][c], acc[4 * r + 1][c], acc[4 * r + 2][c], acc[4 * r + 3][c], sums);
      else
        sums[0] = reduce_add(acc[r][c]);
      MLA_UNROLL (i, kTogether) to[i * out_stride] = add ? to[i * out_stride] + sums[i] : sums[i];
    }
}

// A product in blocks that fit the caches of the machine that it was measured on, which had 48 KB
// and 2 MB. An output is the sum of its blocks of kInputs, each with kLanes partial sums, one after
// the other; that does not depend on the tokens of a block.
struct LinearBlocks {
  static constexpr Index kTokens = 192;  // x of a block and the weights share the second cache
  static constexpr Index kInputs = 768;  // a register tile's rows fit the first cache
  // From one row of a packed block to the next: not a power of two, which would crowd few sets.
  static constexpr Index kStride = kInputs + 16;
  static constexpr Index kFloats = (kTaskOutputs + kTokens) * kStride;

  float* weight;  // [kTaskOutputs][kStride]
  float* x;       // [kTokens][kStride]
};

MLA_INLINE Index at_most(Index n, Index most) { return n < most ? n : most; }

// Calls block(first input, inputs) in order; once even if there are none, which gives zeros.
template <class Block>
MLA_INLINE void for_input_blocks(Index in, const Block& block) {
  for (Index i = 0; i < in || i == 0; i += LinearBlocks::kInputs)
    block(i, at_most(in - i, LinearBlocks::kInputs));
}

// Calls block(first token, tokens, first input, inputs), inputs in order for each token.
template <class Block>
MLA_INLINE void for_linear_blocks(Index tokens, Index in, const Block& block) {
  for (Index t = 0; t < tokens; t += LinearBlocks::kTokens)
    for_input_blocks(in, [&](Index i, Index inputs) {
      block(t, at_most(tokens - t, LinearBlocks::kTokens), i, inputs);
    });
}

// Brings weights that come next into the second cache, some cache lines at each step.
class WeightsAhead {
 public:
  // All of them in `steps`.
  template <class T>
  WeightsAhead(MatrixView<const T> weight, Index steps)
      : WeightsAhead(reinterpret_cast<const std::byte*>(weight.data),
                     weight.stride * static_cast<Index>(sizeof(T)),
                     weight.cols * static_cast<Index>(sizeof(T)), weight.rows, steps) {}
  WeightsAhead(const WeightView& weight, Index steps)
      : WeightsAhead(weight.byte_of(0, 0), weight.stride * info_of(weight.format).bits / 8,
                     weight.cols * info_of(weight.format).bits / 8, weight.rows, steps) {}

  MLA_INLINE void step() {
    for (Index n = 0; n < lines_ && rows_ > 0; ++n) {
      __builtin_prefetch(row_ + at_, 0, 2);
      at_ += kLine;
      if (at_ < bytes_) continue;
      at_ = 0;
      if (--rows_ > 0) row_ += stride_;
    }
  }

 private:
  static constexpr Index kLine = 64;

  WeightsAhead(const std::byte* row, Index stride, Index bytes, Index rows, Index steps)
      : row_(row),
        stride_(stride),
        bytes_(bytes),
        rows_(rows),
        lines_(((bytes + kLine - 1) / kLine * rows + steps - 1) / steps) {}

  const std::byte* row_ = nullptr;
  Index stride_ = 0, bytes_ = 0, rows_ = 0;
  Index lines_ = 0;  // at a step
  Index at_ = 0;
};

// Makes float32 of a block of weights.
using Widen = void (*)(const WeightView& block, MatrixView<float> out) noexcept;

// A block in float32, LinearBlocks::kStride apart.
inline MatrixView<const float> copy_block(const WeightView& block, Widen widen, float* memory) {
  const MatrixView<float> copy(memory, block.rows, block.cols, LinearBlocks::kStride);
  widen(block, copy);
  return copy;
}

// Where few tokens find weights: elements T in place, widened on their way into registers, or
// copies in float32 of a register tile's rows in the first cache.
template <class T>
struct InPlace {
  MatrixView<const T> weight;
  Index rows() const { return weight.rows; }
  MLA_INLINE MatrixView<const T> block(Index o, Index features, Index i, Index inputs) const {
    return weight.row_range(o, features).col_range(i, inputs);
  }
  MLA_INLINE WeightsAhead ahead(Index o, Index features, Index i, Index inputs) const {
    return {block(o, features, i, inputs), 1};
  }
};
struct Copied {
  WeightView weight;
  Widen widen;
  float* memory;
  Index rows() const { return weight.rows; }
  MatrixView<const float> block(Index o, Index features, Index i, Index inputs) const {
    return copy_block(weight.row_range(o, features).col_range(i, inputs), widen, memory);
  }
  WeightsAhead ahead(Index o, Index features, Index i, Index inputs) const {
    return {weight.row_range(o, features).col_range(i, inputs), 1};
  }
};

// Few tokens of float32 weights, where memory is the limit: both factors are read where they are,
// one row of weights after the other. For very few tokens this was measured to be the faster way.
inline void linear_by_rows(MatrixView<const float> x, MatrixView<const float> weight,
                           MatrixView<float> out) noexcept {
  for_tiles_or_ones<kColTile>(weight.rows, [&](auto cols, Index o) {
    for_input_blocks(x.cols, [&](Index i, Index inputs) {
      for_tiles<kRowTile>(x.rows, [&](auto rows, Index t) {
        F32 acc[rows.value][cols.value] = {};
        dot_tile(x.row(t) + i, x.stride, weight.row(o) + i, weight.stride, inputs, acc);
        add_lanes(acc, out.row(t) + o, out.stride, i > 0);
      });
    });
  });
}

// out = or += x * weight^T, while weights that come next are brought to the cache.
inline void multiply_blocks(MatrixView<const float> x, MatrixView<const float> weight, bool add,
                            MatrixView<float> out, WeightsAhead ahead) noexcept {
  for_tiles<kTokenTile>(x.rows, [&](auto rows, Index t) {
    for_tiles_or_ones<kFeatureTile>(weight.rows, [&](auto cols, Index o) {
      ahead.step();
      F32 acc[rows.value][cols.value] = {};
      dot_tile(x.row(t), x.stride, weight.row(o), weight.stride, x.cols, acc);
      add_lanes(acc, out.row(t) + o, out.stride, add);
    });
  });
}

// Up to kFewTokens tokens by features [first, + features), up to kTaskOutputs, so that x stays in
// the first cache; the next rows of weights are brought to the second one meanwhile.
template <class Rows>
MLA_INLINE void linear_few(MatrixView<const float> x, const Rows& rows, Index first, Index features,
                           MatrixView<float> out) {
  for_input_blocks(x.cols, [&](Index i, Index inputs) {
    for_tiles_or_ones<kFeatureTile>(features, [&](auto cols, Index o) {
      const Index next = first + o + cols.value;
      rows.ahead(next, at_most(rows.rows() - next, cols.value), i, inputs).step();
      const auto block = rows.block(first + o, cols.value, i, inputs);
      for_tiles<kTokenTile>(x.rows, [&](auto tokens, Index t) {
        F32 acc[tokens.value][cols.value] = {};
        dot_tile(x.row(t) + i, x.stride, block.data, block.stride, inputs, acc);
        add_lanes(acc, out.row(t) + first + o, out.stride, i > 0);
      });
    });
  });
}

// Many tokens, up to LinearBlocks::kTokens: blocks of both factors are copied, once for all
// products with them.
inline void linear_many(MatrixView<const float> x, const WeightView& weight, Widen widen,
                        MatrixView<float> out, const LinearBlocks& blocks) noexcept {
  const auto block_at = [&](Index o, Index i) {
    return weight.row_range(o, at_most(weight.rows - o, kTaskOutputs))
        .col_range(i, at_most(weight.cols - i, LinearBlocks::kInputs));
  };
  for_input_blocks(x.cols, [&](Index i, Index inputs) {
    const auto xs = copy_block(x.col_range(i, inputs), &widen_block<float>, blocks.x);
    for (Index o = 0; o < weight.rows; o += kTaskOutputs) {
      const auto block = block_at(o, i);
      const Index next = o + block.rows;
      const Index tiles = (x.rows + kTokenTile - 1) / kTokenTile *
                          ((block.rows + kFeatureTile - 1) / kFeatureTile);  // or a few more
      multiply_blocks(xs, copy_block(block, widen, blocks.weight), i > 0,
                      out.col_range(o, block.rows),
                      {next < weight.rows ? block_at(next, i) : block_at(0, i + inputs), tiles});
    }
  });
}

// float32 tokens are read as they are.
inline Index packed_floats(Index, Index) noexcept { return 0; }
inline void pack(MatrixView<const float>, float*) noexcept {}

inline void linear_in_blocks(MatrixView<const float> x, const WeightView& weight, Widen widen,
                             MatrixView<float> out, float* scratch) noexcept {
  const LinearBlocks blocks = {scratch, scratch + kTaskOutputs * LinearBlocks::kStride};
  for (Index t = 0, tokens; t < x.rows; t += tokens) {
    tokens = at_most(x.rows - t, LinearBlocks::kTokens);
    linear_many(x.row_range(t, tokens), weight, widen, out.row_range(t, tokens), blocks);
  }
}

// Few tokens take weights from `rows`, more take blocks by `widen`.
template <class Rows>
void linear_by(MatrixView<const float> x, const WeightView& weight, const Rows& rows, Widen widen,
               MatrixView<float> out, float* scratch) noexcept {
  constexpr Index kFewTokens = 16;
  if (x.rows == 0) return;  // there may be no memory
  if (x.rows > kFewTokens) return linear_in_blocks(x, weight, widen, out, scratch);
  for (Index o = 0; o < weight.rows; o += kTaskOutputs)
    linear_few(x, rows, o, at_most(weight.rows - o, kTaskOutputs), out);
}

// Weights of any format, by its one function.
inline void linear_by_widening(MatrixView<const float> x, const WeightView& weight, Widen widen,
                               MatrixView<float> out, float* scratch) noexcept {
  linear_by(x, weight, Copied{weight, widen, scratch}, widen, out, scratch);
}
inline void linear_of_any(MatrixView<const float> x, const float*, const WeightView& weight,
                          MatrixView<float> out, float* scratch) noexcept {
  linear_by_widening(x, weight, info_of(weight.format).widen, out, scratch);
}

// Weights of plain elements.
template <class T>
void linear(MatrixView<const float> x, const float*, const WeightView& weight,
            MatrixView<float> out, float* scratch) noexcept {
  if constexpr (std::is_same_v<T, float>)
    if (x.rows <= kRowTile) return linear_by_rows(x, weight.as<float>(), out);
  linear_by(x, weight, InPlace<T>{weight.as<T>()}, &widen_block<T>, out, scratch);
}

// The left factor of a product: element (r, k) is data[r * row_step + k * step].
struct Factors {
  const float* data;
  Index row_step;
  Index step;
};

// acc[r][j] += sum_k a(r, k) * b[k][j * kLanes ...]. Lanes run along the columns of b.
template <int kRows, int kCols, class T, class Load>
MLA_INLINE void multiply_tile(const Factors& a, const T* b, Index b_stride, Index n,
                              const Load& load_row, F32 (&acc)[kRows][kCols]) {
  for (Index k = 0; k < n; ++k) {
    F32 y[kCols];
    MLA_UNROLL (j, kCols) y[j] = load_row(b + k * b_stride + j * kLanes);
    MLA_UNROLL (r, kRows) {
      const F32 x = set1(a.data[r * a.row_step + k * a.step]);
      MLA_UNROLL (j, kCols) acc[r][j] = fma(x, y[j], acc[r][j]);
    }
  }
}

// Calls columns(TileSize, first, load, store) for blocks of kCols vectors, then single vectors,
// then a partial one, until `width` columns are covered.
template <int kCols, class Columns>
MLA_INLINE void for_column_vectors(Index width, const Columns& columns) {
  const auto load_whole = [](const auto* p) { return load(p); };
  const auto store_whole = [](float* p, F32 a) { store(p, a); };
  for_tiles_or_ones<kCols>(width / kLanes, [&](auto cols, Index j) {
    columns(cols, j * kLanes, load_whole, store_whole);
  });
  const Index rest = width % kLanes;
  if (rest == 0) return;
  columns(
      TileSize<1>(), width - rest, [rest](const auto* p) { return load_first(p, rest); },
      [rest](float* p, F32 a) { store_first(p, a, rest); });
}

// out = or += x * weight.
template <class T>
void transposed_block(MatrixView<const float> x, MatrixView<const T> weight, bool add,
                      MatrixView<float> out) noexcept {
  for_column_vectors<kColTile>(weight.cols,
                               [&](auto cols, Index c, const auto& load_row, const auto& save) {
                                 for_tiles<kRowTile>(x.rows, [&](auto rows, Index t) {
                                   F32 acc[rows.value][cols.value] = {};
                                   if (add)
                                     MLA_UNROLL (r, rows.value)
                                       MLA_UNROLL (j, cols.value)
                                         acc[r][j] = load_row(out.row(t + r) + c + j * kLanes);
                                   multiply_tile({x.row(t), x.stride, 1}, weight.data + c,
                                                 weight.stride, weight.rows, load_row, acc);
                                   MLA_UNROLL (r, rows.value)
                                     MLA_UNROLL (j, cols.value)
                                       save(out.row(t + r) + c + j * kLanes, acc[r][j]);
                                 });
                               });
}

inline void linear_transposed_by(MatrixView<const float> x, const WeightView& weight, Widen widen,
                                 MatrixView<float> out, float* scratch) noexcept {
  constexpr Index kRows = 64, kCols = 128;  // fit the first cache
  static_assert(kRows * kCols <= LinearBlocks::kFloats);
  if (x.rows == 0) return;
  for (Index c = 0; c < weight.cols; c += kCols)
    for (Index r = 0; r < weight.rows || r == 0; r += kRows) {
      const MatrixView<float> block(scratch, at_most(weight.rows - r, kRows),
                                    at_most(weight.cols - c, kCols), kCols);
      widen(weight.row_range(r, block.rows).col_range(c, block.cols), block);
      transposed_block<float>(x.col_range(r, block.rows), block, r > 0,
                              out.col_range(c, block.cols));
    }
}

// Weights of plain elements, where they lie.
template <class T>
void linear_transposed(MatrixView<const float> x, const WeightView& weight, MatrixView<float> out,
                       float*) noexcept {
  transposed_block(x, weight.as<T>(), false, out);
}

// Weights of any format, by its one function.
inline void linear_transposed_of_any(MatrixView<const float> x, const WeightView& weight,
                                     MatrixView<float> out, float* scratch) noexcept {
  linear_transposed_by(x, weight, info_of(weight.format).widen, out, scratch);
}

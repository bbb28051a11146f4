// Matrix products with weights in their row-major checkpoint layout.

// kRows x kCols dot products: acc[r][c] += sum_i a[r][i] * b[c][i]. Lanes run along i.
template <int kRows, int kCols, class T>
MLA_INLINE void dot_tile(const float* a, Index a_stride, const T* b, Index b_stride, Index n,
                         F32 (&acc)[kRows][kCols]) {
  const auto step = [&](const auto& load_a, const auto& load_b, Index i) {
    F32 x[kRows];
    MLA_UNROLL (r, kRows) x[r] = load_a(a + r * a_stride + i);
    MLA_UNROLL (c, kCols) {
      const F32 y = load_b(b + c * b_stride + i);
      MLA_UNROLL (r, kRows) acc[r][c] = fma(x[r], y, acc[r][c]);
    }
  };
  const auto whole = [](const auto* p) { return load(p); };
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) step(whole, whole, i);
  const Index rest = n - i;
  const auto first = [rest](const auto* p) { return load_first(p, rest); };
  if (rest > 0) step(first, first, i);
}

// out[t][o] = or += the sum of the lanes of acc[t][o], for a tile of tokens and output features.
template <int kRows, int kCols>
MLA_INLINE void add_sums(const F32 (&acc)[kRows][kCols], float* out, Index out_stride, bool add) {
  MLA_UNROLL (r, kRows) {
    float sums[kCols];
    if constexpr (kCols == 4)
      reduce_add(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums);
    else
      MLA_UNROLL (c, kCols) sums[c] = reduce_add(acc[r][c]);
    float* const row = out + r * out_stride;
    MLA_UNROLL (c, kCols) row[c] = add ? row[c] + sums[c] : sums[c];
  }
}

// A product in blocks that fit the caches. An output is the sum of its blocks of kInputs, each with
// kLanes partial sums, one after the other; that does not depend on the tokens of a block.
struct LinearBlocks {
  static constexpr Index kTokens = 96;    // x of a block and the weights share the second cache
  static constexpr Index kInputs = 1024;  // a tile's x fits the first cache
  // From one row of a packed block to the next: not a power of two, which would crowd few sets.
  static constexpr Index kStride = kInputs + 16;
  static constexpr Index kFloats = (kTaskOutputs + kTokens) * kStride;

  float* weight;  // [kTaskOutputs][kStride]
  float* x;       // [kTokens][kStride]
};

// Calls block(first token, tokens, first input, inputs), inputs in order for each token.
template <class Block>
MLA_INLINE void for_linear_blocks(Index tokens, Index in, const Block& block) {
  for (Index t = 0; t < tokens; t += LinearBlocks::kTokens)
    for (Index i = 0; i < in || i == 0; i += LinearBlocks::kInputs) {
      const Index rows = tokens - t, inputs = in - i;
      block(t, rows < LinearBlocks::kTokens ? rows : LinearBlocks::kTokens, i,
            inputs < LinearBlocks::kInputs ? inputs : LinearBlocks::kInputs);
    }
}

// Few tokens: widening and blocking do not pay.
template <class T>
void linear_few(MatrixView<const float> x, MatrixView<const T> weight,
                MatrixView<float> out) noexcept {
  for_tiles<kColTile>(weight.rows, [&](auto cols, Index o) {
    for_linear_blocks(x.rows, x.cols, [&](Index, Index, Index i, Index inputs) {
      for_tiles<kRowTile>(x.rows, [&](auto rows, Index t) {
        F32 acc[rows.value][cols.value] = {};
        dot_tile(x.row(t) + i, x.stride, weight.row(o) + i, weight.stride, inputs, acc);
        add_sums(acc, out.row(t) + o, out.stride, i > 0);
      });
    });
  });
}

// Up to kTaskOutputs features.
template <class T>
void linear_many(MatrixView<const float> x, MatrixView<const T> weight, MatrixView<float> out,
                 const LinearBlocks& blocks) noexcept {
  constexpr Index kStride = LinearBlocks::kStride;
  for_linear_blocks(x.rows, x.cols, [&](Index first, Index tokens, Index i, Index inputs) {
    for (Index o = 0; o < weight.rows; ++o)
      to_float(weight.row(o) + i, inputs, blocks.weight + o * kStride);
    for (Index t = 0; t < tokens; ++t)
      to_float(x.row(first + t) + i, inputs, blocks.x + t * kStride);
    for_tiles<kTokenTile>(tokens, [&](auto rows, Index t) {
      for_tiles<kColTile>(weight.rows, [&](auto cols, Index o) {
        F32 acc[rows.value][cols.value] = {};
        dot_tile(blocks.x + t * kStride, kStride, blocks.weight + o * kStride, kStride, inputs,
                 acc);
        add_sums(acc, out.row(first + t) + o, out.stride, i > 0);
      });
    });
  });
}

// float32 tokens are read as they are.
inline Index packed_floats(Index, Index) noexcept { return 0; }
inline void pack(MatrixView<const float>, float*) noexcept {}

template <class T>
void linear(MatrixView<const float> x, const float*, MatrixView<const T> weight,
            MatrixView<float> out, float* scratch) noexcept {
  constexpr Index kFewTokens = 8;
  if (x.rows < kFewTokens) return linear_few(x, weight, out);
  const LinearBlocks blocks = {scratch, scratch + kTaskOutputs * LinearBlocks::kStride};
  for (Index o = 0; o < weight.rows; o += kTaskOutputs) {
    const Index outputs = weight.rows - o < kTaskOutputs ? weight.rows - o : kTaskOutputs;
    linear_many(x, weight.row_range(o, outputs), out.col_range(o, outputs), blocks);
  }
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
  for_tiles<kCols>(width / kLanes,
                   [&](auto cols, Index j) { columns(cols, j * kLanes, load_whole, store_whole); });
  const Index rest = width % kLanes;
  if (rest == 0) return;
  columns(
      TileSize<1>(), width - rest, [rest](const auto* p) { return load_first(p, rest); },
      [rest](float* p, F32 a) { store_first(p, a, rest); });
}

template <class T>
void linear_transposed(MatrixView<const float> x, MatrixView<const T> weight,
                       MatrixView<float> out) noexcept {
  for_column_vectors<kColTile>(weight.cols,
                               [&](auto cols, Index c, const auto& load_row, const auto& save) {
                                 for_tiles<kRowTile>(x.rows, [&](auto rows, Index t) {
                                   F32 acc[rows.value][cols.value] = {};
                                   multiply_tile({x.row(t), x.stride, 1}, weight.data + c,
                                                 weight.stride, weight.rows, load_row, acc);
                                   MLA_UNROLL (r, rows.value)
                                     MLA_UNROLL (j, cols.value)
                                       save(out.row(t + r) + c + j * kLanes, acc[r][j]);
                                 });
                               });
}

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

// out[t][o] for a tile of tokens t and output features o, from accumulators.
template <int kRows, int kCols>
MLA_INLINE void store_sums(const F32 (&acc)[kRows][kCols], float* out, Index out_stride) {
  MLA_UNROLL (r, kRows) {
    if constexpr (kCols == 4)
      reduce_add(acc[r][0], acc[r][1], acc[r][2], acc[r][3], out + r * out_stride);
    else
      MLA_UNROLL (c, kCols) out[r * out_stride + c] = reduce_add(acc[r][c]);
  }
}

// A product in blocks that fit the caches. Every output has one accumulator of kLanes partial sums,
// which waits in `partial` while the reduction goes from one block to the next; so results do not
// depend on the blocking.
struct LinearBlocks {
  static constexpr Index kTokens = 96;   // accumulators and x of a block share the second cache
  static constexpr Index kInputs = 512;  // a tile's x fits the first cache
  // From one row of a packed block to the next: not a power of two, which would crowd few sets.
  static constexpr Index kStride = kInputs + 16;
  static constexpr Index kFloats =
      kTaskOutputs * kTokens * kLanes + (kTaskOutputs + kTokens) * kStride;

  float* partial;  // [kTokens][kTaskOutputs][kLanes]
  float* weight;   // [kTaskOutputs][kStride]
  float* x;        // [kTokens][kStride]
};

// One block of tokens: x [<= kTokens, in], weight [<= kTaskOutputs, in].
template <class T>
void linear_block(MatrixView<const float> x, MatrixView<const T> weight, MatrixView<float> out,
                  const LinearBlocks& blocks) noexcept {
  for (Index i = 0, inputs; i < x.cols; i += inputs) {
    inputs = x.cols - i < LinearBlocks::kInputs ? x.cols - i : LinearBlocks::kInputs;
    const bool last = i + inputs == x.cols;
    for (Index o = 0; o < weight.rows; ++o)
      to_float(weight.row(o) + i, inputs, blocks.weight + o * LinearBlocks::kStride);
    for (Index t = 0; t < x.rows; ++t)
      to_float(x.row(t) + i, inputs, blocks.x + t * LinearBlocks::kStride);
    for_tiles<kTokenTile>(x.rows, [&](auto rows, Index t) {
      for_tiles<kColTile>(weight.rows, [&](auto cols, Index o) {
        F32 acc[rows.value][cols.value] = {};
        float* partial = blocks.partial + (t * kTaskOutputs + o) * kLanes;
        if (i > 0)
          MLA_UNROLL (r, rows.value)
            MLA_UNROLL (c, cols.value) acc[r][c] = load(partial + (r * kTaskOutputs + c) * kLanes);
        dot_tile(blocks.x + t * LinearBlocks::kStride, LinearBlocks::kStride,
                 blocks.weight + o * LinearBlocks::kStride, LinearBlocks::kStride, inputs, acc);
        if (last)
          store_sums(acc, out.row(t) + o, out.stride);
        else
          MLA_UNROLL (r, rows.value)
            MLA_UNROLL (c, cols.value) store(partial + (r * kTaskOutputs + c) * kLanes, acc[r][c]);
      });
    });
  }
}

template <class T>
void linear(MatrixView<const float> x, MatrixView<const T> weight, MatrixView<float> out,
            float* scratch) noexcept {
  constexpr Index kFewTokens = 8;  // below, widening and blocking do not pay
  if (x.rows < kFewTokens) {
    for_tiles<kColTile>(weight.rows, [&](auto cols, Index o) {
      for_tiles<kRowTile>(x.rows, [&](auto rows, Index t) {
        F32 acc[rows.value][cols.value] = {};
        dot_tile(x.row(t), x.stride, weight.row(o), weight.stride, x.cols, acc);
        store_sums(acc, out.row(t) + o, out.stride);
      });
    });
    return;
  }
  float* const packed = scratch + LinearBlocks::kTokens * kTaskOutputs * kLanes;
  const LinearBlocks blocks = {scratch, packed, packed + kTaskOutputs * LinearBlocks::kStride};
  for (Index o = 0; o < weight.rows; o += kTaskOutputs) {
    const Index outputs = weight.rows - o < kTaskOutputs ? weight.rows - o : kTaskOutputs;
    for (Index t = 0; t < x.rows; t += LinearBlocks::kTokens) {
      const Index left = x.rows - t;
      const Index tokens = left < LinearBlocks::kTokens ? left : LinearBlocks::kTokens;
      linear_block(x.row_range(t, tokens), weight.row_range(o, outputs),
                   out.row_range(t, tokens).col_range(o, outputs), blocks);
    }
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

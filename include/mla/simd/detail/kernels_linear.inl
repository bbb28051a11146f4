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

template <class T>
void linear(MatrixView<const float> x, MatrixView<const T> weight, MatrixView<float> out) noexcept {
  for_tiles<kColTile>(weight.rows, [&](auto cols, Index o) {
    for_tiles<kRowTile>(x.rows, [&](auto rows, Index t) {
      F32 acc[rows.value][cols.value] = {};
      dot_tile(x.row(t), x.stride, weight.row(o), weight.stride, x.cols, acc);
      MLA_UNROLL (r, rows.value)
        MLA_UNROLL (c, cols.value) out(t + r, o + c) = reduce_add(acc[r][c]);
    });
  });
}

// acc[r][j] += sum_k a[r][k] * b[k][j * kLanes ...]. Lanes run along the columns of b.
template <int kRows, int kCols, class T, class Load>
MLA_INLINE void multiply_tile(const float* a, Index a_stride, const T* b, Index b_stride, Index n,
                              const Load& load_row, F32 (&acc)[kRows][kCols]) {
  for (Index k = 0; k < n; ++k) {
    F32 y[kCols];
    MLA_UNROLL (j, kCols) y[j] = load_row(b + k * b_stride + j * kLanes);
    MLA_UNROLL (r, kRows) {
      const F32 x = set1(a[r * a_stride + k]);
      MLA_UNROLL (j, kCols) acc[r][j] = fma(x, y[j], acc[r][j]);
    }
  }
}

// Calls columns(TileSize, first, load, store) for blocks of kColTile vectors, then single vectors,
// then a partial one, until `width` columns are covered.
template <class Columns>
MLA_INLINE void for_column_vectors(Index width, const Columns& columns) {
  const auto load_whole = [](const auto* p) { return load(p); };
  const auto store_whole = [](float* p, F32 a) { store(p, a); };
  for_tiles<kColTile>(width / kLanes, [&](auto cols, Index j) {
    columns(cols, j * kLanes, load_whole, store_whole);
  });
  const Index rest = width % kLanes;
  if (rest == 0) return;
  columns(
      TileSize<1>(), width - rest, [rest](const auto* p) { return load_first(p, rest); },
      [rest](float* p, F32 a) { store_first(p, a, rest); });
}

template <class T>
void linear_transposed(MatrixView<const float> x, MatrixView<const T> weight,
                       MatrixView<float> out) noexcept {
  for_column_vectors(weight.cols, [&](auto cols, Index c, const auto& load_row, const auto& save) {
    for_tiles<kRowTile>(x.rows, [&](auto rows, Index t) {
      F32 acc[rows.value][cols.value] = {};
      multiply_tile(x.row(t), x.stride, weight.data + c, weight.stride, weight.rows, load_row, acc);
      MLA_UNROLL (r, rows.value)
        MLA_UNROLL (j, cols.value) save(out.row(t + r) + c + j * kLanes, acc[r][j]);
    });
  });
}

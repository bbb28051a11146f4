// Matrix products with weights in their row-major checkpoint layout, in float32.
// Needs: a vector type (vec/*.inl), for_tiles (kernels.inl), widen_block (rows.inl).

// acc[r][c] += a[r] * b[c], lane by lane. The factor with fewer rows is held in registers.
template <int kRows, int kCols, class T>
MLA_INLINE void dot_step(const float* a, Index a_stride, const T* b, Index b_stride,
                         F32 (&acc)[kRows][kCols]) {
  if constexpr (kRows <= kCols) {
    F32 x[kRows];
    MLA_UNROLL (r, kRows) x[r] = load(a + r * a_stride);
    MLA_UNROLL (c, kCols) {
      const F32 y = in_register(load(b + c * b_stride));
      MLA_UNROLL (r, kRows) acc[r][c] = fma(x[r], y, acc[r][c]);
    }
  } else {
    F32 y[kCols];
    MLA_UNROLL (c, kCols) y[c] = load(b + c * b_stride);
    MLA_UNROLL (r, kRows) {
      const F32 x = in_register(load(a + r * a_stride));
      MLA_UNROLL (c, kCols) acc[r][c] = fma(x, y[c], acc[r][c]);
    }
  }
}

// The first n < kLanes elements of some rows as vectors, zeros after them.
template <class T>
[[gnu::noinline]] void pad_rows(const T* from, Index stride, Index rows, Index n, T* to) noexcept {
  for (Index r = 0; r < rows; ++r)
    for (Index i = 0; i < kLanes; ++i) *to++ = i < n ? from[r * stride + i] : T();
}

// kRows x kCols dot products: acc[r][c] += sum_i a[r][i] * b[c][i]. Lanes run along i. A last
// vector that is not whole is one step more of the same loop.
template <int kRows, int kCols, class T>
MLA_INLINE void dot_tile(const float* a, Index a_stride, const T* b, Index b_stride, Index n,
                         F32 (&acc)[kRows][kCols]) {
  alignas(64) float a_last[kRows * kLanes];
  alignas(64) T b_last[kCols * kLanes];
  Index whole = n / kLanes * kLanes;
  bool more = whole < n;
  if (more) [[unlikely]] {
    pad_rows(a + whole, a_stride, kRows, n - whole, a_last);
    pad_rows(b + whole, b_stride, kCols, n - whole, b_last);
  }
  while (true) {
    for (Index i = 0; i < whole; i += kLanes) dot_step(a + i, a_stride, b + i, b_stride, acc);
    if (!more) return;
    more = false;
    a = a_last, a_stride = kLanes;
    b = b_last, b_stride = kLanes;
    whole = kLanes;
  }
}

// out[t][o] = or += the sum of the lanes of acc[t][o], for a tile of tokens and output features.
template <int kRows, int kCols>
MLA_INLINE void add_lanes(const F32 (&acc)[kRows][kCols], float* out, Index out_stride, bool add) {
  MLA_UNROLL (r, kRows) {
    float* const to = out + r * out_stride;
    float sums[kCols];
    if constexpr (kCols == 4)
      reduce_add(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums);
    else
      MLA_UNROLL (c, kCols) sums[c] = reduce_add(acc[r][c]);
    MLA_UNROLL (c, kCols) to[c] = add ? to[c] + sums[c] : sums[c];
  }
}

// out[t][o] = or += the product of a tile of tokens and output features over a block of inputs. Not
// inlined: all products share these.
template <int kTokens, int kFeatures, class T>
[[gnu::noinline]] void product_tile(const float* x, Index x_stride, const T* weight, Index stride,
                                    Index inputs, bool add, float* out, Index out_stride) noexcept {
  F32 acc[kTokens][kFeatures] = {};
  dot_tile(x, x_stride, weight, stride, inputs, acc);
  add_lanes(acc, out, out_stride, add);
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
  WeightsAhead(const WeightView& weight, Index steps)
      : row_(weight.byte_of(0, 0)),
        stride_(weight.stride * info_of(weight.format).bits / 8),
        bytes_(weight.cols * info_of(weight.format).bits / 8),
        rows_(weight.rows),
        lines_(((bytes_ + kLine - 1) / kLine * rows_ + steps - 1) / steps) {}

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

// Tokens that are multiplied together by kCols features: what is left of these is little, and gets
// little code.
template <int kCols>
constexpr int tokens_by(int tokens) {
  return kCols == kFeatureTile ? tokens : 1;
}

// out = or += x * weight^T, while weights that come next are brought to the cache.
inline void multiply_blocks(MatrixView<const float> x, MatrixView<const float> weight, bool add,
                            MatrixView<float> out, WeightsAhead ahead) noexcept {
  for_tiles<kTokenTile>(x.rows, [&](auto rows, Index first) {
    for_tiles_or_ones<kFeatureTile>(weight.rows, [&](auto cols, Index o) {
      ahead.step();
      for_tiles<tokens_by<cols.value>(rows.value)>(rows.value, [&](auto tokens, Index token) {
        const Index t = first + token;
        product_tile<tokens.value, cols.value>(x.row(t), x.stride, weight.row(o), weight.stride,
                                               x.cols, add, out.row(t) + o, out.stride);
      });
    });
  });
}

// Rows of a block of inputs of weights, and those that come next.
class WeightRows {
 public:
  MLA_INLINE WeightRows(const WeightView& weight, Index i, Index inputs)
      : rows_(weight.col_range(i, inputs)),
        first_(weight.first_row),
        end_(weight.first_row + weight.rows),
        row_bytes_(weight.stride * info_of(weight.format).bits / 8),
        bytes_(inputs * info_of(weight.format).bits / 8) {}

  // Rows [o, + count).
  MLA_INLINE const WeightView& at(Index o, Index count) {
    rows_.first_row = first_ + o;
    rows_.rows = count;
    return rows_;
  }
  // Asks for as many rows after these.
  MLA_INLINE void ask_for_next() const {
    const std::byte* row = rows_.byte_of(rows_.rows, 0);
    const Index next = rows_.first_row + rows_.rows;
    for (Index r = next; r < at_most(end_, next + rows_.rows); ++r, row += row_bytes_)
      for (Index byte = 0; byte < bytes_; byte += 64) __builtin_prefetch(row + byte, 0, 2);
  }

 private:
  WeightView rows_;
  Index first_, end_, row_bytes_, bytes_;
};

// Up to kTokensInPlace tokens by elements T in place, widened on their way into registers: rows of
// weights from end to end, as memory likes it best.
inline constexpr int kTokensInPlace = 2;
template <class T>
void linear_in_place(MatrixView<const float> x, const WeightView& view,
                     MatrixView<float> out) noexcept {
  const MatrixView<const T> weight = view.as<T>();
  for_tiles_or_ones<kFeatureTile>(weight.rows, [&](auto cols, Index o) {
    for_input_blocks(x.cols, [&](Index i, Index inputs) {
      if constexpr (sizeof(T) < sizeof(float)) {  // float32 comes fast enough by itself
        WeightRows rows(view, i, inputs);
        rows.at(o, cols.value);
        rows.ask_for_next();
      }
      for_tiles<tokens_by<cols.value>(kTokensInPlace)>(x.rows, [&](auto tokens, Index t) {
        product_tile<tokens.value, cols.value>(x.row(t) + i, x.stride, weight.row(o) + i,
                                               weight.stride, inputs, i > 0, out.row(t) + o,
                                               out.stride);
      });
    });
  });
}

inline constexpr Index kFewTokens = 16;

// Up to kFewTokens tokens by up to kTaskOutputs features, so that x stays in the first cache; the
// next rows of weights are brought to the second one meanwhile. Weights are elements T in place or,
// made by `widen`, copies of a register tile's rows in the first cache.
template <class T>
void linear_few(MatrixView<const float> x, const WeightView& weight, Widen widen,
                MatrixView<float> out, float* memory) noexcept {
  for_input_blocks(x.cols, [&](Index i, Index inputs) {
    WeightRows weights(weight, i, inputs);
    for_tiles_or_ones<kFeatureTile>(out.cols, [&](auto cols, Index o) {
      const WeightView& block = weights.at(o, cols.value);
      // float32 comes fast enough by itself
      if (widen || sizeof(T) < sizeof(float)) weights.ask_for_next();
      MatrixView<const T> rows;
      if constexpr (std::is_same_v<T, float>)
        rows = widen ? copy_block(block, widen, memory) : block.as<float>();
      else
        rows = block.as<T>();
      for_tiles<tokens_by<cols.value>(kTokenTile)>(x.rows, [&](auto tokens, Index t) {
        product_tile<tokens.value, cols.value>(x.row(t) + i, x.stride, rows.data, rows.stride,
                                               inputs, i > 0, out.row(t) + o, out.stride);
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

// Few tokens take elements T in place or copies by `widen`, more take blocks of copies.
template <class T>
void linear_by(MatrixView<const float> x, const WeightView& weight, Widen widen, bool in_place,
               MatrixView<float> out, float* scratch) noexcept {
  if (x.rows == 0) return;  // there may be no memory
  if (x.rows > kFewTokens) return linear_in_blocks(x, weight, widen, out, scratch);
  for (Index o = 0; o < weight.rows; o += kTaskOutputs)
    linear_few<T>(x, weight.row_range(o, weight.rows - o), in_place ? nullptr : widen,
                  out.col_range(o, at_most(weight.rows - o, kTaskOutputs)), scratch);
}

// Weights of any format, by its one function.
inline void linear_by_widening(MatrixView<const float> x, const WeightView& weight, Widen widen,
                               MatrixView<float> out, float* scratch) noexcept {
  linear_by<float>(x, weight, widen, false, out, scratch);
}
inline void linear_of_any(MatrixView<const float> x, const float*, const WeightView& weight,
                          MatrixView<float> out, float* scratch) noexcept {
  linear_by_widening(x, weight, info_of(weight.format).widen, out, scratch);
}

// Weights of plain elements: where they lie, but for more tokens than a register tile has as
// copies.
template <class T>
void linear(MatrixView<const float> x, const float*, const WeightView& weight,
            MatrixView<float> out, float* scratch) noexcept {
  if (x.rows <= kTokensInPlace) return linear_in_place<T>(x, weight, out);
  if (x.rows <= kTokenTile) return linear_by<T>(x, weight, &widen_block<T>, true, out, scratch);
  linear_by<float>(x, weight, &widen_block<T>, std::is_same_v<T, float>, out, scratch);
}

// The left factor of a product: element (r, k) is data[r * row_step + k * step].
struct Factors {
  const float* data;
  Index row_step;
  Index step;
};

// How a vector of a row is loaded and stored: whole, or its first n <= kLanes elements.
struct WholeVector {
  template <class T>
  MLA_INLINE F32 load_from(const T* p) const {
    return load(p);
  }
  MLA_INLINE void store_to(float* p, F32 a) const { store(p, a); }
};
struct FirstLanes {
  Index n;
  template <class T>
  MLA_INLINE F32 load_from(const T* p) const {
    return n < kLanes ? load_first(p, n) : load(p);
  }
  MLA_INLINE void store_to(float* p, F32 a) const {
    if (n < kLanes)
      store_first(p, a, n);
    else
      store(p, a);
  }
};

// acc[r][j] += sum_k a(r, k) * b[k][j * kLanes ...]. Lanes run along the columns of b.
template <int kRows, int kCols, class T, class Vector>
MLA_INLINE void multiply_tile(const Factors& a, const T* b, Index b_stride, Index n,
                              const Vector& vector, F32 (&acc)[kRows][kCols]) {
  for (Index k = 0; k < n; ++k) {
    F32 y[kCols];
    MLA_UNROLL (j, kCols) y[j] = vector.load_from(b + k * b_stride + j * kLanes);
    MLA_UNROLL (r, kRows) {
      const F32 x = set1(a.data[r * a.row_step + k * a.step]);
      MLA_UNROLL (j, kCols) acc[r][j] = fma(x, y[j], acc[r][j]);
    }
  }
}

// Calls columns(TileSize, first, vector) for blocks of kCols vectors, then single vectors, the last
// of which may not be whole, until `width` columns are covered.
template <int kCols, class Columns>
MLA_INLINE void for_column_vectors(Index width, const Columns& columns) {
  Index c = 0;
  for (; c + kCols * kLanes <= width; c += kCols * kLanes)
    columns(TileSize<kCols>(), c, WholeVector());
  for (; c < width; c += kLanes) columns(TileSize<1>(), c, FirstLanes{at_most(width - c, kLanes)});
}

// out = or += x * weight.
template <class T>
void transposed_block(MatrixView<const float> x, MatrixView<const T> weight, bool add,
                      MatrixView<float> out) noexcept {
  for_column_vectors<kColTile>(weight.cols, [&](auto cols, Index c, const auto& vector) {
    for_tiles<cols.value == 1 ? 1 : kRowTile>(x.rows, [&](auto rows, Index t) {
      F32 acc[rows.value][cols.value] = {};
      if (add)
        MLA_UNROLL (r, rows.value)
          MLA_UNROLL (j, cols.value) acc[r][j] = vector.load_from(out.row(t + r) + c + j * kLanes);
      multiply_tile({x.row(t), x.stride, 1}, weight.data + c, weight.stride, weight.rows, vector,
                    acc);
      MLA_UNROLL (r, rows.value)
        MLA_UNROLL (j, cols.value) vector.store_to(out.row(t + r) + c + j * kLanes, acc[r][j]);
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

// Grids of products by AMX that follow each other without a gap, with vector work between their
// steps. Included after amx_products.inl.

// What a grid multiplies: up to two tiles of A by up to two of B, step by step along the reduction.
struct GridOperands {
  const bfloat16* a[2];
  const bfloat16* b[2];  // tiles whose rows follow each other
  Index a_stride;        // from row to row of A, in elements
  Index a_depth;         // from step to step, in elements
  Index b_depth;
};

// A grid's sums stay in registers 0 to 3 until the next grid begins: between the products of its
// first step they are stored and its own loaded. All at once would keep the products waiting.
template <int kA, int kB>
class Grids {
 public:
  // C tiles: `stride` from row to row, and from tile to tile along the rows of A and the columns of
  // B. `spare`: takes a grid of sums of no use.
  MLA_INLINE Grids(float* spare, Index stride, Index row_side, Index column_side)
      : last_(spare), bytes_(4 * stride), row_side_(row_side), column_side_(column_side) {}

  // c = A * B, or c += A * B, which is in memory once the next grid has begun. Meanwhile
  // beside.begun() once, when the sums of the grid before are in memory, and beside.step() for
  // each step.
  template <class Beside>
  MLA_INLINE void multiply(const GridOperands& of, Index steps, bool add, float* c,
                           Beside& beside) {
    const Index a_bytes = 2 * of.a_stride, b_bytes = 2 * kTileDepth;
    const bfloat16 *a0 = of.a[0], *a1 = of.a[1], *b0 = of.b[0], *b1 = of.b[1];
    tiles_are_written(c);
    _tile_loadd(4, a0, a_bytes);
    _tile_loadd(6, b0, b_bytes);
    _tile_stored(0, last_, bytes_);
    if (add)
      _tile_loadd(0, c, bytes_);
    else
      _tile_zero(0);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kB == 2) {
      _tile_loadd(7, b1, b_bytes);
      _tile_stored(1, last_ + column_side_, bytes_);
      if (add)
        _tile_loadd(1, c + column_side_, bytes_);
      else
        _tile_zero(1);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kA == 2) {
      _tile_loadd(5, a1, a_bytes);
      _tile_stored(2, last_ + row_side_, bytes_);
      if (add)
        _tile_loadd(2, c + row_side_, bytes_);
      else
        _tile_zero(2);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kA == 2 && kB == 2) {
      _tile_stored(3, last_ + row_side_ + column_side_, bytes_);
      if (add)
        _tile_loadd(3, c + row_side_ + column_side_, bytes_);
      else
        _tile_zero(3);
      _tile_dpbf16ps(3, 5, 7);
    }
    tiles_are_written(last_);
    last_ = c;
    beside.begun();
    beside.step();
    for (Index s = 1; s < steps; ++s) {
      a0 += of.a_depth, b0 += of.b_depth;
      _tile_loadd(4, a0, a_bytes);
      _tile_loadd(6, b0, b_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kB == 2) {
        b1 += of.b_depth;
        _tile_loadd(7, b1, b_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kA == 2) {
        a1 += of.a_depth;
        _tile_loadd(5, a1, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (kA == 2 && kB == 2) _tile_dpbf16ps(3, 5, 7);
      beside.step();
    }
  }

  // Stores the sums of the last grid.
  MLA_INLINE void finish() {
    _tile_stored(0, last_, bytes_);
    if constexpr (kB == 2) _tile_stored(1, last_ + column_side_, bytes_);
    if constexpr (kA == 2) _tile_stored(2, last_ + row_side_, bytes_);
    if constexpr (kA == 2 && kB == 2) _tile_stored(3, last_ + row_side_ + column_side_, bytes_);
    tiles_are_written(last_);
  }

 private:
  float* last_;
  Index bytes_, row_side_, column_side_;
};

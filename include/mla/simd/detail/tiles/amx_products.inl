// Products of tiles by AMX. Included inside a target region with amx-tile and amx-bf16, after
// bf16_tiles.inl. Tile registers: 0 to 3 are C, 4 and 5 A, 6 and 7 B.

// What the tile instructions read from `memory` on must have been written before: g++ does not know
// that they read.
MLA_INLINE void tiles_are_written(const void* memory) {
  asm volatile("" : : "r"(memory) : "memory");
}

struct alignas(64) TileShapes {
  unsigned char palette = 1, start_row = 0, reserved[14] = {};
  unsigned short row_bytes[16] = {};
  unsigned char rows[16] = {};
};

// Tile register i has 16 rows of columns[i] pairs of bfloat16, or float32 sums.
MLA_INLINE void set_tiles(const Index (&columns)[8]) {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.row_bytes[i] = static_cast<unsigned short>(4 * columns[i]);
    shapes.rows[i] = kTileSide;
  }
  tiles_are_written(&shapes);
  _tile_loadconfig(&shapes);
}

// C (+)= A * B for a grid of kA x kB tiles over `steps` tiles of the reduction.
template <int kA, int kB>
MLA_INLINE void multiply_grid(const bfloat16* a, const TileSteps& as, const bfloat16* b,
                              const TileSteps& bs, Index steps) {
  const Index a_bytes = 2 * as.stride, b_bytes = 2 * bs.stride;
  for (Index s = 0; s < steps; ++s, a += as.depth, b += bs.depth) {
    _tile_loadd(4, a, a_bytes);
    if constexpr (kA == 2) _tile_loadd(5, a + as.side, a_bytes);
    _tile_loadd(6, b, b_bytes);
    if constexpr (kB == 2) _tile_loadd(7, b + bs.side, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kB == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kA == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kA == 2 && kB == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

template <int kA, int kB>
MLA_INLINE void zero_grid() {
  _tile_zero(0);
  if constexpr (kB == 2) _tile_zero(1);
  if constexpr (kA == 2) _tile_zero(2);
  if constexpr (kA == 2 && kB == 2) _tile_zero(3);
}

template <int kA, int kB>
MLA_INLINE void load_grid(const float* c, const TileSteps& rows, Index column_side) {
  const Index bytes = 4 * rows.stride;
  _tile_loadd(0, c, bytes);
  if constexpr (kB == 2) _tile_loadd(1, c + column_side, bytes);
  if constexpr (kA == 2) _tile_loadd(2, c + rows.side, bytes);
  if constexpr (kA == 2 && kB == 2) _tile_loadd(3, c + rows.side + column_side, bytes);
}

template <int kA, int kB>
MLA_INLINE void store_grid(float* c, const TileSteps& rows, Index column_side) {
  const Index bytes = 4 * rows.stride;
  _tile_stored(0, c, bytes);
  if constexpr (kB == 2) _tile_stored(1, c + column_side, bytes);
  if constexpr (kA == 2) _tile_stored(2, c + rows.side, bytes);
  if constexpr (kA == 2 && kB == 2) _tile_stored(3, c + rows.side + column_side, bytes);
}

// C = A * B, or C += A * B, for a grid of kA x kB tiles.
template <int kA, int kB>
MLA_INLINE void multiply(const bfloat16* a, const TileSteps& as, const bfloat16* b,
                         const TileSteps& bs, Index steps, bool add, float* c,
                         const TileSteps& rows, Index column_side) {
  tiles_are_written(c);
  if (add)
    load_grid<kA, kB>(c, rows, column_side);
  else
    zero_grid<kA, kB>();
  multiply_grid<kA, kB>(a, as, b, bs, steps);
  store_grid<kA, kB>(c, rows, column_side);
}

// Between these, products may be computed.
MLA_INLINE void begin_products() {
  constexpr Index k = kTileSide;
  set_tiles({k, k, k, k, k, k, k, k});
}
MLA_INLINE void end_products() { _tile_release(); }

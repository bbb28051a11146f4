// Tiles of bfloat16, the operands of instructions that sum their products, and what the tiers with
// such instructions share. Included inside a target region, in a namespace that has a vector type;
// see kernel_bodies.hpp.
//   A tile: 16 rows of 32 elements along the reduction.
//   B tile: 32 elements along the reduction of up to 16 columns.
//   C tile: 16 rows x 16 columns of float32, row by row.
// Where in an A or B tile an element is depends on the instruction: see *_bf16_packing.inl, which
// make tiles, and *_products.inl, which multiply them.

inline constexpr Index kTileSide = 16;   // rows of A, columns of B, rows and columns of C
inline constexpr Index kTileDepth = 32;  // elements of the reduction that a tile holds

// From tile to tile, in elements, and from row to row within one.
struct TileSteps {
  Index depth;   // along the reduction
  Index side;    // along the rows of A, the columns of B
  Index stride;  // rows of a tile
};

// Keys that share a maximum. A page is 64; the results are loaded and stored once for all.
inline constexpr Index kSpanKeys = 256;
// From 16 dimensions of the values to the next 16, in elements: a cache line more than a power of
// two, which would crowd few sets.
inline constexpr Index kValueTiles = kSpanKeys * kTileSide + kTileDepth;

MLA_INLINE Index round_up(Index n, Index step) { return (n + step - 1) / step * step; }

// Elements [i, i + kLanes) of a row of n, 0 from n on.
MLA_INLINE F32 load_within(const float* row, Index i, Index n) {
  return i + kLanes <= n ? load(row + i) : i < n ? load_first(row + i, n - i) : zero();
}

// Key k of the sequence.
MLA_INLINE const bfloat16* key_row(const KeyValueRows& keys, Index k) {
  return reinterpret_cast<const bfloat16*>(keys.row_of(k));
}

// The numbers of a row in bfloat16, of a format whose rows are not: made in `memory`
// [layout.width()], which begins at a cache line.
using MakeRow = void (*)(const RowLayout& layout, const std::byte* bytes, bfloat16* memory);

// What the products of linear() by AMX are made of: weights are the A tiles, packed tokens the B
// tiles, so that the result comes out transposed. A group is up to 16 tokens; a strip is 16
// features.
// Needs: tiles (tiles/bf16.inl, avx512_bf16_packing.inl, amx_products.inl), linear/float32.inl.
//
// Every output is the sum of its inputs 32 after 32, whatever path it takes: the sums of a tile
// that are stored and loaded again stay what they were.

// Elements from a packed group to the next. What the same inputs of all groups need lies an odd
// number of 8 KB apart, or it would crowd few sets of the second cache.
inline Index group_step(Index in) noexcept {
  constexpr Index kUnit = 4096;
  const Index units = (kTileSide * round_up(in, kTileDepth) + kUnit - 1) / kUnit;
  return (units | 1) * kUnit;
}

inline Index packed_floats(Index tokens, Index in) noexcept {
  const Index rest = tokens % kTileSide;
  return (tokens / kTileSide * group_step(in) + rest * round_up(in, kTileDepth)) / 2;
}

// Groups one after the other, each as B tiles that are as wide as it has tokens.
inline void pack(MatrixView<const float> x, float* packed) noexcept {
  for (Index t = 0; t < x.rows; t += kTileSide) {
    const Index tokens = at_most(x.rows - t, kTileSide);
    pack_columns(x.row_range(t, tokens),
                 reinterpret_cast<bfloat16*>(packed + packed_floats(t, x.cols)), tokens);
  }
}

// Packed tokens of a call, or some of its groups.
struct PackedGroups {
  const bfloat16* data;
  Index in;
  Index step;    // from a group to the next
  Index groups;  // the last of which may be narrower
  Index last;    // tokens of the last group

  PackedGroups(const float* packed, Index tokens, Index inputs)
      : data(reinterpret_cast<const bfloat16*>(packed)),
        in(inputs),
        step(group_step(inputs)),
        groups((tokens + kTileSide - 1) / kTileSide),
        last(tokens - (groups - 1) * kTileSide) {}

  PackedGroups range(Index first, Index count) const {
    PackedGroups part = *this;
    part.data += first * step;
    part.groups = count;
    part.last = first + count == groups ? last : kTileSide;
    return part;
  }
};

// Memory of a call: C tiles of 16 features x 16 tokens, and weights that become A tiles.
struct AmxBlocks {
  static constexpr Index kOutputs = 512, kTokens = 512, kInputs = 256;  // of many tokens
  static constexpr Index kPanel = 4 * kTileSide;  // features whose weights stay in the first cache
  static constexpr Index kTile = kTileSide * kTileDepth;  // elements of an A tile
  static constexpr Index kPanelTiles = kPanel * kInputs;  // elements of a panel
  // Few tokens: up to so many groups, one strip at a time, by kPassGroups at a time.
  static constexpr Index kFewGroups = 16, kPassGroups = 4, kFewOutputs = 256;
  static constexpr Index kFewPacked = 1 << 19;  // elements of packed tokens: half the second cache
  static constexpr Index kSums = kOutputs * kTokens;
  static constexpr Index kFloats = kSums + kPanelTiles;  // two panels of 16 bits

  float* sums;        // [outputs / 64][groups][4] C tiles
  bfloat16* weights;  // two panels, or tiles of a strip

  // C tile of features [16 * strip, + 16) and tokens of `group`.
  float* sums_of(Index strip, Index group, Index groups) const {
    return sums + ((strip / 4 * groups + group) * 4 + strip % 4) * kTileSide * kTileSide;
  }
};

inline constexpr Index kLinearFloats = AmxBlocks::kFloats;

// What makes A tiles of weights, one after the other: all that products need to know of a format.
struct TileMaker {
  void* self;
  // From feature o and input i on, up to input `end`.
  void (*begin)(void* self, Index o, Index i, Index end) noexcept;
  // The next 16 x 32, 0 beyond the matrix. What comes after it is asked for meanwhile.
  void (*make)(void* self, bfloat16* tile) noexcept;
};
template <class Tiles>
void begin_tiles(void* self, Index o, Index i, Index end) noexcept {
  static_cast<Tiles*>(self)->begin(o, i, end);
}
template <class Tiles>
void make_tile(void* self, bfloat16* tile) noexcept {
  static_cast<Tiles*>(self)->make(tile);
}
template <class Tiles>
TileMaker maker_of(Tiles& tiles) {
  return {&tiles, &begin_tiles<Tiles>, &make_tile<Tiles>};
}

// Tiles of bfloat16 weights.
class StoredTiles {
 public:
  explicit StoredTiles(MatrixView<const bfloat16> weight) : weight_(weight) {}

  void begin(Index o, Index i, Index end) { o_ = o, i_ = i, end_ = end; }

  void make(bfloat16* tile) {
    for (Index r = 0; r < kTileSide; ++r, tile += kTileDepth) {
      const bool inside = o_ + r < weight_.rows;
      const bfloat16* const row = weight_.row(inside ? o_ + r : o_);
      _mm512_storeu_si512(tile, load_halves(row, i_, inside ? end_ : 0));
      __builtin_prefetch(row + i_ + kTileSide * weight_.stride, 0, 2);
    }
    i_ += kTileDepth;
  }

 private:
  MatrixView<const bfloat16> weight_;
  Index o_ = 0, i_ = 0, end_ = 0;
};

// Makes the tiles of some strips, [strips][inputs / 32], a share of them at each of some steps.
struct TileCopy {
  TileMaker maker;
  Index o, strips;   // features [o, + 16 * strips)
  Index i, inputs;   // of each
  Index first, end;  // where each strip begins and ends: for i > first it goes on
  Index side;        // from strip to strip, in elements
  bfloat16* to;
  Index steps;
  Index due = 0, made = 0;

  MLA_INLINE void step() {
    const Index of_strip = (inputs + kTileDepth - 1) / kTileDepth, all = strips * of_strip;
    for (due += all; due >= steps && made < all; due -= steps, ++made) {
      const Index strip = made / of_strip, tile = made % of_strip;
      if (tile == 0 && i == first) maker.begin(maker.self, o + strip * kTileSide, i, end);
      maker.make(maker.self, to + strip * side + tile * AmxBlocks::kTile);
    }
  }
};

// Tile registers 0 to 3, whose numbers the intrinsics want to be literals.
template <int kTile>
MLA_INLINE void store_sums(float* c) {
  constexpr Index kBytes = 4 * kTileSide;
  if constexpr (kTile == 0) _tile_stored(0, c, kBytes);
  if constexpr (kTile == 1) _tile_stored(1, c, kBytes);
  if constexpr (kTile == 2) _tile_stored(2, c, kBytes);
  if constexpr (kTile == 3) _tile_stored(3, c, kBytes);
}
template <int kTile>
MLA_INLINE void load_sums(const float* c) {
  constexpr Index kBytes = 4 * kTileSide;
  if constexpr (kTile == 0) _tile_loadd(0, c, kBytes);
  if constexpr (kTile == 1) _tile_loadd(1, c, kBytes);
  if constexpr (kTile == 2) _tile_loadd(2, c, kBytes);
  if constexpr (kTile == 3) _tile_loadd(3, c, kBytes);
}
template <int kTile>
MLA_INLINE void zero_sums() {
  if constexpr (kTile == 0) _tile_zero(0);
  if constexpr (kTile == 1) _tile_zero(1);
  if constexpr (kTile == 2) _tile_zero(2);
  if constexpr (kTile == 3) _tile_zero(3);
}

// out[t][o] from C tiles.
inline void store_transposed(const AmxBlocks& blocks, MatrixView<float> out) {
  const Index groups = (out.rows + kTileSide - 1) / kTileSide;
  for (Index t = 0; t < out.rows; t += kTileSide)
    for (Index o = 0; o < out.cols; o += kTileSide) {
      const float* tile = blocks.sums_of(o / kTileSide, t / kTileSide, groups);
      __m512i v[kTileSide];
      MLA_UNROLL (i, kTileSide) v[i] = _mm512_loadu_si512(tile + i * kTileSide);
      transpose(v);
      const Index features = out.cols - o;
      const __mmask16 kept = features < kTileSide ? first_lanes(features) : __mmask16(0xffff);
      MLA_UNROLL (r, kTileSide)
        if (t + r < out.rows) _mm512_mask_storeu_epi32(out.row(t + r) + o, kept, v[r]);
    }
}

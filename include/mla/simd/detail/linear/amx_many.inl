// linear() by AMX for many tokens, where products are the limit.
// Needs: linear/amx_tiles.inl.
//
// A panel, 64 features x 256 inputs, stays in the first cache while tokens stream past it from the
// second: 4 x 1 grids, which take one tile in five from there. Beside the products of a panel the
// next is made, a tile at a time, and what comes later is asked for: a burst of
// either would keep tile loads waiting. Tile registers: 0 to 3 are C, 4 B, 5 to 7 A.

// Sums of a grid: stores those that are in C, loads others, tile by tile.
struct SumsExchange {
  static constexpr Index kTileFloats = kTileSide * kTileSide;
  float* last;  // nullptr: none
  float* next;
  bool zero;  // the next are 0

  template <int kTile>
  MLA_INLINE void step() const {
    if (last) store_sums<kTile>(last + kTile * kTileFloats);
    if (zero)
      zero_sums<kTile>();
    else
      load_sums<kTile>(next + kTile * kTileFloats);
  }
};
struct NoExchange {
  template <int kTile>
  MLA_INLINE void step() const {}
};

// A step of a grid: 64 features by 16 tokens, 32 inputs. Sums are exchanged between the products,
// which then need not wait for all of them.
template <class Exchange>
MLA_INLINE void multiply_grid_step(const bfloat16* panel, const bfloat16* x, Index x_bytes,
                                   const Exchange& sums) {
  constexpr Index kStrip = kTileSide * AmxBlocks::kInputs;
  _tile_loadd(4, x, x_bytes);
  _tile_loadd(5, panel, 64);
  sums.template step<0>();
  _tile_dpbf16ps(0, 5, 4);
  _tile_loadd(6, panel + kStrip, 64);
  sums.template step<1>();
  _tile_dpbf16ps(1, 6, 4);
  _tile_loadd(7, panel + 2 * kStrip, 64);
  sums.template step<2>();
  _tile_dpbf16ps(2, 7, 4);
  _tile_loadd(5, panel + 3 * kStrip, 64);
  sums.template step<3>();
  _tile_dpbf16ps(3, 5, 4);
}

// A panel by all tokens, `between` once a step.
template <class Between>
MLA_INLINE void multiply_panel(const bfloat16* panel, Index steps, const PackedGroups& x, Index i,
                               bool zero, float* sums, const Between& between) {
  constexpr Index kGrid = 4 * kTileSide * kTileSide;
  const auto multiply_group = [&](Index g, Index columns, float* last) {
    const bfloat16* b = x.data + g * x.step + i * columns;
    multiply_grid_step(panel, b, 4 * columns, SumsExchange{last, sums + g * kGrid, zero});
    between(b);
    for (Index s = 1; s < steps; ++s) {
      b += kTileDepth * columns;
      multiply_grid_step(panel + s * AmxBlocks::kTile, b, 4 * columns, NoExchange());
      between(b);
    }
  };
  const auto store_last = [&](Index g) {
    float* const c = sums + g * kGrid;
    store_sums<0>(c);
    store_sums<1>(c + kGrid / 4);
    store_sums<2>(c + kGrid / 2);
    store_sums<3>(c + kGrid / 4 * 3);
  };
  const Index whole = x.last == kTileSide ? x.groups : x.groups - 1;
  for (Index g = 0; g < whole; ++g)
    multiply_group(g, kTileSide, g > 0 ? sums + (g - 1) * kGrid : nullptr);
  if (whole > 0) store_last(whole - 1);
  if (whole == x.groups) return;
  set_tiles({x.last, x.last, x.last, x.last, x.last, kTileSide, kTileSide, kTileSide});
  multiply_group(whole, x.last, nullptr);
  store_last(whole);
  begin_products();
}

// Up to kTokens tokens by up to kOutputs features.
inline void linear_many(const PackedGroups& x, const TileMaker& maker, Index first,
                        MatrixView<float> out, const AmxBlocks& blocks) {
  constexpr Index kInputs = AmxBlocks::kInputs, kPanel = AmxBlocks::kPanel;
  const Index panels = (out.cols + kPanel - 1) / kPanel;
  const Index chunks = (x.in + kInputs - 1) / kInputs, all = panels * chunks;
  const auto panel_at = [&](Index p) { return blocks.weights + p % 2 * AmxBlocks::kPanelTiles; };
  const auto copy_of = [&](Index p, Index steps) {  // of nothing after the last
    const Index i = p / panels * kInputs, inputs = p < all ? at_most(x.in - i, kInputs) : 0;
    return TileCopy{maker,      first + p % panels * kPanel, kPanel / kTileSide, i,    inputs, i,
                    i + inputs, kTileSide * kInputs,         panel_at(p),        steps};
  };
  copy_of(0, 1).step();
  for (Index p = 0; p < all; ++p) {
    const Index i = p / panels * kInputs, inputs = at_most(x.in - i, kInputs);
    const Index steps = (inputs + kTileDepth - 1) / kTileDepth;
    auto copy = copy_of(p + 1, steps * x.groups);
    // Of the tokens' next chunk, too, a share is asked for.
    const bool more_tokens = p / panels + 1 < chunks;
    const Index lines = (kTileSide + panels - 1) / panels;
    const Index tokens_ahead = kInputs * kTileSide + p % panels * lines * kTileDepth;
    tiles_are_written(blocks.weights);
    multiply_panel(panel_at(p), steps, x, i, i == 0, blocks.sums_of(p % panels * 4, 0, x.groups),
                   [&](const bfloat16* b) {
                     copy.step();
                     if (more_tokens)
                       for (Index l = 0; l < lines; ++l)
                         __builtin_prefetch(b + tokens_ahead + l * kTileDepth, 0, 2);
                   });
  }
  tiles_are_written(blocks.sums);
  store_transposed(blocks, out);
}

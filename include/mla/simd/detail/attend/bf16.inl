// attend_many() over a cache of bfloat16, or of rows that are made such, by products of bfloat16:
// as in kernels_attend_many.inl the lanes of scores and softmax are rows, kBlockRows to a block.
// Queries, and weights after the softmax, are rounded to bfloat16; scores, sums and results are
// float32. Needs bf16_tiles.inl, the functions that make tiles, and multiply().

// Brings the keys of the next span into the caches, some rows at each product of the present one.
struct KeysAhead {
  const KeyValueRows& keys;
  Index next, end, rows;

  MLA_INLINE void step() {
    for (const Index stop = next + rows < end ? next + rows : end; next < stop; ++next) {
      const std::byte* const row = keys.row_of(next);
      for (Index i = 0; i < keys.layout.bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
    }
  }
};

// Memory of a call. Sizes in elements; every part begins at a cache line.
struct Bf16Attend {
  Index depth;        // key width in whole tiles
  Index value_tiles;  // tiles of 16 that a value takes
  Index key_stride;   // an odd number of cache lines: rows of a tile fall into different sets
  bfloat16* keys;     // [kSpanKeys][key_stride], rows of A tiles, 0 from the key width on
  bfloat16* values;   // [value_tiles], kValueTiles apart: [kSpanKeys / 32] B tiles
  bfloat16* weights;  // [kBlockRows / 16][kSpanKeys / 32] A tiles of a block's rows
  bfloat16* made;     // [32][row width, whole cache lines] rows that are made bfloat16
  float* spare;       // results of a block
  float* blocks;      // for each block: maximum, sum, queries, results

  static Index depth_of(Index key_width) { return round_up(key_width, kTileDepth); }
  static Index key_stride_of(Index depth) { return depth + (depth / kTileDepth % 2 == 0) * 32; }
  static Index results_of(Index value_width) {
    return kBlockRows * round_up(value_width, kTileSide);
  }
  static Index block_floats(Index key_width, Index value_width) {
    return 2 * kBlockRows + kBlockRows * depth_of(key_width) / 2 + results_of(value_width);
  }
  // Elements from one row to the next that is made.
  static Index made_stride_of(const RowLayout& layout) {
    return round_up(layout.width(), kTileDepth);
  }
  static Index floats(const RowLayout& layout, Index rows, Index key_width, Index value_width) {
    return kTileDepth * made_stride_of(layout) / 2 +
           kSpanKeys * key_stride_of(depth_of(key_width)) / 2 +
           round_up(value_width, kTileSide) / kTileSide * kValueTiles / 2 +
           kBlockRows * kSpanKeys / 2 + results_of(value_width) +
           (rows + kBlockRows - 1) / kBlockRows * block_floats(key_width, value_width);
  }

  Bf16Attend(const RowLayout& layout, Index key_width, Index value_width, float* memory)
      : depth(depth_of(key_width)),
        value_tiles(round_up(value_width, kTileSide) / kTileSide),
        key_stride(key_stride_of(depth)) {
    const auto take = [&](Index elements) {
      bfloat16* const part = reinterpret_cast<bfloat16*>(memory);
      memory += elements / 2;
      return part;
    };
    keys = take(kSpanKeys * key_stride);
    values = take(value_tiles * kValueTiles);
    weights = take(kBlockRows * kSpanKeys);
    made = take(kTileDepth * made_stride_of(layout));
    spare = memory;
    blocks = memory + results_of(value_width);
  }
};

// Packs keys and values, which are rows of bfloat16, or of another format and made such.
struct SpanPacking {
  const KeyValueRows& keys;
  MakeRow make_row;  // nullptr: they are bfloat16
  const Bf16Attend& call;

  // Keys [first, + count). Returns whether all values are finite.
  bool keys_and_values(Index first, Index count) const {
    return for_parts(first, count, [&](const KeyValueRows& rows, Index at, Index n, Index k) {
      pack_keys(rows, at, n, call.depth, call.key_stride, call.keys + k * call.key_stride);
      return pack_values(rows, at, n, call.values + k * kTileSide);
    });
  }
  void values(Index first, Index count) const {
    for_parts(first, count, [&](const KeyValueRows& rows, Index at, Index n, Index k) {
      return pack_values(rows, at, n, call.values + k * kTileSide);
    });
  }

 private:
  // pack(rows, first, count, place in the span), of all keys or of 32 at a time.
  template <class Pack>
  bool for_parts(Index first, Index count, const Pack& pack) const {
    if (!make_row) return pack(keys, first, count, 0);
    const Index stride = Bf16Attend::made_stride_of(keys.layout);
    KeyValueRows rows = keys;
    const std::byte* const page = reinterpret_cast<const std::byte*>(call.made);
    rows.pages = &page;
    rows.page_rows = kTileDepth;
    rows.page_offset = 0;
    rows.selected = nullptr;
    rows.first_row = 0;
    rows.layout = {CacheFormat::bfloat16, keys.layout.latent_width, keys.layout.rope_width,
                   stride * Index{sizeof(bfloat16)}};
    bool finite = true;
    for (Index k = 0; k < count; k += kTileDepth) {
      const Index n = count - k < kTileDepth ? count - k : kTileDepth;
      for (Index i = 0; i < n; ++i)
        make_row(keys.layout, keys.row_of(first + k + i), call.made + i * stride);
      finite &= pack(rows, 0, n, k);
    }
    return finite;
  }
};

inline constexpr Index kBlockStrips = kBlockRows / kTileSide;
static_assert(kBlockStrips == 1 || kBlockStrips == 2);

// Rows [first, + rows) of the queries.
struct Bf16Block {
  Index first;
  Index rows;
  float* maximum;     // [kBlockRows]
  float* sum;         // [kBlockRows]
  bfloat16* queries;  // [kBlockRows / 16][depth / 32] B tiles
  float* results;     // [kBlockRows / 16][value_tiles] C tiles

  Index strips() const { return rows <= kTileSide ? 1 : kBlockStrips; }
};

inline void start_block(const QueryRows& queries, Index key_width, const Bf16Block& block,
                        const Bf16Attend& call, Index value_width, const SoftmaxState& state) {
  for (Index r = 0; r < kBlockRows; ++r) {
    block.maximum[r] = r < block.rows ? state.maximum[block.first + r] : 0.0f;
    block.sum[r] = r < block.rows ? state.sum[block.first + r] : 0.0f;
  }
  for (Index strip = 0; strip < block.strips(); ++strip) {
    const Index first = block.first + strip * kTileSide;
    const Index left = block.first + block.rows - first;
    const Index rows = left < kTileSide ? left : kTileSide;
    pack_columns({queries.data + first * queries.stride, rows, key_width, queries.stride},
                 block.queries + strip * kTileSide * call.depth);
    float* tile = block.results + strip * kTileSide * kTileSide * call.value_tiles;
    for (Index c = 0; c < value_width; c += kTileSide)
      for (Index r = 0; r < kTileSide; ++r) {
        const float* row = state.out + (first + r) * state.out_stride;
        for (Index i = 0; i < kTileSide; i += kLanes, tile += kLanes)
          store(tile, r < rows ? load_within(row, c + i, value_width) : zero());
      }
  }
}

inline void finish_block(const Bf16Block& block, const Bf16Attend& call, Index value_width,
                         const SoftmaxState& state) {
  for (Index r = 0; r < block.rows; ++r) {
    state.maximum[block.first + r] = block.maximum[r];
    state.sum[block.first + r] = block.sum[r];
    const float* from = block.results + r / kTileSide * kTileSide * kTileSide * call.value_tiles +
                        r % kTileSide * kTileSide;
    float* to = state.out + (block.first + r) * state.out_stride;
    for (Index c = 0; c < value_width; c += kLanes) {
      // Products with keys that only other rows see are 0, but make 0 of -0: so do it always.
      const F32 result =
          load(from + c / kTileSide * kTileSide * kTileSide + c % kTileSide) + zero();
      if (c + kLanes <= value_width)
        store(to + c, result);
      else
        store_first(to + c, result, value_width - c);
    }
  }
}

// scores[k][row] of `count` keys, in whole tiles.
inline void score_products(Index count, const Bf16Block& block, const Bf16Attend& call,
                           KeysAhead& ahead, float (*scores)[kBlockRows]) {
  const TileSteps keys = {kTileDepth, kTileSide * call.key_stride, call.key_stride};
  const TileSteps queries = {kTileSide * kTileDepth, kTileSide * call.depth, kTileDepth};
  const TileSteps rows = {0, kTileSide * kBlockRows, kBlockRows};
  for_tiles<kBlockStrips>(block.strips(), [&](auto columns, Index strip) {
    for_tiles<2>(round_up(count, kTileSide) / kTileSide, [&](auto key_tiles, Index k) {
      ahead.step();
      multiply<key_tiles.value, columns.value>(
          call.keys + k * keys.side, keys, block.queries + strip * queries.side, queries,
          call.depth / kTileDepth, false, scores[k * kTileSide] + strip * kTileSide, rows,
          kTileSide);
    });
  });
}

// results += weights * values over `count` keys.
inline void value_products(Index count, const Bf16Block& block, const Bf16Attend& call,
                           KeysAhead& ahead, float* results) {
  const TileSteps weights = {kTileSide * kTileDepth, kTileSide * kSpanKeys, kTileDepth};
  const TileSteps values = {kTileSide * kTileDepth, kValueTiles, kTileDepth};
  const Index tile = kTileSide * kTileSide;
  const TileSteps rows = {0, tile * call.value_tiles, kTileSide};
  for_tiles<kBlockStrips>(block.strips(), [&](auto strips, Index strip) {
    for_tiles<2>(call.value_tiles, [&](auto columns, Index column) {
      ahead.step();
      multiply<strips.value, columns.value>(
          call.weights + strip * weights.side, weights, call.values + column * values.side, values,
          round_up(count, kTileDepth) / kTileDepth, true,
          results + strip * rows.side + column * tile, rows, tile);
    });
  });
}

// Results of row r, vector by vector.
template <class Body>
MLA_INLINE void for_result_vectors(float* results, Index r, const Bf16Attend& call,
                                   const Body& body) {
  const Index tile = kTileSide * kTileSide;
  float* row = results + r / kTileSide * tile * call.value_tiles + r % kTileSide * kTileSide;
  for (Index c = 0; c < call.value_tiles; ++c, row += tile)
    for (Index i = 0; i < kTileSide; i += kLanes) body(row + i);
}

// What value_products() must not do where a value is infinite or NaN and some row may not see it: 0
// times it would be NaN. Rows that see the same keys are computed with the other keys' values 0.
[[gnu::cold]] inline void guarded_value_products(const SpanPacking& packing, Index first,
                                                 Index count, const Index* seen,
                                                 const Bf16Block& block, KeysAhead& ahead) {
  const Bf16Attend& call = packing.call;
  const Index floats = Bf16Attend::results_of(packing.keys.value_width);
  for (Index r = 0, end; r < block.rows; r = end) {
    for (end = r + 1; end < block.rows && seen[end] == seen[r];) ++end;
    packing.values(first, seen[r]);
    for (Index i = 0; i < floats; i += kLanes) store(call.spare + i, load(block.results + i));
    value_products(seen[r], block, call, ahead, call.spare);
    for (Index row = r; row < end; ++row)
      for_result_vectors(block.results, row, call, [&](float* result) {
        store(result, load(call.spare + (result - block.results)));
      });
  }
  packing.values(first, count);
}

// One block over keys [first, + count), which are packed.
inline void attend_block(const QueryRows& queries, const Bf16Block& block,
                         const SpanPacking& packing, Index first, Index count, bool finite,
                         float scale, KeysAhead& ahead) {
  const Bf16Attend& call = packing.call;
  Index seen[kBlockRows];
  alignas(64) float visible[kBlockRows] = {};
  Index most = 0, least = count;
  for (Index r = 0; r < block.rows; ++r) {
    const Index left = queries.visible[block.first + r] - first;
    seen[r] = left < 0 ? 0 : left < count ? left : count;
    visible[r] = static_cast<float>(seen[r]);
    most = seen[r] > most ? seen[r] : most;
    least = seen[r] < least ? seen[r] : least;
  }
  if (most == 0) return;

  alignas(64) float scores[kSpanKeys][kBlockRows];
  alignas(64) float factor[kBlockRows];
  score_products(most, block, call, ahead, scores);
  const Index lanes = block.strips() * kTileSide;
  softmax_block(scores, most, visible, scale,
                QueryBlock{block.first, block.rows, lanes, nullptr, block.maximum, block.sum},
                factor);
  for (Index k = most; k < round_up(most, kTileDepth); ++k)
    for (Index r = 0; r < kBlockRows; ++r) scores[k][r] = 0.0f;
  pack_weights(scores, most, block.strips(), call.weights);
  for (Index r = 0; r < block.rows; ++r)
    if (factor[r] != 1.0f)
      for_result_vectors(block.results, r, call,
                         [&](float* result) { store(result, load(result) * set1(factor[r])); });
  if (finite || least == count)
    value_products(most, block, call, ahead, block.results);
  else
    guarded_value_products(packing, first, count, seen, block, ahead);
}

inline constexpr Index kPartKeys = 1024;

inline void attend_made_rows(const QueryRows& queries, const KeyValueRows& keys,
                             float softmax_scale, const SoftmaxState& state, MakeRow make_row,
                             float* scratch) noexcept {
  const Index key_width = keys.key_width + keys.tail_width;
  const Bf16Attend call(keys.layout, key_width, keys.value_width, scratch);
  const SpanPacking packing = {keys, make_row, call};
  const auto for_blocks = [&](const auto& body) {
    float* memory = call.blocks;
    for (Index first = 0; first < queries.rows; first += kBlockRows) {
      const Index left = queries.rows - first;
      float* const packed = memory + 2 * kBlockRows;
      body(Bf16Block{first, left < kBlockRows ? left : kBlockRows, memory, memory + kBlockRows,
                     reinterpret_cast<bfloat16*>(packed), packed + kBlockRows * call.depth / 2});
      memory += Bf16Attend::block_floats(key_width, keys.value_width);
    }
  };

  if (queries.rows == 0) return;
  begin_products();
  for_blocks([&](const Bf16Block& block) {
    start_block(queries, key_width, block, call, keys.value_width, state);
  });
  for (Index first = 0; first < keys.count; first += kSpanKeys) {
    const Index count = keys.count - first < kSpanKeys ? keys.count - first : kSpanKeys;
    const bool finite = packing.keys_and_values(first, count);
    const Index after = keys.count - first - count;
    const Index blocks = (queries.rows + kBlockRows - 1) / kBlockRows;
    const Index products = blocks * (kSpanKeys / (2 * kTileSide) + (call.value_tiles + 1) / 2);
    KeysAhead ahead = {keys, first + count, first + count + (after < kSpanKeys ? after : kSpanKeys),
                       (kSpanKeys + products - 1) / products};
    for_blocks([&](const Bf16Block& block) {
      attend_block(queries, block, packing, first, count, finite, softmax_scale * kLog2E, ahead);
    });
  }
  for_blocks([&](const Bf16Block& block) { finish_block(block, call, keys.value_width, state); });
  end_products();
}

inline Index attend_many_bf16_scratch(const RowLayout& layout, Index rows, Index key_width,
                                      Index value_width) noexcept {
  return Bf16Attend::floats(layout, rows, key_width, value_width);
}

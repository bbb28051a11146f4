// Scores of index keys by products of bfloat16: queries and keys are rounded to it, products, their
// sums and the weighted sum over the heads are float32. 16 heads are the columns of a tile.
// Needs: tiles/*_packing.inl, multiply() (tiles/*_products.inl), MakeRow (tiles/bf16.inl),
// add_index_lanes (index/float32.inl).

inline constexpr Index kIndexRows = 2 * kTileSide;    // keys that are multiplied together
inline constexpr Index kIndexAhead = 4 * kIndexRows;  // from those to the ones that are asked for
inline constexpr Index kIndexPace = 4;  // keys that are summed between two steps of IndexKeysAhead

// Brings keys that come later into the caches, `pace` rows at each step.
struct IndexKeysAhead {
  const KeyValueRows& keys;
  Index next, end, pace;

  MLA_INLINE void step() {
    for (const Index stop = at_most(next + pace, end); next < stop; ++next) {
      const std::byte* const row = keys.row_of(next);
      for (Index i = 0; i < keys.layout.bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
    }
  }
};

// [heads / 16][depth / 32] B tiles, then weights [heads / 16][16]. Heads that are missing are 0.
inline Index bf16_index_packed_floats(Index heads, Index width) noexcept {
  return round_up(heads, kTileSide) * (round_up(width, kTileDepth) / 2 + 1);
}

inline void pack_bf16_index_queries(MatrixView<const float> queries, const float* weights,
                                    float* packed) noexcept {
  const Index depth = round_up(queries.cols, kTileDepth);
  auto* const tiles = reinterpret_cast<bfloat16*>(packed);
  float* const to = packed + round_up(queries.rows, kTileSide) * depth / 2;
  for (Index h = 0; h < queries.rows; h += kTileSide) {
    const Index left = queries.rows - h, heads = left < kTileSide ? left : kTileSide;
    pack_columns(queries.row_range(h, heads), tiles + h * depth);
    for (Index i = 0; i < kTileSide; ++i) to[h + i] = i < heads ? weights[h + i] : 0.0f;
  }
}

// Memory of a call. Sizes in elements; every part begins at a cache line.
struct Bf16Index {
  Index depth;       // key width in whole tiles
  Index key_stride;  // an odd number of cache lines: rows of a tile fall into different sets
  Index heads;       // in whole tiles
  bfloat16* keys;    // [kIndexRows][key_stride] rows of A tiles
  Index made_stride;
  bfloat16* made;   // [kIndexRows][made_stride] rows that are made bfloat16
  float* products;  // [2][kIndexRows][heads] of queries and keys, and of those before

  static Index depth_of(Index width) { return round_up(width, kTileDepth); }
  static Index stride_of(Index depth) { return depth + (depth / kTileDepth % 2 == 0) * kTileDepth; }
  static Index floats(const RowLayout& layout, Index heads, Index width) {
    return kIndexRows * (stride_of(depth_of(width)) + round_up(layout.width(), kTileDepth)) / 2 +
           2 * kIndexRows * round_up(heads, kTileSide);
  }

  Bf16Index(const RowLayout& layout, Index head_count, Index width, float* memory)
      : depth(depth_of(width)),
        key_stride(stride_of(depth)),
        heads(round_up(head_count, kTileSide)),
        keys(reinterpret_cast<bfloat16*>(memory)),
        made_stride(round_up(layout.width(), kTileDepth)),
        made(keys + kIndexRows * key_stride),
        products(memory + kIndexRows * (key_stride + made_stride) / 2) {}
};

inline Index bf16_index_scratch(const RowLayout& layout, Index heads, Index width) noexcept {
  return Bf16Index::floats(layout, heads, width);
}

// Keys [first, + count) as rows of A tiles.
inline void pack_index_keys(const KeyValueRows& keys, Index first, Index count, MakeRow make_row,
                            const Bf16Index& call) {
  if (!make_row) return pack_keys(keys, first, count, call.depth, call.key_stride, call.keys);
  const std::byte* const page = reinterpret_cast<const std::byte*>(call.made);
  KeyValueRows rows = keys;
  rows.pages = &page;
  rows.page_rows = kIndexRows;
  rows.page_offset = 0;
  rows.selected = nullptr;
  rows.first_row = 0;
  rows.layout = {CacheFormat::bfloat16, keys.layout.latent_width, keys.layout.rope_width,
                 call.made_stride * Index{sizeof(bfloat16)}};
  for (Index k = 0; k < count; ++k)
    make_row(keys.layout, keys.row_of(first + k), call.made + k * call.made_stride);
  pack_keys(rows, 0, count, call.depth, call.key_stride, call.keys);
}

// Rows of A tiles, `stride` elements apart.
struct IndexRows {
  const bfloat16* rows;
  Index stride;
};

// Keys [first, + count): where they lie, if they are what a tile wants, or packed.
inline IndexRows index_rows(const KeyValueRows& keys, Index first, Index count, MakeRow make_row,
                            const Bf16Index& call) {
  const Index place = (keys.first_row + first) % keys.page_rows;
  if (kRowsAreTiles && !make_row && !keys.selected && keys.key_width == call.depth &&
      count % kTileSide == 0 && place + count <= keys.page_rows)
    return {key_row(keys, first) + keys.key_offset,
            keys.layout.bytes / static_cast<Index>(sizeof(bfloat16))};
  pack_index_keys(keys, first, count, make_row, call);
  return {call.keys, call.key_stride};
}

// products[k][h] = query h . key k for `strips` strips of 16 keys.
inline void multiply_index(const IndexRows& keys, const float* packed, Index strips,
                           const Bf16Index& call, IndexKeysAhead& ahead, float* products) {
  const auto* const queries = reinterpret_cast<const bfloat16*>(packed);
  const TileSteps a = {kTileDepth, kTileSide * keys.stride, keys.stride};
  const TileSteps b = {kTileSide * kTileDepth, kTileSide * call.depth, kTileDepth};
  const TileSteps rows = {0, kTileSide * call.heads, call.heads};
  const Index steps = call.depth / kTileDepth;
  const auto multiply_keys = [&](auto key_strips) {
    for_tiles<2>(call.heads / kTileSide, [&](auto columns, Index column) {
      ahead.step();
      // In parentheses: that of this instruction set, whatever set its arguments are from.
      (multiply<key_strips.value, columns.value>)(keys.rows, a, queries + column * b.side, b, steps,
                                                  false, products + column * kTileSide, rows,
                                                  kTileSide);
    });
  };
  if (strips == 1)
    multiply_keys(TileSize<1>());
  else
    multiply_keys(TileSize<2>());
}

// scores[k] = sum over heads of weight * max(0, product), lane by lane, then across.
inline void sum_index(const float* products, const float* weights, Index heads, Index count,
                      IndexKeysAhead& ahead, float* scores) {
  alignas(64) float sums[kIndexRows][kLanes];
  for (Index k = 0; k < count; ++k, products += heads) {
    if (k % kIndexPace == 0) ahead.step();
    F32 sum = zero();
    for (Index h = 0; h < heads; h += kLanes)
      sum = fma(max(zero(), load(products + h)), load(weights + h), sum);
    store(sums[k], sum);
  }
  add_index_lanes(sums, count, scores);
}

// What is summed comes one step behind what is multiplied: both go on beside each other.
inline void score_bf16_index_rows(const IndexQueries& queries, const KeyValueRows& keys,
                                  MakeRow make_row, float* scores, float* scratch) noexcept {
  const Bf16Index call(keys.layout, queries.rows.rows, queries.rows.cols, scratch);
  const float* const weights = queries.packed + call.heads * call.depth / 2;
  const auto products_at = [&](Index step) {
    return call.products + step % 2 * kIndexRows * call.heads;
  };
  const Index steps = call.heads / kTileSide / 2 + kIndexRows / kIndexPace;
  const Index pace = (kIndexRows + steps - 1) / steps;
  Index step = 0, last = 0;
  begin_products();
  for (Index first = 0; first < keys.count; first += kIndexRows, ++step) {
    const Index left = keys.count - first, count = left < kIndexRows ? left : kIndexRows;
    const Index ahead_at = at_most(first + kIndexAhead, keys.count);
    IndexKeysAhead ahead = {keys, ahead_at, at_most(ahead_at + kIndexRows, keys.count), pace};
    const IndexRows rows = index_rows(keys, first, count, make_row, call);
    multiply_index(rows, queries.packed, round_up(count, kTileSide) / kTileSide, call, ahead,
                   products_at(step));
    if (step > 0)
      sum_index(products_at(step - 1), weights, call.heads, kIndexRows, ahead, scores + last);
    last = first;
  }
  IndexKeysAhead nothing = {keys, 0, 0, 0};
  if (step > 0)
    sum_index(products_at(step - 1), weights, call.heads, at_most(keys.count - last, kIndexRows),
              nothing, scores + last);
  end_products();
}

inline void score_bf16_index(const IndexQueries& queries, const KeyValueRows& keys, float* scores,
                             float* scratch) noexcept {
  score_bf16_index_rows(queries, keys, nullptr, scores, scratch);
}
template <class Codes>
void score_bf16_index_of_codes(const IndexQueries& queries, const KeyValueRows& keys, float* scores,
                               float* scratch) noexcept {
  score_bf16_index_rows(queries, keys, &make_row_of_codes<Codes>, scores, scratch);
}

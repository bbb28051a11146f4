// attend_many() over a cache of bfloat16 by dot products of bfloat16: as in kernels_attend_many.inl
// the lanes of scores and softmax are rows, 32 to a block. Queries, and weights after the softmax,
// are rounded to bfloat16; scores, sums and results are float32. Needs bf16_tiles.inl and
// multiply().

// Keys that share a maximum. A page is 64; the results are loaded and stored once for all.
inline constexpr Index kSpanKeys = 256;
// From 16 dimensions of the values to the next 16, in elements: a cache line more than a power of
// two, which would crowd few sets.
inline constexpr Index kValueTiles = kSpanKeys * kTileSide + kTileDepth;

// Row k of the sequence.
MLA_INLINE const bfloat16* key_row(const KeyValueRows<bfloat16>& keys, Index k) {
  return keys.pages[k / keys.page_rows] + k % keys.page_rows * keys.row_stride;
}

// Brings the keys of the next span into the caches, some rows at each product of the present one.
struct KeysAhead {
  const KeyValueRows<bfloat16>& keys;
  Index next, end, rows;

  MLA_INLINE void step() {
    for (const Index stop = next + rows < end ? next + rows : end; next < stop; ++next) {
      const bfloat16* const row = key_row(keys, next);
      for (Index i = 0; i < keys.row_stride; i += kTileDepth) _mm_prefetch(row + i, _MM_HINT_T1);
    }
  }
};

// Memory of a call. Sizes in elements; every part begins at a cache line.
struct Bf16Attend {
  Index depth;        // key width in whole tiles
  Index value_tiles;  // tiles of 16 that a value takes
  Index key_stride;   // an odd number of cache lines: rows of a tile fall into different sets
  bfloat16* keys;     // [kSpanKeys][key_stride], 0 from the key width on
  bfloat16* values;   // [value_tiles], kValueTiles apart: [kSpanKeys / 2][16][2], pairs of keys
  bfloat16* weights;  // [2][kSpanKeys / 32] A tiles of a block's rows
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
  static Index floats(Index rows, Index key_width, Index value_width) {
    return kSpanKeys * key_stride_of(depth_of(key_width)) / 2 +
           round_up(value_width, kTileSide) / kTileSide * kValueTiles / 2 +
           kBlockRows * kSpanKeys / 2 + results_of(value_width) +
           (rows + kBlockRows - 1) / kBlockRows * block_floats(key_width, value_width);
  }

  Bf16Attend(Index key_width, Index value_width, float* memory)
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
    spare = memory;
    blocks = memory + results_of(value_width);
  }
};

// Rows [first, + rows) of the queries.
struct Bf16Block {
  Index first;
  Index rows;
  float* maximum;     // [kBlockRows]
  float* sum;         // [kBlockRows]
  bfloat16* queries;  // [2][depth / 32] B tiles
  float* results;     // [2][value_tiles] C tiles

  Index strips() const { return rows <= kTileSide ? 1 : 2; }
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
    pack_columns(rows, key_width, kTileSide, block.queries + strip * kTileSide * call.depth,
                 [&](Index r, Index i) {
                   return load_rounded(queries.data + (first + r) * queries.stride, i, key_width);
                 });
    float* tile = block.results + strip * kTileSide * kTileSide * call.value_tiles;
    for (Index c = 0; c < value_width; c += kTileSide)
      for (Index r = 0; r < kTileSide; ++r, tile += kTileSide) {
        const float* row = state.out + (first + r) * state.out_stride + c;
        store(tile, r >= rows                      ? zero()
                    : c + kTileSide <= value_width ? load(row)
                                                   : load_first(row, value_width - c));
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
    for (Index c = 0; c < value_width; c += kTileSide, from += kTileSide * kTileSide)
      if (c + kTileSide <= value_width)
        store(to + c, load(from));
      else
        store_first(to + c, load(from), value_width - c);
  }
}

// Keys [first, + count) of the sequence to call.keys.
inline void pack_keys(const KeyValueRows<bfloat16>& keys, Index first, Index count,
                      const Bf16Attend& call) {
  const Index width = keys.key_width + keys.tail_width;
  for (Index k = 0; k < round_up(count, kTileSide); ++k) {
    bfloat16* const to = call.keys + k * call.key_stride;
    const auto copy = [&](const bfloat16* from, Index n, Index at) {
      for (Index i = 0; i < n; i += kTileDepth)
        _mm512_mask_storeu_epi16(to + at + i, first_halves(n - i), load_halves(from, i, n));
    };
    if (k < count) {
      const bfloat16* const row = key_row(keys, first + k);
      copy(row + keys.key_offset, keys.key_width, 0);
      copy(row + keys.tail_offset, keys.tail_width, keys.key_width);
    }
    for (Index i = k < count ? width : 0; i < call.depth; ++i) to[i] = bfloat16::from_bits(0);
  }
}

// Values of keys [first, + count) to call.values, as pairs of keys. Returns whether all are finite.
inline bool pack_values(const KeyValueRows<bfloat16>& keys, Index first, Index count,
                        const Bf16Attend& call) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_or_si512(low, _mm512_set1_epi16(16));
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 infinite = 0;
  for (Index k = 0; k < round_up(count, kTileDepth); k += 2) {
    const Index width = keys.value_width;
    const bfloat16* row0 = k < count ? key_row(keys, first + k) + keys.value_offset : nullptr;
    const bfloat16* row1 =
        k + 1 < count ? key_row(keys, first + k + 1) + keys.value_offset : nullptr;
    bfloat16* to = call.values + k * kTileSide;
    for (Index i = 0; i < width; i += kTileDepth, to += 2 * kValueTiles) {
      const __m512i a = row0 ? load_halves(row0, i, width) : _mm512_setzero_si512();
      const __m512i b = row1 ? load_halves(row1, i, width) : _mm512_setzero_si512();
      infinite |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(a, exponent), exponent) |
                  _mm512_cmpeq_epi16_mask(_mm512_and_si512(b, exponent), exponent);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
      if (i + kTileSide < width)
        _mm512_storeu_si512(to + kValueTiles, _mm512_permutex2var_epi16(a, high, b));
    }
  }
  return infinite == 0;
}

// Weights of keys [0, count) of a block, [keys][kBlockRows], to A tiles of its rows.
inline void pack_weights(const float (*weights)[kBlockRows], Index count, const Bf16Block& block,
                         const Bf16Attend& call) {
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (Index strip = 0; strip < block.strips(); ++strip)
    for (Index k = 0; k < count; k += kTileDepth) {
      __m512i v[kTileSide];
      MLA_UNROLL (i, kTileSide) {
        const float* even = weights[k + 2 * i] + strip * kTileSide;
        v[i] = _mm512_permutexvar_epi16(pairs, round_to_bf16(load(even), load(even + kBlockRows)));
      }
      transpose(v);
      bfloat16* const tile = call.weights + strip * kTileSide * kSpanKeys + k * kTileSide;
      MLA_UNROLL (r, kTileSide) _mm512_storeu_si512(tile + r * kTileDepth, v[r]);
    }
}

// scores[k][row] of `count` keys, in whole tiles.
inline void score_products(Index count, const Bf16Block& block, const Bf16Attend& call,
                           KeysAhead& ahead, float (*scores)[kBlockRows]) {
  const TileSteps keys = {kTileDepth, kTileSide * call.key_stride, call.key_stride};
  const TileSteps queries = {kTileSide * kTileDepth, kTileSide * call.depth, kTileDepth};
  const TileSteps rows = {0, kTileSide * kBlockRows, kBlockRows};
  for_tiles<2>(block.strips(), [&](auto columns, Index strip) {
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
  for_tiles<2>(block.strips(), [&](auto strips, Index strip) {
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
  for (Index c = 0; c < call.value_tiles; ++c, row += tile) body(row);
}

// What value_products() must not do where a value is infinite or NaN and some row may not see it: 0
// times it would be NaN. Rows that see the same keys are computed with the other keys' values 0.
inline void guarded_value_products(const KeyValueRows<bfloat16>& keys, Index first, Index count,
                                   const Index* seen, const Bf16Block& block,
                                   const Bf16Attend& call, KeysAhead& ahead) {
  const Index floats = Bf16Attend::results_of(keys.value_width);
  for (Index r = 0, end; r < block.rows; r = end) {
    for (end = r + 1; end < block.rows && seen[end] == seen[r];) ++end;
    pack_values(keys, first, seen[r], call);
    for (Index i = 0; i < floats; i += kLanes) store(call.spare + i, load(block.results + i));
    value_products(seen[r], block, call, ahead, call.spare);
    for (Index row = r; row < end; ++row)
      for_result_vectors(block.results, row, call, [&](float* result) {
        store(result, load(call.spare + (result - block.results)));
      });
  }
  pack_values(keys, first, count, call);
}

// One block over keys [first, + count), which are packed.
inline void attend_block(const QueryRows& queries, const Bf16Block& block,
                         const KeyValueRows<bfloat16>& keys, Index first, Index count, bool finite,
                         const Bf16Attend& call, float scale, KeysAhead& ahead) {
  Index seen[kBlockRows];
  alignas(64) float visible[kBlockRows] = {};
  Index most = 0, least = count;
  for (Index r = 0; r < block.rows; ++r) {
    const Index ahead = queries.visible[block.first + r] - first;
    seen[r] = ahead < 0 ? 0 : ahead < count ? ahead : count;
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
  pack_weights(scores, most, block, call);
  for (Index r = 0; r < block.rows; ++r)
    if (factor[r] != 1.0f)
      for_result_vectors(block.results, r, call,
                         [&](float* result) { store(result, load(result) * set1(factor[r])); });
  if (finite || least == count)
    value_products(most, block, call, ahead, block.results);
  else
    guarded_value_products(keys, first, count, seen, block, call, ahead);
}

inline void attend_many_bf16(const QueryRows& queries, const KeyValueRows<bfloat16>& keys,
                             float softmax_scale, const SoftmaxState& state,
                             float* scratch) noexcept {
  const Index key_width = keys.key_width + keys.tail_width;
  const Bf16Attend call(key_width, keys.value_width, scratch);
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
    pack_keys(keys, first, count, call);
    const bool finite = pack_values(keys, first, count, call);
    const Index after = keys.count - first - count;
    const Index blocks = (queries.rows + kBlockRows - 1) / kBlockRows;
    const Index products = blocks * (kSpanKeys / kBlockRows + (call.value_tiles + 1) / 2);
    KeysAhead ahead = {keys, first + count, first + count + (after < kSpanKeys ? after : kSpanKeys),
                       (kSpanKeys + products - 1) / products};
    for_blocks([&](const Bf16Block& block) {
      attend_block(queries, block, keys, first, count, finite, call, softmax_scale * kLog2E, ahead);
    });
  }
  for_blocks([&](const Bf16Block& block) { finish_block(block, call, keys.value_width, state); });
  end_products();
}

inline Index attend_many_bf16_scratch(Index rows, Index key_width, Index value_width) noexcept {
  return Bf16Attend::floats(rows, key_width, value_width);
}

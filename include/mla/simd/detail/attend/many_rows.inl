// Attention of many query rows over the same keys, in blocks of up to kBlockRows. In scores and
// softmax the lanes are rows: an element of a key is one broadcast, and nothing is summed across
// lanes. In the value product the lanes are the dimensions of the values. float32 arithmetic; rows
// of other formats are widened once per tile, and all that follows is compiled once.
// Needs: multiply_tile, for_column_vectors (linear/float32.inl), for_key_tiles and tiles
// (attend/softmax.inl).

inline constexpr int kBlockRows = 2 * kLanes;
inline constexpr int kValueColumns = 3;  // vectors of a value that a register tile holds
inline constexpr Index kScoreDims = 64;  // of a key, between two steps of RowsAhead

// Rows [first, + rows) of the queries, and the state of their softmax with a lane for each. The
// lanes are those of two vectors, or of one if that is enough.
struct QueryBlock {
  Index first;
  Index rows;
  Index lanes;
  float* packed;   // [key_width + tail_width][lanes], 0 where there is no row
  float* maximum;  // [lanes]
  float* sum;      // [lanes]
};

// Floats that a block keeps: maximum, sum and the packed queries.
MLA_INLINE Index block_floats(Index width) { return kBlockRows * (width + 2); }

inline Index attend_many_scratch(const RowLayout& layout, Index rows, Index key_width,
                                 Index value_width) noexcept {
  const Index blocks = (rows + kBlockRows - 1) / kBlockRows;
  return blocks * block_floats(key_width) + tile_floats(layout, key_width, value_width);
}

inline void start_block(const QueryRows& queries, const QueryBlock& block, Index width,
                        const SoftmaxState& state) noexcept {
  for (Index r = 0; r < block.lanes; ++r) {
    const bool used = r < block.rows;
    block.maximum[r] = used ? state.maximum[block.first + r] : 0.0f;
    block.sum[r] = used ? state.sum[block.first + r] : 0.0f;
  }
  for (Index r = 0; r < block.lanes; ++r) {
    const float* const row = queries.data + (block.first + r) * queries.stride;
    for (Index d = 0; d < width; ++d)
      block.packed[d * block.lanes + r] = r < block.rows ? row[d] : 0.0f;
  }
}

inline void finish_block(const QueryBlock& block, const SoftmaxState& state) noexcept {
  for (Index r = 0; r < block.rows; ++r) {
    state.maximum[block.first + r] = block.maximum[r];
    state.sum[block.first + r] = block.sum[r];
  }
}

// scores[k][row] = query[row] . key[k] for kKeys keys, along two stretches of the key.
template <int kVectors, int kKeys>
MLA_INLINE void score_keys(const float* packed, const FloatTile& tile, Index k, RowsAhead& ahead,
                           float (*scores)[kBlockRows]) {
  F32 acc[kKeys][kVectors] = {};
  const auto accumulate = [&](const float* query, const float* key, Index width) {
    for (Index d = 0, end; d < width; d = end) {
      ahead.step();
      end = d + kScoreDims < width ? d + kScoreDims : width;
      for (Index i = d; i < end; ++i) {
        F32 q[kVectors];
        MLA_UNROLL (v, kVectors) q[v] = load(query + (i * kVectors + v) * kLanes);
        MLA_UNROLL (j, kKeys) {
          const F32 x = set1(key[j * tile.stride + i]);
          MLA_UNROLL (v, kVectors) acc[j][v] = fma(q[v], x, acc[j][v]);
        }
      }
    }
  };
  for (const bool tail : {false, true})
    accumulate(packed + (tail ? tile.key_width * kVectors * kLanes : 0),
               (tail ? tile.tail : tile.key) + k * tile.stride,
               tail ? tile.tail_width : tile.key_width);
  MLA_UNROLL (j, kKeys)
    MLA_UNROLL (v, kVectors) store(scores[k + j] + v * kLanes, acc[j][v]);
}

// Turns the scores of `count` keys into powers of two below the running maximum, 0 where a row does
// not see the key (visible[row] <= k). factor[row] brings what was summed before to the new
// maximum.
inline void softmax_block(float (*scores)[kBlockRows], Index count, const float* visible,
                          float scale, const QueryBlock& block, float* factor) noexcept {
  const F32 lowest = set1(-3.0e38f);
  for (Index v = 0; v < block.lanes; v += kLanes) {
    const F32 seen = load(visible + v);
    F32 peak = lowest;
    for (Index k = 0; k < count; ++k) {
      const F32 key = set1(static_cast<float>(k));
      peak = max(peak, if_less(key, seen, load(scores[k] + v), lowest));
    }
    const F32 before = max(lowest, load(block.maximum + v));
    peak = max(peak * set1(scale), before);
    F32 sum = zero();
    for (Index k = 0; k < count; ++k) {
      const F32 key = set1(static_cast<float>(k));
      // Not rounded as the peak was, a product can come out above it.
      const F32 below = fma(load(scores[k] + v), set1(scale), zero() - peak);
      const F32 p = exp2_non_positive(min(zero(), below));
      const F32 kept = if_less(key, seen, p, zero());
      store(scores[k] + v, kept);
      sum = sum + kept;
    }
    const F32 rescale = exp2_non_positive(before - peak);
    store(factor + v, rescale);
    store(block.maximum + v, if_less(zero(), seen, peak, load(block.maximum + v)));
    store(block.sum + v, fma(load(block.sum + v), rescale, sum));
  }
}

// out[r] = factor[r] * out[r] + sum_k scores[k][r] * value[k] for kRows rows over `count` keys.
template <int kRows>
void value_rows(const float* scores, const float* factor, const FloatTile& tile, Index first_key,
                Index count, RowsAhead& ahead, float* out, Index out_stride) noexcept {
  for_column_vectors<kValueColumns>(tile.value_width, [&](auto cols, Index c, const auto& vector) {
    ahead.step();
    F32 acc[kRows][cols.value];
    MLA_UNROLL (r, kRows)
      MLA_UNROLL (j, cols.value)
        acc[r][j] = set1(factor[r]) * vector.load_from(out + r * out_stride + c + j * kLanes);
    multiply_tile({scores + first_key * kBlockRows, 1, kBlockRows},
                  tile.value + first_key * tile.stride + c, tile.stride, count, vector, acc);
    MLA_UNROLL (r, kRows)
      MLA_UNROLL (j, cols.value) vector.store_to(out + r * out_stride + c + j * kLanes, acc[r][j]);
  });
}

// The same over the keys that each row sees: those that all of them see together, then row by row,
// so that no row touches a key that it must not see.
template <int kRows>
MLA_INLINE void seen_value_rows(const float* scores, const float* factor, const Index* seen,
                                const FloatTile& tile, RowsAhead& ahead, float* out,
                                Index out_stride) {
  Index common = tile.count;
  MLA_UNROLL (r, kRows) common = seen[r] < common ? seen[r] : common;
  value_rows<kRows>(scores, factor, tile, 0, common, ahead, out, out_stride);
  const float one = 1.0f;
  for (int r = 0; r < kRows; ++r)
    if (seen[r] > common)
      value_rows<1>(scores + r, &one, tile, common, seen[r] - common, ahead, out + r * out_stride,
                    out_stride);
}

// One block over one tile, whose first key is the sequence's number first_key.
inline void attend_block(const QueryRows& queries, const QueryBlock& block, const FloatTile& tile,
                         Index first_key, float scale, RowsAhead& ahead,
                         const SoftmaxState& state) noexcept {
  Index seen[kBlockRows];
  alignas(64) float visible[kBlockRows] = {};
  Index most = 0;
  for (Index r = 0; r < block.rows; ++r) {
    const Index left = queries.visible[block.first + r] - first_key;
    seen[r] = left < 0 ? 0 : left < tile.count ? left : tile.count;
    visible[r] = static_cast<float>(seen[r]);
    most = seen[r] > most ? seen[r] : most;
  }
  if (most == 0) return;

  alignas(64) float scores[kTileKeys][kBlockRows];
  alignas(64) float factor[kBlockRows];
  if (block.lanes == kLanes)
    for_overlapping_tiles<kScoreKeysOfFew, 4>(most, [&](auto count, Index k) {
      score_keys<1, count.value>(block.packed, tile, k, ahead, scores);
    });
  else
    for_overlapping_tiles<kScoreKeys, 1>(most, [&](auto count, Index k) {
      score_keys<2, count.value>(block.packed, tile, k, ahead, scores);
    });
  softmax_block(scores, most, visible, scale, block, factor);
  for_tiles<kValueRows>(block.rows, [&](auto rows, Index r) {
    seen_value_rows<rows.value>(scores[0] + r, factor + r, seen + r, tile, ahead,
                                state.out + (block.first + r) * state.out_stride, state.out_stride);
  });
}

// Rows of tiles that lie in place, more than this, go over all keys block by block: queries and
// results of a block stay in the first cache.
inline constexpr Index kRowsByTile = 4 * kBlockRows;

// Steps of RowsAhead beside one block and tile.
inline Index steps_ahead(const QueryBlock& block, const KeyValueRows& keys) {
  const Index width = keys.key_width + keys.tail_width;
  const Index together = block.lanes == kLanes ? kScoreKeysOfFew : kScoreKeys;
  return kTileKeys / together * ((width + kScoreDims - 1) / kScoreDims) +
         (block.rows + kValueRows - 1) / kValueRows *
             ((keys.value_width + kValueColumns * kLanes - 1) / (kValueColumns * kLanes));
}

inline void attend_many_tiles(const QueryRows& queries, const KeyValueRows& keys,
                              MakeTile make_tile, bool in_place, float softmax_scale,
                              const SoftmaxState& state, float* scratch) noexcept {
  const Index width = keys.key_width + keys.tail_width;
  float* const memory_of_tile = scratch;
  float* const blocks = scratch + tile_floats(keys.layout, width, keys.value_width);
  const bool by_block = in_place && queries.rows > kRowsByTile;
  const auto for_blocks = [&](const auto& body) {
    float* memory = blocks;
    for (Index first = 0; first < queries.rows; first += kBlockRows) {
      const Index left = queries.rows - first;
      const Index rows = left < kBlockRows ? left : kBlockRows;
      body(QueryBlock{first, rows, rows <= kLanes ? kLanes : kBlockRows, memory + 2 * kBlockRows,
                      memory, memory + kBlockRows});
      if (!by_block) memory += block_floats(width);
    }
  };
  const auto attend_tile = [&](const QueryBlock& block, const FloatTile& tile, Index first_key,
                               RowsAhead& ahead) {
    attend_block(queries, block, tile, first_key, softmax_scale * kLog2E, ahead, state);
  };

  if (by_block)
    return for_blocks([&](const QueryBlock& block) {
      start_block(queries, block, width, state);
      RowsAhead nothing;
      for_key_tiles(keys, [&](Index first_key, Index count) {
        attend_tile(block, make_tile(keys, first_key, count, nullptr), first_key, nothing);
      });
      finish_block(block, state);
    });
  Index steps = 1;
  for_blocks([&](const QueryBlock& block) {
    start_block(queries, block, width, state);
    steps += steps_ahead(block, keys);
  });
  for_key_tiles(keys, [&](Index first_key, Index count) {
    const FloatTile tile = make_tile(keys, first_key, count, memory_of_tile);
    const Index after = keys.count - first_key - count;
    RowsAhead ahead(keys, first_key + count, after < kTileKeys ? after : kTileKeys, steps);
    for_blocks([&](const QueryBlock& block) { attend_tile(block, tile, first_key, ahead); });
  });
  for_blocks([&](const QueryBlock& block) { finish_block(block, state); });
}

template <MakeTile kMakeTile>
void attend_many(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
                 const SoftmaxState& state, float* scratch) noexcept {
  const bool in_place = kMakeTile == &float_tile<float> && !keys.selected;
  attend_many_tiles(queries, keys, kMakeTile, in_place, softmax_scale, state, scratch);
}

// Scores of index keys, for sparse attention, in float32. The lanes are index heads: an element of
// a key is one broadcast, and only the weighted sum over the heads goes across lanes. Rows of other
// formats than float32 are widened once per tile.
// Needs: a vector type (vec/*.inl), for_tiles_or_ones (kernels.inl), for_key_tiles and tiles
// (attend/softmax.inl), RowsAhead (attend/rows_ahead.inl).

inline constexpr int kIndexVectors = 2;  // of heads, that are scored together
inline constexpr Index kIndexDims = 32;  // of a key, between two steps of RowsAhead
inline constexpr Index kIndexLanes = kIndexVectors * kLanes;

// By block of kIndexLanes heads: queries [width][kIndexLanes], weights [kIndexLanes]. Heads that
// are missing are 0.
inline Index index_packed_floats(Index heads, Index width) noexcept {
  return (heads + kIndexLanes - 1) / kIndexLanes * kIndexLanes * (width + 1);
}

inline void pack_index_queries(MatrixView<const float> queries, const float* weights,
                               float* packed) noexcept {
  for (Index first = 0; first < queries.rows; first += kIndexLanes) {
    const Index left = queries.rows - first;
    const Index heads = left < kIndexLanes ? left : kIndexLanes;
    for (Index i = 0; i < queries.cols; ++i, packed += kIndexLanes)
      for (Index h = 0; h < kIndexLanes; ++h) packed[h] = h < heads ? queries(first + h, i) : 0.0f;
    for (Index h = 0; h < kIndexLanes; ++h) packed[h] = h < heads ? weights[first + h] : 0.0f;
    packed += kIndexLanes;
  }
}

inline Index index_scratch(const RowLayout& layout, Index, Index width) noexcept {
  return tile_floats(layout, width, 0);
}

// sums[k] = or += weight * max(0, query . key[k]) for kKeys keys and a block of heads, lane by
// lane. NaN stays NaN.
template <int kKeys>
MLA_INLINE void score_index_keys(const float* block, const FloatTile& tile, Index k, bool add,
                                 RowsAhead& ahead, float (*sums)[kLanes]) {
  F32 acc[kKeys][kIndexVectors] = {};
  const float* const key = tile.key + k * tile.stride;
  for (Index i = 0; i < tile.key_width; ++i, block += kIndexLanes) {
    if (i % kIndexDims == 0) ahead.step();
    F32 q[kIndexVectors];
    MLA_UNROLL (v, kIndexVectors) q[v] = load(block + v * kLanes);
    MLA_UNROLL (j, kKeys) {
      const F32 x = set1(key[j * tile.stride + i]);
      MLA_UNROLL (v, kIndexVectors) acc[j][v] = fma(q[v], x, acc[j][v]);
    }
  }
  MLA_UNROLL (j, kKeys) {
    F32 sum = add ? load(sums[k + j]) : zero();
    MLA_UNROLL (v, kIndexVectors) sum = fma(max(zero(), acc[j][v]), load(block + v * kLanes), sum);
    store(sums[k + j], sum);
  }
}

// scores[k] = the lanes of sums[k] added.
[[gnu::noinline]] inline void add_index_lanes(const float (*sums)[kLanes], Index count,
                                              float* scores) noexcept {
  for_tiles_or_ones<4>(count, [&](auto keys, Index k) {
    if constexpr (keys.value == 4)
      reduce_add(load(sums[k]), load(sums[k + 1]), load(sums[k + 2]), load(sums[k + 3]),
                 scores + k);
    else
      scores[k] = reduce_add(load(sums[k]));
  });
}

inline void score_index_tiles(const IndexQueries& queries, const KeyValueRows& keys,
                              MakeTile make_tile, float* scores, float* scratch) noexcept {
  const Index width = queries.rows.cols;
  for_key_tiles(keys, [&](Index first_key, Index count) {
    alignas(64) float sums[kTileKeys][kLanes];
    const FloatTile tile = make_tile(keys, first_key, count, scratch);
    const Index after = keys.count - first_key - count;
    RowsAhead ahead(keys, first_key + count, after < kTileKeys ? after : kTileKeys,
                    (queries.rows.rows + kIndexLanes - 1) / kIndexLanes *
                        ((count + kScoreKeys - 1) / kScoreKeys) *
                        ((width + kIndexDims - 1) / kIndexDims));
    const float* block = queries.packed;
    for (Index h = 0; h < queries.rows.rows; h += kIndexLanes, block += kIndexLanes * (width + 1))
      for_tiles_or_ones<kScoreKeys>(count, [&](auto together, Index k) {
        score_index_keys<together.value>(block, tile, k, h > 0, ahead, sums);
      });
    add_index_lanes(sums, count, scores + first_key);
  });
}

template <MakeTile kMakeTile>
void score_index(const IndexQueries& queries, const KeyValueRows& keys, float* scores,
                 float* scratch) noexcept {
  score_index_tiles(queries, keys, kMakeTile, scores, scratch);
}

template <MakeTile kMakeTile>
inline constexpr IndexKernels kIndexKernels = {.arithmetic = Arithmetic::float32,
                                               .packed_floats = &index_packed_floats,
                                               .pack = &pack_index_queries,
                                               .score = &score_index<kMakeTile>,
                                               .scratch = &index_scratch};

// Attention of a few query rows over key rows: the lanes are dimensions, in scores and in the value
// product.
// Needs: dot_tile, multiply_tile, for_column_vectors (linear/float32.inl), for_key_tiles and tiles
// (attend/softmax.inl).

// scores[r][k] = scale * query[r] . key[k] for kRows queries and `count` keys.
template <int kRows, class T>
MLA_INLINE void score_tile(const float* query, Index query_stride, const KeyTile<T>& tile,
                           Index count, float scale, float (*scores)[kTileKeys]) {
  for_overlapping_tiles<kColTile, 1>(count, [&](auto cols, Index k) {
    F32 acc[kRows][cols.value] = {};
    for (const bool tail : {false, true})
      dot_tile(query + (tail ? tile.key_width : 0), query_stride,
               (tail ? tile.tail : tile.key) + k * tile.stride, tile.stride,
               tail ? tile.tail_width : tile.key_width, acc);
    float sums[kRows][cols.value];
    if constexpr (cols.value == 4)
      MLA_UNROLL (r, kRows) reduce_add(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums[r]);
    else
      MLA_UNROLL (r, kRows) sums[r][0] = reduce_add(acc[r][0]);
    MLA_UNROLL (r, kRows)
      MLA_UNROLL (c, cols.value) scores[r][k + c] = scale * sums[r][c];
  });
}

// Turns the first `count` >= 1 scores of a row into powers of two below the running maximum, and
// returns the factor that brings what was summed before to the new maximum.
[[gnu::noinline]] inline float softmax_row(float* scores, Index count, float& maximum,
                                           float& sum) noexcept {
  float peak = maximum;
  for (Index k = 0; k < count; ++k) peak = scores[k] > peak ? scores[k] : peak;
  F32 total = zero();
  Index k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    const F32 p = exp2_non_positive(load(scores + k) - set1(peak));
    store(scores + k, p);
    total = total + p;
  }
  if (k < count) {
    const Index rest = count - k;
    store_first(scores + k, exp2_non_positive(load_first(scores + k, rest) - set1(peak)), rest);
    total = total + load_first(scores + k, rest);
  }
  float factor[kLanes];
  store(factor, exp2_non_positive(set1(maximum - peak)));
  maximum = peak;
  sum = sum * factor[0] + reduce_add(total);
  return factor[0];
}

// out[r] = factor[r] * out[r] + sum_k scores[r][k] * value[k] over keys [first, + count).
template <int kRows, class T>
void value_tile(const float (*scores)[kTileKeys], const float* factor, Index first, Index count,
                const KeyTile<T>& tile, float* out, Index out_stride) noexcept {
  for_column_vectors<kColTile>(tile.value_width, [&](auto cols, Index c, const auto& vector) {
    F32 acc[kRows][cols.value];
    MLA_UNROLL (r, kRows)
      MLA_UNROLL (j, cols.value)
        acc[r][j] = set1(factor[r]) * vector.load_from(out + r * out_stride + c + j * kLanes);
    multiply_tile({scores[0] + first, kTileKeys, 1}, tile.value + first * tile.stride + c,
                  tile.stride, count, vector, acc);
    MLA_UNROLL (r, kRows)
      MLA_UNROLL (j, cols.value) vector.store_to(out + r * out_stride + c + j * kLanes, acc[r][j]);
  });
}

// Rows [first_row, + kRows) over the keys of one tile, whose first is key `first_key`.
template <int kRows, class T>
void attend_tile(const QueryRows& queries, Index first_row, const KeyTile<T>& tile, Index first_key,
                 float scale, const SoftmaxState& state) noexcept {
  Index visible[kRows];
  Index most = 0;
  Index common = tile.count;
  for (int r = 0; r < kRows; ++r) {
    const Index ahead = queries.visible[first_row + r] - first_key;
    visible[r] = ahead < 0 ? 0 : ahead < tile.count ? ahead : tile.count;
    most = visible[r] > most ? visible[r] : most;
    common = visible[r] < common ? visible[r] : common;
  }
  if (most == 0) return;

  alignas(64) float scores[kRows][kTileKeys];
  const float* query = queries.data + first_row * queries.stride;
  score_tile<kRows>(query, queries.stride, tile, most, scale, scores);
  float factor[kRows];
  for (int r = 0; r < kRows; ++r)
    factor[r] = visible[r] == 0 ? 1.0f
                                : softmax_row(scores[r], visible[r], state.maximum[first_row + r],
                                              state.sum[first_row + r]);
  // Up to `common` for all rows together, then row by row: no row touches a key it must not see.
  float* const out = state.out + first_row * state.out_stride;
  value_tile<kRows>(scores, factor, 0, common, tile, out, state.out_stride);
  const float one = 1.0f;
  for (int r = 0; r < kRows; ++r)
    if (visible[r] > common)
      value_tile<1>(scores + r, &one, common, visible[r] - common, tile, out + r * state.out_stride,
                    state.out_stride);
}

template <class T>
void attend_rows(const QueryRows& queries, const KeyTile<T>& tile, Index first_key, float scale,
                 const SoftmaxState& state) noexcept {
  for_tiles_or_ones<kRowTile>(queries.rows, [&](auto rows, Index r) {
    attend_tile<rows.value>(queries, r, tile, first_key, scale, state);
  });
}

inline void attend_tiles(const QueryRows& queries, const KeyValueRows& keys, MakeTile make_tile,
                         float softmax_scale, const SoftmaxState& state, float* scratch) noexcept {
  for_key_tiles(keys, [&](Index first_key, Index count) {
    attend_rows(queries, make_tile(keys, first_key, count, scratch), first_key,
                softmax_scale * kLog2E, state);
  });
}

// Rows as float32.
template <MakeTile kMakeTile>
void attend(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
            const SoftmaxState& state, float* scratch) noexcept {
  attend_tiles(queries, keys, kMakeTile, softmax_scale, state, scratch);
}

// Rows of plain elements where they lie, if they can be loaded from there at a gain; selected ones
// as float32.
template <class T>
void attend_in_place(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
                     const SoftmaxState& state, float* scratch) noexcept {
  if (keys.selected)
    return attend_tiles(queries, keys, &float_tile<T>, softmax_scale, state, scratch);
  for_key_tiles(keys, [&](Index first_key, Index count) {
    attend_rows(queries, tile_in_place<T>(keys, first_key, count), first_key,
                softmax_scale * kLog2E, state);
  });
}

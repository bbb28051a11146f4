// How rows become tiles for BFMMLA, which adds the products of two rows with two columns, each of
// four elements of the reduction, to 2 x 2 sums. Included inside a target region, in a namespace
// that has the NEON vectors, after bf16_tiles.inl.
// A and B tiles are alike: 16 places of 32 elements, of which place 2 * f + h has elements
// [4 * f, 4 * f + 4) of the reduction of rows (or columns) [8 * h, 8 * h + 8), row after row.

inline constexpr bool kRowsAreTiles = false;

// Eight elements rounded to nearest even.
MLA_INLINE uint16x8_t round_to_bf16(F32 a) {
  return vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(a.low), a.high));
}

// To nearest even.
MLA_INLINE void store_rounded(bfloat16* p, F32 a) { vst1q_u16(&p->bits, round_to_bf16(a)); }
MLA_INLINE void store_rounded(bfloat16* p, F32 low, F32 high) {
  store_rounded(p, low);
  store_rounded(p + kLanes, high);
}

// Elements [i, i + 8) of a row of n, 0 from n on.
MLA_INLINE uint16x8_t load_halves(const bfloat16* row, Index i, Index n) {
  if (i + kLanes <= n) return vld1q_u16(&row[i].bits);
  bfloat16 padded[kLanes] = {};
  for (Index j = i; j < n; ++j) padded[j - i] = row[j];
  return vld1q_u16(&padded->bits);
}

// The first, the second four elements of a, then of b.
MLA_INLINE uint16x8_t first_fours(uint16x8_t a, uint16x8_t b) {
  return vreinterpretq_u16_u64(vzip1q_u64(vreinterpretq_u64_u16(a), vreinterpretq_u64_u16(b)));
}
MLA_INLINE uint16x8_t second_fours(uint16x8_t a, uint16x8_t b) {
  return vreinterpretq_u16_u64(vzip2q_u64(vreinterpretq_u64_u16(a), vreinterpretq_u64_u16(b)));
}

// Four elements of the reduction, each a vector of eight rows, to their place in a tile.
MLA_INLINE void store_place(bfloat16* place, const uint16x8_t (&v)[4]) {
  const uint16x8_t even0 = vzip1q_u16(v[0], v[2]), even1 = vzip2q_u16(v[0], v[2]);
  const uint16x8_t odd0 = vzip1q_u16(v[1], v[3]), odd1 = vzip2q_u16(v[1], v[3]);
  vst1q_u16(&place->bits, vzip1q_u16(even0, odd0));
  vst1q_u16(&place[kLanes].bits, vzip2q_u16(even0, odd0));
  vst1q_u16(&place[2 * kLanes].bits, vzip1q_u16(even1, odd1));
  vst1q_u16(&place[3 * kLanes].bits, vzip2q_u16(even1, odd1));
}

// Up to 16 rows as the columns of B tiles.
MLA_INLINE void pack_columns(MatrixView<const float> x, bfloat16* tiles) {
  for (Index i = 0; i < round_up(x.cols, kTileDepth); i += kLanes)
    for (Index r = 0; r < kTileSide; r += 2) {
      const auto part = [&](Index row) {
        return round_to_bf16(row < x.rows ? load_within(x.row(row), i, x.cols) : zero());
      };
      const uint16x8_t a = part(r), b = part(r + 1);
      bfloat16* const to = tiles + i * kTileSide + r * 4;
      vst1q_u16(&to->bits, first_fours(a, b));
      vst1q_u16(&to[4 * kTileSide].bits, second_fours(a, b));
    }
}

// Elements [i, i + 8) of a key, its tail behind the rest, 0 after that.
MLA_INLINE uint16x8_t load_key(const KeyValueRows& keys, const bfloat16* row, Index i) {
  const bfloat16* const key = row + keys.key_offset;
  const bfloat16* const tail = row + keys.tail_offset;
  if (i + kLanes <= keys.key_width) return vld1q_u16(&key[i].bits);
  if (i >= keys.key_width) return load_halves(tail, i - keys.key_width, keys.tail_width);
  bfloat16 both[kLanes] = {};
  for (Index j = i; j < i + kLanes && j < keys.key_width + keys.tail_width; ++j)
    both[j - i] = j < keys.key_width ? key[j] : tail[j - keys.key_width];
  return vld1q_u16(&both->bits);
}

// Keys [first, + count) of the sequence as A tiles, whose places are `stride` apart; elements from
// their width up to `depth` are 0.
inline void pack_keys(const KeyValueRows& keys, Index first, Index count, Index depth, Index stride,
                      bfloat16* tiles) {
  for (Index k = 0; k < round_up(count, kTileSide); k += 2) {
    const bfloat16* const row0 = k < count ? key_row(keys, first + k) : nullptr;
    const bfloat16* const row1 = k + 1 < count ? key_row(keys, first + k + 1) : nullptr;
    for (Index i = 0; i < depth; i += kLanes) {
      const uint16x8_t a = row0 ? load_key(keys, row0, i) : vdupq_n_u16(0);
      const uint16x8_t b = row1 ? load_key(keys, row1, i) : vdupq_n_u16(0);
      const Index place = k / kTileSide * kTileSide + i % kTileDepth / 2 + k % kTileSide / kLanes;
      bfloat16* const to = tiles + place * stride + i / kTileDepth * kTileDepth + k % kLanes * 4;
      vst1q_u16(&to->bits, first_fours(a, b));
      vst1q_u16(&to[2 * stride].bits, second_fours(a, b));
    }
  }
}

// Values of keys [first, + count) as B tiles, whose columns are dimensions, kValueTiles apart.
// Returns whether all are finite.
inline bool pack_values(const KeyValueRows& keys, Index first, Index count, bfloat16* tiles) {
  const uint16x8_t exponent = vdupq_n_u16(0x7f80);
  uint16x8_t infinite = vdupq_n_u16(0);
  for (Index k = 0; k < round_up(count, kTileDepth); k += 4) {
    const bfloat16* rows[4];
    MLA_UNROLL (j, 4)
      rows[j] = k + j < count ? key_row(keys, first + k + j) + keys.value_offset : nullptr;
    for (Index c = 0; c < round_up(keys.value_width, kTileSide); c += kLanes) {
      uint16x8_t v[4];
      MLA_UNROLL (j, 4) {
        v[j] = rows[j] ? load_halves(rows[j], c, keys.value_width) : vdupq_n_u16(0);
        infinite = vorrq_u16(infinite, vceqq_u16(vandq_u16(v[j], exponent), exponent));
      }
      store_place(tiles + c / kTileSide * kValueTiles + k * kTileSide + c % kTileSide * 4, v);
    }
  }
  return vmaxvq_u16(infinite) == 0;
}

// Weights of keys [0, count) of a block, [keys][kBlockRows], as A tiles of its rows, 16 to a strip.
inline void pack_weights(const float (*weights)[kBlockRows], Index count, Index strips,
                         bfloat16* tiles) {
  for (Index k = 0; k < round_up(count, kTileDepth); k += 4)
    for (Index r = 0; r < strips * kTileSide; r += kLanes) {
      uint16x8_t v[4];
      MLA_UNROLL (j, 4) v[j] = round_to_bf16(load(weights[k + j] + r));
      store_place(tiles + r / kTileSide * kTileSide * kSpanKeys + k * kTileSide + r % kTileSide * 4,
                  v);
    }
}

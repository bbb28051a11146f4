// What attention of few and of many rows share: tiles of kTileKeys keys, and the exponential of
// online softmax (Milakov and Gimelshein 2018), in powers of two with log2(e) folded into the
// scale. Needs: a vector type (vec/*.inl), to_float (rows.inl).

inline constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0, relative error below 2e-7 (Cephes' exp2f); 2^-126 below that, NaN for NaN.
MLA_INLINE F32 exp2_non_positive(F32 x) {
  x = max(set1(-126.0f), x);
  const F32 n = round(x);
  const F32 f = x - n;
  F32 p = set1(1.535336188319500e-4f);
  p = fma(p, f, set1(1.339887440266574e-3f));
  p = fma(p, f, set1(9.618437357674640e-3f));
  p = fma(p, f, set1(5.550332471162809e-2f));
  p = fma(p, f, set1(2.402264791363012e-1f));
  p = fma(p, f, set1(6.931472028550421e-1f));
  p = fma(p, f, set1(1.0f));
  return p * pow2(n);
}

// Some keys and values in T, `stride` elements apart: element (k, i) of the keys is
// key[k * stride + i].
template <class T>
struct KeyTile {
  const T* key;
  const T* tail;
  const T* value;
  Index stride;
  Index count;
  Index key_width, tail_width, value_width;
};
using FloatTile = KeyTile<float>;

// Keys [first, + count) where they lie: rows of plain elements that follow each other.
template <class T>
MLA_INLINE KeyTile<T> tile_in_place(const KeyValueRows& keys, Index first, Index count) {
  const T* const row = reinterpret_cast<const T*>(keys.row_of(first));
  return {row + keys.key_offset,
          row + keys.tail_offset,
          row + keys.value_offset,
          keys.layout.bytes / static_cast<Index>(sizeof(T)),
          count,
          keys.key_width,
          keys.tail_width,
          keys.value_width};
}

MLA_INLINE Index round_up_to_lanes(Index n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Floats that a tile takes where it is made in memory; key_width includes the tail.
inline Index tile_floats(const RowLayout& layout, Index key_width, Index value_width) noexcept {
  const Index parts = key_width + value_width;
  return kTileKeys * round_up_to_lanes(parts > layout.width() ? parts : layout.width());
}

// Makes a tile of keys [first, + count) in float32.
using MakeTile = FloatTile (*)(const KeyValueRows& keys, Index first, Index count, float* memory);

// Rows of plain elements: in place if they can be, else their parts are widened to `memory`.
template <class T>
FloatTile float_tile(const KeyValueRows& keys, Index first, Index count, float* memory) {
  if constexpr (std::is_same_v<T, float>)
    if (!keys.selected) return tile_in_place<float>(keys, first, count);
  const Index width = keys.key_width + keys.tail_width;
  // A latent cache's value is part of its key: once is enough.
  const bool shared = keys.value_offset >= keys.key_offset &&
                      keys.value_offset + keys.value_width <= keys.key_offset + keys.key_width;
  const Index stride = round_up_to_lanes(width + keys.value_width);
  for (Index k = 0; k < count; ++k) {
    const T* const row = reinterpret_cast<const T*>(keys.row_of(first + k));
    float* const to = memory + k * stride;
    to_float(row + keys.key_offset, keys.key_width, to);
    to_float(row + keys.tail_offset, keys.tail_width, to + keys.key_width);
    if (!shared) to_float(row + keys.value_offset, keys.value_width, to + width);
  }
  const Index value = shared ? keys.value_offset - keys.key_offset : width;
  return {memory, memory + keys.key_width, memory + value,  stride,
          count,  keys.key_width,          keys.tail_width, keys.value_width};
}

// Rows of any format, by its one function.
inline FloatTile float_tile_of_any(const KeyValueRows& keys, Index first, Index count,
                                   float* memory) {
  const Index stride = round_up_to_lanes(keys.layout.width());
  for (Index k = 0; k < count; ++k)
    info_of(keys.layout.format).widen(keys.layout, keys.row_of(first + k), memory + k * stride);
  return {memory + keys.key_offset,
          memory + keys.tail_offset,
          memory + keys.value_offset,
          stride,
          count,
          keys.key_width,
          keys.tail_width,
          keys.value_width};
}

// Calls tile(first key, keys) for every tile of the keys.
template <class Tile>
MLA_INLINE void for_key_tiles(const KeyValueRows& keys, const Tile& tile) {
  for (Index first_key = 0, count; first_key < keys.count; first_key += count) {
    const Index left = keys.count - first_key;
    const Index in_page = keys.selected ? kTileKeys : keys.page_rows - first_key % keys.page_rows;
    count = in_page < left ? in_page : left;
    count = count < kTileKeys ? count : kTileKeys;
    tile(first_key, count);
  }
}

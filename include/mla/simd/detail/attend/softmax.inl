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

// From row to row of a tile that is made in memory: an odd number of vectors, so that rows fall
// into different sets of the caches.
MLA_INLINE Index tile_stride(Index width) {
  const Index vectors = (width + kLanes - 1) / kLanes;
  return (vectors + (vectors % 2 == 0)) * kLanes;
}

// Floats that a tile takes where it is made in memory; key_width includes the tail.
inline Index tile_floats(const RowLayout& layout, Index key_width, Index value_width) noexcept {
  const Index parts = key_width + value_width;
  return kTileKeys * tile_stride(parts > layout.width() ? parts : layout.width());
}

// Makes a tile of keys [first, + count) in float32.
using MakeTile = FloatTile (*)(const KeyValueRows& keys, Index first, Index count, float* memory);

// Parts of rows in memory: widen(row, offset, width, to) makes each.
template <class Widen>
MLA_INLINE FloatTile tile_of_parts(const KeyValueRows& keys, Index first, Index count,
                                   float* memory, const Widen& widen) {
  const Index width = keys.key_width + keys.tail_width;
  // A latent cache's value is part of its key: once is enough.
  const bool shared = keys.value_offset >= keys.key_offset &&
                      keys.value_offset + keys.value_width <= keys.key_offset + keys.key_width;
  const Index stride = tile_stride(shared ? width : width + keys.value_width);
  for (Index k = 0; k < count; ++k) {
    const std::byte* const row = keys.row_of(first + k);
    float* const to = memory + k * stride;
    widen(row, keys.key_offset, keys.key_width, to);
    widen(row, keys.tail_offset, keys.tail_width, to + keys.key_width);
    if (!shared) widen(row, keys.value_offset, keys.value_width, to + width);
  }
  const Index value = shared ? keys.value_offset - keys.key_offset : width;
  return {memory, memory + keys.key_width, memory + value,  stride,
          count,  keys.key_width,          keys.tail_width, keys.value_width};
}

// Rows of plain elements: in place if they can be.
template <class T>
FloatTile float_tile(const KeyValueRows& keys, Index first, Index count, float* memory) {
  if constexpr (std::is_same_v<T, float>)
    if (!keys.selected) return tile_in_place<float>(keys, first, count);
  return tile_of_parts(keys, first, count, memory,
                       [](const std::byte* row, Index offset, Index width, float* to) {
                         to_float(reinterpret_cast<const T*>(row) + offset, width, to);
                       });
}

// Rows that `widen` makes float32, as they are.
using WidenRow = void (*)(const RowLayout& layout, const std::byte* bytes, float* row) noexcept;
inline FloatTile tile_of_rows(const KeyValueRows& keys, Index first, Index count, float* memory,
                              WidenRow widen) noexcept {
  const Index stride = tile_stride(keys.layout.width());
  for (Index k = 0; k < count; ++k) widen(keys.layout, keys.row_of(first + k), memory + k * stride);
  return {memory + keys.key_offset,
          memory + keys.tail_offset,
          memory + keys.value_offset,
          stride,
          count,
          keys.key_width,
          keys.tail_width,
          keys.value_width};
}

// Rows of any format, by its one function.
inline FloatTile float_tile_of_any(const KeyValueRows& keys, Index first, Index count,
                                   float* memory) {
  return tile_of_rows(keys, first, count, memory, info_of(keys.layout.format).widen);
}

// Calls tile(first key, keys) for every tile of the keys.
template <class Tile>
MLA_INLINE void for_key_tiles(const KeyValueRows& keys, const Tile& tile) {
  for (Index first_key = 0, count; first_key < keys.count; first_key += count) {
    const Index left = keys.count - first_key;
    const Index in_page =
        keys.selected ? kTileKeys : keys.page_rows - (keys.first_row + first_key) % keys.page_rows;
    count = in_page < left ? in_page : left;
    count = count < kTileKeys ? count : kTileKeys;
    tile(first_key, count);
  }
}

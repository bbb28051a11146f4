// What both forms of attention share: online softmax (Milakov and Gimelshein 2018) over tiles of
// kTileKeys keys, in powers of two with log2(e) folded into the scale.

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

// Calls tile(first row, its number in the sequence, rows) for every tile of the keys.
template <class T, class Tile>
MLA_INLINE void for_key_tiles(const KeyValueRows<T>& keys, const Tile& tile) {
  for (Index first_key = 0, count; first_key < keys.count; first_key += count) {
    const Index place = first_key % keys.page_rows;
    const Index left = keys.count - first_key;
    count = keys.page_rows - place < left ? keys.page_rows - place : left;
    count = count < kTileKeys ? count : kTileKeys;
    tile(keys.pages[first_key / keys.page_rows] + place * keys.row_stride, first_key, count);
  }
}

// Keys and values of attention by AMX: keys are A tiles where they lie, if they can be; values are
// packed to B tiles, piece by piece, beside products. Included after tiles/amx_grids.inl.

// Up to kSpanKeys keys, which share a maximum.
struct KeySpan {
  Index first = 0, count = 0;
  const bfloat16* tiles[kSpanKeys / kTileSide] = {};  // the first of every 16 keys
  Index stride = 0;                                   // from key to key, in elements
  Index value_at = 0;                                 // from a key's first element to its value's

  const bfloat16* value(Index k) const {
    return tiles[k / kTileSide] + k % kTileSide * stride + value_at;
  }
};

// How the keys of a call become spans.
class KeySpans {
 public:
  // `row`: memory for a row, if they have to be made.
  KeySpans(const KeyValueRows& keys, MakeRow make_row, bfloat16* row)
      : keys_(keys),
        make_row_(make_row),
        row_(row),
        width_(keys.key_width + keys.tail_width),
        depth_(round_up(width_, kTileDepth)),
        shared_(keys.value_offset >= keys.key_offset &&
                keys.value_offset + keys.value_width <= keys.key_offset + keys.key_width),
        packed_stride_(packed_stride(width_, shared_ ? 0 : keys.value_width)),
        row_is_key_(make_row && keys.layout.width() == width_ && keys.key_offset == 0 &&
                    (keys.tail_width == 0 || keys.tail_offset == keys.key_width)),
        in_place_(
            !make_row && !keys.selected && width_ == depth_ &&
            (keys.tail_width == 0 || keys.tail_offset == keys.key_offset + keys.key_width) &&
            // No 16 keys lie in two pages.
            (keys.first_row % kTileSide == 0 || keys.first_row + keys.count <= keys.page_rows) &&
            kCopiedKeys * row_elements() <= kSpanKeys * packed_stride_) {}

  Index depth() const { return depth_; }
  bool in_place() const { return in_place_; }
  // Elements of memory that make() needs.
  static Index elements(Index width, Index value_width) {
    return kSpanKeys * packed_stride(width, value_width);
  }

  // Keys [first, + count), in whole tiles of 32 keys. What does not lie so is copied to `memory`.
  KeySpan make(Index first, Index count, bfloat16* memory) const {
    KeySpan span;
    span.first = first;
    span.count = count;
    span.stride = in_place_ ? row_elements() : packed_stride_;
    span.value_at = in_place_ || shared_ ? keys_.value_offset - keys_.key_offset : depth_;
    for (Index k = 0; k < round_up(count, kTileDepth); k += kTileSide) {
      if (in_place_ && k + kTileSide <= count) {
        span.tiles[k / kTileSide] = elements_of(first + k) + keys_.key_offset;
        continue;
      }
      span.tiles[k / kTileSide] = memory;
      for (Index i = k; i < k + kTileSide; ++i, memory += span.stride)
        if (i < count)
          pack(first + i, span.value_at, memory);
        else
          for (Index e = 0; e < depth_; e += kTileDepth)
            _mm512_storeu_si512(memory + e, _mm512_setzero_si512());
    }
    return span;
  }

  // Whether all values of a span are finite.
  bool finite(const KeySpan& span) const {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 infinite = 0;
    for (Index k = 0; k < span.count; ++k)
      for (Index i = 0; i < keys_.value_width; i += kTileDepth) {
        const __m512i v = load_halves(span.value(k), i, keys_.value_width);
        infinite |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(v, exponent), exponent);
      }
    return infinite == 0;
  }

 private:
  static constexpr Index kRowsAhead = 3;
  static constexpr Index kCopiedKeys = 2 * kTileSide;  // of a span that lies in place, at most

  // With room for a value that is not part of its key. An odd number of cache lines: rows of a tile
  // fall into different sets.
  static Index packed_stride(Index width, Index value_width) {
    const Index elements = round_up(width, kTileDepth) + round_up(value_width, kTileDepth);
    return elements + (elements / kTileDepth % 2 == 0) * kTileDepth;
  }

  Index row_elements() const { return keys_.layout.bytes / 2; }
  const bfloat16* elements_of(Index k) const {
    return reinterpret_cast<const bfloat16*>(keys_.row_of(k));
  }

  static void copy(const bfloat16* from, Index n, bfloat16* to) {
    for (Index i = 0; i < n; i += kTileDepth)
      _mm512_mask_storeu_epi16(to + i, first_halves(n - i), load_halves(from, i, n));
  }

  // A row that will be made soon comes into the first cache.
  void ask_for(Index k) const {
    if (k >= keys_.count) return;
    const std::byte* const row = keys_.row_of(k);
    for (Index at = 0; at < keys_.layout.bytes; at += 64) __builtin_prefetch(row + at);
  }

  // A key, 0 up to whole tiles, and its value.
  void pack(Index k, Index value_at, bfloat16* to) const {
    const bfloat16* row = make_row_ ? row_ : elements_of(k);
    if (make_row_) ask_for(k + kRowsAhead);
    if (row_is_key_) {
      row = to;
      make_row_(keys_.layout, keys_.row_of(k), to);
    } else {
      if (make_row_) make_row_(keys_.layout, keys_.row_of(k), row_);
      copy(row + keys_.key_offset, keys_.key_width, to);
      copy(row + keys_.tail_offset, keys_.tail_width, to + keys_.key_width);
    }
    _mm512_mask_storeu_epi16(to + width_, first_halves(depth_ - width_), _mm512_setzero_si512());
    if (value_at < 0 || value_at + keys_.value_width > keys_.key_width)
      copy(row + keys_.value_offset, keys_.value_width, to + value_at);
  }

  const KeyValueRows& keys_;
  MakeRow make_row_;
  bfloat16* row_;
  Index width_, depth_;
  bool shared_;  // a latent cache's value is part of its key
  Index packed_stride_;
  bool row_is_key_;  // a made row needs no copy
  bool in_place_;
};

// Packs the values of a span to B tiles, piece by piece: 32 keys of a column of 32 dimensions,
// which are two tiles. Pairs of keys are interleaved within the quarters of a vector, so within a
// column results are not in the order of the dimensions: see to_dimensions(). Keys from `limit` on
// count as 0.
class ValuePacking {
 public:
  // From column to column, in elements: a cache line more than a power of two, which would crowd
  // few sets.
  static constexpr Index kSide = kSpanKeys * kTileDepth + kTileDepth;
  static constexpr Index kTile = kTileSide * kTileDepth;  // elements

  ValuePacking(const KeySpan& span, Index limit, Index value_width, bfloat16* tiles)
      : span_(span),
        limit_(limit),
        width_(value_width),
        columns_((value_width + kTileDepth - 1) / kTileDepth),
        tiles_(tiles) {}

  Index width() const { return width_; }
  // All pieces of keys from `key` on.
  void from(Index key) const {
    for (; key < limit_; key += kTileDepth)
      for (Index column = 0; column < columns_; ++column) piece(key, column);
  }

  MLA_INLINE void piece(Index key, Index column) const {
    if (key >= limit_ || column >= columns_) return;
    bfloat16* to = tiles_ + column * kSide + key * kTileDepth;
    if (key + kTileDepth > limit_ || (column + 1) * kTileDepth > width_)
      return edge_piece(key, column, to);
    const Index stride = span_.stride;
    for (Index half = 0; half < kTileDepth; half += kTileSide) {
      const bfloat16* from = span_.value(key + half) + column * kTileDepth;
      MLA_UNROLL (i, kTileSide / 2) {
        interleave(_mm512_loadu_si512(from), _mm512_loadu_si512(from + stride), to);
        from += 2 * stride;
        to += kTileDepth;
      }
    }
  }

  // Of 32 columns the first and second vector of results, as they come and in order.
  static MLA_INLINE void to_dimensions(F32& first, F32& second) {
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    reorder(low, first, second);
  }
  static MLA_INLINE void from_dimensions(F32& first, F32& second) {
    const __m512i low = _mm512_set_epi32(27, 26, 25, 24, 19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0);
    const F32 x = first;
    first.v = _mm512_permutex2var_ps(x.v, low, second.v);
    second.v = _mm512_permutex2var_ps(x.v, _mm512_add_epi32(low, _mm512_set1_epi32(4)), second.v);
  }

 private:
  static MLA_INLINE void interleave(__m512i even, __m512i odd, bfloat16* to) {
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(even, odd));
    _mm512_storeu_si512(to + kTile, _mm512_unpackhi_epi16(even, odd));
  }

  [[gnu::noinline]] void edge_piece(Index key, Index column, bfloat16* to) const {
    const auto row = [&](Index k) {
      return k < limit_ ? load_halves(span_.value(k), column * kTileDepth, width_)
                        : _mm512_setzero_si512();
    };
    for (Index k = key; k < key + kTileDepth; k += 2, to += kTileDepth)
      interleave(row(k), row(k + 1), to);
  }

  static MLA_INLINE void reorder(__m512i low, F32& first, F32& second) {
    const F32 x = first;
    first.v = _mm512_permutex2var_ps(x.v, low, second.v);
    second.v = _mm512_permutex2var_ps(x.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), second.v);
  }

  const KeySpan& span_;
  Index limit_, width_, columns_;
  bfloat16* tiles_;
};

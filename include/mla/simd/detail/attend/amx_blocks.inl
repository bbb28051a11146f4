// Blocks of query rows in attention by AMX: their memory, the order in which they go over the keys,
// what begins and ends them. Included after amx_softmax.inl.

inline constexpr Index kResultTile = kTileSide * kTileSide;  // floats

// What is kept of a block.
struct alignas(64) BlockContext {
  Index first, rows;  // of the queries
  float* maximum;     // [kBlockRows]
  float* sum;         // [kBlockRows]
  bfloat16* queries;  // [strips][depth / 32] B tiles, multiplied by the scale
  float* results;     // [columns][strips][2] C tiles; a column is 32 dimensions
  bool empty;         // there are no results yet

  Index strips() const { return rows <= kTileSide ? 1 : 2; }
};

struct AttendSizes {
  Index width, value_width;

  Index depth() const { return round_up(width, kTileDepth); }
  Index columns() const { return round_up(value_width, kTileDepth) / kTileDepth; }
  // In floats:
  Index keys() const { return KeySpans::elements(width, value_width) / 2; }
  Index values() const { return columns() * ValuePacking::kSide / 2; }
  Index queries() const { return kBlockRows * depth() / 2; }
  Index results() const { return kBlockRows * columns() * kTileDepth; }
  Index context() const {
    return static_cast<Index>(sizeof(BlockContext) / sizeof(float)) + 2 * kBlockRows + queries() +
           results();
  }
};

// The scratch memory of a call. Every part begins at a cache line.
struct AttendMemory {
  // Few rows go over the keys span by span: values are packed once for all of them. More rows do so
  // block by block, while queries and results stay in the first cache; the values of up to kSpans
  // spans are packed before.
  static constexpr Index kRowsBySpan = 256, kSpans = 8;

  AttendSizes sizes;
  Index value_buffers;
  bfloat16* row;         // of KeySpans
  bfloat16* keys[2];     // of KeySpans::make()
  bfloat16* values;      // [value_buffers][columns], ValuePacking::kSide apart
  bfloat16* weights[2];  // [strips][kSpanKeys / 32] A tiles
  float* scores[2];      // [kSpanKeys][strips * 16]
  float* spare;          // of Grids
  float* guarded[2];     // results of a block
  float* contexts;

  static Index floats(const RowLayout& layout, Index rows, Index width, Index value_width) {
    const AttendSizes sizes = {width, value_width};
    const Index blocks = (rows + kBlockRows - 1) / kBlockRows;
    const Index by_span = 2 * sizes.values() + blocks * sizes.context();
    const Index by_block = kSpans * sizes.values() + 3 * sizes.context();
    return round_up(layout.width(), kTileDepth) / 2 + 2 * sizes.keys() +
           3 * kBlockRows * kSpanKeys + 4 * kResultTile + 2 * sizes.results() +
           (rows > kRowsBySpan && by_block > by_span ? by_block : by_span);
  }

  AttendMemory(const AttendSizes& of, const RowLayout& layout, float* memory) : sizes(of) {
    const auto take = [&](Index floats) {
      float* const part = memory;
      memory += floats;
      return part;
    };
    const auto take_bf16 = [&](Index floats) { return reinterpret_cast<bfloat16*>(take(floats)); };
    row = take_bf16(round_up(layout.width(), kTileDepth) / 2);
    for (bfloat16*& part : keys) part = take_bf16(sizes.keys());
    for (bfloat16*& part : weights) part = take_bf16(kBlockRows * kSpanKeys / 2);
    for (float*& part : scores) part = take(kBlockRows * kSpanKeys);
    spare = take(4 * kResultTile);
    for (float*& part : guarded) part = take(sizes.results());
    values = reinterpret_cast<bfloat16*>(memory);
    set_order(false, 1);
  }

  void set_order(bool by_block, Index blocks) {
    value_buffers = by_block ? kSpans : blocks == 1 ? 2 : 1;
    contexts = reinterpret_cast<float*>(values) + value_buffers * sizes.values();
  }

  bfloat16* values_of(Index span) const {
    return values + span % value_buffers * 2 * sizes.values();
  }
};

// The blocks of a call, and units of them in order.
class QueryBlocks {
 public:
  QueryBlocks(const QueryRows& queries, float scale, const SoftmaxState& state,
              const AttendMemory& memory, bool by_block)
      : queries_(queries), scale_(scale), state_(state), memory_(memory), by_block_(by_block) {}

  Index count() const { return (queries_.rows + kBlockRows - 1) / kBlockRows; }

  // Goes over keys [first, + keys).
  void begin(Index first, Index keys) {
    first_ = first;
    keys_ = keys;
    block_ = span_ = active_ = 0;
  }

  // The next block that sees a key of the next span; false after the last.
  bool next(BlockUnit& unit) {
    const Index spans = (keys_ + kSpanKeys - 1) / kSpanKeys;
    while (by_block_ ? block_ < count() : span_ < spans) {
      const Index block = block_, span = span_, context = by_block_ ? active_ % 3 : block;
      const Index spans_here = spans_of(block);
      if (by_block_ && span + 1 < spans_here) {
        ++span_;
      } else if (by_block_) {
        span_ = 0;
        ++block_;
        active_ += spans_here > 0;
      } else if (++block_ == count()) {
        block_ = 0;
        ++span_;
      }
      if (span >= spans_here) continue;
      unit.context = context;
      unit.span = span;
      unit.last = span + 1 == spans_here;
      if (span == 0) start(block, of(unit));
      see(of(unit), span, unit);
      return true;
    }
    return false;
  }

  BlockContext& of(const BlockUnit& unit) const {
    return *reinterpret_cast<BlockContext*>(memory_.contexts +
                                            unit.context * memory_.sizes.context());
  }

  // Of a row of a block, vector by vector: body(vector of `results`, vector of `other`).
  template <class Body>
  static MLA_INLINE void for_row(const AttendSizes& sizes, Index strips, Index r, float* results,
                                 float* other, const Body& body) {
    const Index at = r / kTileSide * 2 * kResultTile + r % kTileSide * kTileSide;
    for (Index c = 0; c < 2 * sizes.columns(); ++c) {
      const Index vector = at + (c / 2 * strips * 2 + c % 2) * kResultTile;
      body(results + vector, other + vector);
    }
  }

  void rescale(const BlockUnit& unit) const {
    const BlockContext& block = of(unit);
    if (block.empty) return;
    for (Index r = 0; r < block.rows; ++r)
      if (unit.factor[r] != 1.0f)
        for_row(
            memory_.sizes, unit.strips, r, block.results, block.results,
            [&](float* to, const float* from) { store(to, load(from) * set1(unit.factor[r])); });
  }

  // Gives back what softmax knows of the rows of a unit's block, and their results.
  void finish(const BlockUnit& unit) const {
    const BlockContext& block = of(unit);
    const Index width = memory_.sizes.value_width;
    for (Index r = 0; r < block.rows; ++r) {
      state_.maximum[block.first + r] = block.maximum[r];
      state_.sum[block.first + r] = block.sum[r];
      const float* from =
          block.results + r / kTileSide * 2 * kResultTile + r % kTileSide * kTileSide;
      float* to = state_.out + (block.first + r) * state_.out_stride;
      for (Index i = 0; i < width; i += kTileDepth, from += block.strips() * 2 * kResultTile) {
        // Products with keys that only other rows see are 0, but make 0 of -0: so do it always.
        F32 low = load(from) + zero(), high = load(from + kResultTile) + zero();
        ValuePacking::to_dimensions(low, high);
        store_within(to, i, width, low);
        store_within(to, i + kLanes, width, high);
      }
    }
  }

 private:
  // Spans of whose keys a block sees some: the first ones.
  Index spans_of(Index block) const {
    Index most = 0;
    for (Index r = block * kBlockRows; r < queries_.rows && r < (block + 1) * kBlockRows; ++r)
      most = queries_.visible[r] - first_ > most ? queries_.visible[r] - first_ : most;
    return ((most < keys_ ? most : keys_) + kSpanKeys - 1) / kSpanKeys;
  }

  void see(const BlockContext& block, Index span, BlockUnit& unit) const {
    const Index first = span * kSpanKeys, left = keys_ - first;
    const Index count = left < kSpanKeys ? left : kSpanKeys;
    Index most = 0, least = count;
    for (Index r = 0; r < kBlockRows; ++r) {
      unit.seen[r] = 0;
      if (r >= block.rows) continue;
      const Index ahead = queries_.visible[block.first + r] - first_ - first;
      const Index seen = ahead < 0 ? 0 : ahead < count ? ahead : count;
      unit.seen[r] = static_cast<int>(seen);
      most = seen > most ? seen : most;
      least = seen < least ? seen : least;
    }
    unit.strips = block.strips();
    unit.keys = round_up(most, kTileDepth);
    unit.masked = least < unit.keys;
    unit.hidden = least < (unit.keys < count ? unit.keys : count);
  }

  void start(Index number, BlockContext& block) const {
    float* memory = reinterpret_cast<float*>(&block + 1);
    const auto take = [&](Index floats) {
      float* const part = memory;
      memory += floats;
      return part;
    };
    const Index first = number * kBlockRows, left = queries_.rows - first;
    const AttendSizes& sizes = memory_.sizes;
    block.first = first;
    block.rows = left < kBlockRows ? left : kBlockRows;
    block.maximum = take(kBlockRows);
    block.sum = take(kBlockRows);
    block.queries = reinterpret_cast<bfloat16*>(take(sizes.queries()));
    block.results = take(sizes.results());
    block.empty = true;
    for (Index r = 0; r < kBlockRows; ++r) {
      const bool used = r < block.rows;
      block.maximum[r] = used ? state_.maximum[first + r] : 0.0f;
      block.sum[r] = used ? state_.sum[first + r] : 0.0f;
      block.empty = block.empty && block.sum[r] == 0.0f;
    }
    for (Index strip = 0; strip < block.strips(); ++strip) {
      const Index rows = block.rows - strip * kTileSide;
      pack_columns({queries_.data + (first + strip * kTileSide) * queries_.stride,
                    rows < kTileSide ? rows : kTileSide, sizes.width, queries_.stride},
                   block.queries + strip * kTileSide * sizes.depth(), kTileSide, scale_);
    }
    if (!block.empty) load_results(block);
  }

  void load_results(const BlockContext& block) const {
    const Index width = memory_.sizes.value_width;
    for (Index r = 0; r < block.strips() * kTileSide; ++r) {
      float* to = block.results + r / kTileSide * 2 * kResultTile + r % kTileSide * kTileSide;
      const float* from = state_.out + (block.first + r) * state_.out_stride;
      for (Index i = 0; i < width; i += kTileDepth, to += block.strips() * 2 * kResultTile) {
        F32 low = r < block.rows ? load_within(from, i, width) : zero();
        F32 high = r < block.rows ? load_within(from, i + kLanes, width) : zero();
        ValuePacking::from_dimensions(low, high);
        store(to, low);
        store(to + kResultTile, high);
      }
    }
  }

  // Elements [i, i + kLanes) of a row of n.
  static MLA_INLINE void store_within(float* row, Index i, Index n, F32 x) {
    if (i + kLanes <= n)
      store(row + i, x);
    else if (i < n)
      store_first(row + i, x, n - i);
  }

  const QueryRows& queries_;
  float scale_;
  const SoftmaxState& state_;
  const AttendMemory& memory_;
  bool by_block_;
  Index first_ = 0, keys_ = 0;
  Index block_ = 0, span_ = 0;
  Index active_ = 0;  // blocks that see anything, so far
};

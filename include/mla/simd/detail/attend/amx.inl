// attend_many() over a cache of bfloat16, or of rows that are made such, by AMX. Queries, and
// weights after the softmax, are rounded to bfloat16; scores, sums and results are float32. The
// unit of work is a block of up to 32 rows and a span of 256 keys:
//   score  S = K Q^T, so that the lanes of scores and softmax are rows
//   weigh  P = 2^(S - maximum), transposed to A tiles
//   add    O += P V
// Products run beside the vector work of another unit, step by step. Included after
// amx_blocks.inl.

// Weighing, spread evenly over so many steps of products.
struct PacedWeighing {
  Weighing& weighing;
  Index pieces, steps, credit = 0;

  MLA_INLINE void step() {
    for (credit += pieces; credit >= steps; credit -= steps) weighing.step();
  }
};

// Weighing of another unit or, where there is `packing`, that of the values whose keys are being
// multiplied, while these are in the first cache.
struct ScoreWork {
  PacedWeighing weighing;
  const ValuePacking* packing;

  MLA_INLINE void step(Index key, Index depth) {
    if (packing)
      packing->piece(key, depth);
    else
      weighing.step();
  }
};

// What goes on beside the products of a unit's scores.
template <int kStrips>
struct BesideScores {
  Peaks<kStrips>& peaks;
  ScoreWork work;
  RowsAhead& ahead;
  const float* done = nullptr;  // scores of 32 keys that are complete with the grid before
  Index done_key = 0;
  Index key = 0, depth = 0;  // of the step

  MLA_INLINE void begun() {
    if (done) peaks.take(done, done_key);
  }
  MLA_INLINE void step() {
    ahead.step();
    work.step(key, depth++);
  }
};

// And beside the products with the values.
struct BesideValues {
  PacedWeighing weighing;
  RowsAhead& ahead;

  MLA_INLINE void begun() {}
  MLA_INLINE void step() {
    ahead.step();
    weighing.step();
  }
};

class AmxAttend {
 public:
  AmxAttend(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
            const SoftmaxState& state, MakeRow make_row, float* scratch)
      : keys_(keys),
        memory_({keys.key_width + keys.tail_width, keys.value_width}, keys.layout, scratch),
        spans_(keys, make_row, memory_.row),
        by_block_(queries.rows > AttendMemory::kRowsBySpan && spans_.in_place()),
        blocks_(queries, softmax_scale * kLog2E, state, memory_, by_block_) {
    memory_.set_order(by_block_, blocks_.count());
  }

  // Where blocks go over all spans one by one, so many keys at a time.
  void run() {
    const Index most = by_block_ ? AttendMemory::kSpans * kSpanKeys : keys_.count;
    for (Index first = 0; first < keys_.count; first += most)
      run(first, keys_.count - first < most ? keys_.count - first : most);
  }

 private:
  // Keys [first, + count). In each round a unit is scored, one is weighed and one is added. By
  // spans, a unit is weighed in the round in which it is scored, and values are packed beside
  // scores. By blocks, where there are fewer products for each weight, it is weighed in the next
  // round, beside both products.
  void run(Index first, Index count) {
    first_ = first;
    count_ = count;
    made_ = packed_ = 0;
    blocks_.begin(first, count);
    for (Index s = 0; by_block_ && s * kSpanKeys < count; ++s) {
      begin_span(s);
      packing_of(s).from(0);
    }
    BlockUnit units[3];
    BlockUnit *before = nullptr, *before_that = nullptr;
    for (Index i = 0;; ++i) {
      BlockUnit* const scored = blocks_.next(units[i % 3]) ? &units[i % 3] : nullptr;
      BlockUnit* const weighed = by_block_ ? before : scored;
      BlockUnit* const added = by_block_ ? before_that : before;
      if (!scored && !weighed && !added) return;
      if (scored) begin_span(scored->span);
      Weighing weighing;
      if (by_block_) {
        weighing = weighing_of(weighed, i - 1);
        if (scored) score_and_weigh(*scored, added, i, weighing);
      } else {
        if (scored) score_and_pack(*scored, added, i);
        weighing = weighing_of(weighed, i);
      }
      if (added) add(*added, by_block_ ? i - 2 : i - 1, weighing);
      weighing.finish();
      tiles_are_written(memory_.weights[0]);
      // After the unit before was added, which may be of the same block.
      if (weighed && weighed->moved) blocks_.rescale(*weighed);
      before_that = before;
      before = scored;
    }
  }

  KeySpan& span_of(Index s) { return span_[s % AttendMemory::kSpans]; }

  void begin_span(Index s) {
    if (s < made_) return;
    made_ = s + 1;
    const Index first = s * kSpanKeys, left = count_ - first;
    const Index count = left < kSpanKeys ? left : kSpanKeys, after = left - count;
    span_of(s) = spans_.make(first_ + first, count, memory_.keys[s % 2]);
    if (!by_block_)
      ahead_ = RowsAhead(keys_, first_ + first + count, after < kSpanKeys ? after : kSpanKeys,
                         blocks_.count() * (score_steps(kSpanKeys) + add_steps(kSpanKeys)));
  }

  ValuePacking packing_of(Index s) {
    packed_ = s + 1;
    return {span_of(s), span_of(s).count, keys_.value_width, memory_.values_of(s)};
  }

  Weighing weighing_of(const BlockUnit* unit, Index number) {
    if (!unit) return {};
    const BlockContext& block = blocks_.of(*unit);
    return {*unit, scores_of(number), block.maximum, block.sum, memory_.weights[number % 2]};
  }
  float* scores_of(Index number) { return memory_.scores[by_block_ ? number % 2 : 0]; }

  Index score_steps(Index keys) const { return keys / kTileDepth * (spans_.depth() / kTileDepth); }
  Index add_steps(Index keys) const { return keys / kTileDepth * memory_.sizes.columns(); }

  // Weighing goes beside scores as far as there are more of these than products with values.
  void score_and_weigh(BlockUnit& scored, const BlockUnit* added, Index number,
                       Weighing& weighing) {
    const Index here = score_steps(scored.keys), there = added ? add_steps(added->keys) : 0;
    score(scored, number, {{weighing, weighing.pieces() * here / (here + there), here}, nullptr});
  }

  // With one buffer of values it is free when the last unit of the span before has been added:
  // beside the scores of a span's second block. With two, which a single block has, beside its own.
  void score_and_pack(BlockUnit& scored, const BlockUnit* added, Index number) {
    const BlockUnit* const of = memory_.value_buffers == 2 ? &scored : added;
    Weighing none;
    const PacedWeighing nothing = {none, 0, 1};
    if (!of || of->span < packed_) return score(scored, number, {nothing, nullptr});
    const ValuePacking packing = packing_of(of->span);
    const bool matched = of->span == scored.span;
    score(scored, number, {nothing, matched ? &packing : nullptr});
    if (!matched || spans_.depth() < packing.width())
      packing.from(0);
    else
      packing.from(scored.keys);
  }

  void score(BlockUnit& unit, Index number, const ScoreWork& work) {
    const BlockContext& block = blocks_.of(unit);
    tiles_are_written(block.queries);
    if (unit.strips == 2)
      score_strips<2>(unit, block.queries, scores_of(number), work);
    else
      score_strips<1>(unit, block.queries, scores_of(number), work);
    move_maximum(unit, block.maximum, block.sum);
  }

  template <int kStrips>
  void score_strips(BlockUnit& unit, const bfloat16* queries, float* scores,
                    const ScoreWork& work) {
    constexpr Index kRow = kStrips * kTileSide, kTile = ValuePacking::kTile;
    const KeySpan& span = span_of(unit.span);
    const Index steps = spans_.depth() / kTileDepth;
    // Half of a long reduction at a time: the queries of that stay in the first cache.
    const Index part = steps > 10 ? (steps + 1) / 2 : steps;
    Peaks<kStrips> peaks(unit);
    BesideScores<kStrips> beside = {peaks, work, ahead_};
    Grids<2, kStrips> grids(memory_.spare, kRow, kTileSide * kRow, kTileSide);
    for (Index s = 0; s < steps; s += part)
      for (Index k = 0; k < unit.keys; k += kTileDepth) {
        const bfloat16* const* const tiles = span.tiles + k / kTileSide;
        const bfloat16* const b = queries + s * kTile;
        beside.key = k;
        beside.depth = s;
        beside.done_key = k - kTileDepth;
        beside.done = s + part >= steps && k > 0 ? scores + beside.done_key * kRow : nullptr;
        grids.multiply({{tiles[0] + s * kTileDepth, tiles[1] + s * kTileDepth},
                        {b, b + steps * kTile},
                        span.stride,
                        kTileDepth,
                        kTile},
                       steps - s < part ? steps - s : part, s > 0, scores + k * kRow, beside);
      }
    grids.finish();
    const Index last = unit.keys - kTileDepth;
    peaks.take(scores + last * kRow, last);
    peaks.keep(unit);
  }

  void add(BlockUnit& unit, Index number, Weighing& weighing) {
    if (unit.span >= packed_) packing_of(unit.span).from(0);
    tiles_are_written(memory_.values);
    BlockContext& block = blocks_.of(unit);
    if (unit.hidden && !spans_.finite(span_of(unit.span)))
      guarded_add(unit, block, number);
    else
      add(unit, block.results, !block.empty, number, weighing);
    block.empty = false;
    if (unit.last) blocks_.finish(unit);
  }

  void add(const BlockUnit& unit, float* results, bool more, Index number, Weighing& weighing) {
    if (unit.strips == 2)
      add_strips<2>(unit, results, more, memory_.weights[number % 2], weighing);
    else
      add_strips<1>(unit, results, more, memory_.weights[number % 2], weighing);
  }

  template <int kStrips>
  void add_strips(const BlockUnit& unit, float* results, bool more, const bfloat16* weights,
                  Weighing& weighing) {
    constexpr Index kTile = ValuePacking::kTile;
    const bfloat16* values = memory_.values_of(unit.span);
    BesideValues beside = {{weighing, weighing.pieces(), add_steps(unit.keys)}, ahead_};
    Grids<kStrips, 2> grids(memory_.spare, kTileSide, 2 * kResultTile, kResultTile);
    for (Index c = 0; c < memory_.sizes.columns(); ++c) {
      grids.multiply({{weights, weights + kTileSide * kSpanKeys},
                      {values, values + kTile},
                      kTileDepth,
                      kTile,
                      2 * kTile},
                     unit.keys / kTileDepth, more, results, beside);
      values += ValuePacking::kSide;
      results += kStrips * 2 * kResultTile;
    }
    grids.finish();
  }

  // Where a value is infinite or NaN and some row must not see it: 0 times it would be NaN. Rows
  // that see the same keys are computed with these alone, the others of a tile being 0.
  [[gnu::cold]] void guarded_add(const BlockUnit& unit, const BlockContext& block, Index number) {
    const KeySpan& span = span_of(unit.span);
    float* const results = memory_.guarded[0];
    float* const some_rows = memory_.guarded[1];
    const Index floats = memory_.sizes.results();
    for (Index i = 0; i < floats; i += kLanes)
      store(results + i, block.empty ? zero() : load(block.results + i));
    Weighing none;
    for (Index r = 0, end; r < block.rows; r = end) {
      for (end = r + 1; end < block.rows && unit.seen[end] == unit.seen[r];) ++end;
      if (unit.seen[r] == 0) continue;
      BlockUnit part = unit;
      part.keys = round_up(unit.seen[r], kTileDepth);
      ValuePacking(span, unit.seen[r], keys_.value_width, memory_.values_of(unit.span)).from(0);
      for (Index i = 0; i < floats; i += kLanes) store(some_rows + i, load(block.results + i));
      tiles_are_written(some_rows);
      add(part, some_rows, !block.empty, number, none);
      for (Index row = r; row < end; ++row)
        QueryBlocks::for_row(memory_.sizes, unit.strips, row, results, some_rows,
                             [](float* to, const float* from) { store(to, load(from)); });
    }
    for (Index i = 0; i < floats; i += kLanes) store(block.results + i, load(results + i));
    ValuePacking(span, span.count, keys_.value_width, memory_.values_of(unit.span)).from(0);
  }

  const KeyValueRows& keys_;
  AttendMemory memory_;
  KeySpans spans_;
  bool by_block_;
  QueryBlocks blocks_;
  Index first_ = 0, count_ = 0;  // keys of run()
  Index made_ = 0, packed_ = 0;  // spans
  KeySpan span_[AttendMemory::kSpans];
  RowsAhead ahead_;
};

// A call's results go through memory once more: as long as that takes, many keys are multiplied.
inline constexpr Index kPartKeys = 2048;

inline void attend_made_rows(const QueryRows& queries, const KeyValueRows& keys,
                             float softmax_scale, const SoftmaxState& state, MakeRow make_row,
                             float* scratch) noexcept {
  if (queries.rows == 0 || keys.count == 0) return;
  begin_products();
  AmxAttend(queries, keys, softmax_scale, state, make_row, scratch).run();
  end_products();
}

inline Index attend_many_bf16_scratch(const RowLayout& layout, Index rows, Index key_width,
                                      Index value_width) noexcept {
  return AttendMemory::floats(layout, rows, key_width, value_width);
}

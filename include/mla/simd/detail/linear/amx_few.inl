// linear() by AMX for few tokens, where memory is the limit.
// Needs: linear/amx_tiles.inl.
//
// A strip is multiplied by all tokens while its weights come from memory, once: by up to four
// groups in a pass, a second pass finds them in the second cache. Tile registers of a pass: 4 is A;
// its last group has C in 3 and B in 7, whose columns are that group's tokens.

// What is asked for while a strip is multiplied where it lies: its rows some steps ahead, then the
// first of the next strip's. `left` steps in all, `own` of this strip.
struct RowsAhead {
  const bfloat16* at;
  Index stride, own;
  const bfloat16* next;
  Index left;

  MLA_INLINE void step() {
    if (left == 0) return;
    if (own == 0) at = next;
    --left, --own;
    MLA_UNROLL (r, kTileSide) __builtin_prefetch(at + r * stride, 0, 2);
    at += kTileDepth;
  }
};

// C tiles of a strip, `sums` that of its first group; from group to group kSumsStep.
inline constexpr Index kSumsStep = 4 * kTileSide * kTileSide;

template <int kGroups>
MLA_INLINE void load_strip_sums(const float* sums) {
  if constexpr (kGroups > 1) load_sums<0>(sums);
  if constexpr (kGroups > 2) load_sums<1>(sums + kSumsStep);
  if constexpr (kGroups > 3) load_sums<2>(sums + 2 * kSumsStep);
  load_sums<3>(sums + (kGroups - 1) * kSumsStep);
}

template <int kGroups>
MLA_INLINE void store_strip_sums(float* sums) {
  if constexpr (kGroups > 1) store_sums<0>(sums);
  if constexpr (kGroups > 2) store_sums<1>(sums + kSumsStep);
  if constexpr (kGroups > 3) store_sums<2>(sums + 2 * kSumsStep);
  store_sums<3>(sums + (kGroups - 1) * kSumsStep);
}

// Part of a strip: A tiles of inputs [i, + 32 * steps).
struct StripPart {
  const bfloat16* tiles;
  Index depth, stride;  // from tile to tile, from row to row, in elements
  Index steps;
  Index i;
  bool begins, ends;  // else the sums of the part before are in C, stay there
};

inline Index passes_of(const PackedGroups& x) {
  return (x.groups + AmxBlocks::kPassGroups - 1) / AmxBlocks::kPassGroups;
}

// A pass: sums (+)= the products of a part by kGroups groups. Steps of one group wait for each
// other: there is time for `beside`.
template <int kGroups, class Beside>
void multiply_pass(const StripPart& part, const PackedGroups& x, float* sums, Beside& all_beside) {
  Beside beside = all_beside;  // in registers
  const Index a_bytes = 2 * part.stride, last_bytes = 4 * x.last;
  const bfloat16* a = part.tiles;
  const bfloat16* b = x.data + part.i * kTileSide;
  const bfloat16* last = x.data + (kGroups - 1) * x.step + part.i * x.last;
  tiles_are_written(a);
  if (part.begins) {
    if (part.i > 0)
      load_strip_sums<kGroups>(sums);
    else
      zero_grid<2, 2>();
  }
  for (Index s = 0; s < part.steps; ++s) {
    _tile_loadd(4, a, a_bytes);
    if constexpr (kGroups > 1) {
      _tile_loadd(5, b, 64);
      _tile_dpbf16ps(0, 4, 5);
    }
    if constexpr (kGroups > 2) {
      _tile_loadd(6, b + x.step, 64);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (kGroups > 3) {
      _tile_loadd(5, b + 2 * x.step, 64);
      _tile_dpbf16ps(2, 4, 5);
    }
    _tile_loadd(7, last, last_bytes);
    _tile_dpbf16ps(3, 4, 7);
    a += part.depth;
    b += AmxBlocks::kTile;
    last += kTileDepth * x.last;
    beside.step();
  }
  if (part.ends) store_strip_sums<kGroups>(sums);
  all_beside = beside;
}

// A part by all tokens, `sums` those of the first group. Several passes take turns in C.
template <class Beside>
void multiply_part(StripPart part, const PackedGroups& x, float* sums, Beside beside) {
  const Index passes = passes_of(x), most = (x.groups + passes - 1) / passes;
  if (passes > 1) part.begins = part.ends = true;
  for (Index g = 0; g < x.groups; g += most) {
    const PackedGroups pass = x.range(g, at_most(x.groups - g, most));
    float* const to = sums + g * kSumsStep;
    constexpr Index k = kTileSide;
    if (passes > 1 && x.last < k) set_tiles({k, k, k, pass.last, k, k, k, pass.last});
    switch (pass.groups) {
      case 1:
        multiply_pass<1>(part, pass, to, beside);
        break;
      case 2:
        multiply_pass<2>(part, pass, to, beside);
        break;
      case 3:
        multiply_pass<3>(part, pass, to, beside);
        break;
      case 4:
        multiply_pass<4>(part, pass, to, beside);
        break;
    }
  }
}

// Strips of features [o, + features) for inputs [i, end) by tiles that are made on the way: those
// of a part beside the products of the part before it.
inline void multiply_copied(const TileMaker& maker, Index o, Index features, const PackedGroups& x,
                            Index i, Index end, float* sums, const AmxBlocks& blocks) {
  constexpr Index kPart = AmxBlocks::kInputs;  // few enough to stay in the first cache
  const Index parts = (end - i + kPart - 1) / kPart;
  const Index all = parts * ((features + kTileSide - 1) / kTileSide);
  const auto input_of = [&](Index p) { return i + p % parts * kPart; };
  const auto tiles_of = [&](Index p) { return blocks.weights + p % 2 * (kTileSide * kPart); };
  const auto copy_of = [&](Index p, Index steps) {  // of nothing after the last
    const Index at = input_of(p), inputs = p < all ? at_most(end - at, kPart) : 0;
    return TileCopy{maker, o + p / parts * kTileSide, 1, at, inputs, i, end, 0, tiles_of(p), steps};
  };
  copy_of(0, 1).step();
  for (Index p = 0; p < all; ++p) {
    const Index at = input_of(p), strip = p / parts;
    const Index steps = round_up(at_most(end - at, kPart), kTileDepth) / kTileDepth;
    multiply_part(
        {tiles_of(p), AmxBlocks::kTile, kTileDepth, steps, at, at == i, at + kPart >= end}, x,
        sums + strip % 4 * kTileSide * kTileSide + strip / 4 * (x.groups * kSumsStep),
        copy_of(p + 1, steps * passes_of(x)));
  }
}

// A strip where its weights lie, but for inputs that do not fill a tile.
inline void multiply_in_place(MatrixView<const bfloat16> weight, const TileMaker& maker, Index o,
                              const PackedGroups& x, Index i, Index end, float* sums,
                              const AmxBlocks& blocks) {
  constexpr Index kAhead = 8;  // steps, half a KB of each row
  const Index steps = (end - i) / kTileDepth, whole = i + steps * kTileDepth;
  const Index before = at_most(steps, kAhead);
  const bfloat16* const a = weight.row(o) + i;
  const bool more = o + 2 * kTileSide <= weight.rows;
  if (steps > 0)
    multiply_part({a, kTileDepth, weight.stride, steps, i, true, true}, x, sums,
                  RowsAhead{a + before * kTileDepth, weight.stride, steps - before,
                            a + kTileSide * weight.stride, more ? steps : steps - before});
  if (whole < end) multiply_copied(maker, o, kTileSide, x, whole, end, sums, blocks);
}

// `in_place`: the weights where they are bfloat16, else nullptr.
inline void linear_few(const PackedGroups& x, const MatrixView<const bfloat16>* in_place,
                       const TileMaker& maker, MatrixView<float> out, const AmxBlocks& blocks) {
  constexpr Index k = kTileSide;
  set_tiles({k, k, k, x.last, k, k, k, x.last});
  const Index most = AmxBlocks::kFewPacked / (x.groups * AmxBlocks::kTile) * kTileDepth;
  for (Index first = 0; first < out.cols; first += AmxBlocks::kFewOutputs) {
    const Index features = at_most(out.cols - first, AmxBlocks::kFewOutputs);
    for (Index i = 0; i < x.in; i += most) {
      const Index end = i + at_most(x.in - i, most);
      const auto sums_of = [&](Index o) { return blocks.sums_of(o / k, 0, x.groups); };
      Index o = 0;
      if (in_place)
        for (; o + k <= features; o += k)
          multiply_in_place(*in_place, maker, first + o, x, i, end, sums_of(o), blocks);
      if (o < features)
        multiply_copied(maker, first + o, features - o, x, i, end, sums_of(o), blocks);
    }
    tiles_are_written(blocks.sums);
    store_transposed(blocks, out.col_range(first, features));
  }
}

// Online softmax of attention by AMX: lanes are rows. Scores are already multiplied by
// softmax_scale * log2(e), which the packed queries contain. Included after amx_rows.inl.

// What a block of rows does with a span of keys.
struct BlockUnit {
  Index context = 0;  // of the block
  Index span = 0;
  Index keys = 0;                         // that some row sees, in whole tiles of 32
  Index strips = 0;                       // 16 rows each
  bool last = false;                      // of its block
  bool masked = false;                    // some row does not see all `keys`
  bool hidden = false;                    // some row does not see a key among these
  bool moved = false;                     // the maximum of some row
  alignas(64) int seen[kBlockRows] = {};  // keys of the span that each row sees
  alignas(64) float peak[kBlockRows] = {};
  alignas(64) float factor[kBlockRows] = {};  // brings what was summed before to the new maximum
};

inline constexpr float kLowest = -3.0e38f;
// A maximum moves only where it would rise by more than this: results are almost never rescaled
// after a row's first span, and weights stay below 2^8.
inline constexpr float kSlack = 8.0f;

// 2^x for x <= kSlack, relative error below 5e-6 (bfloat16 rounds by 2e-3); 2^-126 below -126, NaN
// for NaN.
MLA_INLINE __m512 exp2_weight(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_set1_ps(1.3534167e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.2011464e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4144275e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9300383e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000026f));
  return _mm512_scalef_ps(p, x);
}

// Both rounded to bfloat16, in pairs: a below b. To nearest, ties away from 0: that is faster here
// than the instruction that rounds ties to even.
MLA_INLINE __m512i round_pair(__m512 a, __m512 b) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(b), half);
  return _mm512_mask_blend_epi16(0xaaaaaaaau, low, high);
}

// The highest scores of each row, where it sees the key.
template <int kStrips>
class Peaks {
 public:
  explicit Peaks(const BlockUnit& unit) : unit_(unit) {
    MLA_UNROLL (j, kStrips) even_[j] = odd_[j] = _mm512_set1_ps(kLowest);
  }

  // Of keys [first, + 32).
  MLA_INLINE void take(const float* scores, Index first) {
    if (unit_.masked) return take_seen(scores, static_cast<int>(first));
    MLA_UNROLL (r, kTileSide)
      MLA_UNROLL (j, kStrips) {
        const float* const at = scores + (2 * r * kStrips + j) * kTileSide;
        even_[j] = _mm512_max_ps(even_[j], _mm512_loadu_ps(at));
        odd_[j] = _mm512_max_ps(odd_[j], _mm512_loadu_ps(at + kStrips * kTileSide));
      }
  }

  void keep(BlockUnit& unit) const {
    MLA_UNROLL (j, kStrips)
      _mm512_store_ps(unit.peak + j * kTileSide, _mm512_max_ps(even_[j], odd_[j]));
  }

 private:
  [[gnu::noinline]] void take_seen(const float* scores, int first) {
    for (int r = 0; r < kTileDepth; ++r)
      MLA_UNROLL (j, kStrips) {
        const __m512i seen = _mm512_load_si512(unit_.seen + j * kTileSide);
        const __mmask16 sees = _mm512_cmpgt_epi32_mask(seen, _mm512_set1_epi32(first + r));
        __m512& most = r % 2 == 0 ? even_[j] : odd_[j];
        most = _mm512_mask_max_ps(most, sees, most,
                                  _mm512_loadu_ps(scores + (r * kStrips + j) * kTileSide));
      }
  }

  const BlockUnit& unit_;
  __m512 even_[kStrips], odd_[kStrips];
};

// Moves the maximum of rows where it must be, and what was summed before with it.
inline void move_maximum(BlockUnit& unit, float* maximum, float* sum) {
  unit.moved = false;
  for (Index i = 0; i < unit.strips * kTileSide; i += kTileSide) {
    const __m512i seen = _mm512_load_si512(unit.seen + i);
    const __mmask16 sees = _mm512_cmpgt_epi32_mask(seen, _mm512_setzero_si512());
    const __m512 lowest = _mm512_set1_ps(kLowest);
    const __m512 before = _mm512_max_ps(lowest, _mm512_load_ps(maximum + i));
    const __m512 peak = _mm512_max_ps(lowest, _mm512_load_ps(unit.peak + i));
    const __mmask16 moved = _mm512_mask_cmp_ps_mask(
        sees, peak, _mm512_add_ps(before, _mm512_set1_ps(kSlack)), _CMP_GT_OQ);
    const __m512 after = _mm512_mask_mov_ps(before, moved, peak);
    const __m512 factor =
        _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), moved, exp2_weight(_mm512_sub_ps(before, after)));
    _mm512_mask_store_ps(maximum + i, sees, after);
    _mm512_store_ps(unit.factor + i, factor);
    _mm512_store_ps(sum + i, _mm512_mul_ps(_mm512_load_ps(sum + i), factor));
    unit.moved |= moved != 0;
  }
}

// Turns the scores of a unit into weights, piece by piece: 4 keys of 16 rows. Eight pieces are an A
// tile of the rows.
class Weighing {
 public:
  Weighing() = default;
  // scores [keys][strips * 16], weights [strips][kSpanKeys / 32] tiles
  Weighing(const BlockUnit& unit, const float* scores, const float* maximum, float* sum,
           bfloat16* weights)
      : unit_(&unit), scores_(scores), maximum_(maximum), sum_(sum), weights_(weights) {}

  Index pieces() const { return unit_ ? unit_->strips * unit_->keys / kKeys : 0; }
  void finish() {
    while (unit_) step();
  }

  MLA_INLINE void step() {
    if (!unit_) return;
    const Index lanes = unit_->strips * kTileSide;
    const float* const from = scores_ + key_ * lanes + strip_ * kTileSide;
    const __m512 maximum = _mm512_load_ps(maximum_ + strip_ * kTileSide);
    __m512 x[kKeys];
    MLA_UNROLL (i, kKeys)
      x[i] = exp2_weight(_mm512_sub_ps(_mm512_loadu_ps(from + i * lanes), maximum));
    if (unit_->masked) {
      const __m512i seen = _mm512_load_si512(unit_->seen + strip_ * kTileSide);
      MLA_UNROLL (i, kKeys) {
        const __m512i key = _mm512_set1_epi32(static_cast<int>(key_) + i);
        x[i] = _mm512_maskz_mov_ps(_mm512_cmpgt_epi32_mask(seen, key), x[i]);
      }
    }
    int* const pairs = pairs_ + key_ % kTileDepth / 2 * kTileSide;
    _mm512_store_si512(pairs, round_pair(x[0], x[1]));
    _mm512_store_si512(pairs + kTileSide, round_pair(x[2], x[3]));
    float* const sum = sum_ + strip_ * kTileSide;
    const __m512 more = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), more));
    key_ += kKeys;
    if (key_ % kTileDepth == 0) store_tile();
  }

 private:
  static constexpr int kKeys = 4;

  [[gnu::noinline]] void store_tile() {
    __m512i v[kTileSide];
    MLA_UNROLL (i, kTileSide) v[i] = _mm512_load_si512(pairs_ + i * kTileSide);
    transpose(v);
    bfloat16* const tile = weights_ + (strip_ * kSpanKeys + key_ - kTileDepth) * kTileSide;
    MLA_UNROLL (r, kTileSide) _mm512_storeu_si512(tile + r * kTileDepth, v[r]);
    if (key_ < unit_->keys) return;
    key_ = 0;
    if (++strip_ == unit_->strips) unit_ = nullptr;
  }

  const BlockUnit* unit_ = nullptr;
  const float* scores_ = nullptr;
  const float* maximum_ = nullptr;
  float* sum_ = nullptr;
  bfloat16* weights_ = nullptr;
  Index strip_ = 0, key_ = 0;
  alignas(64) int pairs_[kTileSide * kTileSide];
};

// Vector type of the NEON tier: eight floats in two registers, so that a register tile of the
// kernels fills most of the 32 there are and has sums enough for four pipelines. The order of
// additions is that of the AVX2 tier. Included inside a namespace; see kernel_bodies.hpp.

inline constexpr int kLanes = 8;
inline constexpr int kScoreKeys = 4;
inline constexpr int kValueRows = 3;
inline constexpr int kTokenTile = 4;  // of linear(), by kFeatureTile
inline constexpr int kFeatureTile = 3;
inline constexpr int kRowTile = 2;  // rows of other register tiles; their columns are 4

struct F32 {
  float32x4_t low, high;
};

MLA_INLINE F32 set1(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
// Loaded once: g++ may otherwise load it again at each use.
MLA_INLINE F32 in_register(F32 a) {
  asm("" : "+w"(a.low), "+w"(a.high));
  return a;
}
MLA_INLINE F32 zero() { return set1(0.0f); }

MLA_INLINE F32 widen(uint16x8_t bits, bfloat16) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16))};
}
MLA_INLINE F32 widen(uint16x8_t bits, float16) {
  const float16x8_t half = vreinterpretq_f16_u16(bits);
  return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
}

// Rounds to nearest even; NaN is made quiet first so that rounding cannot turn it into infinity.
MLA_INLINE uint16x4_t narrow_bfloat16(float32x4_t a) {
  const uint32x4_t u = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t nearest = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x00400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), nearest, quiet), 16);
}
MLA_INLINE uint16x8_t narrow(F32 a, bfloat16) {
  return vcombine_u16(narrow_bfloat16(a.low), narrow_bfloat16(a.high));
}
MLA_INLINE uint16x8_t narrow(F32 a, float16) {
  return vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a.low), a.high));
}

MLA_INLINE F32 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
template <class T>
MLA_INLINE F32 load(const T* p) {
  return widen(vld1q_u16(&p->bits), T());
}
// The first n < kLanes elements, zeros after them.
template <class T>
MLA_INLINE F32 load_first(const T* p, Index n) {
  alignas(16) T padded[kLanes] = {};
  for (Index i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
MLA_INLINE void store(float* p, F32 a) {
  vst1q_f32(p, a.low);
  vst1q_f32(p + 4, a.high);
}
template <class T>
MLA_INLINE void store(T* p, F32 a) {
  vst1q_u16(&p->bits, narrow(a, T()));
}
template <class T>
MLA_INLINE void store_first(T* p, F32 a, Index n) {
  alignas(16) T padded[kLanes];
  store(padded, a);
  for (Index i = 0; i < n; ++i) p[i] = padded[i];
}

MLA_INLINE F32 operator+(F32 a, F32 b) {
  return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
MLA_INLINE F32 operator-(F32 a, F32 b) {
  return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
MLA_INLINE F32 operator*(F32 a, F32 b) {
  return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
MLA_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}

// Lane by lane a < b ? yes : no.
MLA_INLINE F32 if_less(F32 a, F32 b, F32 yes, F32 no) {
  return {vbslq_f32(vcltq_f32(a.low, b.low), yes.low, no.low),
          vbslq_f32(vcltq_f32(a.high, b.high), yes.high, no.high)};
}
// The larger one; b where either is NaN (which vmaxq_f32 would keep).
MLA_INLINE F32 max(F32 a, F32 b) { return if_less(b, a, a, b); }
// The smaller one; b where either is NaN.
MLA_INLINE F32 min(F32 a, F32 b) { return if_less(a, b, a, b); }

// To the nearest integer, ties to even.
MLA_INLINE F32 round(F32 a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
// 2^n for integers n in [-126, 127].
MLA_INLINE float32x4_t pow2(float32x4_t n) {
  const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
  return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
}
MLA_INLINE F32 pow2(F32 n) { return {pow2(n.low), pow2(n.high)}; }

MLA_INLINE float32x4_t fold(F32 a) { return vaddq_f32(a.low, a.high); }
MLA_INLINE float reduce_add(F32 a) { return vaddvq_f32(fold(a)); }  // of pairs, then of their sums
// Four sums at once, each as reduce_add() makes it, to out[0..3].
MLA_INLINE void reduce_add(F32 a, F32 b, F32 c, F32 d, float* out) {
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(fold(a), fold(b)), vpaddq_f32(fold(c), fold(d))));
}

// Vector type of the NEON tier: eight floats in two registers, so that a register tile of the
// kernels fills most of the 32 there are and has sums enough for four pipelines. The order of
// additions is that of the AVX2 tier. Included inside a namespace; see kernel_bodies.hpp.

inline constexpr int kLanes = 8;
inline constexpr int kScoreKeys = 4;
inline constexpr int kScoreKeysOfFew = 4;
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
MLA_INLINE F32 operator/(F32 a, F32 b) {
  return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
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

// ---- kLanes numbers of a quantised row, without their scale (core/quantised_rows.hpp)

MLA_INLINE uint8x8_t load_codes(const std::byte* p) {
  return vld1_u8(reinterpret_cast<const std::uint8_t*>(p));
}
MLA_INLINE F32 of_integers(int16x8_t a) {
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_high_s16(a))};
}
MLA_INLINE F32 load_int8(const std::byte* p) {
  return of_integers(vmovl_s8(vreinterpret_s8_u8(load_codes(p))));
}
// Divided by 2^8: E4M3 is float16 with an exponent less by that, whose first bit is 0, and another
// NaN.
MLA_INLINE F32 load_e4m3(const std::byte* p) {
  const int16x8_t signs = vshlq_n_s16(vmovl_s8(vreinterpret_s8_u8(load_codes(p))), 7);
  const uint16x8_t half = vandq_u16(vreinterpretq_u16_s16(signs), vdupq_n_u16(0xbfff));
  const uint16x8_t nan = vceqq_u16(vandq_u16(half, vdupq_n_u16(0x3fff)), vdupq_n_u16(0x3f80));
  return widen(vbslq_u16(nan, vdupq_n_u16(0x7e00), half), float16());
}
// The four bits from kShift on of each byte.
template <int kShift>
MLA_INLINE F32 load_int4(const std::byte* p) {
  const uint8x8_t pairs = load_codes(p);
  const uint8x8_t codes =
      kShift == 0 ? vand_u8(pairs, vdup_n_u8(15)) : vshl_u8(pairs, vdup_n_s8(-kShift));
  return of_integers(vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(codes)), vdupq_n_s16(8)));
}

MLA_INLINE void store_codes(std::byte* p, int32x4_t low, int32x4_t high) {
  const int16x8_t words = vcombine_s16(vmovn_s32(low), vmovn_s32(high));
  vst1_s8(reinterpret_cast<std::int8_t*>(p), vmovn_s16(words));
}
// Of integers.
MLA_INLINE void store_int8(std::byte* p, F32 a) {
  store_codes(p, vcvtq_s32_f32(a.low), vcvtq_s32_f32(a.high));
}
// As encode_e4m3() rounds finite numbers.
MLA_INLINE int32x4_t e4m3_codes(float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t sign = vandq_u32(vshrq_n_u32(bits, 24), vdupq_n_u32(0x80));
  const uint32x4_t magnitude =
      vminq_u32(vandq_u32(bits, vdupq_n_u32(0x7fffffff)), vdupq_n_u32(0x43e00000));
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(magnitude, 20), vdupq_n_u32(1));
  const uint32x4_t nearest =
      vshrq_n_u32(vaddq_u32(magnitude, vaddq_u32(odd, vdupq_n_u32(0x7ffff))), 20);
  const float32x4_t steps =
      vrndnq_f32(vmulq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(0x1p9f)));
  const uint32x4_t small = vcltq_u32(magnitude, vdupq_n_u32(0x3c800000));
  const uint32x4_t code =
      vbslq_u32(small, vcvtq_u32_f32(steps), vsubq_u32(nearest, vdupq_n_u32(120 << 3)));
  return vreinterpretq_s32_u32(vorrq_u32(code, sign));
}
MLA_INLINE void store_e4m3(std::byte* p, F32 a) {
  store_codes(p, e4m3_codes(a.low), e4m3_codes(a.high));
}

MLA_INLINE void load_e4m3(const std::byte* p, F32 (&v)[2]) {
  MLA_UNROLL (i, 2) v[i] = load_e4m3(p + i * kLanes);
}

// ---- kLanes numbers of four bits, two in a byte, even ones in its low half, with their scale

// Number i is byte i.
MLA_INLINE uint8x8_t load_half_bytes(const std::byte* p) {
  std::uint32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  const uint8x8_t pairs = vreinterpret_u8_u32(vdup_n_u32(four));
  return vzip1_u8(vand_u8(pairs, vdup_n_u8(15)), vshr_n_u8(pairs, 4));
}
struct Int4Lanes {
  F32 scale;
  int16x8_t zero_point;
  MLA_INLINE Int4Lanes(float s, float z)
      : scale(set1(s)), zero_point(vdupq_n_s16(static_cast<std::int16_t>(z))) {}
  MLA_INLINE F32 load(const std::byte* p) const {
    const int16x8_t codes = vreinterpretq_s16_u16(vmovl_u8(load_half_bytes(p)));
    return of_integers(vsubq_s16(codes, zero_point)) * scale;
  }
};
struct E2m1Lanes {
  F32 scale;
  MLA_INLINE E2m1Lanes(float s, float) : scale(set1(s)) {}
  MLA_INLINE F32 load(const std::byte* p) const {
    // As float16, whose second byte is 0.
    const uint8x16_t first = {0x00, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46,
                              0x80, 0xb8, 0xbc, 0xbe, 0xc0, 0xc2, 0xc4, 0xc6};
    const uint8x8_t bytes = vqtbl1_u8(first, load_half_bytes(p));
    return widen(vshll_n_u8(bytes, 8), float16()) * scale;
  }
};

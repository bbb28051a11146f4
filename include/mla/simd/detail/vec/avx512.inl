// Vector type of the AVX-512 tier: sixteen floats. Included inside a namespace and a target region;
// see kernel_bodies.hpp.

inline constexpr int kLanes = 16;
inline constexpr int kScoreKeys = 8;
inline constexpr int kScoreKeysOfFew = 16;
inline constexpr int kValueRows = 8;
inline constexpr int kTokenTile = 8;  // of linear(), by kFeatureTile
inline constexpr int kFeatureTile = 3;
inline constexpr int kRowTile = 4;  // rows of other register tiles; their columns are 4

struct F32 {
  __m512 v;
};

MLA_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }
// Loaded once: g++ may otherwise load it again at each use.
MLA_INLINE F32 in_register(F32 a) {
  asm("" : "+v"(a.v));
  return a;
}
MLA_INLINE F32 zero() { return {_mm512_setzero_ps()}; }

MLA_INLINE F32 widen(__m256i bits, bfloat16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
MLA_INLINE F32 widen(__m256i bits, float16) { return {_mm512_cvtph_ps(bits)}; }

// Rounds to nearest even; NaN is made quiet first so that rounding cannot turn it into infinity.
MLA_INLINE __m256i narrow(F32 a, bfloat16) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i nearest = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_or_epi32(nearest, nan, u, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
MLA_INLINE __m256i narrow(F32 a, float16) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

MLA_INLINE __mmask16 first_lanes(Index n) { return static_cast<__mmask16>((1u << n) - 1u); }

MLA_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
template <class T>
MLA_INLINE F32 load(const T* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), T());
}
// The first n < kLanes elements, zeros after them.
MLA_INLINE F32 load_first(const float* p, Index n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
template <class T>
MLA_INLINE F32 load_first(const T* p, Index n) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p), T());
}
MLA_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
template <class T>
MLA_INLINE void store(T* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a, T()));
}
MLA_INLINE void store_first(float* p, F32 a, Index n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
template <class T>
MLA_INLINE void store_first(T* p, F32 a, Index n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a, T()));
}

MLA_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
MLA_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
MLA_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
MLA_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
MLA_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The larger one; b where either is NaN.
MLA_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
// The smaller one; b where either is NaN.
MLA_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }

// Lane by lane a < b ? yes : no.
MLA_INLINE F32 if_less(F32 a, F32 b, F32 yes, F32 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}

// To the nearest integer, ties to even.
MLA_INLINE F32 round(F32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integers n in [-126, 127].
MLA_INLINE F32 pow2(F32 n) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)}; }

MLA_INLINE __m128 fold(F32 a) {
  const __m256 s = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
MLA_INLINE float reduce_add(F32 a) {
  const __m128 pairs = _mm_hadd_ps(fold(a), fold(a));
  return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
}
// [halves of a added, halves of b added]
MLA_INLINE F32 add_halves(F32 a, F32 b) {
  return {_mm512_shuffle_f32x4(a.v, b.v, 0x44) + _mm512_shuffle_f32x4(a.v, b.v, 0xee)};
}
// Four sums at once, each as reduce_add() makes it, to out[0..3].
MLA_INLINE void reduce_add(F32 a, F32 b, F32 c, F32 d, float* out) {
  const __m512 ab = add_halves(a, b).v, cd = add_halves(c, d).v;
  const __m512 quarters = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
  const __m512 pairs = quarters + _mm512_permute_ps(quarters, 0xb1);
  const __m512 sums = pairs + _mm512_permute_ps(pairs, 0x4e);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sums)));
}

// ---- kLanes numbers of a quantised row, without their scale (core/quantised_rows.hpp)

MLA_INLINE __m128i load_codes(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
MLA_INLINE F32 load_int8(const std::byte* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_codes(p)))};
}
// Divided by 2^8: E4M3 is float16 with an exponent less by that, whose first bit is 0, and another
// NaN.
MLA_INLINE F32 load_e4m3(const std::byte* p) {
  const __m256i signs = _mm256_slli_epi16(_mm256_cvtepi8_epi16(load_codes(p)), 7);
  const __m256i half = _mm256_and_si256(signs, _mm256_set1_epi16(static_cast<short>(0xbfff)));
  const __m256i magnitude = _mm256_and_si256(half, _mm256_set1_epi16(0x3fff));
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x3f80));
  return {_mm512_cvtph_ps(_mm256_mask_blend_epi16(nan, half, _mm256_set1_epi16(0x7e00)))};
}
// The four bits from kShift on of each byte.
template <int kShift>
MLA_INLINE F32 load_int4(const std::byte* p) {
  const __m512i pairs = _mm512_cvtepu8_epi32(load_codes(p));
  const __m512 numbers = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  return {_mm512_permutexvar_ps(kShift == 0 ? pairs : _mm512_srli_epi32(pairs, kShift), numbers)};
}

// ---- kLanes numbers of four bits, two in a byte, even ones in its low half, with their scale

// 2 * kLanes of load_e4m3(), which share the work on 16 bits.
MLA_INLINE void load_e4m3(const std::byte* p, F32 (&v)[2]) {
  const __m512i codes =
      _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i signs = _mm512_slli_epi16(codes, 7);
  const __m512i top = _mm512_set1_epi16(static_cast<short>(0xc000));
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(_mm512_or_si512(signs, top),
                                                _mm512_set1_epi16(static_cast<short>(0xff80)));
  const __m512i half = _mm512_mask_blend_epi16(
      nan, _mm512_and_si512(signs, _mm512_set1_epi16(static_cast<short>(0xbfff))),
      _mm512_set1_epi16(0x7e00));
  v[0] = {_mm512_cvtph_ps(_mm512_castsi512_si256(half))};
  v[1] = {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1))};
}

// Number i in the low bits of lane i.
MLA_INLINE __m512i load_half_bytes(const std::byte* p) {
  const __m512i words = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i shifts = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm512_srlv_epi32(_mm512_permutexvar_epi32(words, _mm512_castsi128_si512(eight)), shifts);
}
struct Int4Lanes {
  __m512 weights;  // of each code
  MLA_INLINE Int4Lanes(float scale, float zero_point) {
    const __m512 codes = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    weights = _mm512_sub_ps(codes, _mm512_set1_ps(zero_point)) * _mm512_set1_ps(scale);
  }
  MLA_INLINE F32 load(const std::byte* p) const {
    return {_mm512_permutexvar_ps(load_half_bytes(p), weights)};
  }
};
struct E2m1Lanes {
  __m512 weights;
  MLA_INLINE E2m1Lanes(float scale, float) {
    const __m512 codes =
        _mm512_set_ps(-6, -4, -3, -2, -1.5f, -1, -0.5f, -0.0f, 6, 4, 3, 2, 1.5f, 1, 0.5f, 0);
    weights = codes * _mm512_set1_ps(scale);
  }
  MLA_INLINE F32 load(const std::byte* p) const {
    return {_mm512_permutexvar_ps(load_half_bytes(p), weights)};
  }
};

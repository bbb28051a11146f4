// Vector type of the AVX2 tier: eight floats. Included inside a namespace and a target region; see
// kernel_bodies.hpp.

inline constexpr int kLanes = 8;
inline constexpr int kScoreKeys = 6;
inline constexpr int kScoreKeysOfFew = 6;
inline constexpr int kValueRows = 4;
inline constexpr int kTokenTile = 4;  // of linear(), by kFeatureTile
inline constexpr int kFeatureTile = 3;
inline constexpr int kRowTile = 2;  // rows of other register tiles; their columns are 4

struct F32 {
  __m256 v;
};

MLA_INLINE F32 set1(float x) { return {_mm256_set1_ps(x)}; }
// Loaded once: g++ may otherwise load it again at each use.
MLA_INLINE F32 in_register(F32 a) {
  asm("" : "+x"(a.v));
  return a;
}
MLA_INLINE F32 zero() { return {_mm256_setzero_ps()}; }

MLA_INLINE F32 widen(__m128i bits, bfloat16) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
MLA_INLINE F32 widen(__m128i bits, float16) { return {_mm256_cvtph_ps(bits)}; }

// Rounds to nearest even; NaN is made quiet first so that rounding cannot turn it into infinity.
MLA_INLINE __m128i narrow(F32 a, bfloat16) {
  const __m256i u = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i nearest = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(nearest, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
MLA_INLINE __m128i narrow(F32 a, float16) {
  return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

MLA_INLINE __m256i first_lanes(Index n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

MLA_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
template <class T>
MLA_INLINE F32 load(const T* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), T());
}
// The first n < kLanes elements, zeros after them.
MLA_INLINE F32 load_first(const float* p, Index n) {
  return {_mm256_maskload_ps(p, first_lanes(n))};
}
template <class T>
MLA_INLINE F32 load_first(const T* p, Index n) {
  alignas(16) T padded[kLanes] = {};
  for (Index i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
MLA_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
template <class T>
MLA_INLINE void store(T* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, T()));
}
MLA_INLINE void store_first(float* p, F32 a, Index n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.v);
}
template <class T>
MLA_INLINE void store_first(T* p, F32 a, Index n) {
  alignas(16) T padded[kLanes];
  store(padded, a);
  for (Index i = 0; i < n; ++i) p[i] = padded[i];
}

MLA_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
MLA_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
MLA_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
MLA_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
MLA_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// The larger one; b where either is NaN.
MLA_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
// The smaller one; b where either is NaN.
MLA_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }

// Lane by lane a < b ? yes : no.
MLA_INLINE F32 if_less(F32 a, F32 b, F32 yes, F32 no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}

// To the nearest integer, ties to even.
MLA_INLINE F32 round(F32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integers n in [-126, 127].
MLA_INLINE F32 pow2(F32 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}

MLA_INLINE __m128 fold(F32 a) {
  return _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
}
MLA_INLINE float reduce_add(F32 a) {
  const __m128 pairs = _mm_hadd_ps(fold(a), fold(a));
  return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
}
// Four sums at once, each as reduce_add() makes it, to out[0..3].
MLA_INLINE void reduce_add(F32 a, F32 b, F32 c, F32 d, float* out) {
  _mm_storeu_ps(out, _mm_hadd_ps(_mm_hadd_ps(fold(a), fold(b)), _mm_hadd_ps(fold(c), fold(d))));
}

// ---- kLanes numbers of a quantised row, without their scale (core/quantised_rows.hpp)

MLA_INLINE __m128i load_codes(const std::byte* p) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}
MLA_INLINE F32 load_int8(const std::byte* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_codes(p)))};
}
// Divided by 2^8: E4M3 is float16 with an exponent less by that, whose first bit is 0, and another
// NaN.
MLA_INLINE F32 load_e4m3(const std::byte* p) {
  const __m128i signs = _mm_slli_epi16(_mm_cvtepi8_epi16(load_codes(p)), 7);
  const __m128i half = _mm_and_si128(signs, _mm_set1_epi16(static_cast<short>(0xbfff)));
  const __m128i magnitude = _mm_and_si128(half, _mm_set1_epi16(0x3fff));
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x3f80));
  return {_mm256_cvtph_ps(_mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7c00))))};
}
// The four bits from kShift on of each byte.
template <int kShift>
MLA_INLINE F32 load_int4(const std::byte* p) {
  const __m256i pairs = _mm256_cvtepu8_epi32(load_codes(p));
  const __m256i codes = _mm256_and_si256(_mm256_srli_epi32(pairs, kShift), _mm256_set1_epi32(15));
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(8)))};
}

MLA_INLINE void store_codes(std::byte* p, __m256i codes) {
  const __m128i low = _mm256_castsi256_si128(codes), high = _mm256_extracti128_si256(codes, 1);
  const __m128i words = _mm_packs_epi32(low, high);
  const __m128i low_bytes = _mm_and_si128(words, _mm_set1_epi16(0xff));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(low_bytes, low_bytes));
}
// Of integers.
MLA_INLINE void store_int8(std::byte* p, F32 a) { store_codes(p, _mm256_cvtps_epi32(a.v)); }
// As encode_e4m3() rounds finite numbers.
MLA_INLINE void store_e4m3(std::byte* p, F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
  const __m256i magnitude = _mm256_min_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)),
                                             _mm256_set1_epi32(0x43e00000));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
  const __m256i nearest = _mm256_srli_epi32(
      _mm256_add_epi32(magnitude, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff))), 20);
  const F32 steps = round(F32{_mm256_castsi256_ps(magnitude)} * set1(0x1p9f));
  const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude);
  const __m256i code = _mm256_blendv_epi8(_mm256_sub_epi32(nearest, _mm256_set1_epi32(120 << 3)),
                                          _mm256_cvtps_epi32(steps.v), small);
  store_codes(p, _mm256_or_si256(code, sign));
}

MLA_INLINE void load_e4m3(const std::byte* p, F32 (&v)[2]) {
  MLA_UNROLL (i, 2) v[i] = load_e4m3(p + i * kLanes);
}

// ---- kLanes numbers of four bits, two in a byte, even ones in its low half, with their scale

// Number i in the low bits of lane i.
MLA_INLINE __m256i load_half_bytes(const std::byte* p) {
  int four;
  __builtin_memcpy(&four, p, sizeof(four));
  return _mm256_srlv_epi32(_mm256_set1_epi32(four), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
}
struct Int4Lanes {
  __m256 scale;
  __m256i zero_point;
  MLA_INLINE Int4Lanes(float s, float z)
      : scale(_mm256_set1_ps(s)), zero_point(_mm256_set1_epi32(static_cast<int>(z))) {}
  MLA_INLINE F32 load(const std::byte* p) const {
    const __m256i codes = _mm256_and_si256(load_half_bytes(p), _mm256_set1_epi32(15));
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero_point)) * scale};
  }
};
struct E2m1Lanes {
  __m256 magnitudes;
  MLA_INLINE E2m1Lanes(float scale, float)
      : magnitudes(_mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6) * _mm256_set1_ps(scale)) {}
  MLA_INLINE F32 load(const std::byte* p) const {
    const __m256i codes = load_half_bytes(p);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28), _mm256_set1_epi32(1 << 31));
    return {_mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, codes), _mm256_castsi256_ps(sign))};
  }
};

// Vector type of the scalar tier: four floats in the compiler's own vector type, which every target
// can compile. Included inside a namespace; see kernel_bodies.hpp.

inline constexpr int kLanes = 4;
inline constexpr int kScoreKeys = 1;
inline constexpr int kScoreKeysOfFew = 1;
inline constexpr int kValueRows = 1;
inline constexpr int kTokenTile = 1;  // of linear(), by kFeatureTile
inline constexpr int kFeatureTile = 2;
inline constexpr int kRowTile = 1;  // rows of other register tiles; their columns are 4

using Native = float __attribute__((vector_size(16)));
using NativeBits = unsigned __attribute__((vector_size(16)));
struct F32 {
  Native v;
};

MLA_INLINE F32 set1(float x) { return {Native{x, x, x, x}}; }
MLA_INLINE F32 in_register(F32 a) { return a; }
MLA_INLINE F32 zero() { return set1(0.0f); }

template <class T>
MLA_INLINE F32 load(const T* p) {
  return {Native{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                 static_cast<float>(p[3])}};
}
// The first n < kLanes elements, zeros after them.
template <class T>
MLA_INLINE F32 load_first(const T* p, Index n) {
  F32 a = zero();
  for (Index i = 0; i < n; ++i) a.v[i] = static_cast<float>(p[i]);
  return a;
}
template <class T>
MLA_INLINE void store(T* p, F32 a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<T>(a.v[i]);
}
template <class T>
MLA_INLINE void store_first(T* p, F32 a, Index n) {
  for (Index i = 0; i < n; ++i) p[i] = static_cast<T>(a.v[i]);
}

MLA_INLINE F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
MLA_INLINE F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
MLA_INLINE F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
MLA_INLINE F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
MLA_INLINE F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
// The larger one; b where either is NaN.
MLA_INLINE F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
// The smaller one; b where either is NaN.
MLA_INLINE F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }

// Lane by lane a < b ? yes : no.
MLA_INLINE F32 if_less(F32 a, F32 b, F32 yes, F32 no) { return {a.v < b.v ? yes.v : no.v}; }

// To the nearest integer, ties to even, |x| < 2^22.
MLA_INLINE F32 round(F32 a) {
  const F32 magic = set1(0x1.8p23f);
  return (a + magic) - magic;
}
// 2^n for integers n in [-126, 127]. Adding 1.5 * 2^23 leaves n in the low bits of the float.
MLA_INLINE F32 pow2(F32 n) {
  const NativeBits bits = reinterpret_cast<NativeBits>((n + set1(0x1.8p23f)).v);
  return {reinterpret_cast<Native>((bits << 23) + (127u << 23))};
}

MLA_INLINE float reduce_add(F32 a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
// Four sums at once, to out[0..3].
MLA_INLINE void reduce_add(F32 a, F32 b, F32 c, F32 d, float* out) {
  out[0] = reduce_add(a);
  out[1] = reduce_add(b);
  out[2] = reduce_add(c);
  out[3] = reduce_add(d);
}

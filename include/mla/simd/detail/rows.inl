// Kernels over single rows: conversion, normalisation, rotation.
// Needs: a vector type (vec/*.inl).

template <class T>
void to_float(const T* in, Index n, float* out) noexcept {
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(in + i));
  if (i < n) store_first(out + i, load_first(in + i, n - i), n - i);
}

// Rounds to nearest even.
template <class T>
void from_float(const float* in, Index n, T* out) noexcept {
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(in + i));
  if (i < n) store_first(out + i, load_first(in + i, n - i), n - i);
}

// The same for rows of a cache and blocks of weights that are plain elements.
template <class T>
void encode_row(const RowLayout& layout, const float* row, std::byte* bytes) noexcept {
  from_float(row, layout.width(), reinterpret_cast<T*>(bytes));
}
template <class T>
void widen_row(const RowLayout& layout, const std::byte* bytes, float* row) noexcept {
  to_float(reinterpret_cast<const T*>(bytes), layout.width(), row);
}
template <class T>
void widen_block(const WeightView& block, MatrixView<float> out) noexcept {
  const MatrixView<const T> rows = block.as<T>();
  for (Index r = 0; r < rows.rows; ++r) to_float(rows.row(r), rows.cols, out.row(r));
}

inline void rms_norm(const float* x, const float* weight, Index n, float eps, float* out) noexcept {
  F32 squares = zero();
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  if (i < n) squares = fma(load_first(x + i, n - i), load_first(x + i, n - i), squares);
  const float mean = reduce_add(squares) / static_cast<float>(n);
  const F32 scale = set1(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
  if (i < n) {
    const F32 last = load_first(x + i, n - i) * scale * load_first(weight + i, n - i);
    store_first(out + i, last, n - i);
  }
}

inline void rotate(float* x, const float* cos, const float* sin, Index n,
                   bool interleaved) noexcept {
  const Index half = n / 2;
  const Index step = interleaved ? 2 : 1;  // from one pair to the next
  const Index other = interleaved ? 1 : half;
  for (Index i = 0; i < half; ++i) {
    float& a = x[i * step];
    float& b = x[i * step + other];
    const float rotated = a * cos[i] - b * sin[i];
    b = a * sin[i] + b * cos[i];
    a = rotated;
  }
}

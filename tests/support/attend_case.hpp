#ifndef MLA_SUPPORT_ATTEND_CASE_HPP_
#define MLA_SUPPORT_ATTEND_CASE_HPP_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random.hpp"

namespace mla::test {

/// Where keys and values are in a row of the cache.
struct KeyLayout {
  const char* name;
  Index width;
  Index key_offset, key_width;
  Index tail_offset, tail_width;
  Index value_offset, value_width;
};

inline constexpr KeyLayout kKeyLayouts[] = {
    {"latent 512 + 64", 576, 0, 512, 512, 64, 0, 512},
    {"latent 256 + 32", 288, 0, 256, 256, 32, 0, 256},
    {"latent 256 + 64", 320, 0, 256, 256, 64, 0, 256},
    {"odd latent, third of four rotary keys", 31 + 4 * 6, 0, 31, 31 + 2 * 6, 6, 0, 31},
    {"key and value side by side", 192 + 256, 0, 192, 0, 0, 192, 256},
    {"value of one element", 10, 0, 9, 0, 0, 9, 1},
    {"all parts apart", 70, 3, 17, 25, 2, 40, 15},
    {"value before the key", 70, 40, 16, 60, 10, 1, 33},
};

/// One of the two attention kernels of an instruction set.
struct AttendForm {
  const simd::Kernels& kernels;
  bool many;  ///< attend_many(), else attend()

  /// How it computes with keys and values of type T.
  template <StorageElement T>
  simd::Arithmetic arithmetic() const noexcept {
    return many ? arithmetic_for<T>(kernels) : simd::Arithmetic::float32;
  }
};

/// What attend() leaves behind for some rows.
struct AttendResult {
  explicit AttendResult(Index rows, Index width)
      : maximum(static_cast<std::size_t>(rows), -std::numeric_limits<float>::infinity()),
        sum(static_cast<std::size_t>(rows), 0.0f),
        out(rows, width) {
    for (Index r = 0; r < rows; ++r) std::fill_n(out.view().row(r), width, 0.0f);
  }

  simd::SoftmaxState state() noexcept {
    return {maximum.data(), sum.data(), out.view().data, out.view().stride};
  }

  /// Row `r` here has the bits of row `other_r` there.
  bool same_row(Index r, const AttendResult& other, Index other_r) const noexcept {
    const auto i = static_cast<std::size_t>(r), j = static_cast<std::size_t>(other_r);
    return std::memcmp(&maximum[i], &other.maximum[j], sizeof(float)) == 0 &&
           std::memcmp(&sum[i], &other.sum[j], sizeof(float)) == 0 &&
           std::memcmp(out.view().row(r), other.out.view().row(other_r),
                       static_cast<std::size_t>(out.view().cols) * sizeof(float)) == 0;
  }

  std::vector<float> maximum, sum;
  GuardedMatrix<float> out;
};

/// Random queries and paged rows; NaN wherever attend() has no business.
template <StorageElement T>
class AttendCase {
 public:
  /// Logits have about the standard deviation `spread`.
  AttendCase(const KeyLayout& layout, Index rows, Index keys, std::uint64_t seed,
             double spread = 2.0, Index page_rows = simd::kTileKeys)
      : layout_(layout),
        keys_(keys),
        page_rows_(page_rows),
        random_(seed),
        queries_(rows, layout.key_width + layout.tail_width, random_, spread) {
    const Index pages = (keys + page_rows - 1) / page_rows;
    for (Index p = 0; p < pages; ++p)
      memory_.emplace_back(static_cast<std::size_t>(page_rows * layout.width),
                           T(std::numeric_limits<float>::quiet_NaN()));
    for (auto& page : memory_) pages_.push_back(reinterpret_cast<const std::byte*>(page.data()));
    for (Index k = 0; k < keys; ++k) {
      fill(k, layout.value_offset, layout.value_width);
      fill(k, layout.key_offset, layout.key_width);
      fill(k, layout.tail_offset, layout.tail_width);
    }
  }

  Index rows() const noexcept { return queries_.view().rows; }
  GuardedMatrix<float>& queries() noexcept { return queries_; }
  T* key_row(Index k) noexcept {
    return memory_[static_cast<std::size_t>(k / page_rows_)].data() +
           k % page_rows_ * layout_.width;
  }
  float scale() const noexcept {
    return 1.0f / std::sqrt(static_cast<float>(layout_.key_width + layout_.tail_width));
  }

  /// All keys for `visible.size()` query rows from `first_row` on.
  AttendResult run(const AttendForm& form, const std::vector<Index>& visible,
                   Index first_row = 0) const {
    AttendResult result(static_cast<Index>(visible.size()), layout_.value_width);
    run_part(form, visible, first_row, 0, keys_, result);
    return result;
  }

  /// Continues `result` with keys [first_key, + count); first_key begins a page.
  void run_part(const AttendForm& form, std::vector<Index> visible, Index first_row,
                Index first_key, Index count, AttendResult& result) const {
    for (Index& v : visible) v -= first_key;  // may be negative, or more than there are
    const simd::QueryRows queries = {queries_.view().row(first_row), queries_.view().stride,
                                     static_cast<Index>(visible.size()), visible.data()};
    const simd::KeyValueRows keys = {.pages = pages_.data() + first_key / page_rows_,
                                     .page_rows = page_rows_,
                                     .layout = row_layout(kCacheFormatOf<T>, layout_.width, 0),
                                     .count = count,
                                     .key_offset = layout_.key_offset,
                                     .key_width = layout_.key_width,
                                     .tail_offset = layout_.tail_offset,
                                     .tail_width = layout_.tail_width,
                                     .value_offset = layout_.value_offset,
                                     .value_width = layout_.value_width};
    attend(form, queries, keys, result.state());
  }

  /// The keys of `selected` alone, in its order, for rows that see `visible` of these.
  AttendResult run_selected(const AttendForm& form, const std::vector<Index>& visible,
                            const std::vector<Index>& selected) const {
    AttendResult result(static_cast<Index>(visible.size()), layout_.value_width);
    const simd::QueryRows queries = {queries_.view().row(0), queries_.view().stride,
                                     static_cast<Index>(visible.size()), visible.data()};
    const simd::KeyValueRows keys = {.pages = pages_.data(),
                                     .page_rows = page_rows_,
                                     .layout = row_layout(kCacheFormatOf<T>, layout_.width, 0),
                                     .count = std::ssize(selected),
                                     .key_offset = layout_.key_offset,
                                     .key_width = layout_.key_width,
                                     .tail_offset = layout_.tail_offset,
                                     .tail_width = layout_.tail_width,
                                     .value_offset = layout_.value_offset,
                                     .value_width = layout_.value_width,
                                     .selected = selected.data()};
    attend(form, queries, keys, result.state());
    return result;
  }

  /// Softmax attention of one row over its first `visible` keys, in double.
  ExpectedAttention expected(Index row, Index visible,
                             simd::Arithmetic arithmetic = simd::Arithmetic::float32) {
    return expected_attention(
        {visible, layout_.key_width + layout_.tail_width, layout_.value_width},
        static_cast<double>(scale()), [&](Index i) { return queries_.at(row, i); },
        [&](Index k, Index i) {
          return element(key_row(k), i < layout_.key_width
                                         ? layout_.key_offset + i
                                         : layout_.tail_offset + i - layout_.key_width);
        },
        [&](Index k, Index c) { return element(key_row(k), layout_.value_offset + c); },
        arithmetic);
  }

 private:
  void attend(const AttendForm& form, const simd::QueryRows& queries,
              const simd::KeyValueRows& keys, const simd::SoftmaxState& state) const {
    const simd::CacheKernels& kernels = form.kernels.of(keys.layout.format);
    const Index key_width = layout_.key_width + layout_.tail_width;
    const AlignedBuffer<float> scratch(static_cast<std::size_t>(
        form.many
            ? kernels.attend_many_scratch(keys.layout, queries.rows, key_width, layout_.value_width)
            : kernels.attend_scratch(keys.layout, key_width, layout_.value_width)));
    std::fill(scratch.begin(), scratch.end(), std::numeric_limits<float>::quiet_NaN());
    (form.many ? kernels.attend_many : kernels.attend)(queries, keys, scale(), state,
                                                       scratch.data());
  }

  static double element(const T* row, Index i) noexcept {
    return static_cast<double>(static_cast<float>(row[i]));
  }

  void fill(Index k, Index offset, Index width) {
    for (Index i = 0; i < width; ++i)
      key_row(k)[offset + i] = static_cast<T>(static_cast<float>(random_.unit()));
  }

  KeyLayout layout_;
  Index keys_, page_rows_;
  Random random_;
  GuardedMatrix<float> queries_;
  std::vector<std::vector<T>> memory_;
  std::vector<const std::byte*> pages_;
};

}  // namespace mla::test

#endif  // MLA_SUPPORT_ATTEND_CASE_HPP_

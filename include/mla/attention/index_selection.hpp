#ifndef MLA_ATTENTION_INDEX_SELECTION_HPP_
#define MLA_ATTENTION_INDEX_SELECTION_HPP_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/call_plan.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"

namespace mla {

/// Rows of the best of some scores, in linear time: the last one that is still good enough is found
/// digit by digit (radix selection), nothing is sorted. The higher score comes first, of equal ones
/// the earlier row. Zeros are equal whatever their sign. NaN counts as the highest score of all, so
/// that it is not hidden.
class TopRows {
 public:
  /// Numbers of `keys` that the search among `scores` scores needs.
  static constexpr Index scratch(Index scores) noexcept { return 2 * scores + 2 * kDigits; }

  /// Writes the rows of the best `count` <= scores.size() scores to rows [count], rising.
  ///   keys  [scratch(scores.size())] memory
  static void select(std::span<const float> scores, Index count, Index* rows,
                     std::uint32_t* keys) noexcept {
    const Index n = std::ssize(scores);
    std::uint32_t* const left = keys + n;
    std::uint32_t* const histogram = left + n;
    for (Index i = 0; i < n; ++i) keys[i] = key_of(scores[static_cast<std::size_t>(i)]);
    // Of the keys that begin as `limit`, `wanted` are among the best, and all that begin higher.
    const std::uint32_t* candidates = keys;
    Index of = n, wanted = count;
    std::uint32_t limit = 0;
    for (const int shift : {21, 10, 0}) {
      const std::span some(candidates, static_cast<std::size_t>(of));
      const int bits = shift == 0 ? 10 : kBits;
      const std::uint32_t digit = digit_of_last(some, shift, bits, wanted, histogram);
      limit |= digit << shift;
      of = keep_with(digit, some, shift, bits, left);
      candidates = left;
    }
    emit({keys, static_cast<std::size_t>(n)}, limit, wanted, count, rows);
  }

 private:
  static constexpr int kBits = 11;  // of a digit; the last of three has 10
  static constexpr Index kDigits = Index{1} << kBits;

  // Rises with the score.
  static std::uint32_t key_of(float score) noexcept {
    if (std::isnan(score)) return 0xffffffffu;
    const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 becomes 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }

  // The digit that the best `wanted`-th of the candidates has; `wanted` becomes the number of those
  // with this digit that are among the best. Two histograms: equal digits often follow each other.
  static std::uint32_t digit_of_last(std::span<const std::uint32_t> candidates, int shift, int bits,
                                     Index& wanted, std::uint32_t* histogram) noexcept {
    const std::uint32_t digits = std::uint32_t{1} << bits;
    std::fill_n(histogram, 2 * digits, 0u);
    for (std::size_t i = 0; i < candidates.size(); ++i)
      ++histogram[(candidates[i] >> shift & (digits - 1)) + i % 2 * digits];
    std::uint32_t digit = digits - 1;
    for (; digit > 0; --digit) {
      const Index here = Index{histogram[digit]} + histogram[digits + digit];
      if (here >= wanted) break;
      wanted -= here;
    }
    return digit;
  }

  // Copies the candidates with this digit to `to`, which may be where they are; returns how many.
  static Index keep_with(std::uint32_t digit, std::span<const std::uint32_t> candidates, int shift,
                         int bits, std::uint32_t* to) noexcept {
    const std::uint32_t mask = (std::uint32_t{1} << bits) - 1;
    Index kept = 0;
    for (const std::uint32_t key : candidates) {
      to[kept] = key;
      kept += (key >> shift & mask) == digit;
    }
    return kept;
  }

  // Rows of keys above `limit`, and of the first `equal` that are `limit`.
  static void emit(std::span<const std::uint32_t> keys, std::uint32_t limit, Index equal,
                   Index count, Index* rows) noexcept {
    Index found = 0;
    for (std::size_t i = 0; found < count; ++i) {
      const bool tied = keys[i] == limit && equal > 0;
      equal -= tied;
      rows[found] = static_cast<Index>(i);
      found += tied || keys[i] > limit;
    }
  }
};

/// Which rows the tokens of a call see in layers of sparse attention: all up to their own as long
/// as these are no more than index_topk, else as many that an indexer has selected. A layer with an
/// indexer writes the lists, and those behind it without one read them. Lives in a workspace.
class IndexSelection {
 public:
  /// For a call of layers with `config`. Nothing is selected yet.
  IndexSelection(const AttentionConfig& config, const CallPlan& plan, Workspace& workspace)
      : topk_(config.indexer.topk),
        shares_(plan.shares()),
        lists_(workspace.take<std::span<const Index>>(plan.tokens())) {
    Index lists = 0;
    for (const CallPlan::Share& share : shares_) lists += share.tokens - dense_tokens(share);
    Index* rows = rows_ = workspace.take<Index>(lists * topk_);
    for (const CallPlan::Share& share : shares_)
      for (Index i = 0; i < share.tokens; ++i) {
        const bool dense = i < dense_tokens(share);
        lists_[share.first_token + i] =
            dense ? std::span<const Index>()
                  : std::span<const Index>(rows, static_cast<std::size_t>(topk_));
        if (!dense) rows += topk_;
      }
    any_ = lists > 0;
  }

  /// Whether a token of the call has a list.
  bool any() const noexcept { return any_; }
  /// Whether a layer has written the lists.
  bool selected() const noexcept { return selected_ || !any_; }
  void set_selected() noexcept { selected_ = true; }

  /// Keys that a token sees at most.
  Index topk() const noexcept { return topk_; }
  /// Tokens of a share that see all rows up to their own. They are the first ones.
  Index dense_tokens(const CallPlan::Share& share) const noexcept {
    return std::clamp<Index>(topk_ - share.past, 0, share.tokens);
  }
  std::span<const CallPlan::Share> shares() const noexcept { return shares_; }

  /// Rows that token t of the call sees, rising; empty where it sees all up to its own.
  std::span<const Index> rows_of(Index t) const noexcept { return lists_[t]; }
  /// The list of a token that has one, to be written.
  Index* list(Index t) const noexcept { return rows_ + (lists_[t].data() - rows_); }
  /// The lists of the tokens from t on.
  const std::span<const Index>* lists(Index t) const noexcept { return lists_ + t; }

 private:
  Index topk_;
  std::span<const CallPlan::Share> shares_;
  std::span<const Index>* lists_;  // [tokens], empty: all rows up to the token's own
  Index* rows_ = nullptr;          // [lists, topk]
  bool any_ = false;
  bool selected_ = false;
};

}  // namespace mla

#endif  // MLA_ATTENTION_INDEX_SELECTION_HPP_

#ifndef MLA_ATTENTION_CACHE_SEGMENTS_HPP_
#define MLA_ATTENTION_CACHE_SEGMENTS_HPP_

#include <array>
#include <cstddef>
#include <span>

#include "mla/core/tensor.hpp"

namespace mla {

/// Neighbouring rows of a cache that lie one after the other in its pages and whose positions are
/// off by the same number. A cache has one segment until rows are evicted from its middle or a part
/// of it is shifted.
struct CacheSegment {
  Index first = 0;  ///< the row of the cache that it begins with
  Index rows = 0;
  Index slot = 0;    ///< where that row lies, counted in rows from the cache's first page on
  Index place = 0;   ///< that row's number since the segment began: rows evicted from its front
                     ///< count. Keys are cut into parts by place. slot - place: whole pages
  Index offset = 0;  ///< its keys count as being this many positions later than they were rotated
                     ///< for

  Index end() const noexcept { return first + rows; }
  /// Whether its rows are those of the first pages, at the positions that they were rotated for.
  bool is_plain() const noexcept { return slot == 0 && place == 0 && offset == 0; }
  bool operator==(const CacheSegment&) const = default;
};

/// The segments of a cache, in order, at least one. Only one that is alone can be empty.
class CacheSegments {
 public:
  static constexpr Index kMost = 8;

  CacheSegments() = default;
  /// One of `rows` rows, from the first page on.
  explicit CacheSegments(Index rows) noexcept { list_[0].rows = rows; }
  CacheSegments(const CacheSegments&) = default;
  CacheSegments& operator=(const CacheSegments&) = default;
  CacheSegments(CacheSegments&& other) noexcept : list_(other.list_), count_(other.count_) {
    other.clear();
  }
  CacheSegments& operator=(CacheSegments&& other) noexcept {
    const CacheSegments moved = other;
    other.clear();
    return *this = moved;
  }
  ~CacheSegments() = default;

  std::span<const CacheSegment> all() const noexcept { return {list_.data(), count_}; }
  std::size_t size() const noexcept { return count_; }
  CacheSegment& operator[](std::size_t i) noexcept { return list_[i]; }
  const CacheSegment& operator[](std::size_t i) const noexcept { return list_[i]; }
  CacheSegment& last() noexcept { return list_[count_ - 1]; }
  const CacheSegment& last() const noexcept { return list_[count_ - 1]; }

  /// Rows in all.
  Index rows() const noexcept { return last().end(); }
  /// Rows from the first page on, those that no segment has with them.
  Index slots() const noexcept { return last().slot + last().rows; }

  /// The number of the segment that row `row` is in; of the last one for the next row.
  std::size_t find(Index row) const noexcept {
    std::size_t i = count_ - 1;
    while (row < list_[i].first) --i;
    return i;
  }
  /// Where row `row` lies.
  Index slot(Index row) const noexcept {
    const CacheSegment& segment = list_[find(row)];
    return segment.slot + row - segment.first;
  }

  /// There are fewer than kMost.
  void push_back(const CacheSegment& segment) noexcept { list_[count_++] = segment; }
  void erase(std::size_t i) noexcept {
    for (--count_; i < count_; ++i) list_[i] = list_[i + 1];
  }
  /// Keeps the first `rows` rows; without any, what is left is as new.
  void truncate(Index rows) noexcept {
    if (rows == 0) return clear();
    while (last().first >= rows) --count_;
    last().rows = rows - last().first;
  }
  void clear() noexcept {
    list_[0] = {};
    count_ = 1;
  }

  bool operator==(const CacheSegments& other) const noexcept {
    if (count_ != other.count_) return false;
    for (std::size_t i = 0; i < count_; ++i)
      if (list_[i] != other.list_[i]) return false;
    return true;
  }

 private:
  std::array<CacheSegment, kMost> list_ = {};
  std::size_t count_ = 1;
};

}  // namespace mla

#endif  // MLA_ATTENTION_CACHE_SEGMENTS_HPP_

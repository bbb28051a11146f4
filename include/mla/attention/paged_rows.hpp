#ifndef MLA_ATTENTION_PAGED_ROWS_HPP_
#define MLA_ATTENTION_PAGED_ROWS_HPP_

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// A growing list of rows, each RowLayout::bytes long, in pages of kPageRows, each one aligned
/// block. Rows never move.
class PagedRows {
 public:
  static constexpr Index kPageRows = simd::kTileKeys;
  static constexpr Index kMaxRows = Index{1} << 40;

  explicit PagedRows(const RowLayout& layout) : layout_(layout) {
    require(layout.bytes > 0, "a cache row needs at least one byte, got ", layout.bytes);
  }

  PagedRows(PagedRows&& other) noexcept
      : layout_(other.layout_),
        size_(std::exchange(other.size_, 0)),
        buffers_(std::move(other.buffers_)),
        pages_(std::move(other.pages_)) {
    other.buffers_.clear();
    other.pages_.clear();
  }
  PagedRows& operator=(PagedRows&& other) noexcept {
    PagedRows moved(std::move(other));
    swap(moved);
    return *this;
  }

  Index size() const noexcept { return size_; }
  Index capacity() const noexcept { return static_cast<Index>(pages_.size()) * kPageRows; }
  const RowLayout& layout() const noexcept { return layout_; }

  /// The bytes of row i; those of the rows of a page follow each other.
  std::byte* row(Index i) noexcept { return pages_[page_of(i)] + i % kPageRows * layout_.bytes; }
  const std::byte* row(Index i) const noexcept {
    return pages_[page_of(i)] + i % kPageRows * layout_.bytes;
  }

  /// First row of each page.
  const std::byte* const* pages() const noexcept { return pages_.data(); }

  /// Makes room for `rows` rows in all. What was there is unchanged, also when memory runs out.
  /// Throws std::invalid_argument for a number that cannot be.
  void reserve(Index rows) {
    require(rows >= 0 && rows <= kMaxRows, "cannot make room for ", rows, " cache rows");
    const auto pages = static_cast<std::size_t>((rows + kPageRows - 1) / kPageRows);
    if (pages <= pages_.size()) return;
    if (pages > pages_.capacity()) {
      const std::size_t roomier = std::max(pages, 2 * pages_.capacity());
      pages_.reserve(roomier);
      buffers_.reserve(roomier);
    }
    while (pages_.size() < pages) {
      buffers_.emplace_back(static_cast<std::size_t>(kPageRows * layout_.bytes));
      pages_.push_back(buffers_.back().data());
    }
  }

  /// Adds or removes rows at the end, within capacity(). New rows are not initialised.
  void resize(Index rows) noexcept { size_ = rows; }

  /// Gives back the pages that hold no row.
  void shrink_to_fit() noexcept {
    const auto pages = static_cast<std::size_t>((size_ + kPageRows - 1) / kPageRows);
    buffers_.resize(pages);
    pages_.resize(pages);
  }

  std::size_t bytes_used() const noexcept {
    return static_cast<std::size_t>(size_ * layout_.bytes);
  }
  std::size_t bytes_allocated() const noexcept {
    return pages_.size() * static_cast<std::size_t>(kPageRows * layout_.bytes);
  }

 private:
  static std::size_t page_of(Index row) noexcept {
    return static_cast<std::size_t>(row / kPageRows);
  }

  void swap(PagedRows& other) noexcept {
    std::swap(layout_, other.layout_);
    std::swap(size_, other.size_);
    buffers_.swap(other.buffers_);
    pages_.swap(other.pages_);
  }

  RowLayout layout_;
  Index size_ = 0;
  std::vector<AlignedBuffer<std::byte>> buffers_;
  std::vector<std::byte*> pages_;  // buffers_[i].data(), as kernels take them
};

}  // namespace mla

#endif  // MLA_ATTENTION_PAGED_ROWS_HPP_

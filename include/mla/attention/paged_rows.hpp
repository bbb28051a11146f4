#ifndef MLA_ATTENTION_PAGED_ROWS_HPP_
#define MLA_ATTENTION_PAGED_ROWS_HPP_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// A block of bytes, aligned to a cache line, that several owners share; the last one frees it.
/// Owners may be on different threads. Who writes to it must be its only owner.
class SharedPage {
 public:
  SharedPage() = default;
  /// `bytes` that are not initialised.
  explicit SharedPage(std::size_t bytes)
      : block_(std::make_unique<Block>(AlignedBuffer<std::byte>(bytes)).release()) {}
  SharedPage(const SharedPage& other) noexcept : block_(other.block_) {
    if (block_) block_->owners.fetch_add(1, std::memory_order_relaxed);
  }
  SharedPage(SharedPage&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  SharedPage& operator=(SharedPage other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~SharedPage() {
    if (block_ && block_->owners.fetch_sub(1, std::memory_order_acq_rel) == 1) delete block_;
  }

  explicit operator bool() const noexcept { return block_ != nullptr; }
  std::byte* data() const noexcept { return block_->bytes.data(); }
  /// Whether somebody else has it, too.
  bool shared() const noexcept { return block_->owners.load(std::memory_order_acquire) > 1; }
  /// Begins to fetch what copying the handle will write to.
  void prefetch() const noexcept { __builtin_prefetch(block_, 1); }

 private:
  // Beside its bytes, not before them: counts of many pages lie in few lines and pages of memory,
  // which forking a long text has to visit.
  struct Block {
    explicit Block(AlignedBuffer<std::byte> memory) noexcept : bytes(std::move(memory)) {}
    std::atomic<Index> owners = 1;
    AlignedBuffer<std::byte> bytes;
  };

  Block* block_ = nullptr;
};

/// A growing list of rows, each RowLayout::bytes long, in pages of kPageRows, each one aligned
/// block. Rows never move, but a page that several lists share is copied before one of them writes
/// to it. A list may keep a number for each row beside it: the position of its token.
class PagedRows {
 public:
  static constexpr Index kPageRows = simd::kTileKeys;
  static constexpr Index kMaxRows = Index{1} << 40;

  enum class Positions : bool { without, with };

  explicit PagedRows(const RowLayout& layout, Positions positions = Positions::without)
      : layout_(layout),
        head_bytes_(positions == Positions::with ? kPageRows * Index{sizeof(Index)} : 0) {
    require(layout.bytes > 0, "a cache row needs at least one byte, got ", layout.bytes);
  }

  PagedRows(PagedRows&& other) noexcept
      : layout_(other.layout_),
        head_bytes_(other.head_bytes_),
        size_(std::exchange(other.size_, 0)),
        pages_(std::move(other.pages_)),
        rows_(std::move(other.rows_)) {
    other.pages_.clear();
    other.rows_.clear();
  }
  PagedRows& operator=(PagedRows&& other) noexcept {
    PagedRows moved(std::move(other));
    swap(moved);
    return *this;
  }

  Index size() const noexcept { return size_; }
  Index capacity() const noexcept { return std::ssize(pages_) * kPageRows; }
  const RowLayout& layout() const noexcept { return layout_; }

  /// The bytes of row i; those of the rows of a page follow each other.
  std::byte* row(Index i) noexcept { return rows_[page_of(i)] + i % kPageRows * layout_.bytes; }
  const std::byte* row(Index i) const noexcept {
    return rows_[page_of(i)] + i % kPageRows * layout_.bytes;
  }

  /// The number beside row i, where the list keeps them.
  Index position(Index i) const noexcept {
    Index position;
    std::memcpy(&position, position_bytes(i), sizeof position);
    return position;
  }
  void set_position(Index i, Index position) noexcept {
    std::memcpy(position_bytes(i), &position, sizeof position);
  }

  /// First row of each page.
  const std::byte* const* pages() const noexcept { return rows_.data(); }
  /// The page that row i is in.
  const SharedPage& page(Index i) const noexcept { return pages_[page_of(i)]; }

  /// Makes room for `rows` rows in all that nobody else has. What was there is unchanged, also when
  /// memory runs out. Throws std::invalid_argument for a number that cannot be.
  [[gnu::cold]] void reserve(Index rows) {
    require(rows >= 0 && rows <= kMaxRows, "cannot make room for ", rows, " cache rows");
    const std::size_t pages = pages_for(rows);
    if (pages > pages_.capacity()) {
      const std::size_t roomier = std::max(pages, 2 * pages_.capacity());
      pages_.reserve(roomier);
      rows_.reserve(roomier);
    }
    // Only pages with rows can be shared: here the last one, where it has room for more.
    const std::size_t last = page_of(size_);
    if (rows > size_ && last < pages_.size() && pages_[last].shared()) {
      SharedPage copy = copy_of_page(last, size_ % kPageRows);
      set_page(last, std::move(copy));
    }
    while (pages_.size() < pages) add_page(new_page());
  }

  /// Adds or removes rows at the end, within capacity(). New rows are not initialised. Removes no
  /// memory but pages that others have.
  void resize(Index rows) noexcept {
    const std::size_t first = pages_for(rows), end = pages_for(size_);
    size_ = rows;
    for (std::size_t page = end; page-- > first;)
      if (pages_[page].shared()) erase_page(page);
  }

  /// Gives back the pages that hold no row.
  void shrink_to_fit() noexcept {
    pages_.resize(pages_for(size_));
    rows_.resize(pages_.size());
  }

  /// A list without rows, of the same layout.
  PagedRows alike() const { return PagedRows(*this, nullptr); }

  /// A list of the first `rows` rows, which copies none of them: pages are shared.
  [[gnu::cold]] PagedRows fork(Index rows) const {
    PagedRows list = alike();
    const std::size_t pages = pages_for(rows);
    list.pages_.reserve(pages);
    list.rows_.reserve(pages);
    for (std::size_t page = 0; page < pages; ++page) {
      if (page + kPrefetch < pages) pages_[page + kPrefetch].prefetch();
      list.add_page(pages_[page], rows_[page]);
    }
    list.size_ = rows;
    return list;
  }

  /// Shares a page of another list, whose rows are alike. Every page of this one must be full.
  void append_page(const SharedPage& page) {
    if (pages_.size() == pages_.capacity()) {
      const std::size_t roomier = std::max<std::size_t>(8, 2 * pages_.capacity());
      pages_.reserve(roomier);
      rows_.reserve(roomier);
    }
    add_page(page);
    size_ += kPageRows;
  }
  /// Makes row `to` that of another list, with its position.
  void copy_row(const PagedRows& other, Index from, Index to) noexcept {
    std::copy_n(other.row(from), layout_.bytes, row(to));
    if (head_bytes_ > 0) set_position(to, other.position(from));
  }

  /// Takes pages [first, + count) out, and with them kPageRows rows each. Those that nobody else
  /// has stay at the end, as room for more.
  [[gnu::cold]] void erase_pages(Index first, Index count) noexcept {
    size_ -= count * kPageRows;
    for (Index i = 0; i < count; ++i) {
      const auto page = static_cast<std::size_t>(first);
      if (pages_[page].shared()) {
        erase_page(page);
      } else {
        std::rotate(pages_.begin() + first, pages_.begin() + first + 1, pages_.end());
        std::rotate(rows_.begin() + first, rows_.begin() + first + 1, rows_.end());
      }
    }
  }

  std::size_t bytes_used() const noexcept {
    return static_cast<std::size_t>(size_ * layout_.bytes);
  }
  std::size_t bytes_allocated() const noexcept { return pages_.size() * page_bytes(); }
  /// Bytes of a page, with the positions of its rows.
  std::size_t page_bytes() const noexcept {
    return static_cast<std::size_t>(head_bytes_ + kPageRows * layout_.bytes);
  }

 private:
  static constexpr std::size_t kPrefetch = 16;  // pages whose counts are on their way

  // Without pages, otherwise alike.
  PagedRows(const PagedRows& like, std::nullptr_t)
      : layout_(like.layout_), head_bytes_(like.head_bytes_) {}

  static std::size_t page_of(Index row) noexcept {
    return static_cast<std::size_t>(row / kPageRows);
  }
  static std::size_t pages_for(Index rows) noexcept {
    return static_cast<std::size_t>((rows + kPageRows - 1) / kPageRows);
  }

  std::byte* position_bytes(Index i) const noexcept {
    return pages_[page_of(i)].data() + i % kPageRows * Index{sizeof(Index)};
  }

  SharedPage new_page() const { return SharedPage(page_bytes()); }
  SharedPage copy_of_page(std::size_t page, Index rows) const {
    SharedPage copy = new_page();
    std::copy_n(pages_[page].data(), head_bytes_ + rows * layout_.bytes, copy.data());
    return copy;
  }
  void set_page(std::size_t page, SharedPage content) noexcept {
    rows_[page] = content.data() + head_bytes_;
    pages_[page] = std::move(content);
  }
  // Within the capacity of the lists.
  void add_page(SharedPage page) {
    std::byte* const first_row = page.data() + head_bytes_;
    add_page(std::move(page), first_row);
  }
  void add_page(SharedPage page, std::byte* first_row) {
    rows_.push_back(first_row);
    pages_.push_back(std::move(page));
  }
  void erase_page(std::size_t page) noexcept {
    pages_.erase(pages_.begin() + static_cast<std::ptrdiff_t>(page));
    rows_.erase(rows_.begin() + static_cast<std::ptrdiff_t>(page));
  }

  void swap(PagedRows& other) noexcept {
    std::swap(layout_, other.layout_);
    std::swap(head_bytes_, other.head_bytes_);
    std::swap(size_, other.size_);
    pages_.swap(other.pages_);
    rows_.swap(other.rows_);
  }

  RowLayout layout_;
  Index head_bytes_;  // of a page before its rows: their positions
  Index size_ = 0;
  std::vector<SharedPage> pages_;
  std::vector<std::byte*> rows_;  // first row of each page, as kernels take them
};

}  // namespace mla

#endif  // MLA_ATTENTION_PAGED_ROWS_HPP_

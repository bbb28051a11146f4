// Brings rows of keys that come next into the second cache beside products, some cache lines at a
// time: many at once would take the buffers through which operands come from there.
class RowsAhead {
 public:
  RowsAhead() = default;
  // Keys [first, + count) in so many steps.
  RowsAhead(const KeyValueRows& keys, Index first, Index count, Index steps)
      : keys_(&keys),
        next_(first),
        end_(first + count),
        bytes_((count * keys.layout.bytes + kLine * steps - 1) / (kLine * steps) * kLine) {}

  MLA_INLINE void step() {
    if (at_ >= stop_ && !begin_rows()) return;
    const std::byte* const stop = at_ + bytes_;
    for (; at_ < stop; at_ += kLine) __builtin_prefetch(at_, 0, 2);
  }

 private:
  static constexpr Index kLine = 64;

  // Rows that follow each other in memory.
  [[gnu::noinline]] bool begin_rows() {
    if (next_ >= end_) return false;
    Index rows = 1;
    if (!keys_->selected) {
      const Index in_page = keys_->page_rows - (keys_->first_row + next_) % keys_->page_rows;
      rows = in_page < end_ - next_ ? in_page : end_ - next_;
    }
    at_ = keys_->row_of(next_);
    stop_ = at_ + rows * keys_->layout.bytes;
    next_ += rows;
    return true;
  }

  const KeyValueRows* keys_ = nullptr;
  Index next_ = 0, end_ = 0;
  Index bytes_ = 0;  // a step
  const std::byte *at_ = nullptr, *stop_ = nullptr;
};

#ifndef MLA_CORE_WORKSPACE_HPP_
#define MLA_CORE_WORKSPACE_HPP_

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "mla/core/tensor.hpp"

namespace mla {

/// Scratch memory that is kept from call to call, handed out like a stack. The first calls let it
/// grow; from then on taking memory of the same sizes allocates nothing.
class Workspace {
 public:
  /// Gives back, at the end of a scope, all that was taken since its beginning.
  class Scope {
   public:
    explicit Scope(Workspace& workspace) noexcept
        : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {}
    ~Scope() { workspace_.release(block_, used_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workspace& workspace_;
    std::size_t block_;
    std::size_t used_;
  };

  /// `count` uninitialised elements, aligned to a cache line, valid until the enclosing Scope ends.
  template <class T>
  T* take(Index count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment,
                  "Workspace hands out plain data only");
    constexpr std::size_t kBytes = sizeof(T);  // NOLINT(bugprone-sizeof-expression): or a pointer
    const std::size_t bytes = round_up(static_cast<std::size_t>(count) * kBytes);
    while (block_ < blocks_.size() && blocks_[block_].size() - used_ < bytes) next_block();
    // As much again as there is: calls that grow little by little do not pile up small blocks.
    if (block_ == blocks_.size())
      blocks_.emplace_back(std::max({bytes, kFirstBlock, bytes_allocated()}));
    std::byte* memory = blocks_[block_].data() + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(memory);
  }

  /// A dense matrix of take<T>(rows * cols) elements.
  template <class T>
  MatrixView<T> take_matrix(Index rows, Index cols) {
    return {take<T>(rows * cols), rows, cols};
  }

  std::size_t bytes_allocated() const noexcept {
    std::size_t bytes = 0;
    for (const auto& block : blocks_) bytes += block.size();
    return bytes;
  }

 private:
  static constexpr std::size_t kAlignment = AlignedBuffer<std::byte>::kAlignment;
  static constexpr std::size_t kFirstBlock = std::size_t{1} << 16;

  static std::size_t round_up(std::size_t bytes) noexcept {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  void next_block() noexcept {
    ++block_;
    used_ = 0;
  }

  void release(std::size_t block, std::size_t used) noexcept {
    block_ = block;
    used_ = used;
  }

  std::vector<AlignedBuffer<std::byte>> blocks_;
  std::size_t block_ = 0;  // the one that memory is taken from
  std::size_t used_ = 0;   // bytes of it
};

}  // namespace mla

#endif  // MLA_CORE_WORKSPACE_HPP_

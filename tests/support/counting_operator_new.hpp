#ifndef MLA_SUPPORT_COUNTING_OPERATOR_NEW_HPP_
#define MLA_SUPPORT_COUNTING_OPERATOR_NEW_HPP_

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

// Replaces the global operator new of the executable: include it in one of its files only. It
// behaves like the standard one outside of the scopes below.

namespace mla::test {

/// Allocations of all threads since the program began.
inline std::atomic<long> allocations = 0;
/// Those of them that were not freed yet.
inline std::atomic<long> allocations_alive = 0;
/// Allocations that succeed before one fails; below 0: none fails.
inline std::atomic<long> allocations_left = -1;

/// Counts allocations since its construction.
class AllocationCount {
 public:
  long count() const noexcept { return allocations - before_; }

 private:
  long before_ = allocations;
};

/// In its scope `successes` allocations succeed, the next one throws std::bad_alloc, and those
/// after it succeed again.
class FailingAllocation {
 public:
  explicit FailingAllocation(long successes) noexcept { allocations_left = successes; }
  ~FailingAllocation() { allocations_left = -1; }
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;

  bool failed() const noexcept { return allocations_left < 0; }
};

/// Calls `call` until all its allocations succeed: allocation n fails in its call number n, from 0.
/// Whatever is thrown must leave no memory behind; `check` is called after each failure. Returns
/// how many there were.
template <class Call, class Check>
int fail_each_allocation(const Call& call, const Check& check) {
  for (int failures = 0;; ++failures) {
    const long alive = allocations_alive;
    bool failed = false;
    {
      const FailingAllocation failing(failures);
      try {
        call();
      } catch (const std::bad_alloc&) {
      }
      failed = failing.failed();
    }
    if (!failed) return failures;
    EXPECT_EQ(allocations_alive, alive) << "a leak after failure " << failures;
    check();
    if (::testing::Test::HasFailure()) return failures;
  }
}

namespace detail {

inline void* allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (!memory) throw std::bad_alloc();
  ++allocations_alive;
  return memory;
}

inline void deallocate(void* memory) noexcept {
  if (memory) --allocations_alive;
  std::free(memory);
}

}  // namespace detail

}  // namespace mla::test

// Not inline: the standard forbids it.
void* operator new(std::size_t size) {
  return mla::test::detail::allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return mla::test::detail::allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size) { return operator new(size); }
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return operator new(size, alignment);
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return operator new(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](std::size_t size, const std::nothrow_t& tag) noexcept {
  return operator new(size, tag);
}
void operator delete(void* memory) noexcept { mla::test::detail::deallocate(memory); }
void operator delete(void* memory, std::size_t) noexcept { mla::test::detail::deallocate(memory); }
void operator delete(void* memory, std::align_val_t) noexcept {
  mla::test::detail::deallocate(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  mla::test::detail::deallocate(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  mla::test::detail::deallocate(memory);
}
void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  mla::test::detail::deallocate(memory);
}
void operator delete[](void* memory) noexcept { mla::test::detail::deallocate(memory); }
void operator delete[](void* memory, std::size_t) noexcept {
  mla::test::detail::deallocate(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  mla::test::detail::deallocate(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  mla::test::detail::deallocate(memory);
}

#endif  // MLA_SUPPORT_COUNTING_OPERATOR_NEW_HPP_

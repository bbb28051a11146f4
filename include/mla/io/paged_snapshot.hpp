#ifndef MLA_IO_PAGED_SNAPSHOT_HPP_
#define MLA_IO_PAGED_SNAPSHOT_HPP_

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "mla/attention/cache_segments.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/attention/paged_rows.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/io/safetensors_writer.hpp"
#include "mla/io/snapshot_file.hpp"

// Version 3 of snapshots: the caches of one or several states, with their segments. A page that
// several of them share is written once, and shared again when it is restored.
// - __metadata__: as in version 2, and `states`.
// - pages.<c>.sizes: I64 [pages] rows of each page that the states' caches number c have.
// - pages.<c>.rows: U8 [sum of sizes, bytes per row]; pages.<c>.index_keys likewise, where there
// are
//   some; pages.<c>.positions: I64 [sum of sizes], which the rows were rotated for.
// - states.<s>.<c>.pages: I64 [pages of that cache] their numbers.
// - states.<s>.<c>.segments: I64 [segments, 4] rows, slot, place and offset of each (CacheSegment).

namespace mla::detail {

inline std::string page_tensor(std::size_t cache, const char* what) {
  return "pages." + std::to_string(cache) + "." + what;
}
inline std::string state_tensor(std::size_t state, std::size_t cache, const char* what) {
  return "states." + std::to_string(state) + "." + std::to_string(cache) + "." + what;
}

/// Version 3 of the fields of version 2.
inline SnapshotFields paged_fields(SnapshotFields fields, std::size_t states) {
  field(fields, "version")->second = "3";
  fields.emplace_back("states", std::to_string(states));
  return fields;
}

/// The distinct pages of some caches, numbered as they come.
class PageNumbers {
 public:
  /// The numbers of a cache's pages.
  std::vector<Index> add(const LatentCache& cache) {
    std::vector<Index> numbers;
    const Index slots = cache.segments().back().slot + cache.segments().back().rows;
    for (Index slot = 0; slot < slots; slot += PagedRows::kPageRows) {
      const std::byte* const page = cache.rows().row(slot);
      const auto [found, added] = numbers_.emplace(page, std::ssize(pages_));
      if (added) pages_.push_back({&cache, slot, 0});
      Page& known = pages_[static_cast<std::size_t>(found->second)];
      // Rows are there up to the last one that somebody sees.
      const Index rows = std::min(PagedRows::kPageRows, slots - slot);
      if (rows > known.rows) known = {&cache, slot, rows};
      numbers.push_back(found->second);
    }
    return numbers;
  }

  std::vector<Index> sizes() const {
    std::vector<Index> sizes;
    sizes.reserve(pages_.size());
    for (const Page& page : pages_) sizes.push_back(page.rows);
    return sizes;
  }
  std::vector<Index> positions() const {
    std::vector<Index> positions;
    for (const Page& page : pages_)
      for (Index row = page.slot; row < page.slot + page.rows; ++row)
        positions.push_back(page.cache->rows().position(row));
    return positions;
  }
  /// The rows of all pages in one of the lists of their caches.
  template <class List>
  SafetensorsSource rows(std::string name, const List& list_of) const {
    SafetensorsSource tensor = {std::move(name), SafetensorsDType::uint8, {0, 0}};
    for (const Page& page : pages_) {
      const PagedRows& list = list_of(*page.cache);
      tensor.shape[0] += page.rows;
      tensor.parts.emplace_back(list.row(page.slot),
                                static_cast<std::size_t>(page.rows * list.layout().bytes));
    }
    return tensor;
  }

 private:
  struct Page {
    const LatentCache* cache;  // one that has it
    Index slot, rows;
  };
  std::map<const std::byte*, Index> numbers_;
  std::vector<Page> pages_;
};

/// `caches`: those of all states, one state after the other.
inline void write_paged_snapshot(const std::filesystem::path& path, const SnapshotFields& fields,
                                 std::span<const LatentCache* const> caches, std::size_t states) {
  const std::size_t count = caches.size() / states;
  std::vector<SafetensorsSource> tensors;
  std::vector<std::vector<Index>> numbers;  // what the tensors refer to
  numbers.reserve(count * (2 + 2 * states));
  const auto add = [&](std::string name, std::vector<Index> values, std::vector<Index> shape) {
    numbers.push_back(std::move(values));
    tensors.push_back({std::move(name),
                       SafetensorsDType::int64,
                       std::move(shape),
                       {std::as_bytes(std::span(numbers.back()))}});
  };
  const auto add_list = [&](std::string name, std::vector<Index> values) {
    const Index size = std::ssize(values);
    add(std::move(name), std::move(values), {size});
  };
  std::vector<PageNumbers> pages(count);
  for (std::size_t i = 0; i < caches.size(); ++i) {
    const std::size_t s = i / count, c = i % count;
    add_list(state_tensor(s, c, "pages"), pages[c].add(*caches[i]));
    std::vector<Index> segments;
    for (const CacheSegment& segment : caches[i]->segments())
      segments.insert(segments.end(), {segment.rows, segment.slot, segment.place, segment.offset});
    const Index rows = std::ssize(segments) / 4;
    add(state_tensor(s, c, "segments"), std::move(segments), {rows, 4});
  }
  for (std::size_t c = 0; c < count; ++c) {
    add_list(page_tensor(c, "sizes"), pages[c].sizes());
    add_list(page_tensor(c, "positions"), pages[c].positions());
  }
  for (std::size_t c = 0; c < count; ++c) {
    const auto add_rows = [&](const char* what, const RowLayout& layout, const auto& list_of) {
      tensors.push_back(pages[c].rows(page_tensor(c, what), list_of));
      tensors.back().shape[1] = layout.bytes;
    };
    add_rows("rows", caches[c]->layout(),
             [](const LatentCache& cache) -> const PagedRows& { return cache.rows(); });
    if (caches[c]->index_keys())
      add_rows("index_keys", caches[c]->index_keys()->layout(),
               [](const LatentCache& cache) -> const PagedRows& { return *cache.index_keys(); });
  }
  write_snapshot_file(path, paged_fields(fields, states), tensors);
}

/// Whether the file at `path` is of version 3. Throws as SafetensorsFile.
inline bool is_paged_snapshot(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const auto version = file.metadata().find("version");
  return version != file.metadata().end() && version->second == "3";
}

/// A snapshot of version 3 that was checked from end to end, and its pages.
class PagedSnapshot : public SnapshotFile {
 public:
  /// `like`: a cache for each one of a state. Throws as SnapshotFile.
  PagedSnapshot(const std::filesystem::path& path, const SnapshotFields& fields,
                std::span<const LatentCache* const> like)
      : SnapshotFile(path, Unread()) {
    const auto states = file_.metadata().find("states");
    if (states == file_.metadata().end()) fail("is no snapshot of this kind: states is missing");
    SnapshotFields all = paged_fields(fields, 0);
    field(all, "states")->second = states->second;
    check(all);
    const std::size_t count = number_of(states->second);
    std::size_t tensors = 1;
    std::vector<std::vector<Index>> sizes;
    for (std::size_t c = 0; c < like.size(); ++c) {
      pages_.push_back(read_pages(c, *like[c]));
      sizes.push_back(values(page_tensor(c, "sizes")));
      tensors += like[c]->index_keys() ? 4U : 3U;
    }
    for (std::size_t s = 0; s < count; ++s, tensors += 2 * like.size()) {
      states_.emplace_back();
      for (std::size_t c = 0; c < like.size(); ++c)
        states_.back().push_back(read_cache(s, c, *like[c], sizes[c]));
    }
    if (file_.tensors().size() != tensors)
      fail("has ", file_.tensors().size(), " tensors, expected ", tensors);
  }

  std::size_t states() const noexcept { return states_.size(); }
  void require_states(std::size_t count) const {
    if (states() != count) fail("states is ", states(), " in the snapshot, but ", count, " here");
  }
  /// The caches of a state, to move from.
  std::vector<LatentCache>& state(std::size_t s) const noexcept { return states_[s]; }

 private:
  struct Pages {
    std::vector<SharedPage> rows, index_keys;
  };

  std::size_t number_of(const std::string& text) const {
    std::size_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || number == 0 ||
        number > file_.tensors().size())
      fail("states is ", text, ", which is no number of states in this file");
    return number;
  }

  std::vector<Index> values(const std::string& name) const {
    const std::vector<Index>& shape = file_.tensor(name).shape;
    if (shape.size() != 1) fail("tensor ", name, " must have one dim, has ", shape_text(shape));
    const auto values =
        typed_tensor(name, SafetensorsDType::int64, shape).template values<std::int64_t>();
    return {values.begin(), values.end()};
  }

  // The pages that the states' caches number c have.
  Pages read_pages(std::size_t c, const LatentCache& like) const {
    const std::vector<Index> sizes = values(page_tensor(c, "sizes"));
    Index rows = 0;
    for (const Index size : sizes) {
      if (size < 1 || size > PagedRows::kPageRows)
        fail("tensor ", page_tensor(c, "sizes"), " has ", size, ", a page has 1 to ",
             PagedRows::kPageRows, " rows");
      rows += size;
    }
    const std::vector<Index> positions = values(page_tensor(c, "positions"));
    if (std::ssize(positions) != rows)
      fail("tensor ", page_tensor(c, "positions"), " has ", positions.size(), " elements for ",
           rows, " rows");
    Pages pages;
    pages.rows = read_list(page_tensor(c, "rows"), sizes, rows, like.rows(), positions);
    if (const PagedRows* keys = like.index_keys())
      pages.index_keys = read_list(page_tensor(c, "index_keys"), sizes, rows, *keys, {});
    return pages;
  }
  std::vector<SharedPage> read_list(const std::string& name, std::span<const Index> sizes,
                                    Index rows, const PagedRows& like,
                                    std::span<const Index> positions) const {
    const Index bytes = like.layout().bytes;
    const std::byte* from = typed_tensor(name, SafetensorsDType::uint8, {rows, bytes}).bytes.data();
    std::vector<SharedPage> pages;
    Index next = 0;
    for (const Index size : sizes) {
      PagedRows page = like.alike();
      page.reserve(size);
      page.resize(size);
      for (Index row = 0; row < size; ++row, from += bytes) {
        std::memcpy(page.row(row), from, static_cast<std::size_t>(bytes));
        if (!positions.empty()) page.set_position(row, positions[static_cast<std::size_t>(next++)]);
      }
      pages.push_back(page.page(0));
    }
    return pages;
  }

  LatentCache read_cache(std::size_t s, std::size_t c, const LatentCache& like,
                         std::span<const Index> sizes) const {
    const std::string pages_name = state_tensor(s, c, "pages");
    Pages pages;
    const std::vector<Index> numbers = values(pages_name);
    for (const Index number : numbers) {
      if (number < 0 || number >= std::ssize(sizes))
        fail("tensor ", pages_name, " has page ", number, " of ", sizes.size());
      pages.rows.push_back(pages_[c].rows[static_cast<std::size_t>(number)]);
      if (like.index_keys())
        pages.index_keys.push_back(pages_[c].index_keys[static_cast<std::size_t>(number)]);
    }
    const CacheSegments segments = read_segments(state_tensor(s, c, "segments"), numbers, sizes);
    LatentCache cache = like.of_pages(pages.rows, pages.index_keys, segments);
    check_positions(cache, s, c);
    return cache;
  }

  CacheSegments read_segments(const std::string& name, std::span<const Index> numbers,
                              std::span<const Index> sizes) const {
    const std::vector<Index>& shape = file_.tensor(name).shape;
    if (shape.size() != 2 || shape[1] != 4 || shape[0] < 1 || shape[0] > CacheSegments::kMost)
      fail("tensor ", name, " must be of 1 to ", CacheSegments::kMost, " segments, has ",
           shape_text(shape));
    const auto values =
        typed_tensor(name, SafetensorsDType::int64, shape).template values<std::int64_t>();
    constexpr Index kPage = PagedRows::kPageRows;
    CacheSegments segments;
    Index slot = 0;  // where the next segment may begin
    for (std::size_t i = 0; i < values.size(); i += 4) {
      const CacheSegment segment = {i == 0 ? 0 : segments.rows(), values[i], values[i + 1],
                                    values[i + 2], values[i + 3]};
      const Index least = values.size() > 4 ? 1 : 0;
      const bool fits = segment.rows >= least && segment.rows <= PagedRows::kMaxRows &&
                        segment.slot >= slot && segment.slot <= PagedRows::kMaxRows &&
                        segment.slot - slot < kPage && segment.place >= segment.slot - slot &&
                        segment.place <= PagedRows::kMaxRows &&
                        (segment.place - segment.slot) % kPage == 0 &&
                        segment.offset >= -kMaxPosition && segment.offset <= kMaxPosition &&
                        (segment.rows + segment.slot + kPage - 1) / kPage <= std::ssize(numbers) &&
                        (segment.rows > 0 || segment == CacheSegment());
      if (!fits)
        fail("tensor ", name, " has a segment that cannot be: ", segment.rows, " rows, slot ",
             segment.slot, ", place ", segment.place, ", offset ", segment.offset);
      // Of its last page as many rows must be there as it has.
      const Index end = segment.slot + segment.rows;
      for (Index first = segment.slot / kPage * kPage; first < end; first += kPage) {
        const Index number = numbers[static_cast<std::size_t>(first / kPage)];
        const Index wanted = std::min(kPage, end - first);
        if (sizes[static_cast<std::size_t>(number)] < wanted)
          fail("tensor ", name, " has ", wanted, " rows in page ", number, ", which has ",
               sizes[static_cast<std::size_t>(number)]);
      }
      if (i == 0)
        segments.last() = segment;
      else
        segments.push_back(segment);
      slot = (end + kPage - 1) / kPage * kPage;
    }
    if (slot / kPage != std::ssize(numbers))
      fail("tensor ", name, " needs ", slot / kPage, " pages, got ", numbers.size());
    return segments;
  }

  void check_positions(const LatentCache& cache, std::size_t s, std::size_t c) const {
    Index last = -1;
    for (const CacheSegment& segment : cache.segments())
      for (Index i = segment.first; i < segment.end(); ++i) {
        const Index rotated = cache.rows().position(segment.slot + i - segment.first);
        const bool possible = rotated >= 0 && rotated <= kMaxPosition;
        const Index position = possible ? rotated + segment.offset : -1;
        if (position <= last || position > kMaxPosition)
          fail("row ", i, " of cache ", c, " of state ", s, " was rotated for position ", rotated,
               " and is shifted by ", segment.offset, ", which must rise up to ", kMaxPosition);
        last = position;
      }
  }

  std::vector<Pages> pages_;  // by cache of a state
  mutable std::vector<std::vector<LatentCache>> states_;
};

}  // namespace mla::detail

#endif  // MLA_IO_PAGED_SNAPSHOT_HPP_

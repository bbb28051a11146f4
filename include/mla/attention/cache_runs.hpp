#ifndef MLA_ATTENTION_CACHE_RUNS_HPP_
#define MLA_ATTENTION_CACHE_RUNS_HPP_

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "mla/attention/cache_segments.hpp"
#include "mla/attention/paged_rows.hpp"
#include "mla/core/tensor.hpp"

// What is left of a cache's segments when rows are taken out of them. A run is a part of a segment:
// a CacheSegment whose rows are all kept.

namespace mla::detail {

// Rows [first, end) of a segment, if there are any.
inline void add_run(const CacheSegment& segment, Index first, Index end,
                    std::vector<CacheSegment>& runs) {
  const Index skipped = first - segment.first;
  if (first < end)
    runs.push_back(
        {first, end - first, segment.slot + skipped, segment.place + skipped, segment.offset});
}

/// Without rows [first, end); where these are none, one begins at `first`.
[[gnu::cold]] inline std::vector<CacheSegment> runs_without(const CacheSegments& segments,
                                                            Index first, Index end) {
  std::vector<CacheSegment> runs;
  for (const CacheSegment& segment : segments.all()) {
    add_run(segment, segment.first, std::min(segment.end(), first), runs);
    add_run(segment, std::max(segment.first, end), segment.end(), runs);
  }
  return runs;
}

/// Without some rows, which rise.
[[gnu::cold]] inline std::vector<CacheSegment> runs_without(const CacheSegments& segments,
                                                            std::span<const Index> rows) {
  std::vector<CacheSegment> runs;
  std::size_t next = 0;
  for (const CacheSegment& segment : segments.all()) {
    Index first = segment.first;
    for (; next < rows.size() && rows[next] < segment.end(); ++next) {
      add_run(segment, first, rows[next], runs);
      first = rows[next] + 1;
    }
    add_run(segment, first, segment.end(), runs);
  }
  return runs;
}

/// Makes segments of runs, at least one. Each run becomes one, in the pages where it is; if these
/// would be too many, the runs of an old segment become one, and all but the first are copied.
class Regrouping {
 public:
  /// `runs` must outlive the object.
  Regrouping(const CacheSegments& old, std::span<const CacheSegment> runs)
      : old_(old), runs_(runs) {
    Index first = 0;
    for (std::size_t i = 0; i < runs.size(); first += runs[i++].rows) {
      if (continues(i)) {
        segments_.last().rows += runs[i].rows;
        continue;
      }
      const Index slot = i == 0 ? 0 : round_up(segments_.slots(), PagedRows::kPageRows);
      const CacheSegment segment = {first, runs[i].rows, slot + runs[i].slot % PagedRows::kPageRows,
                                    runs[i].place, runs[i].offset};
      if (i == 0)
        segments_.last() = segment;
      else
        segments_.push_back(segment);
    }
  }

  const CacheSegments& segments() const noexcept { return segments_; }

  /// The rows of the runs, from a list that has those of the old segments.
  [[gnu::cold]] PagedRows gathered(const PagedRows& from) const {
    PagedRows to = from.alike();
    for (std::size_t i = 0; i < runs_.size(); ++i)
      if (continues(i))
        copy(from, runs_[i], to);
      else
        share(from, runs_[i], to);
    return to;
  }

 private:
  static Index round_up(Index n, Index step) noexcept { return (n + step - 1) / step * step; }

  // Whether run i comes behind another one in the same segment.
  bool continues(std::size_t i) const noexcept {
    return runs_.size() > CacheSegments::kMost && i > 0 &&
           old_.find(runs_[i].first) == old_.find(runs_[i - 1].first);
  }

  static void copy(const PagedRows& from, const CacheSegment& run, PagedRows& to) {
    const Index size = to.size();
    to.reserve(size + run.rows);
    to.resize(size + run.rows);
    for (Index r = 0; r < run.rows; ++r) to.copy_row(from, run.slot + r, size + r);
  }

  // On pages of its own handles: the first one may be that of the run before, too.
  static void share(const PagedRows& from, const CacheSegment& run, PagedRows& to) {
    to.resize(to.capacity());
    const Index in_page = run.slot % PagedRows::kPageRows, size = to.size();
    for (Index slot = run.slot - in_page; slot < run.slot + run.rows; slot += PagedRows::kPageRows)
      to.append_page(from.page(slot));
    to.resize(size + in_page + run.rows);
  }

  const CacheSegments& old_;
  std::span<const CacheSegment> runs_;
  CacheSegments segments_;
};

}  // namespace mla::detail

#endif  // MLA_ATTENTION_CACHE_RUNS_HPP_

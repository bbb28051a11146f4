#ifndef MLA_ATTENTION_KEY_GROUPS_HPP_
#define MLA_ATTENTION_KEY_GROUPS_HPP_

#include <algorithm>
#include <cstddef>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"

namespace mla {

/// Query rows of a batch in groups that go over the same keys together. A row is one head of one
/// token; the rows of a token follow each other. Tokens that see selected rows share a group with
/// nobody. The keys of a group are cut into parts that are attended apart and merged: the cuts
/// depend on a key's place only, so results do not depend on the number of threads.
class KeyGroups {
 public:
  static constexpr Index kPartKeys = 1024;
  /// Rows of a group, at most. Down to kLeastRows they are halved to keep all workers busy.
  static constexpr Index kMostRows = 128, kLeastRows = 32;

  /// Some rows of a sequence, which see at most `keys` keys; their partial results, part by part,
  /// are in rows [slot, + rows * parts()).
  struct Group {
    const CachedTokens* sequence;
    Index row, rows;
    Index keys;
    const Index* selected;  ///< [keys] the rows that these are; nullptr: the first ones
    Index slot;
    Index parts() const noexcept { return parts_of(keys); }
  };
  /// One part of the keys of a group.
  struct Task {
    const Group* group;
    Index part;
  };

  /// `rank`: width of a partial result. Memory is the workspace's.
  KeyGroups(std::span<const CachedTokens> batch, Index heads, Index rank, Index workers,
            Workspace& workspace)
      : heads_(heads), room_(slots_of_round(batch, rank)), tasks_(workspace.take<Task>(room_)) {
    const Index most_rows = rows_of_group(batch, workers);
    Index most = 0;
    for (const CachedTokens& sequence : batch) most += count_groups(sequence, kLeastRows);
    Group* const groups = workspace.take<Group>(most);
    Index i = 0;
    for (const CachedTokens& sequence : batch) {
      const Index span = rows_together(sequence);
      for (Index first = 0; first < sequence.tokens * heads; first += span)
        for (Index row = first; row < first + span; row += most_rows) {
          const Index rows = std::min(most_rows, first + span - row);
          const Index last_token = (row + rows - 1) / heads;
          groups[i++] = {&sequence,
                         sequence.first_token * heads + row,
                         rows,
                         sequence.visible(last_token),
                         sequence.rows_of(last_token),
                         0};
        }
    }
    groups_ = {groups, static_cast<std::size_t>(i)};
  }

  /// Partial results that are held at a time.
  Index room() const noexcept { return room_; }

  /// Calls round(tasks, groups) for as many groups at a time as there is room for.
  template <class Round>
  void for_each_round(const Round& round) const {
    for (std::size_t first = 0, end; first < groups_.size(); first = end) {
      Index slots = 0, tasks = 0;
      for (end = first; end < groups_.size(); ++end) {
        Group& group = groups_[end];
        const Index more = group.rows * group.parts();
        if (slots + more > room_) break;
        group.slot = slots;
        slots += more;
        for (Index part = 0; part < group.parts(); ++part) tasks_[tasks++] = {&group, part};
      }
      round(std::span<const Task>(tasks_, static_cast<std::size_t>(tasks)),
            std::span<const Group>(groups_.subspan(first, end - first)));
    }
  }

 private:
  // Partial results, in floats, that are held at a time.
  static constexpr Index kPartialFloats = Index{1} << 24;

  static Index parts_of(Index keys) noexcept { return (keys + kPartKeys - 1) / kPartKeys; }

  // Rows that see the same keys, or a prefix of them.
  Index rows_together(const CachedTokens& sequence) const noexcept {
    return sequence.selected ? heads_ : sequence.tokens * heads_;
  }

  Index count_groups(const CachedTokens& sequence, Index rows) const noexcept {
    if (sequence.tokens == 0) return 0;
    const Index span = rows_together(sequence);
    return sequence.tokens * heads_ / span * ((span + rows - 1) / rows);
  }

  // As many as all rows could have before the caches must grow, so that decoding allocates nothing
  // until then, but not more than kPartialFloats unless a group needs it.
  Index slots_of_round(std::span<const CachedTokens> batch, Index rank) const noexcept {
    Index rows = 0, parts = 1;
    for (const CachedTokens& sequence : batch) {
      rows += sequence.tokens * heads_;
      parts = std::max(parts, parts_of(sequence.cache->rows().capacity()));
    }
    return std::min(rows * parts, std::max(kMostRows * parts, kPartialFloats / rank));
  }

  // As many rows as leave the workers with little to wait for each other: keys are packed again for
  // each group.
  Index rows_of_group(std::span<const CachedTokens> batch, Index workers) const noexcept {
    Index rows = kMostRows;
    const auto well_shared = [&] {
      Index tasks = 0;
      for (const CachedTokens& sequence : batch)
        tasks += count_groups(sequence, rows) * parts_of(sequence.cache->size());
      return 4 * tasks >= 3 * ((tasks + workers - 1) / workers) * workers;
    };
    while (rows > kLeastRows && !well_shared()) rows /= 2;
    return rows;
  }

  Index heads_;
  Index room_;
  Task* tasks_;  // [room_]
  std::span<Group> groups_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_KEY_GROUPS_HPP_

#ifndef MLA_ATTENTION_KEY_GROUPS_HPP_
#define MLA_ATTENTION_KEY_GROUPS_HPP_

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/attention/paged_rows.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Query rows of a batch in groups that go over the same keys together. A row is one head of one
/// token; the rows of a token follow each other. Tokens that see selected rows, or a window of
/// their own, share a group with nobody. Neighbouring sequences of the batch whose caches share
/// pages (see LatentCache::fork) are a group together: they go over the keys in these as one, and
/// then each over its own. The keys of a group are cut into parts that are attended apart and
/// merged: the cuts depend on a key's place and the kernels of its format only, so results depend
/// neither on the number of threads nor on who else is in the group.
class KeyGroups {
 public:
  /// Rows of a group of one sequence, at most. Down to kLeastRows they are halved to keep all
  /// workers busy.
  static constexpr Index kMostRows = 128, kLeastRows = 32;
  /// Rows of a group of several sequences, at most: what packing the keys costs is little then, and
  /// what is kept for each row still fits into a cache.
  static constexpr Index kMostSharedRows = 256;

  /// Rows of one sequence, which see the keys of token `token` of it, or the first of them.
  struct Member {
    const CachedTokens* sequence;
    Index row, rows;
    Index token;
    Index parts;
  };
  /// Its members' rows follow each other. The partial results of part p are in rows
  /// [slot + p * rows, + rows).
  struct Group {
    std::span<Member> members;
    Index row, rows;
    Index shared_keys;  ///< keys that all members see together, in whole parts
    Index slot;
  };
  /// Some rows of a group and one part of their keys.
  struct Task {
    const CachedTokens* sequence;
    Index row, rows;
    Index token;
    Index slot;  ///< of the first row's partial result
    KeyPiece keys;
  };

  /// `rank`: width of a partial result. Memory is the workspace's.
  KeyGroups(std::span<const CachedTokens> batch, Index heads, Index rank, Index workers,
            const simd::Kernels& kernels, Workspace& workspace)
      : heads_(heads),
        kernels_(kernels),
        room_(slots_of_round(batch, rank)),
        tasks_(workspace.take<Task>(room_)) {
    const Index most_rows = rows_of_group(batch, workers);
    Index most = 0;
    for (const CachedTokens& sequence : batch) most += count_groups(sequence, kLeastRows);
    Member* member = workspace.take<Member>(most);
    Group* const groups = workspace.take<Group>(most);
    Index count = 0;
    for (std::size_t s = 0, end; s < batch.size(); s = end) {
      const Shared shared = shared_from(batch.subspan(s), workers);
      end = s + shared.sequences;
      if (shared.sequences > 1) {
        Member* const first = member;
        Index rows = 0;
        for (std::size_t i = s; i < end; rows += (member++)->rows, ++i)
          *member = {&batch[i], batch[i].first_token * heads, batch[i].tokens * heads,
                     batch[i].tokens - 1, 0};
        groups[count++] = {{first, member}, first->row, rows, shared.keys, 0};
        continue;
      }
      const CachedTokens& sequence = batch[s];
      const Index span = rows_together(sequence);
      for (Index first = 0; first < sequence.tokens * heads; first += span)
        for (Index row = first; row < first + span; row += most_rows, ++member) {
          const Index rows = std::min(most_rows, first + span - row);
          *member = {&sequence, sequence.first_token * heads + row, rows, (row + rows - 1) / heads,
                     0};
          groups[count++] = {{member, 1}, member->row, rows, 0, 0};
        }
    }
    groups_ = {groups, static_cast<std::size_t>(count)};
  }

  /// Partial results that are held at a time.
  Index room() const noexcept { return room_; }

  /// Rows of a task, at most; kMostRows at least, as batches change from call to call.
  Index most_rows() const noexcept {
    Index rows = kMostRows;
    for (const Group& group : groups_) rows = std::max(rows, group.rows);
    return rows;
  }

  /// Calls round(tasks, groups) for as many groups at a time as there is room for.
  template <class Round>
  void for_each_round(const Round& round) const {
    for (std::size_t first = 0, end; first < groups_.size(); first = end) {
      Index slots = 0, tasks = 0;
      for (end = first; end < groups_.size(); ++end) {
        Group& group = groups_[end];
        const Index more = group.rows * count_parts(group);
        if (slots + more > room_) break;
        group.slot = slots;
        slots += more;
        for (const Member& member : group.members) {
          Index part = 0;
          for_each_part(*member.sequence, member.token, [&](const KeyPiece& keys) {
            const Index slot = group.slot + part++ * group.rows;
            if (keys.first >= group.shared_keys)
              tasks_[tasks++] = {member.sequence,
                                 member.row,
                                 member.rows,
                                 member.token,
                                 slot + member.row - group.row,
                                 keys};
            else if (&member == group.members.data())  // for all
              tasks_[tasks++] = {member.sequence, group.row, group.rows, member.token, slot, keys};
          });
        }
      }
      round(std::span<const Task>(tasks_, static_cast<std::size_t>(tasks)),
            std::span<const Group>(groups_.subspan(first, end - first)));
    }
  }

 private:
  // Partial results, in floats, that are held at a time.
  static constexpr Index kPartialFloats = Index{1} << 24;

  Index part_keys_of(const CachedTokens& sequence) const noexcept {
    return kernels_.of(sequence.cache->format()).part_keys;
  }
  Index parts_of(const CachedTokens& sequence, Index keys) const noexcept {
    const Index part_keys = part_keys_of(sequence);
    return (keys + part_keys - 1) / part_keys;
  }

  // The most that a token of a sequence can see before its cache must grow.
  Index most_parts(const CachedTokens& sequence) const noexcept {
    const LatentCache& cache = *sequence.cache;
    const Index parts = parts_of(sequence, cache.rows().capacity());
    if (cache.is_whole() && !sequence.window) return parts;
    // Each piece may begin and end within a part.
    return parts + 2 * (std::ssize(cache.segments()) + 1);
  }

  // Calls visit(keys) for each part of the keys of a token.
  template <class Visit>
  void for_each_part(const CachedTokens& sequence, Index token, const Visit& visit) const {
    const Index part_keys = part_keys_of(sequence);
    for_each_piece(sequence, token, [&](const KeyPiece& piece) {
      KeyPiece part = piece;
      for (Index left = piece.keys; left > 0; left -= part.keys) {
        part.keys = std::min(left, part_keys - part.place % part_keys);
        visit(std::as_const(part));
        part.first += part.keys;
        part.place += part.keys;
      }
    });
  }

  // Counts the parts of each member; returns the most.
  Index count_parts(const Group& group) const noexcept {
    Index most = 0;
    for (Member& member : group.members) {
      member.parts = 0;
      for_each_part(*member.sequence, member.token, [&](const KeyPiece&) { ++member.parts; });
      most = std::max(most, member.parts);
    }
    return most;
  }

  // The first sequences of a batch that are a group together, and the keys that they share.
  struct Shared {
    std::size_t sequences;
    Index keys;
  };
  Shared shared_from(std::span<const CachedTokens> batch, Index workers) const noexcept {
    const Index part_keys = part_keys_of(batch[0]);
    Shared shared = {1, shareable(batch[0]) ? batch[0].visible(0) / part_keys * part_keys : 0};
    Index rows = batch[0].tokens * heads_;
    for (; shared.sequences < batch.size(); ++shared.sequences) {
      const CachedTokens& next = batch[shared.sequences];
      const CachedTokens& before = batch[shared.sequences - 1];
      if (!shareable(next) || next.first_token != before.first_token + before.tokens) break;
      const Index keys = std::min(shared.keys, common_keys(*batch[0].cache, next, part_keys));
      rows += next.tokens * heads_;
      // The workers share the parts.
      const Index tasks = keys / part_keys * ((rows + kMostSharedRows - 1) / kMostSharedRows);
      if (keys == 0 || rows > kMostSharedRows || (rows > kMostRows && tasks < workers)) break;
      shared.keys = keys;
    }
    return shared;
  }
  static bool shareable(const CachedTokens& sequence) noexcept {
    return sequence.tokens > 0 && !sequence.each_its_own() && sequence.cache->is_whole() &&
           !sequence.window;
  }
  // Keys that all tokens see in the pages that their cache shares with another one, whole parts.
  static Index common_keys(const LatentCache& cache, const CachedTokens& tokens,
                           Index part_keys) noexcept {
    if (cache.layout() != tokens.cache->layout()) return 0;
    const std::byte* const* const pages = cache.rows().pages();
    const std::byte* const* const others = tokens.cache->rows().pages();
    const Index most = std::min(cache.size(), tokens.visible(0)) / PagedRows::kPageRows;
    const Index same = std::mismatch(pages, pages + most, others).first - pages;
    return same * PagedRows::kPageRows / part_keys * part_keys;
  }

  // Rows that see the same keys, or a prefix of them.
  Index rows_together(const CachedTokens& sequence) const noexcept {
    return sequence.each_its_own() ? heads_ : sequence.tokens * heads_;
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
      parts = std::max(parts, most_parts(sequence));
    }
    return std::min(rows * parts, std::max(kMostSharedRows * parts, kPartialFloats / rank));
  }

  // As many rows as leave the workers with little to wait for each other: keys are packed again for
  // each group.
  Index rows_of_group(std::span<const CachedTokens> batch, Index workers) const noexcept {
    Index rows = kMostRows;
    const auto well_shared = [&] {
      Index tasks = 0;
      for (const CachedTokens& sequence : batch)
        tasks += count_groups(sequence, rows) * parts_of(sequence, sequence.cache->size());
      return 4 * tasks >= 3 * ((tasks + workers - 1) / workers) * workers;
    };
    while (rows > kLeastRows && !well_shared()) rows /= 2;
    return rows;
  }

  Index heads_;
  const simd::Kernels& kernels_;
  Index room_;
  Task* tasks_;  // [room_]
  std::span<Group> groups_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_KEY_GROUPS_HPP_

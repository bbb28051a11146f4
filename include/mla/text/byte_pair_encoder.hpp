#ifndef MLA_TEXT_BYTE_PAIR_ENCODER_HPP_
#define MLA_TEXT_BYTE_PAIR_ENCODER_HPP_

#include "mla/core/compiler.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mla/core/token.hpp"

namespace mla {

/// Byte pair encoding (Sennrich et al. 2016, on bytes as in GPT-2): of all neighbours in a word
/// that have a merge, those of the earliest merge, and among them the leftmost, become one token,
/// until no neighbours have one. O(n log n) in the bytes of the word.
class BytePairEncoder {
 public:
  struct Merge {
    TokenId left, right, merged;
  };

  /// Memory to encode in; one for each thread.
  class Memory {
   public:
    std::vector<TokenId> tokens;  ///< a word before anything is merged

   private:
    friend class BytePairEncoder;
    struct Symbol {  // a token of the word; absorbed ones have the id kAbsorbed
      TokenId id;
      std::int32_t before, after;  // places of its neighbours, kNone at the ends
    };
    struct Candidate {  // to merge the symbol at `place` with the next, if both are still these
      std::int32_t rank, place;
      Merge merge;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;  // a heap
  };

  /// Which of several merges comes first.
  enum class Order {
    listed,     ///< the earlier in the list; of the same two tokens the last counts, as in Hugging
                ///< Face's tokenizers
    by_merged,  ///< that of the smaller merged token, as in tiktoken
  };

  /// `byte_tokens`: the token of each byte.
  BytePairEncoder(const std::array<TokenId, 256>& byte_tokens, std::span<const Merge> merges,
                  Order order = Order::listed)
      : byte_tokens_(byte_tokens) {
    ranked_.reserve(merges.size());
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const std::int32_t rank =
          order == Order::listed ? static_cast<std::int32_t>(i) : merges[i].merged;
      ranked_.insert_or_assign(key(merges[i].left, merges[i].right),
                               Ranked{rank, merges[i].merged});
    }
  }
  const std::array<TokenId, 256>& byte_tokens() const noexcept { return byte_tokens_; }

  /// Appends the tokens of `word`, of fewer than 2^31 bytes, to `ids`.
  void encode(std::string_view word, Memory& memory, std::vector<TokenId>& ids) const {
    memory.tokens.clear();
    for (const char byte : word)
      memory.tokens.push_back(byte_tokens_[static_cast<std::uint8_t>(byte)]);
    encode(memory, ids);
  }

  /// The same of a word that is memory.tokens to begin with, fewer than 2^31.
  void encode(Memory& memory, std::vector<TokenId>& ids) const {
    memory.symbols.clear();
    memory.queue.clear();
    const auto count = static_cast<std::int32_t>(memory.tokens.size());
    for (std::int32_t i = 0; i < count; ++i)
      memory.symbols.push_back(
          {memory.tokens[std::size_t(i)], i - 1, i + 1 < count ? i + 1 : kNone});
    for (std::int32_t i = 0; i + 1 < count; ++i) propose(i, memory);

    while (!memory.queue.empty()) {
      std::ranges::pop_heap(memory.queue, later);
      const Memory::Candidate best = memory.queue.back();
      memory.queue.pop_back();
      merge(best, memory);
    }
    for (const Memory::Symbol& symbol : memory.symbols)
      if (symbol.id != kAbsorbed) ids.push_back(symbol.id);
  }

 private:
  static constexpr std::int32_t kNone = -1;
  static constexpr TokenId kAbsorbed = -1;

  struct Ranked {
    std::int32_t rank;
    TokenId merged;
  };
  struct KeyHash {
    std::size_t operator()(std::uint64_t key) const noexcept {
      key *= 0x9e3779b97f4a7c15u;  // the high bits depend on both ids
      return static_cast<std::size_t>(key ^ (key >> 32));
    }
  };

  static std::uint64_t key(TokenId left, TokenId right) noexcept {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
  }
  static bool later(const Memory::Candidate& a, const Memory::Candidate& b) noexcept {
    return std::pair(a.rank, a.place) > std::pair(b.rank, b.place);
  }

  // Queues the merge of the symbol at `place` with the next one, if there is one.
  void propose(std::int32_t place, Memory& memory) const {
    const Memory::Symbol& left = at(place, memory);
    const TokenId right = at(left.after, memory).id;
    const auto found = ranked_.find(key(left.id, right));
    if (found == ranked_.end()) return;
    memory.queue.push_back({found->second.rank, place, {left.id, right, found->second.merged}});
    std::ranges::push_heap(memory.queue, later);
  }

  void merge(const Memory::Candidate& best, Memory& memory) const {
    Memory::Symbol& left = at(best.place, memory);
    if (left.id != best.merge.left || left.after == kNone) return;
    Memory::Symbol& right = at(left.after, memory);
    if (right.id != best.merge.right) return;
    left.id = best.merge.merged;
    left.after = right.after;
    right.id = kAbsorbed;
    if (left.after != kNone) {
      at(left.after, memory).before = best.place;
      propose(best.place, memory);
    }
    if (left.before != kNone) propose(left.before, memory);
  }

  static Memory::Symbol& at(std::int32_t place, Memory& memory) noexcept {
    return memory.symbols[static_cast<std::size_t>(place)];
  }

  std::array<TokenId, 256> byte_tokens_;
  std::unordered_map<std::uint64_t, Ranked, KeyHash> ranked_;
};

}  // namespace mla

#endif  // MLA_TEXT_BYTE_PAIR_ENCODER_HPP_

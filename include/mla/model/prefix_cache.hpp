#ifndef MLA_MODEL_PREFIX_CACHE_HPP_
#define MLA_MODEL_PREFIX_CACHE_HPP_

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/attention/latent_cache.hpp"
#include "mla/attention/paged_rows.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

/// States of texts that were computed, for texts that begin alike: a radix tree over blocks of 64
/// tokens, which are compared, not hashed. A block has the pages of all layers, shared with the
/// states that they came from and go to: nothing is copied. Beyond a budget, blocks at the ends of
/// texts that were used least recently are forgotten. Threads may share it.
///
/// It knows a model by its shapes: keep one for each model, and one for each set of weights.
class PrefixCache {
 public:
  static constexpr Index kBlockTokens = PagedRows::kPageRows;

  /// For states of `config`, `format` and `context_tokens`, see DecoderState. `budget`: bytes of
  /// pages that it holds at most. Throws std::invalid_argument for one that is smaller than a
  /// block.
  PrefixCache(const ModelConfig& config, CacheFormat format, std::size_t budget,
              Index context_tokens = 0)
      : empty_(config, format, context_tokens), config_(config), budget_(budget) {
    const std::size_t block = bytes_of_block();
    require(budget >= block, "a prefix cache of ", budget, " bytes cannot hold a block of ",
            kBlockTokens, " tokens, which takes ", block);
  }
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;
  ~PrefixCache() { clear(); }

  /// How many of the first tokens are stored, but not all of them: the last one has to go through
  /// the model for anything to follow. `salt`: texts of another salt are not seen.
  Index match(std::span<const TokenId> tokens, std::string_view salt = {}) const {
    const std::lock_guard lock(mutex_);
    return find(tokens, salt).tokens;
  }

  /// A state of the longest stored prefix of `tokens`, of match() tokens, which goes on to the last
  /// bit as if it had been computed here. Empty where nothing is stored.
  DecoderState longest(std::span<const TokenId> tokens, std::string_view salt = {}) {
    const std::lock_guard lock(mutex_);
    const Match match = find(tokens, salt);
    DecoderState state = state_of(match);
    touch(match.path);
    return state;
  }

  /// Stores the blocks of a text that has gone through the model: `state` holds `tokens`, or more;
  /// tokens after the last full block are not stored. Blocks that are there already stay. What does
  /// not fit into the budget beside the blocks of this text is left out, the end of the text first.
  /// Throws std::invalid_argument for a state of another model or format, of fewer tokens, or whose
  /// rows are not the tokens from the first one on (after an eviction or a shift), and
  /// std::bad_alloc, with nothing stored or forgotten.
  void insert(std::span<const TokenId> tokens, const DecoderState& state,
              std::string_view salt = {}) {
    check(tokens, state);
    const std::lock_guard lock(mutex_);
    Node& root = root_of(salt);
    std::vector<Node*> path = walk(root, tokens);
    const auto known = path.size();
    const std::size_t wanted = tokens.size() / kBlock - known;
    const std::size_t room = (budget_ - bytes_of(path)) / bytes_of_block();
    Node* const parent = known == 0 ? &root : path.back();
    auto chain = chain_of(tokens, state, known, std::min(wanted, room));
    if (!chain.empty()) parent->children.reserve(parent->children.size() + 1);
    // Nothing throws from here on.
    touch(path);
    std::size_t bytes = 0;
    for (const auto& node : chain) bytes += node->bytes;
    while (bytes_ + bytes > budget_ && newest_of(path) != oldest_) forget(*oldest_);
    link(*parent, chain);
    std::erase_if(roots_, [](const auto& salted) { return salted.second.children.empty(); });
  }

  /// Forgets everything.
  void clear() noexcept {
    const std::lock_guard lock(mutex_);
    while (oldest_) forget(*oldest_);
    roots_.clear();
  }

  std::size_t budget() const noexcept { return budget_; }
  /// Bytes of the pages that are held. Less than they are in all, where states share them.
  std::size_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }
  /// Tokens that are stored.
  Index tokens() const {
    const std::lock_guard lock(mutex_);
    return blocks_ * kBlockTokens;
  }

 private:
  static constexpr std::size_t kBlock = static_cast<std::size_t>(kBlockTokens);
  using Tokens = std::array<TokenId, kBlock>;

  // A block of tokens after those of its parents, with the page of each cache of a state.
  //
  // Row t of multi-token prediction is made with token t + 1, so the last row of a block depends on
  // the block that follows: each block has the page of the block before it, too, where the last row
  // is right, and the last row of its own page counts for nothing.
  struct Node;
  using Children = std::vector<std::unique_ptr<Node>>;  // by tokens, rising
  struct Node {
    Tokens tokens = {};
    std::vector<SharedPage> layers;
    SharedPage prediction, prediction_before;  // empty where the text had none
    std::size_t bytes = 0;                     // of pages that no other block has

    Node* parent = nullptr;  // of a block; a root has none
    Children children;
    Node *older = nullptr, *newer = nullptr;  // a parent is newer than its children
  };
  struct Match {
    std::vector<Node*> path;  // the last one may match in part
    Index tokens = 0;
  };

  void check(std::span<const TokenId> tokens, const DecoderState& state) const {
    require_state(config_, state);
    require(state.context_tokens() == empty_.context_tokens(), "the state was made for ",
            state.context_tokens(), " tokens, this prefix cache is for ", empty_.context_tokens());
    require(state.format() == empty_.format(), "the state has a cache of ", name_of(state.format()),
            ", this prefix cache is for ", name_of(empty_.format()));
    require(bool(state.prediction()) == bool(empty_.prediction()), "the state has ",
            state.prediction() ? "a" : "no", " cache of multi-token prediction");
    require(std::ssize(tokens) <= state.size(), "the state has ", state.size(), " tokens of ",
            tokens.size());
    for (Index layer = 0; layer < state.layers(); ++layer)
      require(is_text(state.layer(layer), std::ssize(tokens)), "layer ", layer,
              " of the state does not hold the tokens from position 0 on: rows were evicted, "
              "shifted or left out");
  }
  // Whether row i is that of position i, for the first `tokens`.
  static bool is_text(const LatentCache& cache, Index tokens) noexcept {
    return cache.is_whole() && (tokens == 0 || cache.position(tokens - 1) == tokens - 1);
  }

  std::size_t bytes_of_block() const noexcept {
    std::size_t bytes = 0;
    for (Index layer = 0; layer < empty_.layers(); ++layer)
      bytes += empty_.layer(layer).rows().page_bytes();
    if (empty_.prediction()) bytes += 2 * empty_.prediction()->rows().page_bytes();
    return bytes;
  }
  static std::size_t bytes_of(std::span<Node* const> path) noexcept {
    std::size_t bytes = 0;
    for (const Node* node : path) bytes += node->bytes;
    return bytes;
  }

  Node& root_of(std::string_view salt) {
    const auto root = roots_.find(salt);
    return root != roots_.end() ? root->second : roots_[std::string(salt)];
  }

  // The first child whose tokens are not less.
  static Children::const_iterator child_from(const Children& children,
                                             std::span<const TokenId> tokens) noexcept {
    return std::ranges::lower_bound(
        children, tokens,
        [](std::span<const TokenId> a, std::span<const TokenId> b) {
          return std::ranges::lexicographical_compare(a, b);
        },
        [](const std::unique_ptr<Node>& child) { return std::span<const TokenId>(child->tokens); });
  }
  static std::size_t common(const Node& node, std::span<const TokenId> tokens) noexcept {
    return static_cast<std::size_t>(std::ranges::mismatch(node.tokens, tokens).in2 -
                                    tokens.begin());
  }

  // The blocks below `root` that are those of the first tokens.
  static std::vector<Node*> walk(const Node& root, std::span<const TokenId> tokens) {
    std::vector<Node*> path;
    path.reserve(tokens.size() / kBlock + 1);
    const Node* node = &root;
    for (std::size_t first = 0; first + kBlock <= tokens.size(); first += kBlock) {
      const auto block = tokens.subspan(first, kBlock);
      const auto child = child_from(node->children, block);
      if (child == node->children.end() || !std::ranges::equal((*child)->tokens, block)) break;
      path.push_back(child->get());
      node = child->get();
    }
    return path;
  }

  Match find(std::span<const TokenId> tokens, std::string_view salt) const {
    const auto root = roots_.find(salt);
    if (root == roots_.end() || tokens.empty()) return {};
    const std::span<const TokenId> wanted = tokens.first(tokens.size() - 1);
    Match match = {walk(root->second, wanted), 0};
    const std::size_t whole = match.path.size() * kBlock;
    match.tokens = static_cast<Index>(whole);
    // Of the next block the first tokens may be there: the neighbours in order have most of them.
    const auto& children = (match.path.empty() ? root->second : *match.path.back()).children;
    const auto rest = wanted.subspan(whole, std::min(wanted.size() - whole, kBlock));
    const auto next = static_cast<std::size_t>(child_from(children, rest) - children.begin());
    Node* best = nullptr;
    std::size_t most = 0;
    for (std::size_t i = next - (next > 0); i < std::min(next + 1, children.size()); ++i)
      if (const std::size_t same = common(*children[i], rest); same > most) {
        most = same;
        best = children[i].get();
      }
    if (best) match.path.push_back(best);
    match.tokens += static_cast<Index>(most);
    return match;
  }

  // A state that shares the pages of the path.
  DecoderState state_of(const Match& match) const {
    std::vector<LatentCache> layers;
    std::vector<SharedPage> pages;
    pages.reserve(match.path.size());
    layers.reserve(static_cast<std::size_t>(empty_.layers()));
    for (Index layer = 0; layer < empty_.layers(); ++layer) {
      pages.clear();
      for (std::size_t b = 0; b < match.path.size(); ++b) {
        // What the next layers will count is on its way.
        if (b + kAhead < match.path.size()) page_of(*match.path[b + kAhead], layer).prefetch();
        pages.push_back(page_of(*match.path[b], layer));
      }
      layers.push_back(empty_.layer(layer).of_pages(pages, {}, CacheSegments(match.tokens)));
    }
    if (!empty_.prediction()) return empty_.with(std::move(layers), std::nullopt);
    pages.clear();
    for (std::size_t b = 0; b < match.path.size(); ++b) {
      const bool last = b + 1 == match.path.size();
      const SharedPage& page =
          last ? match.path[b]->prediction : match.path[b + 1]->prediction_before;
      if (!page) break;
      pages.push_back(page);
    }
    const Index rows =
        std::max<Index>(0, std::min(match.tokens - 1, std::ssize(pages) * kBlockTokens));
    pages.resize(static_cast<std::size_t>((rows + kBlockTokens - 1) / kBlockTokens));
    return empty_.with(std::move(layers),
                       empty_.prediction()->of_pages(pages, {}, CacheSegments(rows)));
  }
  static constexpr std::size_t kAhead = 16;  // blocks
  static const SharedPage& page_of(const Node& node, Index layer) noexcept {
    return node.layers[static_cast<std::size_t>(layer)];
  }

  // Blocks [first, + count) of a text, each the parent of the next, not in the tree yet.
  std::vector<std::unique_ptr<Node>> chain_of(std::span<const TokenId> tokens,
                                              const DecoderState& state, std::size_t first,
                                              std::size_t count) const {
    std::vector<std::unique_ptr<Node>> chain;
    chain.reserve(count);
    for (std::size_t b = first; b < first + count; ++b) {
      auto node = std::make_unique<Node>();
      std::ranges::copy(tokens.subspan(b * kBlock, kBlock), node->tokens.begin());
      const auto row = static_cast<Index>(b) * kBlockTokens;
      node->layers.reserve(static_cast<std::size_t>(state.layers()));
      for (Index layer = 0; layer < state.layers(); ++layer) {
        node->layers.push_back(state.layer(layer).rows().page(row));
        node->bytes += state.layer(layer).rows().page_bytes();
      }
      add_predictions(state, row, *node, chain.empty());
      node->children.reserve(1);
      chain.push_back(std::move(node));
    }
    return chain;
  }
  // The pages of multi-token prediction that a block from row `row` on has: where the text has all
  // rows from the start. `first`: the block before it is not of the same chain.
  static void add_predictions(const DecoderState& state, Index row, Node& node, bool first) {
    const LatentCache* const prediction = state.prediction();
    if (!prediction) return;
    const std::size_t bytes = prediction->rows().page_bytes();
    if (row > 0 && prediction->size() >= row && is_text(*prediction, row)) {
      node.prediction_before = prediction->rows().page(row - 1);
      if (first) node.bytes += bytes;
    }
    const Index own = row + kBlockTokens - 1;  // rows that do not depend on another block
    if (prediction->size() >= own && is_text(*prediction, own)) {
      node.prediction = prediction->rows().page(row);
      node.bytes += bytes;
    }
  }

  // Puts a chain below its parent; there is room for one more child.
  void link(Node& parent, std::vector<std::unique_ptr<Node>>& chain) noexcept {
    Node* above = &parent;
    for (auto& node : chain) {
      Node* const block = node.get();
      const auto place = child_from(above->children, block->tokens);
      block->parent = above;
      bytes_ += block->bytes;
      ++blocks_;
      make_newest(*block, above->parent ? above : nullptr);
      above->children.insert(place, std::move(node));
      above = block;
    }
  }

  // The list of blocks by their last use. A path goes in as a whole, its last block as the oldest.
  void touch(std::span<Node* const> path) noexcept {
    for (std::size_t i = path.size(); i-- > 0;) {
      unlink(*path[i]);
      make_newest(*path[i], nullptr);
    }
  }
  static const Node* newest_of(std::span<Node* const> path) noexcept {
    return path.empty() ? nullptr : path.back();
  }
  // Puts a block at the new end of the list, or right behind `newer`.
  void make_newest(Node& node, Node* newer) noexcept {
    node.newer = newer;
    node.older = newer ? newer->older : newest_;
    (node.older ? node.older->newer : oldest_) = &node;
    (newer ? newer->older : newest_) = &node;
  }
  void unlink(Node& node) noexcept {
    (node.older ? node.older->newer : oldest_) = node.newer;
    (node.newer ? node.newer->older : newest_) = node.older;
  }
  // A block without children.
  void forget(Node& node) noexcept {
    unlink(node);
    bytes_ -= node.bytes;
    --blocks_;
    auto& siblings = node.parent->children;
    siblings.erase(std::ranges::find(siblings, &node, &std::unique_ptr<Node>::get));
  }

  DecoderState empty_;  // of the model and format
  ModelConfig config_;
  std::size_t budget_;

  mutable std::mutex mutex_;
  std::map<std::string, Node, std::less<>> roots_;  // by salt
  Node *oldest_ = nullptr, *newest_ = nullptr;
  std::size_t bytes_ = 0;
  Index blocks_ = 0;
};

}  // namespace mla

#endif  // MLA_MODEL_PREFIX_CACHE_HPP_

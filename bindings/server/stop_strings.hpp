#ifndef MLA_SERVER_STOP_STRINGS_HPP_
#define MLA_SERVER_STOP_STRINGS_HPP_

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mla::server {

/// Passes a text on as it comes, up to the first of some strings. What may be the beginning of one
/// is held back until it is certain.
class StopStrings {
 public:
  /// None of `stops` is empty.
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// What of the text so far is certain and was not passed on yet. Nothing after stopped().
  std::string push(std::string_view piece) {
    if (stopped_) return {};
    held_ += piece;
    std::size_t end = held_.npos;
    for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
    stopped_ = end != held_.npos;
    if (!stopped_) end = held_.size() - longest_beginning();
    std::string certain = held_.substr(0, end);
    held_.erase(0, end);
    if (stopped_) held_.clear();
    return certain;
  }

  /// The text has ended: what was held back.
  std::string finish() { return std::exchange(held_, {}); }

  bool stopped() const noexcept { return stopped_; }

 private:
  // Bytes at the end of held_ that a stop string may begin with.
  std::size_t longest_beginning() const {
    std::size_t longest = 0;
    for (const std::string& stop : stops_)
      for (std::size_t size = std::min(stop.size() - 1, held_.size()); size > longest; --size)
        if (std::string_view(held_).substr(held_.size() - size) ==
            std::string_view(stop).substr(0, size))
          longest = size;
    return longest;
  }

  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace mla::server

#endif  // MLA_SERVER_STOP_STRINGS_HPP_

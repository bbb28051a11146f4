#ifndef MLA_TEXT_REGEX_HPP_
#define MLA_TEXT_REGEX_HPP_

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>

#include "mla/core/error.hpp"
#include "mla/text/regex_syntax.hpp"

namespace mla {

namespace detail {

template <auto kFree>
struct Pcre2Delete {
  template <class T>
  void operator()(T* object) const noexcept {
    kFree(object);
  }
};
template <class T, auto kFree>
using Pcre2Pointer = std::unique_ptr<T, Pcre2Delete<kFree>>;

template <class Pointer>
Pointer pcre2_made(typename Pointer::pointer object) {
  if (!object) throw std::bad_alloc();
  return Pointer(object);
}

inline std::string pcre2_message(int error) {
  PCRE2_UCHAR8 text[256];
  const int length = pcre2_get_error_message_8(error, text, sizeof(text));
  return length < 0 ? "error " + std::to_string(error) : reinterpret_cast<const char*>(text);
}

}  // namespace detail

/// Memory to match in, for any Regex; one for each thread.
class RegexMemory {
 public:
  RegexMemory()
      : data_(detail::pcre2_made<Data>(pcre2_match_data_create_8(1, nullptr))),
        context_(detail::pcre2_made<Context>(pcre2_match_context_create_8(nullptr))) {
    pcre2_set_match_limit_8(context_.get(), kMatchLimit);
    pcre2_set_heap_limit_8(context_.get(), kHeapLimitKiB);
  }

 private:
  friend class Regex;
  static constexpr std::uint32_t kMatchLimit = 50'000'000;  // steps of one search
  static constexpr std::uint32_t kHeapLimitKiB = 512 * 1024;
  using Data = detail::Pcre2Pointer<pcre2_match_data_8, pcre2_match_data_free_8>;
  using Context = detail::Pcre2Pointer<pcre2_match_context_8, pcre2_match_context_free_8>;
  Data data_;
  Context context_;
};

/// A regular expression of a tokenizer.json, compiled once, for the processor itself where PCRE2
/// can. Immutable, so safe to use from several threads. Character properties are those of the
/// Unicode version of the PCRE2 in use (10.42: Unicode 14).
class Regex {
 public:
  struct Match {
    std::size_t begin, end;  ///< bytes of the subject, begin < end
  };

  /// Throws std::runtime_error beginning with `where` when `pattern` is not supported, does not
  /// compile, or can match the empty string. `literal`: the text itself is looked for.
  Regex(std::string_view pattern, const std::string& where, bool literal = false) : where_(where) {
    const std::string translated =
        literal ? std::string(pattern) : regex_for_pcre2(pattern, where_);
    const auto context =
        detail::pcre2_made<CompileContext>(pcre2_compile_context_create_8(nullptr));
    pcre2_set_newline_8(context.get(), PCRE2_NEWLINE_LF);
    const std::uint32_t options =
        PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE);
    int error = 0;
    std::size_t offset = 0;
    code_.reset(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(translated.data()), translated.size(),
                                options, &error, &offset, context.get()));
    if (!code_)
      throw_runtime(where_, ": the regular expression ", pattern,
                    " does not compile: ", detail::pcre2_message(error));
    std::uint32_t matches_empty = 0;
    pcre2_pattern_info_8(code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty != 0)
      throw_runtime(where_, ": the regular expression ", pattern, " can match the empty string");
    pcre2_jit_compile_8(code_.get(), PCRE2_JIT_COMPLETE);  // without it, matching is only slower
  }

  /// The first match in `subject`, which must be UTF-8, at `from` or after. What is before `from`
  /// is seen by look-behinds. Throws std::runtime_error when PCRE2 gives up: too much backtracking.
  std::optional<Match> find(std::string_view subject, std::size_t from, RegexMemory& memory) const {
    const auto match = [&](std::uint32_t options) {
      return pcre2_match_8(code_.get(), reinterpret_cast<PCRE2_SPTR8>(subject.data()),
                           subject.size(), from, options, memory.data_.get(),
                           memory.context_.get());
    };
    // Checking UTF-8 again in each call would make a loop over a text quadratic.
    constexpr std::uint32_t kOptions = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int result = match(kOptions);
    // Compiled code has a small stack; the interpreter takes memory as it needs.
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(kOptions | PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (result < 0)
      throw_runtime(where_, ": cannot match a text of ", subject.size(),
                    " bytes: ", detail::pcre2_message(result));
    const std::size_t* ends = pcre2_get_ovector_pointer_8(memory.data_.get());
    return Match{ends[0], ends[1]};
  }

 private:
  using CompileContext =
      detail::Pcre2Pointer<pcre2_compile_context_8, pcre2_compile_context_free_8>;

  std::string where_;
  detail::Pcre2Pointer<pcre2_code_8, pcre2_code_free_8> code_;
};

}  // namespace mla

#endif  // MLA_TEXT_REGEX_HPP_

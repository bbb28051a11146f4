#include "responses.hpp"

#include <sstream>
#include <string_view>
#include <utility>

namespace mla::server {
namespace {

using Json = nlohmann::json;

}  // namespace

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json error_json(const ApiError& error) {
  const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  return {{"error",
           {{"message", error.what()},
            {"type", error.type()},
            {"param", or_null(error.param())},
            {"code", or_null(error.code())}}}};
}

namespace {

Json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

// Adds the arrays in `more` to those in `all`.
void append_arrays(Json& all, const Json& more) {
  if (more.is_null()) return;
  if (all.is_null()) {
    all = more;
    return;
  }
  for (const auto& [name, values] : more.items())
    if (values.is_array()) all[name].insert(all[name].end(), values.begin(), values.end());
}

}  // namespace

CompletionWriter::CompletionWriter(const CompletionRequest& request, const Tokenizer& tokenizer,
                                   std::string id, std::string model, std::int64_t created)
    : request_(request),
      tokenizer_(tokenizer),
      id_(std::move(id)),
      model_(std::move(model)),
      created_(created) {
  Index choices = 0;
  for (const Prompt& prompt : request.prompts) choices += prompt.choices;
  choices_.resize(static_cast<std::size_t>(choices));
}

std::size_t CompletionWriter::number_of(std::size_t p, const Piece& piece) const noexcept {
  return static_cast<std::size_t>(static_cast<Index>(p) * request_.prompts.front().choices +
                                  piece.choice);
}

Json CompletionWriter::envelope(const char* object) const {
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}};
}

std::vector<Json> CompletionWriter::begin() const {
  std::vector<Json> chunks;
  if (!request_.chat) return chunks;
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Json chunk = envelope("chat.completion.chunk");
    chunk["choices"] = {{{"index", i},
                         {"delta", {{"role", "assistant"}, {"content", ""}}},
                         {"logprobs", nullptr},
                         {"finish_reason", nullptr}}};
    chunks.push_back(std::move(chunk));
  }
  return chunks;
}

Json CompletionWriter::chunk(std::size_t p, const Piece& piece) {
  const std::size_t number = number_of(p, piece);
  Json choice = {{"index", number},
                 {"logprobs", logprobs(piece.reports, choices_[number])},
                 {"finish_reason", piece.finish ? Json(name_of(*piece.finish)) : Json()}};
  if (request_.chat)
    choice["delta"] = piece.text.empty() ? Json::object() : Json{{"content", piece.text}};
  else
    choice["text"] = piece.text;
  Json chunk = envelope(request_.chat ? "chat.completion.chunk" : "text_completion");
  chunk["choices"] = Json::array({std::move(choice)});
  return chunk;
}

std::vector<Json> CompletionWriter::end(const Usage& usage) const {
  if (!request_.include_usage) return {};
  Json chunk = envelope(request_.chat ? "chat.completion.chunk" : "text_completion");
  chunk["choices"] = Json::array();
  chunk["usage"] = usage_json(usage);
  return {std::move(chunk)};
}

void CompletionWriter::add(std::size_t p, const Piece& piece) {
  Choice& choice = choices_[number_of(p, piece)];
  append_arrays(choice.logprobs, logprobs(piece.reports, choice));
  choice.text += piece.text;
  if (piece.finish) choice.finish_reason = name_of(*piece.finish);
}

Json CompletionWriter::whole(const Usage& usage) const {
  Json answer = envelope(request_.chat ? "chat.completion" : "text_completion");
  answer["choices"] = Json::array();
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    const Choice& from = choices_[i];
    Json choice = {
        {"index", i}, {"logprobs", from.logprobs}, {"finish_reason", from.finish_reason}};
    if (request_.chat)
      choice["message"] = {{"role", "assistant"}, {"content", from.text}, {"refusal", nullptr}};
    else
      choice["text"] = from.text;
    answer["choices"].push_back(std::move(choice));
  }
  answer["usage"] = usage_json(usage);
  return answer;
}

Json CompletionWriter::logprobs(const std::vector<TokenReport>& reports, Choice& choice) const {
  if (reports.empty()) return nullptr;
  if (request_.chat) return chat_logprobs(reports);
  Json tokens = Json::array(), chosen = Json::array(), top = Json::array(), offsets = Json::array();
  for (const TokenReport& report : reports) {
    tokens.push_back(token_bytes(report.chosen.token));
    chosen.push_back(report.chosen.logprob);
    Json best = Json::object();
    for (const TokenLogprob& one : report.top) best[token_bytes(one.token)] = one.logprob;
    top.push_back(std::move(best));
    offsets.push_back(choice.text_offset);
    choice.text_offset += token_bytes(report.chosen.token).size();
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(chosen)},
          {"top_logprobs", std::move(top)},
          {"text_offset", std::move(offsets)}};
}

Json CompletionWriter::chat_logprobs(const std::vector<TokenReport>& reports) const {
  Json content = Json::array();
  for (const TokenReport& report : reports) {
    Json token = token_json(report.chosen);
    token["top_logprobs"] = Json::array();
    for (const TokenLogprob& one : report.top) token["top_logprobs"].push_back(token_json(one));
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}};
}

Json CompletionWriter::token_json(const TokenLogprob& token) const {
  const std::string bytes = token_bytes(token.token);
  Json numbers = Json::array();
  for (const char byte : bytes) numbers.push_back(static_cast<unsigned char>(byte));
  return {{"token", bytes}, {"logprob", token.logprob}, {"bytes", std::move(numbers)}};
}

// A model may have rows for tokens that the tokenizer does not have.
std::string CompletionWriter::token_bytes(TokenId token) const {
  if (token >= tokenizer_.vocab_size()) return {};
  return std::string(tokenizer_.decoded_bytes(token, false));
}

std::string metrics_text(const Statistics& s) {
  std::ostringstream out;
  out.precision(17);
  const auto metric = [&](std::string_view name, std::string_view type, std::string_view help,
                          auto value) {
    out << "# HELP mla_" << name << ' ' << help << "\n# TYPE mla_" << name << ' ' << type
        << "\nmla_" << name << ' ' << value << '\n';
  };
  metric("prompts_accepted_total", "counter", "Prompts that were put into the queue.",
         s.prompts_accepted);
  metric("prompts_refused_total", "counter", "Prompts that found the queue full.",
         s.prompts_refused);
  metric("prompts_cancelled_total", "counter", "Prompts whose client was gone.",
         s.prompts_cancelled);
  metric("prompts_failed_total", "counter", "Prompts that ended with an error.", s.prompts_failed);
  metric("prompts_finished_total", "counter", "Prompts that were answered.", s.prompts_finished);
  metric("prompt_tokens_total", "counter", "Tokens of prompts that were computed.",
         s.prompt_tokens);
  metric("cached_tokens_total", "counter", "Tokens of prompts that were not computed again.",
         s.cached_tokens);
  metric("generated_tokens_total", "counter", "Tokens of all choices.", s.generated_tokens);
  metric("drafted_tokens_total", "counter", "Drafts by looking up.", s.drafted_tokens);
  metric("accepted_tokens_total", "counter", "Drafts that were right.", s.accepted_tokens);
  metric("rounds_total", "counter", "Passes through the model.", s.rounds);
  metric("busy_seconds_total", "counter", "Time in these.", s.busy_seconds);
  metric("waiting_prompts", "gauge", "Prompts in the queue.", s.waiting_prompts);
  metric("running_choices", "gauge", "Choices that are read or written.", s.running_choices);
  metric("cache_tokens", "gauge", "Tokens in the latent caches.", s.cache_tokens);
  metric("cache_bytes", "gauge", "Bytes of the latent caches.", s.cache_bytes);
  metric("prefix_cache_bytes", "gauge", "Bytes kept for prompts that begin alike.",
         s.prefix_cache_bytes);
  metric("multi_head_cache_bytes", "gauge", "Bytes of the same tokens in multi-head attention.",
         s.multi_head_bytes);
  const char* const name = "mla_first_token_seconds";
  out << "# HELP " << name << " From a prompt's arrival to its first token.\n# TYPE " << name
      << " histogram\n";
  out.precision(6);
  for (std::size_t i = 0; i < s.first_token.at_most.size(); ++i)
    out << name << "_bucket{le=\"" << Histogram::kBounds[i] << "\"} " << s.first_token.at_most[i]
        << '\n';
  out << name << "_bucket{le=\"+Inf\"} " << s.first_token.count << '\n';
  out.precision(17);
  out << name << "_sum " << s.first_token.sum << '\n'
      << name << "_count " << s.first_token.count << '\n';
  return out.str();
}

Json health_json(const Statistics& s) {
  return {{"status", "ok"},
          {"waiting_prompts", s.waiting_prompts},
          {"running_choices", s.running_choices},
          {"prompt_tokens", s.prompt_tokens},
          {"cached_tokens", s.cached_tokens},
          {"generated_tokens", s.generated_tokens},
          {"drafted_tokens", s.drafted_tokens},
          {"accepted_tokens", s.accepted_tokens},
          {"cache_tokens", s.cache_tokens},
          {"cache_bytes", s.cache_bytes},
          {"multi_head_cache_bytes", s.multi_head_bytes}};
}

}  // namespace mla::server

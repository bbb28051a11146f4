#include "requests.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>

#include "mla/core/error.hpp"
#include "mla/io/json.hpp"

namespace mla::server {
namespace {

using Json = nlohmann::json;

/// What `read` returns; its std::runtime_error is the client's.
template <class Read>
auto checked(const std::string& name, const Read& read) {
  try {
    return read();
  } catch (const std::runtime_error& error) {
    refuse(name, error.what());
  }
}

/// The fields of a request, each read at most once; what is left is refused.
class Fields {
 public:
  explicit Fields(std::string_view body) : json_(parse(body)) {
    if (!json_.is_object()) refuse("", "the body must be a JSON object, got ", json_text(json_));
  }

  /// nullptr where it is not given, or null.
  const Json* find(const std::string& name) {
    known_.push_back(name);
    const auto found = json_.find(name);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  const Json& need(const std::string& name) {
    const Json* const value = find(name);
    if (!value) refuse(name, name, " is missing");
    return *value;
  }

  double number(const std::string& name, double otherwise) {
    const Json* const value = find(name);
    return value ? checked(name, [&] { return json_number(*value, name); }) : otherwise;
  }
  /// From `least` to `most`.
  Index integer(const std::string& name, Index otherwise, Index least, Index most) {
    const Json* const value = find(name);
    if (!value) return otherwise;
    const Index number = checked(name, [&] { return json_size(*value, name); });
    if (number < least || number > most)
      refuse(name, name, " must be from ", least, " to ", most, ", got ", number);
    return number;
  }
  bool boolean(const std::string& name, bool otherwise) {
    const Json* const value = find(name);
    return value ? checked(name, [&] { return json_bool(*value, name); }) : otherwise;
  }
  std::string string(const std::string& name) {
    const Json& value = need(name);
    return checked(name, [&] { return json_string(value, name); });
  }

  /// Fields that cannot change the answer.
  void ignore(std::initializer_list<const char*> names) {
    known_.insert(known_.end(), names.begin(), names.end());
  }

  /// A field that this server understands only where its value is `harmless`.
  void expect(const std::string& name, const Json& harmless) {
    const Json* const value = find(name);
    if (value && *value != harmless)
      refuse(name, name, " = ", json_text(*value), " is not supported, only ", json_text(harmless),
             " is");
  }

  void refuse_unknown() const {
    for (const auto& [name, value] : json_.items())
      if (std::ranges::find(known_, name) == known_.end())
        refuse(name.substr(0, 80), "unknown field ", json_text(name));
  }

 private:
  static Json parse(std::string_view body) {
    try {
      return parse_json(body, "the body");
    } catch (const std::runtime_error& error) {
      refuse("", error.what());
    }
  }

  Json json_;
  std::vector<std::string> known_;
};

std::vector<TokenId> encode(const Tokenizer& tokenizer, const std::string& text, bool add_bos,
                            const std::string& field) {
  try {
    return tokenizer.encode(text, add_bos);
  } catch (const std::exception& error) {  // not UTF-8, a regular expression that takes too long
    refuse(field, error.what());
  }
}

void check_model(Fields& fields, const RequestContext& context) {
  const std::string model = fields.string("model");
  if (model != context.model)
    throw ApiError(404, "invalid_request_error",
                   mla::detail::message_of({"the model ", json_text(model),
                                            " does not exist, this server has ", context.model}),
                   "model", "model_not_found");
}

std::vector<std::string> read_stop(Fields& fields) {
  constexpr std::size_t kMost = 16, kMostBytes = 1024;
  const Json* const value = fields.find("stop");
  if (!value) return {};
  std::vector<std::string> stops;
  const auto add = [&](const Json& one) {
    if (!one.is_string()) refuse("stop", "stop must be a string or strings, got ", json_text(one));
    stops.push_back(one.get<std::string>());
    if (stops.back().empty() || stops.back().size() > kMostBytes)
      refuse("stop", "a stop string must have from 1 to ", kMostBytes, " bytes, got ",
             stops.back().size());
  };
  if (!value->is_array()) add(*value);
  if (value->is_array())
    for (const Json& one : *value) add(one);
  if (stops.size() > kMost)
    refuse("stop", "stop must have at most ", kMost, ", got ", stops.size());
  return stops;
}

SamplerOptions read_sampling(Fields& fields, const RequestContext& context) {
  SamplerOptions options;
  options.temperature = fields.number("temperature", options.temperature);
  options.top_p = fields.number("top_p", options.top_p);
  options.top_k = fields.integer("top_k", options.top_k, 0, std::numeric_limits<Index>::max());
  options.min_p = fields.number("min_p", options.min_p);
  options.repetition_penalty = fields.number("repetition_penalty", options.repetition_penalty);
  options.seed = context.seed;
  if (const Json* const seed = fields.find("seed")) {
    if (!seed->is_number_integer())
      refuse("seed", "seed must be an integer, got ", json_text(*seed));
    options.seed = seed->get<std::uint64_t>();
  }
  try {
    options.validate();
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    refuse(message.substr(0, message.find(' ')), message);
  }
  return options;
}

// What both kinds of requests have besides their text and max_tokens.
Prompt read_common(Fields& fields, const RequestContext& context, CompletionRequest& request) {
  constexpr Index kMostChoices = 1 << 10;  // the scheduler allows fewer
  check_model(fields, context);
  Prompt prompt;
  prompt.sampling = read_sampling(fields, context);
  prompt.choices = fields.integer("n", 1, 1, kMostChoices);
  prompt.stop = read_stop(fields);
  prompt.ignore_eos = fields.boolean("ignore_eos", false);
  request.stream = fields.boolean("stream", false);
  if (const Json* const options = fields.find("stream_options")) {
    if (!options->is_object()) refuse("stream_options", "stream_options must be an object");
    for (const auto& [name, value] : options->items()) {
      const std::string field = "stream_options." + name;
      if (name == "include_usage")
        request.include_usage = checked(field, [&] { return json_bool(value, field); });
      else if (name != "include_obfuscation")
        refuse(field.substr(0, 80), "unknown field stream_options.", json_text(name));
    }
  }
  fields.expect("presence_penalty", 0);
  fields.expect("frequency_penalty", 0);
  fields.expect("logit_bias", Json::object());
  fields.ignore(
      {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"});
  return prompt;
}

// A string, tokens, or several of either.
std::vector<std::vector<TokenId>> read_prompts(Fields& fields, const RequestContext& context) {
  constexpr std::size_t kMost = 128;
  const Json& value = fields.need("prompt");
  const auto wrong = [&]() {
    refuse("prompt", "prompt must be a string, tokens, or an array of either");
  };
  const auto text = [&](const Json& one) {
    return encode(context.tokenizer, one.get_ref<const std::string&>(),
                  context.tokenizer.adds_bos(), "prompt");
  };
  const auto tokens = [&](const Json& list) {
    std::vector<TokenId> ids;
    for (const Json& one : list) {
      if (!one.is_number_integer()) wrong();
      const Index id = checked("prompt", [&] { return json_size(one, "a token of prompt"); });
      if (id > std::numeric_limits<TokenId>::max()) refuse("prompt", "there is no token ", id);
      ids.push_back(static_cast<TokenId>(id));
    }
    return ids;
  };
  std::vector<std::vector<TokenId>> prompts;
  if (value.is_string()) {
    prompts.push_back(text(value));
  } else if (!value.is_array() || value.empty()) {
    wrong();
  } else if (value.front().is_number()) {
    prompts.push_back(tokens(value));
  } else {
    if (value.size() > kMost)
      refuse("prompt", "a request may have ", kMost, " prompts, got ", value.size());
    for (const Json& one : value) {
      if (!one.is_string() && !one.is_array()) wrong();
      prompts.push_back(one.is_string() ? text(one) : tokens(one));
    }
  }
  return prompts;
}

// A text, or parts of type text.
std::string read_content(const Json& message, const std::string& where) {
  const auto content = message.find("content");
  if (content == message.end()) refuse(where, where, ".content is missing");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array())
    refuse(where, where, ".content must be a text, got ", json_text(*content));
  std::string text;
  for (const Json& part : *content) {
    const auto type = part.is_object() ? part.find("type") : part.end();
    const auto value = part.is_object() ? part.find("text") : part.end();
    if (!part.is_object() || type == part.end() || *type != "text" || value == part.end() ||
        !value->is_string())
      refuse(where, where, ".content may have parts of type text only, got ", json_text(part));
    text += value->get_ref<const std::string&>();
  }
  return text;
}

std::vector<ChatMessage> read_messages(Fields& fields) {
  const Json& value = fields.need("messages");
  if (!value.is_array() || value.empty())
    refuse("messages", "messages must be an array with messages");
  std::vector<ChatMessage> messages;
  for (std::size_t i = 0; i < value.size(); ++i) {
    const Json& one = value[i];
    const std::string where = "messages[" + std::to_string(i) + "]";
    if (!one.is_object()) refuse(where, where, " must be an object, got ", json_text(one));
    const auto role = one.find("role");
    ChatMessage message;
    for (const char* known : {"system", "user", "assistant"})
      if (role != one.end() && *role == known) message.role = known;
    if (role != one.end() && *role == "developer") message.role = "system";
    if (message.role.empty())
      refuse(where, where, ".role must be system, developer, user or assistant, got ",
             role == one.end() ? "nothing" : json_text(*role));
    for (const auto& [name, content] : one.items())
      if (name != "role" && name != "content" && name != "name" && name != "refusal" &&
          !content.is_null())
        refuse(where, where, " has a field ", json_text(name), ", which is not supported");
    message.content = read_content(one, where);
    messages.push_back(std::move(message));
  }
  return messages;
}

// Variables of the template, such as {"enable_thinking": false}.
ChatOptions read_chat_options(Fields& fields) {
  ChatOptions options;
  const Json* const variables = fields.find("chat_template_kwargs");
  if (!variables) return options;
  if (!variables->is_object())
    refuse("chat_template_kwargs", "chat_template_kwargs must be an object, got ",
           json_text(*variables));
  for (const auto& [name, value] : variables->items()) {
    if (name == "messages" || name == "bos_token" || name == "eos_token" ||
        name == "add_generation_prompt")
      refuse("chat_template_kwargs", "chat_template_kwargs cannot set ", name);
    options.variables[name] = value.dump();
  }
  return options;
}

std::vector<TokenId> encode_chat(Fields& fields, const RequestContext& context) {
  const std::vector<ChatMessage> messages = read_messages(fields);
  const ChatOptions options = read_chat_options(fields);
  if (!context.chat_format.chat_template)
    refuse("messages", "this model cannot chat: ", context.chat_format.refusal);
  std::string text;
  try {
    text = context.chat_format.chat_template->render(messages, options);
  } catch (const std::exception& error) {
    refuse("messages", "the model's chat template refuses the messages: ", error.what());
  }
  return encode(context.tokenizer, text, false, "messages");  // the template has the BOS
}

}  // namespace

CompletionRequest read_completion_request(std::string_view body, const RequestContext& context) {
  constexpr Index kDefaultTokens = 16, kMostLogprobs = 20;
  Fields fields(body);
  CompletionRequest request;
  Prompt prompt = read_common(fields, context, request);
  prompt.max_tokens =
      fields.integer("max_tokens", kDefaultTokens, 1, std::numeric_limits<Index>::max());
  if (fields.find("logprobs"))
    prompt.top_logprobs = fields.integer("logprobs", 0, 0, kMostLogprobs);
  fields.expect("echo", false);
  fields.expect("suffix", "");
  fields.expect("best_of", prompt.choices);
  const auto prompts = read_prompts(fields, context);
  fields.refuse_unknown();
  for (const std::vector<TokenId>& tokens : prompts) {
    request.prompts.push_back(prompt);
    request.prompts.back().tokens = tokens;
  }
  return request;
}

CompletionRequest read_chat_request(std::string_view body, const RequestContext& context) {
  constexpr Index kMostLogprobs = 20;
  Fields fields(body);
  CompletionRequest request;
  request.chat = true;
  Prompt prompt = read_common(fields, context, request);
  // Without a limit: to the end of the context.
  const Index most = std::numeric_limits<Index>::max();
  prompt.max_tokens = fields.integer("max_tokens", context.max_position_embeddings, 1, most);
  prompt.max_tokens = fields.integer("max_completion_tokens", prompt.max_tokens, 1, most);
  const bool logprobs = fields.boolean("logprobs", false);
  const Index top = fields.integer("top_logprobs", 0, 0, kMostLogprobs);
  if (top > 0 && !logprobs) refuse("top_logprobs", "top_logprobs needs logprobs = true");
  if (logprobs) prompt.top_logprobs = top;
  fields.expect("response_format", {{"type", "text"}});
  fields.expect("tools", Json::array());
  fields.expect("tool_choice", "none");
  fields.expect("functions", Json::array());
  fields.expect("modalities", {"text"});
  fields.ignore({"parallel_tool_calls"});
  prompt.tokens = encode_chat(fields, context);
  fields.refuse_unknown();
  request.prompts.push_back(std::move(prompt));
  return request;
}

std::vector<TokenId> read_tokenize_request(std::string_view body, const RequestContext& context) {
  Fields fields(body);
  if (fields.find("model")) check_model(fields, context);
  const bool add_special = fields.boolean("add_special_tokens", context.tokenizer.adds_bos());
  const Json* const text = fields.find("text");
  if (fields.find("messages") != nullptr) {
    if (text) refuse("text", "give either text or messages");
    std::vector<TokenId> tokens = encode_chat(fields, context);
    fields.refuse_unknown();
    return tokens;
  }
  const std::string plain = fields.string("text");
  fields.refuse_unknown();
  if (add_special && !context.tokenizer.bos_id())
    refuse("add_special_tokens", "the tokenizer has no token that begins a text");
  return encode(context.tokenizer, plain, add_special, "text");
}

}  // namespace mla::server

// The scheduler without HTTP: every text is the one that generate() gives alone, whatever else
// runs.

#include "scheduler.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server_fixture.hpp"
#include "stop_strings.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

using server::ApiError;
using server::Piece;
using server::StopStrings;

constexpr std::chrono::milliseconds kForever{600'000};
Clock::time_point no_limit() { return Clock::now() + std::chrono::hours(1); }

struct Answer {
  std::string text, finish;
  std::vector<server::TokenReport> reports;
};

/// All choices of a completion.
std::vector<Answer> collect(Completion& completion) {
  std::vector<Answer> answers(static_cast<std::size_t>(completion.prompt().choices));
  while (!completion.done()) {
    const std::optional<Piece> piece = completion.next(kForever);
    if (!piece) continue;
    Answer& answer = answers[static_cast<std::size_t>(piece->choice)];
    EXPECT_EQ(answer.finish, "") << "a piece after the last one";
    answer.text += piece->text;
    answer.reports.insert(answer.reports.end(), piece->reports.begin(), piece->reports.end());
    if (piece->finish) answer.finish = name_of(*piece->finish);
  }
  return answers;
}

int status_of(const std::function<void()>& call, std::string_view message = "") {
  try {
    call();
  } catch (const ApiError& error) {
    EXPECT_NE(std::string_view(error.what()).find(message), std::string_view::npos) << error.what();
    return error.status();
  }
  return 200;
}

/// Prompts of all kinds: short and longer than chunks, greedy and sampled, several choices, stops.
Prompt random_prompt(Random& random) {
  Prompt prompt;
  const Index tokens = random.integer(1, 90);
  const Index most = random.chance(0.5) ? 1023 : 20;  // of few tokens, some follow each other again
  for (Index i = 0; i < tokens; ++i)
    prompt.tokens.push_back(static_cast<TokenId>(random.integer(3, most)));
  prompt.choices = random.integer(1, 3);
  prompt.max_tokens = random.integer(1, 40);
  prompt.sampling.temperature = random.chance(0.5) ? 0.0 : 0.9;
  prompt.sampling.repetition_penalty = random.chance(0.2) ? 1.2 : 1.0;
  prompt.sampling.seed = random.bits();
  if (random.chance(0.3)) prompt.stop = {"e", "\n\n"};
  return prompt;
}

class SchedulerWithDrafts : public ::testing::TestWithParam<Index> {};
INSTANTIATE_TEST_SUITE_P(Lookup, SchedulerWithDrafts, ::testing::Values(0, 1, 2));

TEST_P(SchedulerWithDrafts, EveryTextOfManyAtOnceIsTheOneThatItWouldBeAlone) {
  const SchedulerOptions options = {.max_choices = 7,
                                    .max_waiting = 100,
                                    .chunk_tokens = 24,
                                    .cache = CacheFormat::bfloat16,
                                    .prefix_cache_bytes = 1 << 20,
                                    .lookup = GetParam(),
                                    .draft_tokens = 3};
  Context context;
  Scheduler scheduler(trained_model(), trained_tokenizer(), context, options);
  constexpr int kClients = 6, kPrompts = 5;
  std::vector<std::thread> clients;
  std::atomic<std::uint64_t> accepted{0};
  for (int client = 0; client < kClients; ++client)
    clients.emplace_back([&, client] {
      Random random(static_cast<std::uint64_t>(client) + 1);
      for (int i = 0; i < kPrompts; ++i) {
        const Prompt prompt = random_prompt(random);
        const auto completion = scheduler.submit(prompt, no_limit());
        ++accepted;
        const std::vector<Answer> answers = collect(*completion);
        for (Index choice = 0; choice < prompt.choices; ++choice) {
          const ExpectedText expected = expected_text(prompt, choice, options);
          const Answer& answer = answers[static_cast<std::size_t>(choice)];
          EXPECT_EQ(answer.text, expected.text);
          EXPECT_EQ(answer.finish, expected.finish);
        }
        EXPECT_EQ(completion->usage().prompt_tokens, std::ssize(prompt.tokens));
      }
    });
  for (std::thread& client : clients) client.join();
  wait_until([&] { return scheduler.statistics().running_choices == 0; });
  const server::Statistics statistics = scheduler.statistics();
  EXPECT_EQ(statistics.prompts_accepted, accepted);
  EXPECT_EQ(statistics.prompts_finished, accepted);
  EXPECT_EQ(statistics.prompts_failed + statistics.prompts_cancelled + statistics.prompts_refused,
            0U);
  EXPECT_EQ(statistics.first_token.count, accepted);
  EXPECT_EQ(statistics.cache_bytes, 0U);
  EXPECT_EQ(statistics.drafted_tokens > 0, GetParam() > 0);
  EXPECT_EQ(statistics.accepted_tokens > 0, GetParam() > 0);
  EXPECT_LE(statistics.accepted_tokens, statistics.drafted_tokens);
}

// Drafts save passes through the model, and change no greedy text: not at stop strings and tokens
// that end a text, not in log-probabilities.
TEST(Scheduler, DraftsChangeNoGreedyText) {
  const std::string text = "ROMEO:\nO, she doth teach the torches to burn bright!\n\nJULIET:\n";
  std::vector<Answer> answers[2];
  std::uint64_t rounds[2] = {};
  for (const Index lookup : {0, 1}) {
    Context context;
    Scheduler scheduler(trained_model(), trained_tokenizer(), context,
                        {.lookup = lookup, .draft_tokens = 5});
    for (const char* stop : {"", "e", "th", "\n\n"}) {
      Prompt prompt = prompt_of(text + text + "ROMEO:\nO, she", 120);
      if (*stop) prompt.stop = {stop};
      prompt.top_logprobs = 2;
      prompt.choices = 2;
      for (Answer& answer : collect(*scheduler.submit(prompt, no_limit())))
        answers[lookup].push_back(std::move(answer));
    }
    wait_until([&] { return scheduler.statistics().running_choices == 0; });
    rounds[lookup] = scheduler.statistics().rounds;
    EXPECT_EQ(scheduler.statistics().accepted_tokens > 10, lookup == 1);
  }
  ASSERT_EQ(answers[0].size(), answers[1].size());
  for (std::size_t i = 0; i < answers[0].size(); ++i) {
    EXPECT_EQ(answers[1][i].text, answers[0][i].text);
    EXPECT_EQ(answers[1][i].finish, answers[0][i].finish);
    ASSERT_EQ(answers[1][i].reports.size(), answers[0][i].reports.size());
    for (std::size_t t = 0; t < answers[0][i].reports.size(); ++t) {
      EXPECT_EQ(answers[1][i].reports[t].chosen.token, answers[0][i].reports[t].chosen.token);
      EXPECT_EQ(answers[1][i].reports[t].chosen.logprob, answers[0][i].reports[t].chosen.logprob);
    }
  }
  EXPECT_LT(rounds[1], rounds[0]);
}

TEST(Scheduler, RefusesDraftsThatCannotBe) {
  Context context;
  for (const SchedulerOptions& options :
       {SchedulerOptions{.lookup = -1}, SchedulerOptions{.lookup = 33},
        SchedulerOptions{.lookup = 1, .draft_tokens = 0},
        SchedulerOptions{.lookup = 1, .draft_tokens = 65}})
    EXPECT_THROW(Scheduler(trained_model(), trained_tokenizer(), context, options),
                 std::invalid_argument);
}

// Whole chunks of prompts that begin alike are computed once, and nobody can tell by the text.
TEST(Scheduler, ComputesWhatPromptsHaveInCommonOnce) {
  Context context;
  const SchedulerOptions options = {.chunk_tokens = 32, .prefix_cache_bytes = 64 << 20};
  Scheduler scheduler(trained_model(), trained_tokenizer(), context, options);
  Random random(7);
  std::vector<TokenId> common;
  for (int i = 0; i < 200; ++i) common.push_back(static_cast<TokenId>(random.integer(3, 1023)));
  std::uint64_t computed = 0;
  const auto run = [&](Index shared, Index own, Index cached) {
    Prompt prompt;
    prompt.tokens.assign(common.begin(), common.begin() + shared);
    for (Index i = 0; i < own; ++i)
      prompt.tokens.push_back(static_cast<TokenId>(random.integer(3, 1023)));
    prompt.choices = 2;
    prompt.max_tokens = 12;
    prompt.sampling.temperature = 0.9;
    const auto completion = scheduler.submit(prompt, no_limit());
    const std::vector<Answer> answers = collect(*completion);
    for (Index choice = 0; choice < 2; ++choice)
      EXPECT_EQ(answers[static_cast<std::size_t>(choice)].text,
                expected_text(prompt, choice, options).text);
    EXPECT_EQ(completion->usage().cached_tokens, cached);
    EXPECT_EQ(completion->usage().prompt_tokens, shared + own);
    computed += static_cast<std::uint64_t>(shared + own - cached);
    EXPECT_EQ(scheduler.statistics().prompt_tokens, computed);
  };
  run(100, 20, 0);
  run(100, 30, 64);  // of three chunks, a block of 64 tokens was whole
  run(200, 3, 96);
  run(200, 0, 192);
  run(192, 0, 160);  // the last token goes through the model, in the chunk that it has alone
  run(40, 40, 32);
  run(10, 90, 0);
  wait_until([&] { return scheduler.statistics().running_choices == 0; });
  EXPECT_GT(scheduler.statistics().prefix_cache_bytes, 0U);
}

TEST(Scheduler, KeepsToTheFormOfAttentionThatItIsTold) {
  for (const auto mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
    Context context;
    Scheduler scheduler(trained_model(), trained_tokenizer(), context,
                        {.chunk_tokens = 5, .mode = mode});
    const Prompt prompt = prompt_of("ROMEO: What light through yonder window breaks?", 20);
    const Answer answer = collect(*scheduler.submit(prompt, no_limit())).front();
    EXPECT_EQ(answer.text, expected_text(prompt, 0, scheduler.options()).text);
  }
}

TEST(Scheduler, CountsTheTokensOfAPromptAndOfItsChoices) {
  Context context;
  Scheduler scheduler(trained_model(), trained_tokenizer(), context, {});
  Prompt prompt = prompt_of("ROMEO:", 9, 0.8);
  prompt.choices = 3;
  const auto completion = scheduler.submit(prompt, no_limit());
  collect(*completion);
  EXPECT_EQ(completion->usage().prompt_tokens, std::ssize(prompt.tokens));
  EXPECT_EQ(completion->usage().completion_tokens, 27);
  wait_until([&] { return scheduler.statistics().running_choices == 0; });
  EXPECT_EQ(scheduler.statistics().prompt_tokens, prompt.tokens.size());
  EXPECT_EQ(scheduler.statistics().generated_tokens, 27U);
}

TEST(Scheduler, ReportsTheModelsOwnLogProbabilities) {
  Context context;
  Scheduler scheduler(trained_model(), trained_tokenizer(), context, {});
  Prompt prompt = prompt_of("ROMEO:", 6, 0.7);
  prompt.top_logprobs = 3;
  const Answer answer = collect(*scheduler.submit(prompt, no_limit())).front();
  ASSERT_EQ(answer.reports.size(), 6U);
  std::vector<TokenId> text = prompt.tokens;
  for (const server::TokenReport& report : answer.reports) text.push_back(report.chosen.token);
  const RowMajorMatrix logits = [&] {
    DecoderState state(trained_model().config());
    return trained_model().forward(text, state);
  }();
  for (std::size_t i = 0; i < answer.reports.size(); ++i) {
    const server::TokenReport& report = answer.reports[i];
    const auto row = static_cast<Index>(prompt.tokens.size() + i) - 1;
    const Eigen::ArrayXd all = logits.row(row).transpose().cast<double>().array();
    const double sum = std::log((all - all.maxCoeff()).exp().sum()) + all.maxCoeff();
    // The logits of a whole text differ from those of its tokens one by one by about 1e-5.
    EXPECT_NEAR(report.chosen.logprob, all(report.chosen.token) - sum, 1e-3);
    ASSERT_EQ(report.top.size(), 3U);
    EXPECT_NEAR(report.top[0].logprob, all.maxCoeff() - sum, 1e-3);
    EXPECT_GE(report.top[0].logprob, report.top[1].logprob);
    EXPECT_GE(report.top[1].logprob, report.top[2].logprob);
  }
}

TEST(Scheduler, EndsATextAtTheEndOfTheContextAndAtEos) {
  Context context;
  Scheduler scheduler(trained_model(), trained_tokenizer(), context, {});
  Prompt prompt;
  prompt.tokens.assign(250, 5);
  prompt.max_tokens = 1'000'000;
  prompt.sampling.temperature = 0.0;
  const auto completion = scheduler.submit(prompt, no_limit());
  EXPECT_EQ(collect(*completion).front().finish, "length");
  EXPECT_EQ(completion->usage().completion_tokens, 6);

  // The token that ends a text is no part of it.
  ModelConfig config = trained_model().config();
  const ExpectedText plain = expected_text(prompt_of("ROMEO:", 12), 0, scheduler.options());
  config.eos_token_ids = {plain.tokens[4]};
  const Checkpoint checkpoint(kModel);
  const DecoderModel ending(config, load_decoder_weights(checkpoint, config));
  Context other_context;
  Scheduler other(ending, trained_tokenizer(), other_context, {});
  const auto ended = other.submit(prompt_of("ROMEO:", 12), no_limit());
  const Answer answer = collect(*ended).front();
  const auto eos = std::ranges::find(plain.tokens, plain.tokens[4]);
  const std::vector<TokenId> before(plain.tokens.begin(), eos);
  EXPECT_EQ(answer.text, trained_tokenizer().decode(before));
  EXPECT_EQ(answer.finish, "stop");
  EXPECT_EQ(ended->usage().completion_tokens, std::ssize(before));
  Prompt on = prompt_of("ROMEO:", 12);
  on.ignore_eos = true;
  EXPECT_EQ(collect(*other.submit(on, no_limit())).front().text, plain.text);
}

TEST(Scheduler, RefusesPromptsThatTheModelCannotContinue) {
  Context context;
  Scheduler scheduler(trained_model(), trained_tokenizer(), context, {.max_choices = 4});
  const auto status = [&](const std::function<void(Prompt&)>& change, std::string_view message) {
    Prompt prompt = prompt_of("x", 1);
    change(prompt);
    return status_of([&] { scheduler.submit(prompt, no_limit()); }, message);
  };
  EXPECT_EQ(status([](Prompt& p) { p.tokens.clear(); }, "empty"), 400);
  EXPECT_EQ(status([](Prompt& p) { p.tokens.assign(256, 5); }, "context of 256"), 400);
  EXPECT_EQ(status([](Prompt& p) { p.tokens = {1024}; }, "token 1024"), 400);
  EXPECT_EQ(status([](Prompt& p) { p.tokens = {-1}; }, "token -1"), 400);
  EXPECT_EQ(status([](Prompt& p) { p.choices = 5; }, "n must be from 1 to 4"), 400);
  EXPECT_EQ(status([](Prompt& p) { p.max_tokens = 0; }, "max_tokens"), 400);
  EXPECT_EQ(status([](Prompt&) {}, ""), 200);
}

TEST(Scheduler, RefusesWhatTheQueueHasNoRoomForAndTakesItLater) {
  GateExecutor gate;
  Context context(gate);
  Scheduler scheduler(trained_model(), trained_tokenizer(), context,
                      {.max_choices = 1, .max_waiting = 2});
  gate.set_open(false);
  const Prompt prompt = prompt_of("ROMEO:", 5);
  const auto first = scheduler.submit(prompt, no_limit());
  gate.wait_for_arrival();  // it has left the queue
  const auto second = scheduler.submit(prompt, no_limit());
  const auto third = scheduler.submit(prompt, no_limit());
  EXPECT_EQ(status_of([&] { scheduler.submit(prompt, no_limit()); }, "2 prompts are waiting"), 429);
  EXPECT_EQ(scheduler.statistics().waiting_prompts, 2U);
  EXPECT_EQ(scheduler.statistics().prompts_refused, 1U);
  gate.set_open(true);
  const std::string expected = expected_text(prompt, 0, scheduler.options()).text;
  for (const auto& completion : {first, second, third})
    EXPECT_EQ(collect(*completion).front().text, expected);
  EXPECT_EQ(collect(*scheduler.submit(prompt, no_limit())).front().text, expected);
}

TEST(Scheduler, DropsWhatNobodyWaitsForAndWhatIsLate) {
  GateExecutor gate;
  Context context(gate);
  Scheduler scheduler(trained_model(), trained_tokenizer(), context, {.max_choices = 1});
  gate.set_open(false);
  const Prompt prompt = prompt_of("ROMEO:", 100);
  const auto running = scheduler.submit(prompt, no_limit());
  gate.wait_for_arrival();
  const auto waiting = scheduler.submit(prompt, no_limit());
  const auto late = scheduler.submit(prompt, Clock::now());
  const auto kept = scheduler.submit(prompt, no_limit());
  running->cancel();
  waiting->cancel();
  gate.set_open(true);
  EXPECT_EQ(collect(*kept).front().text, expected_text(prompt, 0, scheduler.options()).text);
  EXPECT_EQ(status_of([&] { late->next(kForever); }, "time limit"), 504);
  wait_until([&] { return scheduler.statistics().prompts_finished == 1; });
  EXPECT_EQ(scheduler.statistics().prompts_cancelled, 2U);
  EXPECT_EQ(scheduler.statistics().prompts_failed, 1U);
}

TEST(Scheduler, EndsEverythingWhenItStops) {
  GateExecutor gate;
  Context context(gate);
  auto scheduler = std::make_unique<Scheduler>(trained_model(), trained_tokenizer(), context,
                                               SchedulerOptions{.max_choices = 1});
  gate.set_open(false);
  const Prompt prompt = prompt_of("ROMEO:", 200);
  const auto running = scheduler->submit(prompt, no_limit());
  gate.wait_for_arrival();
  const auto waiting = scheduler->submit(prompt, no_limit());
  scheduler->stop();
  EXPECT_EQ(status_of([&] { scheduler->submit(prompt, no_limit()); }, "shutting down"), 503);
  gate.set_open(true);
  for (const auto& completion : {running, waiting})
    EXPECT_EQ(status_of([&] { collect(*completion); }, "shutting down"), 503);
  scheduler.reset();
}

// The text in pieces, and where it ends, are what a search in the whole text says.
TEST(StopStrings, CutTheTextWhereTheFirstOfThemBegins) {
  Random random(9);
  const auto word = [&](Index size) {
    std::string letters;
    for (Index i = 0; i < size; ++i) letters += random.chance(0.6) ? 'a' : 'b';
    return letters;
  };
  int stopped = 0;
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (Index i = random.integer(0, 3); i > 0; --i) stops.push_back(word(random.integer(1, 6)));
    StopStrings stream(stops);
    std::string text, passed;
    std::size_t end = text.npos;
    while (text.size() < 30 && end == text.npos) {
      const std::string piece = word(random.integer(0, 5));
      text += piece;
      passed += stream.push(piece);
      for (const std::string& stop : stops) end = std::min(end, text.find(stop));
      ASSERT_EQ(stream.stopped(), end != text.npos) << text;
      ASSERT_EQ(text.substr(0, passed.size()), passed);
      ASSERT_LE(passed.size(), end);
      // No more is held back than a stop string could begin with.
      ASSERT_LE(std::min(end, text.size()) - passed.size(), 5U);
    }
    stopped += stream.stopped();
    passed += stream.finish();
    ASSERT_EQ(passed, text.substr(0, end));
    ASSERT_EQ(stream.push("more"), end == text.npos ? "more" : "");
  }
  EXPECT_GT(stopped, 1000);
}

}  // namespace
}  // namespace mla::test

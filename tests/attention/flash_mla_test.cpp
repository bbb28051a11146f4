// Rows of FlashMLA, to the byte, and caches that come from its pages and go there.
#include "mla/attention/flash_mla.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "mla/io/safetensors.hpp"
#include "support/message_of.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

AttentionConfig exchanged_config() { return make_config(32, 2, 0, 512, 16, 64, 16); }

// Pages of memory that begin at odd addresses.
class FlashPages {
 public:
  explicit FlashPages(Index count) {
    for (Index p = 0; p < count; ++p) {
      memory_.emplace_back(static_cast<std::size_t>(kFlashMlaPageBytes + 1), std::byte{0x7f});
      to_.push_back(memory_.back().data() + 1);
      from_.push_back(to_.back());
    }
  }
  std::byte* row(Index t) {
    return to_[static_cast<std::size_t>(t / 64)] + t % 64 * kFlashMlaRowBytes;
  }
  std::span<std::byte* const> to() const { return to_; }
  std::span<const std::byte* const> from() const { return from_; }

 private:
  std::vector<std::vector<std::byte>> memory_;
  std::vector<std::byte*> to_;
  std::vector<const std::byte*> from_;
};

LatentCache random_cache(CacheFormat format, Index tokens) {
  Random random(5);
  LatentCache cache(exchanged_config(), format);
  const RowMajorMatrix rows = random_matrix(tokens, 576, random);
  cache.append(view_of(rows), with_gaps(tokens, 5, random));
  return cache;
}

// Made by another program: see tests/data/cache/README.md.
TEST(FlashMla, RowsAreThoseOfBothWritersToTheByte) {
  const SafetensorsFile file(MLA_TEST_DATA "/cache/flashmla_656.safetensors");
  const auto input = file.tensor("input").values<float>();
  const Index rows = file.tensor("input").shape[0];
  ASSERT_EQ(rows, 48);
  for (const auto& [suffix, scale] :
       {std::pair{"", Fp8Scale::power_of_two}, std::pair{".amax_scale", Fp8Scale::largest}}) {
    const auto expected = file.tensor("bytes" + std::string(suffix)).bytes;
    const auto decoded = file.tensor("decoded" + std::string(suffix)).values<float>();
    const RowLayout layout = row_layout(CacheFormat::fp8, 512, 64);
    ASSERT_EQ(layout.bytes, kFlashMlaRowBytes);
    std::vector<std::byte> bytes(656);
    std::vector<float> numbers(576);
    for (std::size_t r = 0; r < 48; ++r) {
      encode_flash_mla_row(input.data() + r * 576, scale, bytes.data());
      ASSERT_EQ(std::memcmp(bytes.data(), expected.data() + r * 656, 656), 0) << r << suffix;
      info_of(CacheFormat::fp8).widen(layout, bytes.data(), numbers.data());
      ASSERT_EQ(std::memcmp(numbers.data(), decoded.data() + r * 576, 576 * sizeof(float)), 0)
          << r << suffix;
    }
  }
}

TEST(FlashMla, ACacheOfItsFormatComesAndGoesByteByByte) {
  for (const Index tokens : {0, 1, 63, 64, 65, 200}) {
    const LatentCache cache = random_cache(CacheFormat::fp8, tokens);
    FlashPages pages(5);
    export_flash_mla(cache, pages.to());
    for (Index t = 0; t < 320; ++t)
      for (Index i = 0; i < kFlashMlaRowBytes; ++i)
        ASSERT_EQ(pages.row(t)[i], t < tokens ? cache.rows().row(t)[i] : std::byte{0x7f}) << t;
    LatentCache other(exchanged_config(), CacheFormat::fp8);
    import_flash_mla(pages.from(), cache.positions(), other);
    EXPECT_EQ(CacheContents(other), CacheContents(cache));
    if (tokens == 0) continue;
    // After what is there already.
    std::vector<Index> later = cache.positions();
    for (Index& position : later) position += 10'000;
    import_flash_mla(pages.from(), later, other);
    EXPECT_EQ(other.size(), 2 * tokens);
    EXPECT_EQ(std::memcmp(other.rows().row(2 * tokens - 1), cache.rows().row(tokens - 1), 656), 0);
  }
}

// Scales of any writer: of powers of two, of the largest number, of none of these.
TEST(FlashMla, CachesOfOtherFormatsTakeAndGiveWhatItsRowsMean) {
  Random random(6);
  const RowMajorMatrix rows = random_matrix(70, 576, random);
  const std::vector<Index> positions = consecutive(3, 70);
  for (const Fp8Scale scale : {Fp8Scale::power_of_two, Fp8Scale::largest}) {
    FlashPages pages(2);
    for (Index t = 0; t < 70; ++t) encode_flash_mla_row(rows.row(t).data(), scale, pages.row(t));
    const float odd = -0.37f;
    std::memcpy(pages.row(66) + 516, &odd, 4);
    LatentCache exact(exchanged_config()), own(exchanged_config(), CacheFormat::fp8);
    import_flash_mla(pages.from(), positions, exact);
    import_flash_mla(pages.from(), positions, own);
    std::vector<float> numbers(576);
    for (Index t = 0; t < 70; ++t) {
      info_of(CacheFormat::fp8).widen(own.layout(), own.rows().row(t), numbers.data());
      ASSERT_EQ(std::memcmp(numbers.data(), exact.rows().row(t), 576 * 4), 0) << t;
    }
    FlashPages back(2);
    export_flash_mla(exact, back.to(), scale);
    std::vector<std::byte> expected(656);
    for (Index t = 0; t < 70; ++t) {
      encode_flash_mla_row(reinterpret_cast<const float*>(exact.rows().row(t)), scale,
                           expected.data());
      ASSERT_EQ(std::memcmp(back.row(t), expected.data(), 656), 0) << t;
    }
  }
}

TEST(FlashMla, WhatDoesNotFitIsRefusedByNameAndChangesNothing) {
  FlashPages pages(2);
  const LatentCache full = random_cache(CacheFormat::fp8, 70);
  export_flash_mla(full, pages.to());
  const std::vector<Index> positions = consecutive(100, 70);
  for (const CacheFormat format : {CacheFormat::fp8, CacheFormat::float32, CacheFormat::int8}) {
    LatentCache cache(exchanged_config(), format);
    const RowMajorMatrix one = RowMajorMatrix::Constant(1, 576, 2.0f);
    cache.append(view_of(one), std::vector<Index>{99});
    const CacheContents before(cache);
    const auto refused = [&](std::span<const std::byte* const> from, std::span<const Index> at) {
      const std::string message = message_of([&] { import_flash_mla(from, at, cache); });
      EXPECT_EQ(CacheContents(cache), before) << message;
      return message;
    };
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      float good = 0.0f;
      std::memcpy(&good, pages.row(69) + 512 + 8, 4);
      std::memcpy(pages.row(69) + 512 + 8, &bad, 4);
      EXPECT_EQ(refused(pages.from(), positions),
                "scale 2 of token 69 of FlashMLA's pages is " +
                    std::string(std::isnan(bad) ? "nan" : "-inf"));
      std::memcpy(pages.row(69) + 512 + 8, &good, 4);
    }
    EXPECT_EQ(refused(pages.from().first(1), positions), "70 tokens need 2 pages of 64, got 1");
    const std::byte* const missing[] = {pages.from()[0], nullptr};
    EXPECT_EQ(refused(missing, positions), "page 1 of FlashMLA's is missing");
    std::vector<Index> falling = positions;
    falling[65] = 5;  // on the second page
    EXPECT_NE(refused(pages.from(), falling).find("5"), std::string::npos);
  }
  LatentCache narrow(make_config(32, 2, 0, 256, 16, 64, 16), CacheFormat::fp8);
  EXPECT_EQ(message_of([&] { import_flash_mla(pages.from(), positions, narrow); }),
            "FlashMLA's rows have 512 + 64 elements (latent + rotary key), this cache has rows of "
            "256 + 64");
  EXPECT_NE(message_of([&] { export_flash_mla(narrow, pages.to()); }).find("256 + 64"),
            std::string::npos);
  EXPECT_EQ(message_of([&] { export_flash_mla(full, pages.to().first(1)); }),
            "70 tokens need 2 pages of 64, got 1");
}

// A rotary key that bfloat16 holds and float16 does not, on the second page.
// Rows of pages know no offsets and no gaps in memory.
TEST(FlashMla, EvictedRowsAreLeftOutAndShiftedOnesRefused) {
  LatentCache cache = random_cache(CacheFormat::fp8, 200);
  cache.evict(20, 100);
  FlashPages pages(2);
  export_flash_mla(cache, pages.to());
  for (Index t = 0; t < 100; ++t)
    ASSERT_EQ(std::memcmp(pages.row(t), cache.row(t), kFlashMlaRowBytes), 0) << t;
  cache.shift(20, 5);
  EXPECT_NE(message_of([&] {
              export_flash_mla(cache, pages.to());
            }).find("rows 20 to 100 of the cache are shifted by 5 positions: rebase()"),
            std::string::npos);
  cache.rebase(exchanged_config());
  export_flash_mla(cache, pages.to());
  EXPECT_EQ(std::memcmp(pages.row(99), cache.row(99), kFlashMlaRowBytes), 0);
}

TEST(FlashMla, ARotaryKeyThatTheCacheDoesNotHoldIsRefused) {
  FlashPages pages(2);
  RowMajorMatrix rows = RowMajorMatrix::Constant(70, 576, 1.0f);
  rows(68, 520) = 1e6f;
  for (Index t = 0; t < 70; ++t)
    encode_flash_mla_row(rows.row(t).data(), Fp8Scale::power_of_two, pages.row(t));
  LatentCache cache(exchanged_config(), CacheFormat::int4);
  const std::string message =
      message_of([&] { import_flash_mla(pages.from(), consecutive(0, 70), cache); });
  EXPECT_EQ(message,
            "rotary key 8 of token 68 of FlashMLA's pages is 999424, a cache of format int4 holds "
            "those below 65520");
  EXPECT_EQ(cache.size(), 0);
  LatentCache same(exchanged_config(), CacheFormat::fp8);
  import_flash_mla(pages.from(), consecutive(0, 70), same);
  EXPECT_EQ(same.size(), 70);
}

}  // namespace
}  // namespace mla::test

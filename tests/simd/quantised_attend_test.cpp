// Attention over quantised rows is attention over their decoded rows, to the last bit: in float32,
// or where a kernel computes in bfloat16 over the same rows rounded to it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/attend_case.hpp"
#include "support/cache_types.hpp"
#include "support/isas.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

// A cache row and the parts of it that a call reads.
struct Shape {
  const char* name;
  Index latent, rope;
  Index key_offset, key_width;
  Index tail_offset, tail_width;
  Index value_offset, value_width;
};
constexpr Shape kShapes[] = {
    {"512 + 64", 512, 64, 0, 512, 512, 64, 0, 512},
    {"256 + 32", 256, 32, 0, 256, 256, 32, 0, 256},
    {"odd latent, third of four rotary keys", 157, 24, 0, 157, 157 + 12, 6, 0, 157},
    {"short groups", 33, 7, 0, 33, 33, 7, 0, 33},
    {"one number", 1, 2, 0, 1, 1, 2, 0, 1},
    {"key and value side by side", 192 + 128, 0, 0, 192, 0, 0, 192, 128},
    {"parts that begin in groups, over the end of the latent", 150, 70, 17, 140, 180, 9, 100, 90},
};

// Rows of bytes in pages, with rows of 0xff around them.
class Pages {
 public:
  Pages(const RowLayout& layout, Index rows) : layout_(layout) {
    const auto bytes = static_cast<std::size_t>(simd::kTileKeys * layout.bytes);
    for (Index r = 0; r < rows; r += simd::kTileKeys) {
      memory_.emplace_back(bytes);
      std::memset(memory_.back().data(), 0xff, bytes);
      pages_.push_back(memory_.back().data());
    }
  }
  std::byte* row(Index r) {
    return memory_[static_cast<std::size_t>(r / simd::kTileKeys)].data() +
           r % simd::kTileKeys * layout_.bytes;
  }
  simd::KeyValueRows keys(const Shape& shape, Index count) const {
    return {.pages = pages_.data(),
            .page_rows = simd::kTileKeys,
            .layout = layout_,
            .count = count,
            .key_offset = shape.key_offset,
            .key_width = shape.key_width,
            .tail_offset = shape.tail_offset,
            .tail_width = shape.tail_width,
            .value_offset = shape.value_offset,
            .value_width = shape.value_width};
  }

 private:
  RowLayout layout_;
  std::vector<AlignedBuffer<std::byte>> memory_;
  std::vector<const std::byte*> pages_;
};

class QuantisedAttend : public ::testing::TestWithParam<std::tuple<simd::Isa, bool, CacheFormat>> {
 protected:
  const simd::Kernels& kernels() const { return simd::kernels_for(std::get<0>(GetParam())); }
  bool many() const { return std::get<1>(GetParam()); }
  CacheFormat format() const { return std::get<2>(GetParam()); }
  // What the decoded rows are given to the kernels as.
  CacheFormat decoded_format() const {
    const bool rounds = many() && kernels().of(format()).arithmetic == simd::Arithmetic::bfloat16;
    return rounds ? CacheFormat::bfloat16 : CacheFormat::float32;
  }

  // Random rows in the format, and decoded.
  struct Rows {
    Pages quantised, decoded;
  };
  Rows random_rows(const Shape& shape, Index count, Random& random, float spoiled = 0.0f) const {
    const RowLayout layout = row_layout(format(), shape.latent, shape.rope);
    const RowLayout plain = row_layout(decoded_format(), shape.latent, shape.rope);
    Rows rows = {Pages(layout, count), Pages(plain, count)};
    std::vector<float> row(static_cast<std::size_t>(layout.width()));
    for (Index r = 0; r < count; ++r) {
      for (float& x : row) x = static_cast<float>(random.unit());
      if (spoiled != 0.0f && r % 50 == 40)
        row[static_cast<std::size_t>(shape.value_offset)] = spoiled;
      info_of(format()).encode(layout, row.data(), rows.quantised.row(r));
      info_of(format()).widen(layout, rows.quantised.row(r), row.data());
      info_of(decoded_format()).encode(plain, row.data(), rows.decoded.row(r));
    }
    return rows;
  }

  AttendResult run(const simd::KeyValueRows& keys, const GuardedMatrix<float>& queries,
                   const std::vector<Index>& visible) const {
    const simd::CacheKernels& table = kernels().of(keys.layout.format);
    const Index rows = std::ssize(visible), key_width = keys.key_width + keys.tail_width;
    AttendResult result(rows, keys.value_width);
    const AlignedBuffer<float> scratch(static_cast<std::size_t>(
        many() ? table.attend_many_scratch(keys.layout, rows, key_width, keys.value_width)
               : table.attend_scratch(keys.layout, key_width, keys.value_width)));
    std::fill(scratch.begin(), scratch.end(), std::numeric_limits<float>::quiet_NaN());
    (many() ? table.attend_many : table.attend)(
        {queries.view().data, queries.view().stride, rows, visible.data()}, keys,
        1.0f / std::sqrt(static_cast<float>(key_width)), result.state(), scratch.data());
    EXPECT_TRUE(result.out.gaps_are_untouched());
    return result;
  }

  static void expect_same(const AttendResult& a, const AttendResult& b, Index rows,
                          const std::string& what) {
    for (Index r = 0; r < rows; ++r) ASSERT_TRUE(a.same_row(r, b, r)) << what << ", row " << r;
  }
};

TEST_P(QuantisedAttend, IsAttentionOverTheDecodedRowsToTheLastBit) {
  Random random(1);
  for (const Shape& shape : kShapes)
    for (const Index keys : {1, 31, 64, 65, 129, 257, 600}) {
      if (keys > 129 && shape.latent == 192 + 128) continue;
      const Rows rows = random_rows(shape, keys, random);
      const Index count = keys % 37 + 3;
      const GuardedMatrix<float> queries(count, shape.key_width + shape.tail_width, random, 2.0);
      std::vector<Index> visible;
      for (Index r = 0; r < count; ++r) visible.push_back(r == 1 ? 0 : random.integer(0, keys));
      visible[0] = keys;
      expect_same(run(rows.quantised.keys(shape, keys), queries, visible),
                  run(rows.decoded.keys(shape, keys), queries, visible), count,
                  shape.name + std::string(", keys ") + std::to_string(keys));
    }
}

TEST_P(QuantisedAttend, SelectedRowsAreTheDecodedOnes) {
  Random random(2);
  for (const Shape& shape : {kShapes[0], kShapes[2], kShapes[6]}) {
    const Rows rows = random_rows(shape, 400, random);
    std::vector<Index> selected;
    for (Index r = 0; r < 400; ++r)
      if (random.chance(0.7)) selected.push_back(r);
    const GuardedMatrix<float> queries(5, shape.key_width + shape.tail_width, random, 2.0);
    const std::vector<Index> visible = {std::ssize(selected), 1, 64, 65, 100};
    const auto of = [&](const Pages& pages) {
      simd::KeyValueRows keys = pages.keys(shape, std::ssize(selected));
      keys.selected = selected.data();
      return run(keys, queries, visible);
    };
    expect_same(of(rows.quantised), of(rows.decoded), 5, shape.name);
  }
}

// Rows that do not see what is not finite have the same bits as ever, those that do have NaN.
TEST_P(QuantisedAttend, WhatIsNotFiniteIsSeenByThoseWhoSeeItOnly) {
  const Shape& shape = kShapes[0];
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Random random(3), same(3);
    const Rows clean = random_rows(shape, 300, random);
    const Rows spoiled = random_rows(shape, 300, same, bad);
    const GuardedMatrix<float> queries(4, 576, random, 2.0);
    const std::vector<Index> visible = {40, 41, 300, 17};
    const AttendResult expected = run(clean.quantised.keys(shape, 300), queries, visible);
    const AttendResult actual = run(spoiled.quantised.keys(shape, 300), queries, visible);
    for (const Index r : {0, 3}) EXPECT_TRUE(actual.same_row(r, expected, r)) << r;
    for (const Index r : {1, 2}) EXPECT_TRUE(std::isnan(actual.out.at(r, 0))) << r;
  }
}

TEST_P(QuantisedAttend, CallsThatContinueEachOtherAreOneCall) {
  Random random(4);
  const Shape& shape = kShapes[1];
  const Rows rows = random_rows(shape, 600, random);
  const GuardedMatrix<float> queries(7, 288, random, 2.0);
  const std::vector<Index> visible = {600, 0, 599, 64, 65, 320, 1};
  const simd::KeyValueRows all = rows.quantised.keys(shape, 600);
  const AttendResult once = run(all, queries, visible);
  AttendResult parts(7, shape.value_width);
  const simd::CacheKernels& table = kernels().of(format());
  const AlignedBuffer<float> scratch(
      static_cast<std::size_t>(std::max(table.attend_many_scratch(all.layout, 7, 288, 256),
                                        table.attend_scratch(all.layout, 288, 256))));
  for (Index first = 0; first < 600; first += 256) {
    simd::KeyValueRows part = all;
    part.pages += first / simd::kTileKeys;
    part.count = std::min<Index>(256, 600 - first);
    std::vector<Index> left;
    for (const Index v : visible) left.push_back(v - first);
    (many() ? table.attend_many : table.attend)(
        {queries.view().data, queries.view().stride, 7, left.data()}, part,
        1.0f / std::sqrt(288.0f), parts.state(), scratch.data());
  }
  expect_same(parts, once, 7, "in parts");
}

INSTANTIATE_TEST_SUITE_P(Isa, QuantisedAttend,
                         ::testing::Combine(::testing::ValuesIn(supported_isas()),
                                            ::testing::Bool(), ::testing::ValuesIn(kQuantised)),
                         [](const auto& form) {
                           return std::string(simd::name_of(std::get<0>(form.param))) +
                                  (std::get<1>(form.param) ? "_many_rows_" : "_few_rows_") +
                                  std::string(name_of(std::get<2>(form.param)));
                         });

class QuantisedRowKernel : public EveryIsa {
 protected:
  // A row that makes `encode` meet every kind of group.
  static std::vector<float> nasty_row(Index width, Random& random) {
    std::vector<float> row;
    double size = 1.0;
    for (Index i = 0; i < width; ++i) {
      if (i % 32 == 0) size = random.one_of({0.0, 1e-44, 1e-39, 1e-6, 1.0, 300.0, 1e30, 3e38});
      const double fraction =
          random.chance(0.3) ? random.one_of({0.0, 0.5, 1.0}) : random.uniform(0.0, 1.0);
      float x = static_cast<float>(size * fraction);
      if (random.chance(0.002)) x = std::numeric_limits<float>::quiet_NaN();
      if (random.chance(0.002)) x = std::numeric_limits<float>::infinity();
      row.push_back(random.chance(0.5) ? x : -x);
    }
    return row;
  }
};
MLA_FOR_EVERY_ISA(QuantisedRowKernel);

TEST_P(QuantisedRowKernel, EncodesTheSameBytesAsEveryOther) {
  Random random(5);
  for (const CacheFormat format : kQuantised)
    for (const Index latent : {0, 1, 7, 15, 16, 17, 31, 32, 33, 100, 127, 128, 129, 300, 512})
      for (const Index rope : {0, 1, 8, 17, 64}) {
        if (latent + rope == 0) continue;
        const RowLayout layout = row_layout(format, latent, rope);
        for (int i = 0; i < 20; ++i) {
          const std::vector<float> row = nasty_row(latent + rope, random);
          std::vector<std::byte> expected(static_cast<std::size_t>(layout.bytes) + 1, std::byte{7});
          std::vector<std::byte> actual(expected.size(), std::byte{7});
          info_of(format).encode(layout, row.data(), expected.data());
          kernels().of(format).encode(layout, row.data(), actual.data());
          ASSERT_EQ(actual, expected) << name_of(format) << " " << latent << " + " << rope;
        }
      }
}

// FNV-1a of rows whose numbers come from integers and powers of two. It changes when the bytes of a
// format do, and then caches in files are lost: a new version of snapshots must say so.
TEST_P(QuantisedRowKernel, BytesAreTheSameOnEveryPlatform) {
  std::uint64_t digest = 0xcbf29ce484222325u;
  Random random(7);
  for (const CacheFormat format : kQuantised)
    for (const Index latent : {7, 32, 300, 512}) {
      const RowLayout layout = row_layout(format, latent, 10);
      std::vector<float> row(static_cast<std::size_t>(layout.width()));
      std::vector<std::byte> bytes(static_cast<std::size_t>(layout.bytes));
      for (int i = 0; i < 20; ++i) {
        for (float& x : row)
          x = static_cast<float>(static_cast<std::int64_t>(random.bits()) >> 40) * 0x1p-20f;
        kernels().of(format).encode(layout, row.data(), bytes.data());
        for (const std::byte byte : bytes)
          digest = (digest ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3u;
      }
    }
  EXPECT_EQ(digest, 0x27b97e94ce05bac3u);
}

// Of any bytes at all; exactly, but that a NaN may be another NaN. Where the kernels compute in
// bfloat16, so are the numbers rounded.
TEST_P(QuantisedRowKernel, WidensWhatEveryOtherDoes) {
  Random random(6);
  for (const CacheFormat format : kQuantised) {
    const simd::CacheKernels& table = kernels().of(format);
    const bool rounds = table.arithmetic == simd::Arithmetic::bfloat16;
    for (const Index latent : {0, 1, 7, 16, 17, 31, 32, 33, 100, 127, 128, 129, 300, 512})
      for (const Index rope : {0, 1, 8, 17, 64}) {
        if (latent + rope == 0) continue;
        const RowLayout layout = row_layout(format, latent, rope);
        AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes));
        for (int i = 0; i < 20; ++i) {
          for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.bits());
          std::vector<float> expected(static_cast<std::size_t>(layout.width()));
          std::vector<float> actual(expected.size() + 1, 7.0f);
          info_of(format).widen(layout, bytes.data(), expected.data());
          table.widen(layout, bytes.data(), actual.data());
          for (std::size_t k = 0; k < expected.size(); ++k) {
            const float number = rounds ? static_cast<float>(bfloat16(expected[k])) : expected[k];
            if (std::isnan(number))
              ASSERT_TRUE(std::isnan(actual[k])) << name_of(format) << " " << latent << " " << k;
            else
              ASSERT_EQ(std::memcmp(&actual[k], &number, sizeof(float)), 0)
                  << name_of(format) << " " << latent << " + " << rope << ", " << k << ": "
                  << actual[k] << " " << number;
          }
          ASSERT_EQ(actual.back(), 7.0f) << "wrote behind the end";
        }
      }
  }
}

}  // namespace
}  // namespace mla::test

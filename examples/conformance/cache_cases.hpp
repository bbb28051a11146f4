#ifndef MLA_EXAMPLES_CONFORMANCE_CACHE_CASES_HPP_
#define MLA_EXAMPLES_CONFORMANCE_CACHE_CASES_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "case_file.hpp"
#include "report.hpp"
#include "tolerance.hpp"

#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/flash_mla.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/quantised_rows.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/safetensors_dtype.hpp"
#include "mla/ops/context.hpp"
#include "mla/simd/kernels.hpp"

// Cases without a layer: cached rows as bytes, and attention over them.

namespace mla::conformance {

namespace detail {

// Bytes that are not as expected: the check counts them.
inline Check compare_bytes(std::string name, std::span<const std::byte> expected,
                           const std::vector<std::byte>& actual) {
  Check check{.name = std::move(name)};
  check.largest = static_cast<double>(expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) check.error += expected[i] != actual[i];
  return check;
}

inline std::span<const std::byte> bytes_of(const RowMajorMatrix& matrix) {
  return std::as_bytes(std::span(matrix.data(), static_cast<std::size_t>(matrix.size())));
}

// Tensor [rows, width] of float32, of which at least one row and number are needed.
inline RowMajorMatrix read_rows(const CaseFile& file, const std::string& name, Index width = 0) {
  const std::vector<Index>& shape = file.tensor(name).shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || (width > 0 && shape[1] != width))
    file.fail("tensor ", name, " has shape ", shape_text(shape), ", expected [rows, ",
              width > 0 ? std::to_string(width) : "width", "]");
  return file.tensor(name).matrix(shape[0], shape[1]);
}

// What a writer of FlashMLA's rows makes of `input`, and what its bytes mean.
inline void compare_writer(const CaseFile& file, const RowMajorMatrix& input, Fp8Scale scale,
                           const std::string& suffix, const simd::Kernels& kernels,
                           std::vector<Check>& checks) {
  const Index rows = input.rows();
  const simd::CacheKernels& fp8 = kernels.of(CacheFormat::fp8);
  const RowLayout layout = row_layout(CacheFormat::fp8, 512, 64);
  const auto expected =
      file.stored("bytes" + suffix, SafetensorsDType::uint8, {rows, kFlashMlaRowBytes});
  std::vector<std::byte> actual(static_cast<std::size_t>(rows * kFlashMlaRowBytes));
  for (Index r = 0; r < rows; ++r) {
    std::byte* const row = actual.data() + r * kFlashMlaRowBytes;
    if (scale == Fp8Scale::power_of_two)
      fp8.encode(layout, input.row(r).data(), row);
    else
      encode_flash_mla_row(input.row(r).data(), scale, row);
  }
  checks.push_back(compare_bytes("bytes" + suffix, expected, actual));
  if (!file.contains("decoded" + suffix)) return;
  const RowMajorMatrix numbers = file.tensor("decoded" + suffix, {rows, 576}).matrix(rows, 576);
  RowMajorMatrix widened(rows, 576);
  std::copy(expected.begin(), expected.end(), actual.begin());
  for (Index r = 0; r < rows; ++r)
    fp8.widen(layout, actual.data() + r * kFlashMlaRowBytes, widened.row(r).data());
  const auto bytes = bytes_of(widened);
  checks.push_back(
      compare_bytes("decoded" + suffix, bytes_of(numbers), {bytes.begin(), bytes.end()}));
}

// Latents, and queries of as many heads as there are, for attention over a cache.
struct LatentCase {
  explicit LatentCase(const CaseFile& file)
      : latent(read_rows(file, "latent")),
        k_pe(read_rows(file, "k_pe")),
        q_latent(read_rows(file, "q_latent", latent.cols())),
        q_pe(read_rows(file, "q_pe", k_pe.cols())),
        scale(file.number("softmax_scale")) {
    if (k_pe.rows() != latent.rows() || q_pe.rows() != q_latent.rows())
      file.fail("latent and k_pe have ", latent.rows(), " and ", k_pe.rows(),
                " rows, q_latent and q_pe ", q_latent.rows(), " and ", q_pe.rows());
    if (k_pe.cols() % 2 != 0) file.fail("tensor k_pe must have an even width, has ", k_pe.cols());
    config.num_attention_heads = q_latent.rows();
    config.kv_lora_rank = latent.cols();
    config.qk_rope_head_dim = k_pe.cols();
  }

  // Rows [latent | rotary key] in a cache.
  LatentCache cache(CacheFormat format, const simd::Kernels& kernels) const {
    RowMajorMatrix rows(latent.rows(), latent.cols() + k_pe.cols());
    rows << latent, k_pe;
    std::vector<Index> positions;
    for (Index i = 0; i < rows.rows(); ++i) positions.push_back(i);
    LatentCache result(config, format);
    result.append(view_of(rows), positions, kernels);
    return result;
  }

  // [queries, kv_lora_rank] of all queries over all rows.
  RowMajorMatrix attend(const LatentCache& cache, const simd::Kernels& kernels) const {
    Context context(kernels);
    RowMajorMatrix queries(q_latent.rows(), latent.cols() + k_pe.cols());
    queries << q_latent, q_pe;
    RowMajorMatrix output(q_latent.rows(), latent.cols());
    const CachedTokens all = CachedTokens::after(cache, 0, 1);
    AbsorbedAttention(config, scale)
        .forward({&all, 1}, {queries.data(), 1, queries.size()}, {output.data(), 1, output.size()},
                 context);
    return output;
  }

  double largest_logit() const {
    const Eigen::MatrixXd logits = q_latent.cast<double>() * latent.cast<double>().transpose() +
                                   q_pe.cast<double>() * k_pe.cast<double>().transpose();
    return std::abs(scale) * logits.cwiseAbs().maxCoeff();
  }

  RowMajorMatrix latent, k_pe, q_latent, q_pe;
  double scale;
  AttentionConfig config;
};

// The same rows with scales of the largest number.
inline LatentCache with_largest_scales(const LatentCase& c, const LatentCache& cache) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(cache.size() * cache.layout().bytes));
  RowMajorMatrix row(1, cache.layout().width());
  for (Index i = 0; i < cache.size(); ++i) {
    row << c.latent.row(i), c.k_pe.row(i);
    mla::detail::Fp8Rows<Fp8Scale::largest>::encode(cache.layout(), row.data(),
                                                    bytes.data() + i * cache.layout().bytes);
  }
  LatentCache result(c.config, cache.format());
  result.append_stored({bytes.data(), cache.size(), cache.layout().bytes}, cache.positions());
  return result;
}

// Codes, one in a byte, and scales of a cache's rows.
template <class Codes>
void compare_codes(const CaseFile& file, const std::string& name, SafetensorsDType dtype,
                   const LatentCache& cache, std::vector<Check>& checks) {
  using Rows = mla::detail::QuantisedRows<Codes>;
  const Index rank = cache.kv_lora_rank(), groups = Rows::groups(rank);
  std::vector<std::byte> codes;
  RowMajorMatrix scales(cache.size(), groups);
  for (Index r = 0; r < cache.size(); ++r) {
    const std::byte* const row = cache.row(r);
    for (Index i = 0; i < rank; ++i) {
      const Index first = i / Codes::kGroup * Codes::kGroup;
      const std::byte* const group = row + Codes::bytes(first);
      const float number = Codes::number(group, std::min(Codes::kGroup, rank - first), i - first);
      codes.push_back(dtype == SafetensorsDType::int8
                          ? static_cast<std::byte>(static_cast<std::int8_t>(number))
                          : group[i - first]);
    }
    for (Index g = 0; g < groups; ++g)
      scales(r, g) = static_cast<float>(Rows::scales(cache.layout(), row)[g]);
  }
  checks.push_back(compare_bytes(name + ".codes",
                                 file.stored(name + ".codes", dtype, {cache.size(), rank}), codes));
  const RowMajorMatrix expected =
      file.tensor(name + ".scales", {cache.size(), groups}).matrix(cache.size(), groups);
  const auto actual = bytes_of(scales);
  checks.push_back(
      compare_bytes(name + ".scales", bytes_of(expected), {actual.begin(), actual.end()}));
}

// The formats that a case may name.
struct NamedFormat {
  std::string_view name;  // "" for rows as they are
  CacheFormat format;
  Fp8Scale scale = Fp8Scale::power_of_two;
};
inline constexpr NamedFormat kNamedFormats[] = {
    {"", CacheFormat::float32},
    {"bf16", CacheFormat::bfloat16},
    {"int8_g128", CacheFormat::int8},
    {"int4_g32", CacheFormat::int4},
    {"fp8_g128_pow2", CacheFormat::fp8, Fp8Scale::power_of_two},
    {"fp8_g128_amax", CacheFormat::fp8, Fp8Scale::largest},
};

inline std::string output_name(std::string_view format) {
  return format.empty() ? "output" : std::string(format) + ".output";
}

inline void compare_format(const CaseFile& file, const LatentCase& c, const NamedFormat& named,
                           const simd::Kernels& kernels, Report& report) {
  const std::string name(named.name);
  LatentCache cache = c.cache(named.format, kernels);
  if (named.scale == Fp8Scale::largest) cache = with_largest_scales(c, cache);
  if (file.has_tensor(name + ".codes")) {
    if (named.format == CacheFormat::int8)
      compare_codes<mla::detail::Int8Codes>(file, name, SafetensorsDType::int8, cache,
                                            report.checks);
    if (named.format == CacheFormat::int4)
      compare_codes<mla::detail::Int4Codes>(file, name, SafetensorsDType::int8, cache,
                                            report.checks);
    if (named.format == CacheFormat::fp8)
      compare_codes<mla::detail::Fp8Codes<Fp8Scale::power_of_two>>(
          file, name, SafetensorsDType::float8_e4m3, cache, report.checks);
  }
  Tolerance tolerance;
  if (kernels.of(named.format).arithmetic == Arithmetic::bfloat16)
    tolerance.add_bfloat16_arithmetic(c.largest_logit());
  const Index queries = c.q_latent.rows(), rank = c.latent.cols();
  const RowMajorMatrix expected =
      file.tensor(output_name(named.name), {queries, rank}).matrix(queries, rank);
  const RowMajorMatrix actual = c.attend(cache, kernels);
  Check check{.name = output_name(named.name), .tolerance = tolerance.output};
  for (Index i = 0; i < expected.size(); ++i) check.compare(expected.data()[i], actual.data()[i]);
  report.checks.push_back(check);
  if (tolerance.reason.size() > report.reason.size()) report.reason = tolerance.reason;
}

}  // namespace detail

/// Kind cache_rows_656: what FlashMLA's two writers make of rows, byte by byte.
inline Report check_cache_rows(const CaseFile& file, const simd::Kernels& kernels) {
  const RowMajorMatrix input = detail::read_rows(file, "input", 576);
  // Numbers as they are: what is rounded for products comes later.
  const simd::Kernels& exact = simd::kernels_for(kernels.isa, Arithmetic::float32);
  Report report = {file.name(), "rows", {}, "every byte"};
  for (const auto& [suffix, scale] :
       {std::pair{"", Fp8Scale::power_of_two}, std::pair{".amax_scale", Fp8Scale::largest}})
    if (file.has_tensor("bytes" + std::string(suffix)))
      detail::compare_writer(file, input, scale, suffix, exact, report.checks);
  if (report.checks.empty()) file.fail("has neither tensor bytes nor bytes.amax_scale");
  return report;
}

/// Kind latent_cache: codes, scales and attention of cache formats, those that the file has results
/// for and the library knows.
inline Report check_latent_cache(const CaseFile& file, const simd::Kernels& kernels) {
  const detail::LatentCase c(file);
  Report report = {file.name(), "absorbed", {}, ""};
  for (const detail::NamedFormat& named : detail::kNamedFormats)
    if (file.contains(detail::output_name(named.name)))
      detail::compare_format(file, c, named, kernels, report);
  if (report.checks.empty()) file.fail("has no output of a format that is known");
  return report;
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_CACHE_CASES_HPP_

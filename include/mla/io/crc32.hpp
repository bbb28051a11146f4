#ifndef MLA_IO_CRC32_HPP_
#define MLA_IO_CRC32_HPP_

#include "mla/core/compiler.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace mla {

namespace detail {

// table[k][b]: what byte b does to the checksum when k more bytes follow it.
inline constexpr auto kCrc32Tables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> table{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0xedb88320u : 0u);
    table[0][b] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t b = 0; b < 256; ++b)
      table[k][b] = (table[k - 1][b] >> 8) ^ table[0][table[k - 1][b] & 0xff];
  return table;
}();

}  // namespace detail

/// The CRC-32 of zlib, gzip and PNG, of bytes that come in any parts: each change of up to 32
/// neighbouring bits is found. Eight bytes at a time (slicing-by-8), on little-endian machines.
class Crc32 {
 public:
  void add(std::span<const std::byte> bytes) noexcept {
    const auto& t = detail::kCrc32Tables;
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data() + i, 8);
      word ^= state_;
      state_ = t[7][word & 0xff] ^ t[6][word >> 8 & 0xff] ^ t[5][word >> 16 & 0xff] ^
               t[4][word >> 24 & 0xff] ^ t[3][word >> 32 & 0xff] ^ t[2][word >> 40 & 0xff] ^
               t[1][word >> 48 & 0xff] ^ t[0][word >> 56];
    }
    for (; i < bytes.size(); ++i)
      state_ = (state_ >> 8) ^ t[0][(state_ ^ std::to_integer<std::uint32_t>(bytes[i])) & 0xff];
  }

  std::uint32_t value() const noexcept { return ~state_; }

 private:
  std::uint32_t state_ = 0xffffffffu;
};

}  // namespace mla

#endif  // MLA_IO_CRC32_HPP_

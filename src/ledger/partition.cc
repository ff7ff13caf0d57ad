// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/partition.h"

#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <stdexcept>

namespace draftflow {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr std::size_t kDigestBytes = 20;

const EVP_MD* sha1() {
  static EVP_MD* const digest = EVP_MD_fetch(nullptr, "SHA1", nullptr);
  return digest;
}

}  // namespace

std::int64_t dp_partition(std::string_view sample_id, std::int64_t n) {
  if (n <= 1) return 0;
  std::array<unsigned char, kDigestBytes> digest{};
  if (EVP_Digest(sample_id.data(), sample_id.size(), digest.data(), nullptr, sha1(), nullptr) != 1) {
    throw std::runtime_error("libcrypto gives no SHA-1: samples cannot be partitioned as the reference does");
  }
  const auto modulus = static_cast<std::uint64_t>(n);
  std::uint64_t rest = 0;  // of the digits so far, in base 2^32
  for (std::size_t at = 0; at < kDigestBytes; at += 4) {
    std::uint64_t digit = 0;
    for (std::size_t i = 0; i < 4; ++i) digit = digit << 8 | digest[at + i];
    rest = static_cast<std::uint64_t>((Wide{rest} << 32 | digit) % modulus);
  }
  return static_cast<std::int64_t>(rest);
}

}  // namespace draftflow

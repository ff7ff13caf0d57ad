// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/names.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>
#include <charconv>

#include "draftflow/base/error.h"

namespace draftflow::store {
namespace {

constexpr std::size_t kReadableBytes = 64;
constexpr std::size_t kPlainStoreNameBytes = 100;
constexpr std::size_t kHashDigits = 64;
constexpr std::size_t kFanOutDigits = 2;
constexpr char kHashMark = '~';  // never in the readable part
constexpr std::string_view kSuffix = ".safetensors";
constexpr std::string_view kMarkSuffix = ".consumed";
constexpr std::string_view kReferenceSuffix = ".ckpt";
constexpr std::size_t kMaxNameBytes = 255;

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

bool is_hex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

// Cryptographic: a sample id chosen to collide with another's folder would let one put retire another sample's bytes.
std::string sha256_hex(std::string_view text) {
  static const EVP_MD* const looked_up =
      ::EVP_MD_fetch(nullptr, "SHA256", nullptr);  // else each call does, which is most of it
  const EVP_MD* const sha256 = looked_up == nullptr ? ::EVP_sha256() : looked_up;
  unsigned char digest[SHA256_DIGEST_LENGTH];
  unsigned int size = 0;
  if (::EVP_Digest(text.data(), text.size(), digest, &size, sha256, nullptr) != 1) {
    throw Exhausted("no SHA-256 of a sample's id could be made: OpenSSL has no memory for it, or no such digest");
  }
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  hex.reserve(kHashDigits);
  for (const unsigned char byte : digest) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

std::string readable_part(std::string_view id) {
  std::string text(id.substr(0, kReadableBytes));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return !is_plain(c); }, '_');
  if (text.front() == '.') text.front() = '_';
  return text;
}

// The generation in "{readable}.g{generation}{suffix}".
std::optional<std::uint64_t> parse_between(const SamplePlace& place, std::string_view name, std::string_view suffix) {
  const std::string start = place.readable + ".g";
  if (!name.starts_with(start) || !name.ends_with(suffix) || name.size() <= start.size() + suffix.size()) return std::nullopt;
  return parse_number(name.substr(start.size(), name.size() - start.size() - suffix.size()));
}

}  // namespace

std::size_t SamplePlace::fan_out_index() const {
  std::size_t index = 0;
  std::from_chars(fan_out.data(), fan_out.data() + fan_out.size(), index, 16);
  return index;
}

std::string store_folder_name(const StoreId& id) {
  const std::string& text = id.str();
  const bool plain =
      text.size() <= kPlainStoreNameBytes && std::all_of(text.begin(), text.end(), is_plain) && text.front() != '.';
  return plain ? text : readable_part(text) + kHashMark + sha256_hex(text);
}

SamplePlace sample_place(const SampleId& id) {
  const std::string hash = sha256_hex(id.str());
  std::string readable = readable_part(id.str());
  return {hash.substr(0, kFanOutDigits), readable + kHashMark + hash, readable};
}

bool is_fan_out_name(std::string_view name) {
  return name.size() == kFanOutDigits && std::all_of(name.begin(), name.end(), is_hex);
}

std::optional<SamplePlace> parse_sample_folder(std::string_view fan_out, std::string_view folder) {
  if (folder.size() < kHashDigits + 2) return std::nullopt;
  const std::string_view hash = folder.substr(folder.size() - kHashDigits);
  const std::string_view readable = folder.substr(0, folder.size() - kHashDigits - 1);
  if (folder[readable.size()] != kHashMark || !std::all_of(hash.begin(), hash.end(), is_hex)) return std::nullopt;
  if (!std::all_of(readable.begin(), readable.end(), is_plain) || !hash.starts_with(fan_out)) return std::nullopt;
  return SamplePlace{std::string(fan_out), std::string(folder), std::string(readable)};
}

std::string generation_name(const SamplePlace& place, std::uint64_t generation) {
  return fmt::format("{}.g{}{}", place.readable, generation, kSuffix);
}

std::optional<std::uint64_t> parse_generation_name(const SamplePlace& place, std::string_view name) {
  return parse_between(place, name, kSuffix);
}

// The reference's ^(.+)\.g(\d+)\.ckpt$, whose first group is greedy and holds no newline.
std::optional<ReferenceName> parse_reference_name(std::string_view file) {
  if (!file.ends_with(kReferenceSuffix) || file.find('\n') != std::string_view::npos) return std::nullopt;
  const std::string_view stem = file.substr(0, file.size() - kReferenceSuffix.size());
  const std::size_t at = stem.rfind(".g");
  if (at == std::string_view::npos || at == 0) return std::nullopt;
  const std::string_view digits = stem.substr(at + 2);
  std::uint64_t generation = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), generation);
  if (error != std::errc() || end != digits.data() + digits.size() || generation > kMaxGeneration) return std::nullopt;
  return ReferenceName{std::string(stem.substr(0, at)), generation};
}

std::optional<std::string> reference_name(const SampleId& id, std::uint64_t generation) {
  std::string name = fmt::format("{}.g{}{}", id.str(), generation, kReferenceSuffix);
  const auto parsed = parse_reference_name(name);
  if (!parsed || parsed->sample_id != id.str() || name.size() > kMaxNameBytes) return std::nullopt;
  return name.find('/') == std::string::npos ? std::optional(std::move(name)) : std::nullopt;
}

std::string mark_name(const SamplePlace& place, std::uint64_t generation) {
  return fmt::format("{}.g{}{}", place.readable, generation, kMarkSuffix);
}

std::optional<std::uint64_t> parse_mark_name(const SamplePlace& place, std::string_view name) {
  return parse_between(place, name, kMarkSuffix);
}

std::string lease_name(const SamplePlace& place, std::uint64_t generation, std::uint64_t number) {
  return fmt::format("{}.g{}.{}", place.folder, generation, number);
}

std::optional<LeaseName> parse_lease_name(std::string_view name) {
  const std::size_t mark = name.rfind(kHashMark);
  if (mark == std::string_view::npos || name.size() < mark + 1 + kHashDigits) return std::nullopt;
  const auto place = parse_sample_folder(name.substr(mark + 1, kFanOutDigits), name.substr(0, mark + 1 + kHashDigits));
  std::string_view rest = name.substr(mark + 1 + kHashDigits);
  if (!place || !rest.starts_with(".g")) return std::nullopt;
  rest.remove_prefix(2);
  const std::size_t dot = rest.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const auto generation = parse_number(rest.substr(0, dot)), number = parse_number(rest.substr(dot + 1));
  if (!generation || !number) return std::nullopt;
  return LeaseName{*place, *generation};
}

std::optional<std::uint64_t> parse_number(std::string_view digits) {
  if (digits.empty() || digits.front() == '0' || digits.size() > 16) return std::nullopt;
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value > kMaxGeneration) return std::nullopt;
  return value;
}

}  // namespace draftflow::store

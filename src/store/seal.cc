// SPDX-License-Identifier: Apache-2.0
#include "store/seal.h"

#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <sodium.h>

#include <functional>
#include <memory>

#include "draftflow/base/error.h"

namespace draftflow::store {
namespace {

constexpr std::size_t kNonceBytes = 12;

struct FreeMac {
  void operator()(EVP_MAC_CTX* context) const { EVP_MAC_CTX_free(context); }
};
struct FreeCipher {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using MacContext = std::unique_ptr<EVP_MAC_CTX, FreeMac>;
using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, FreeCipher>;

unsigned char* raw(std::byte* bytes) {
  return reinterpret_cast<unsigned char*>(bytes);
}

const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}

void need(bool done, const char* what) {
  if (done) return;
  ERR_clear_error();
  throw Unavailable(
      fmt::format("OpenSSL refused {}: is its default provider switched off (openssl.cnf), or memory short?", what));
}

// Fetched once: a fetch costs more than sealing a small chunk.
EVP_MAC* poly1305() {
  static EVP_MAC* const mac = EVP_MAC_fetch(nullptr, "POLY1305", nullptr);
  need(mac != nullptr, "Poly1305");
  return mac;
}

const EVP_CIPHER* aes_256_gcm() {
  static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  need(cipher != nullptr, "AES-256-GCM");
  return cipher;
}

std::array<unsigned char, kNonceBytes> nonce_of(std::uint64_t index) {
  std::array<unsigned char, kNonceBytes> nonce{};
  for (std::size_t i = 0; i < 8; ++i) nonce[i] = static_cast<unsigned char>(index >> (8 * i));
  return nonce;
}

void check_buffers(std::uint64_t index, std::span<const std::byte> in, std::span<const std::byte> out) {
  if (index == kHeaderIndex) throw InvalidArgument("sealing a chunk: its index is the header's own, which is tagged only");
  if (in.size() != out.size() || in.size() > kMaxSealedBytes) {
    throw InvalidArgument(fmt::format("sealing a chunk: {} bytes into {}: both must be the same and at most {}", in.size(),
                                      out.size(), kMaxSealedBytes));
  }
  const std::less<> before;
  const bool apart = !before(in.data(), out.data() + out.size()) || !before(out.data(), in.data() + in.size());
  if (in.data() != out.data() && !apart)
    throw InvalidArgument("sealing a chunk: input and output overlap: use one or two buffers");
}

}  // namespace

FileSalt random_file_salt() {
  FileSalt salt;
  need(sodium_init() >= 0, "randomness");
  randombytes_buf(salt.data(), salt.size());
  return salt;
}

FileKeys file_keys(const Keys& keys, const FileIdentity& identity, const FileSalt& salt) {
  const std::string generation = le64(identity.generation);
  const std::string_view salt_bytes(reinterpret_cast<const char*>(salt.data()), salt.size());
  const auto derive = [&](const Key& key, std::string_view label) {
    return derive_key(key, label, {identity.store_id, identity.incarnation, identity.sample_id, generation, salt_bytes});
  };
  FileKeys file;
  file.mac = derive(keys.mac, "draftflow.seal.1 mac");
  file.cipher = derive(keys.cipher, "draftflow.seal.1 cipher");
  return file;
}

Tag tag_chunk(const FileKeys& keys, std::uint64_t index, std::span<const std::byte> bytes) {
  const Key once = derive_key(keys.mac, "draftflow.seal.1 chunk", {le64(index)});
  const MacContext context(EVP_MAC_CTX_new(poly1305()));
  Tag tag;
  std::size_t size = 0;
  need(context != nullptr && EVP_MAC_init(context.get(), raw(once.data()), Key::kBytes, nullptr) == 1 &&
           EVP_MAC_update(context.get(), raw(bytes.data()), bytes.size()) == 1 &&
           EVP_MAC_final(context.get(), raw(tag.data()), &size, tag.size()) == 1 && size == tag.size(),
       "a Poly1305 tag");
  return tag;
}

bool same_tag(const Tag& a, const Tag& b) {
  return sodium_memcmp(a.data(), b.data(), a.size()) == 0;
}

void encrypt_chunk(const FileKeys& keys, std::uint64_t index, std::span<const std::byte> in, std::span<std::byte> out,
                   Tag& tag) {
  check_buffers(index, in, out);
  const auto nonce = nonce_of(index);
  const CipherContext context(EVP_CIPHER_CTX_new());
  int size = 0;
  unsigned char nothing[1];
  need(context != nullptr &&
           EVP_EncryptInit_ex2(context.get(), aes_256_gcm(), raw(keys.cipher.data()), nonce.data(), nullptr) == 1 &&
           (in.empty() ||
            EVP_EncryptUpdate(context.get(), raw(out.data()), &size, raw(in.data()), static_cast<int>(in.size())) == 1) &&
           EVP_EncryptFinal_ex(context.get(), nothing, &size) == 1 &&
           EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, static_cast<int>(tag.size()), tag.data()) == 1,
       "to encrypt");
}

bool decrypt_chunk(const FileKeys& keys, std::uint64_t index, std::span<const std::byte> in, std::span<std::byte> out,
                   const Tag& tag) {
  check_buffers(index, in, out);
  const auto nonce = nonce_of(index);
  const CipherContext context(EVP_CIPHER_CTX_new());
  int size = 0;
  unsigned char nothing[1];
  Tag wanted = tag;
  need(context != nullptr &&
           EVP_DecryptInit_ex2(context.get(), aes_256_gcm(), raw(keys.cipher.data()), nonce.data(), nullptr) == 1 &&
           EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, static_cast<int>(wanted.size()), wanted.data()) == 1 &&
           (in.empty() ||
            EVP_DecryptUpdate(context.get(), raw(out.data()), &size, raw(in.data()), static_cast<int>(in.size())) == 1),
       "to decrypt");
  if (EVP_DecryptFinal_ex(context.get(), nothing, &size) == 1) return true;
  ERR_clear_error();
  sodium_memzero(out.data(), out.size());  // nobody may look at what nobody vouches for
  return false;
}

}  // namespace draftflow::store

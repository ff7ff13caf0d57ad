// SPDX-License-Identifier: Apache-2.0
//
// Who may open a store (docs/formats/access.md): the secret that a process presents, the policy that the store keeps, and
// the keys that the one opens in the other. The policy is public and useless without the secret; rotating the secret
// changes the policy and leaves the keys. A Key owns its bytes, wipes them at the end, and cannot be printed; no message
// holds any of them. The functions are thread-safe. Deriving from a secret costs 64 MiB and some tenths of a second, on
// purpose.
//
//   const auto secret = Secret::from_environment(kSecretVariable);
//   const AccessPolicy policy = make_policy(name, *secret, /*encrypted=*/false);   // once; store.json keeps policy.to_json()
//   const Keys keys = unlock(name, policy, &*secret);                              // at each attach; then seal.h
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>

#include "draftflow/store/secret.h"

namespace draftflow::store {

// 256 bits of key.
class Key {
 public:
  static constexpr std::size_t kBytes = 32;
  Key() = default;
  Key(const Key&) = default;
  Key& operator=(const Key&) = default;
  ~Key();
  std::byte* data() { return bytes_.data(); }
  const std::byte* data() const { return bytes_.data(); }
  bool operator==(const Key& other) const;  // constant time

 private:
  std::array<std::byte, kBytes> bytes_{};
};

std::ostream& operator<<(std::ostream&, const Key&) = delete;

// Keyed BLAKE2b-256 of the label and the fields, each behind its length: no two lists of fields read alike.
Key derive_key(const Key& from, std::string_view label, std::initializer_list<std::string_view> fields);
std::string le64(std::uint64_t value);  // 8 bytes, least significant first: a field for derive_key

// Which store: a policy opens only the one that it was made for.
struct StoreName {
  std::string store_id, incarnation;
};

// What guessing one secret costs. The limits are those of a policy that is read: a hostile one must not exhaust us.
struct PasswordCost {
  static constexpr std::uint64_t kMaxOpslimit = 8;
  static constexpr std::uint64_t kMinMemlimit = 8ULL << 20, kMaxMemlimit = 256ULL << 20;  // bytes, whole MiB
  std::uint64_t opslimit = 2, memlimit = 64ULL << 20;                                     // libsodium's "interactive"
};

struct AccessPolicy {
  static constexpr std::size_t kSaltBytes = 16, kNonceBytes = 24, kTagBytes = 16;
  PasswordCost cost;
  std::array<std::byte, kSaltBytes> salt{};
  std::array<std::byte, Key::kBytes> check{};                                     // tells a wrong secret from an altered policy
  std::array<std::byte, kNonceBytes + Key::kBytes + kTagBytes> wrapped_master{};  // nonce, cipher text, tag
  bool encrypted = false;

  std::string to_json() const;  // one line, an object

  // Corrupt, naming `where` and the field, for anything but what to_json writes; InvalidArgument for another scheme.
  static AccessPolicy from_json(std::string_view text, std::string_view where);
};

// What an opened store works with. Independent of each other and of all that is stored; the same after a rotation.
struct Keys {
  Key mac, cipher;
  bool encrypted = false;
};

// A new master key under the secret. Exhausted if the memory is not there.
AccessPolicy make_policy(const StoreName& store, const Secret& secret, bool encrypted, PasswordCost cost = {});

// PermissionDenied for no secret (nullptr) or a wrong one; Corrupt if the secret is right and the policy is altered or
// another store's.
Keys unlock(const StoreName& store, const AccessPolicy& policy, const Secret* secret);

// For attach: unlock, or nothing for a store without a policy. A secret presented to a store without a policy is
// InvalidArgument: somebody may have taken the policy away to be sent bytes in the clear.
std::optional<Keys> open_access(const StoreName& store, const std::optional<AccessPolicy>& policy, const Secret* secret);

// The same master key under another secret. The caller replaces the stored policy in one step; a retry is harmless.
AccessPolicy rotate(const StoreName& store, const AccessPolicy& policy, const Secret& old_secret, const Secret& new_secret,
                    PasswordCost cost = {});

std::string to_hex(std::span<const std::byte> bytes);              // lowercase
bool from_hex(std::string_view digits, std::span<std::byte> out);  // false unless exactly that many lowercase digits

}  // namespace draftflow::store

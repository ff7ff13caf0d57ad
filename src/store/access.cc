// SPDX-License-Identifier: Apache-2.0
#include "store/access.h"

#include <fmt/format.h>
#include <sodium.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::store {
namespace {

using Json = nlohmann::ordered_json;

static_assert(Key::kBytes == crypto_generichash_BYTES);
static_assert(Key::kBytes == crypto_aead_xchacha20poly1305_ietf_KEYBYTES);
static_assert(AccessPolicy::kSaltBytes == crypto_pwhash_SALTBYTES);
static_assert(AccessPolicy::kNonceBytes == crypto_aead_xchacha20poly1305_ietf_NPUBBYTES);
static_assert(AccessPolicy::kTagBytes == crypto_aead_xchacha20poly1305_ietf_ABYTES);

constexpr std::string_view kScheme = "draftflow.access.1";
constexpr std::string_view kKdf = "argon2id";
constexpr std::size_t kMaxPolicyBytes = 64 << 10;
constexpr std::string_view kWhereFrom =
    "a secret comes from a file that others cannot read or from the environment variable DRAFTFLOW_STORE_SECRET, never from a "
    "command line";

unsigned char* raw(std::byte* bytes) {
  return reinterpret_cast<unsigned char*>(bytes);
}

const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}

void need_sodium() {
  static const int outcome = sodium_init();
  if (outcome < 0) throw Unavailable("libsodium could not be initialised: is /dev/urandom there?");
}

Key root_key(const StoreName& store, const Secret& secret, const AccessPolicy& policy) {
  need_sodium();
  Key root;
  const auto bytes = secret.bytes();
  const int outcome =
      crypto_pwhash(raw(root.data()), Key::kBytes, reinterpret_cast<const char*>(bytes.data()), bytes.size(),
                    raw(policy.salt.data()), policy.cost.opslimit, policy.cost.memlimit, crypto_pwhash_ALG_ARGON2ID13);
  if (outcome == 0) return root;
  throw Exhausted(fmt::format("opening store '{}' needs {} of memory for a moment, and it is not there: free some and retry",
                              printable(store.store_id), human_bytes(policy.cost.memlimit)));
}

Key check_key(const Key& root) {
  return derive_key(root, "draftflow.access.1 check", {});
}

// What a policy says in the clear is bound here or in the root: who alters it cannot open the master.
Key wrap_key(const Key& root, const StoreName& store, bool encrypted) {
  return derive_key(root, "draftflow.access.1 wrap", {store.store_id, store.incarnation, encrypted ? "encrypted" : "plain"});
}

AccessPolicy wrap(const StoreName& store, const Secret& secret, const Key& master, bool encrypted, PasswordCost cost) {
  need_sodium();
  AccessPolicy policy;
  policy.cost = cost;
  policy.encrypted = encrypted;
  randombytes_buf(policy.salt.data(), policy.salt.size());
  const Key root = root_key(store, secret, policy);
  const Key check = check_key(root);
  std::memcpy(policy.check.data(), check.data(), Key::kBytes);
  const Key key = wrap_key(root, store, encrypted);
  std::byte* const nonce = policy.wrapped_master.data();
  randombytes_buf(nonce, AccessPolicy::kNonceBytes);
  crypto_aead_xchacha20poly1305_ietf_encrypt(raw(nonce + AccessPolicy::kNonceBytes), nullptr, raw(master.data()), Key::kBytes,
                                             nullptr, 0, nullptr, raw(nonce), raw(key.data()));
  return policy;
}

Key unwrap(const StoreName& store, const AccessPolicy& policy, const Secret& secret) {
  const Key root = root_key(store, secret, policy);
  const Key check = check_key(root);
  if (sodium_memcmp(check.data(), policy.check.data(), Key::kBytes) != 0) {
    throw PermissionDenied(
        fmt::format("the secret presented does not open store '{}': it is another one, an old one, or the "
                    "store's policy was altered; {}",
                    printable(store.store_id), kWhereFrom));
  }
  const Key key = wrap_key(root, store, policy.encrypted);
  const std::byte* const nonce = policy.wrapped_master.data();
  Key master;
  if (crypto_aead_xchacha20poly1305_ietf_decrypt(raw(master.data()), nullptr, nullptr, raw(nonce + AccessPolicy::kNonceBytes),
                                                 Key::kBytes + AccessPolicy::kTagBytes, nullptr, 0, raw(nonce),
                                                 raw(key.data())) != 0) {
    throw Corrupt(
        fmt::format("the access policy of store '{}' was altered, or is another store's: the secret presented is the "
                    "one that it was made with; put its file in the folder 'access' back from a copy",
                    printable(store.store_id)));
  }
  return master;
}

class PolicyReader {
 public:
  PolicyReader(const Json& value, std::string_view where) : value_(value), where_(where) {}

  [[noreturn]] void fail(const std::string& problem) const {
    throw Corrupt(fmt::format("{}: the access policy {}: put this file back from a copy", where_, problem));
  }
  std::string text(const char* name) const {
    if (!field(name).is_string()) fail(fmt::format("has '{}', but not as a string", name));
    return field(name).get<std::string>();
  }
  std::uint64_t number(const char* name, std::uint64_t least, std::uint64_t most) const {
    const Json& found = field(name);
    const bool whole = found.is_number_unsigned();
    if (whole && found.get<std::uint64_t>() >= least && found.get<std::uint64_t>() <= most) return found.get<std::uint64_t>();
    fail(fmt::format("has {} {}, and {} to {} is allowed", name, printable(found.dump(), 40), least, most));
  }
  bool boolean(const char* name) const {
    if (!field(name).is_boolean()) fail(fmt::format("has '{}', but not as true or false", name));
    return field(name).get<bool>();
  }
  void bytes(const char* name, std::span<std::byte> out) const {
    if (!from_hex(text(name), out)) fail(fmt::format("has '{}', but not as {} lowercase hex digits", name, 2 * out.size()));
  }

 private:
  const Json& field(const char* name) const {
    const auto found = value_.find(name);
    if (found == value_.end()) fail(fmt::format("lacks '{}'", name));
    return *found;
  }
  const Json& value_;
  std::string_view where_;
};

void check_cost(PasswordCost cost) {
  const bool good = cost.opslimit >= 1 && cost.opslimit <= PasswordCost::kMaxOpslimit &&
                    cost.memlimit >= PasswordCost::kMinMemlimit && cost.memlimit <= PasswordCost::kMaxMemlimit &&
                    cost.memlimit % (1 << 20) == 0;
  if (good) return;
  throw InvalidArgument(fmt::format(
      "the cost of a store's secret is opslimit {} and memlimit {}: 1 to {}, and whole MiB from {} "
      "to {} are allowed",
      cost.opslimit, cost.memlimit, PasswordCost::kMaxOpslimit, PasswordCost::kMinMemlimit, PasswordCost::kMaxMemlimit));
}

}  // namespace

Key::~Key() {
  sodium_memzero(bytes_.data(), bytes_.size());
}

bool Key::operator==(const Key& other) const {
  return sodium_memcmp(bytes_.data(), other.bytes_.data(), kBytes) == 0;
}

std::string le64(std::uint64_t value) {
  std::string bytes(8, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(value & 0xff);
    value >>= 8;
  }
  return bytes;
}

Key derive_key(const Key& from, std::string_view label, std::initializer_list<std::string_view> fields) {
  need_sodium();
  crypto_generichash_state state;
  crypto_generichash_init(&state, raw(from.data()), Key::kBytes, Key::kBytes);
  const auto add = [&state](std::string_view field) {
    const std::string length = le64(field.size());
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(length.data()), length.size());
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(field.data()), field.size());
  };
  add(label);
  for (const std::string_view field : fields) add(field);
  Key key;
  crypto_generichash_final(&state, raw(key.data()), Key::kBytes);
  sodium_memzero(&state, sizeof state);
  return key;
}

std::string AccessPolicy::to_json() const {
  Json value;
  value["scheme"] = kScheme;
  value["kdf"] = kKdf;
  value["opslimit"] = cost.opslimit;
  value["memlimit"] = cost.memlimit;
  value["salt"] = to_hex(salt);
  value["check"] = to_hex(check);
  value["wrapped_master"] = to_hex(wrapped_master);
  value["encrypted"] = encrypted;
  return value.dump();
}

AccessPolicy AccessPolicy::from_json(std::string_view text, std::string_view where) {
  if (text.size() > kMaxPolicyBytes) throw Corrupt(fmt::format("{}: the access policy has {} bytes", where, text.size()));
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const PolicyReader reader(value, where);
  if (!value.is_object()) reader.fail("is not a JSON object");
  const std::string scheme = reader.text("scheme");
  if (scheme != kScheme) {
    throw InvalidArgument(
        fmt::format("{}: the access policy is of scheme '{}': this program knows {}; use the draftflow that made "
                    "the store",
                    where, printable(scheme, 80), kScheme));
  }
  const std::string kdf = reader.text("kdf");
  if (kdf != kKdf) reader.fail(fmt::format("has kdf '{}', and only {} is allowed", printable(kdf, 80), kKdf));
  AccessPolicy policy;
  policy.cost.opslimit = reader.number("opslimit", 1, PasswordCost::kMaxOpslimit);
  policy.cost.memlimit = reader.number("memlimit", PasswordCost::kMinMemlimit, PasswordCost::kMaxMemlimit);
  if (policy.cost.memlimit % (1 << 20) != 0) {
    reader.fail(fmt::format("has memlimit {}, and only whole MiB are allowed", policy.cost.memlimit));
  }
  reader.bytes("salt", policy.salt);
  reader.bytes("check", policy.check);
  reader.bytes("wrapped_master", policy.wrapped_master);
  policy.encrypted = reader.boolean("encrypted");
  return policy;
}

AccessPolicy make_policy(const StoreName& store, const Secret& secret, bool encrypted, PasswordCost cost) {
  check_cost(cost);
  need_sodium();
  Key master;
  randombytes_buf(master.data(), Key::kBytes);
  return wrap(store, secret, master, encrypted, cost);
}

Keys unlock(const StoreName& store, const AccessPolicy& policy, const Secret* secret) {
  check_cost(policy.cost);
  if (secret == nullptr) {
    throw PermissionDenied(fmt::format("store '{}' opens only with its secret, and none was presented: {}",
                                       printable(store.store_id), kWhereFrom));
  }
  const Key master = unwrap(store, policy, *secret);
  Keys keys;
  keys.mac = derive_key(master, "draftflow.access.1 mac", {});
  keys.cipher = derive_key(master, "draftflow.access.1 cipher", {});
  keys.encrypted = policy.encrypted;
  return keys;
}

std::optional<Keys> open_access(const StoreName& store, const std::optional<AccessPolicy>& policy, const Secret* secret) {
  if (policy) return unlock(store, *policy, secret);
  if (secret == nullptr) return std::nullopt;
  throw InvalidArgument(
      fmt::format("store '{}' has no access policy, but a secret was presented: leave it out if the store was "
                  "made without one; if it was made with one, its store.json was altered",
                  printable(store.store_id)));
}

AccessPolicy rotate(const StoreName& store, const AccessPolicy& policy, const Secret& old_secret, const Secret& new_secret,
                    PasswordCost cost) {
  check_cost(policy.cost);
  check_cost(cost);
  return wrap(store, new_secret, unwrap(store, policy, old_secret), policy.encrypted, cost);
}

std::string to_hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string digits;
  digits.reserve(2 * bytes.size());
  for (const std::byte byte : bytes) {
    digits += kHex[std::to_integer<unsigned>(byte) >> 4];
    digits += kHex[std::to_integer<unsigned>(byte) & 15];
  }
  return digits;
}

bool from_hex(std::string_view digits, std::span<std::byte> out) {
  if (digits.size() != 2 * out.size() || digits.find_first_not_of("0123456789abcdef") != std::string_view::npos) return false;
  return sodium_hex2bin(raw(out.data()), out.size(), digits.data(), digits.size(), nullptr, nullptr, nullptr) == 0;
}

}  // namespace draftflow::store

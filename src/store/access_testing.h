// SPDX-License-Identifier: Apache-2.0
//
// For this room's tests only: a policy that never changes, computed by an outside program (Python's hashlib for the keys,
// libsodium's C functions for Argon2id and the wrapping), and secrets that are cheap to derive from.
#pragma once

#include <string>

#include "store/access.h"

namespace draftflow::store_testing {

constexpr const char* kGoldenSecret = "correct horse battery staple";
constexpr const char* kGoldenPolicy =
    R"({"scheme":"draftflow.access.1","kdf":"argon2id","opslimit":1,"memlimit":8388608,"salt":"000102030405060708090a0b0c0d0e0f",)"
    R"("check":"999c268fa56577a9ab27f57d47d82afec41b3e5165bcd5098c6ba35000441fe7","wrapped_master":)"
    R"("808182838485868788898a8b8c8d8e8f9091929394959697aea478426c69db28e6e09f6fad55191a2fc998eb1354fa79683d793b63d3dc0946c4260cc3ea1)"
    R"(cbb21f85aef9d13aefb","encrypted":false})";
constexpr const char* kGoldenMaster = "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f";
constexpr const char* kGoldenMacKey = "270912ac41a24dbec9ce345afa24ac0b1ebcf23414ea69e1a4bda9330e1a332a";
constexpr const char* kGoldenCipherKey = "bbd18f1861ea67516fcbe3ea78347874a325c1702271d25d7e90699ab6256eee";

inline store::StoreName golden_name() {
  return {"features", "0123456789abcdef0123456789abcdef"};
}

constexpr store::PasswordCost kCheap{.opslimit = 1, .memlimit = store::PasswordCost::kMinMemlimit};

inline std::string hex_of(const store::Key& key) {
  return store::to_hex({key.data(), store::Key::kBytes});
}

}  // namespace draftflow::store_testing

// SPDX-License-Identifier: Apache-2.0
#include "store/seal.h"

#include <set>

#include "store/access_testing.h"
#include "store/store_testing.h"

namespace draftflow::store {
namespace {

using store_testing::message_of;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

Keys golden_keys() {
  Keys keys;
  from_hex(store_testing::kGoldenMacKey, {keys.mac.data(), Key::kBytes});
  from_hex(store_testing::kGoldenCipherKey, {keys.cipher.data(), Key::kBytes});
  return keys;
}

FileSalt golden_salt() {
  FileSalt salt;
  for (std::size_t i = 0; i < salt.size(); ++i) salt[i] = static_cast<std::byte>(0xa0 + i);
  return salt;
}

constexpr FileIdentity kGoldenIdentity = {.store_id = "features",
                                          .incarnation = "0123456789abcdef0123456789abcdef",
                                          .sample_id = "run:00000001/\u2603",
                                          .generation = (1 << 24) | 7};

FileKeys golden_file() {
  return file_keys(golden_keys(), kGoldenIdentity, golden_salt());
}

Bytes golden_bytes(std::size_t size = 1000) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + 3);
  return bytes;
}

// Everything that must lead to other keys than kGoldenIdentity, among it fields that run together to the same text.
std::vector<FileIdentity> other_identities() {
  std::vector<FileIdentity> others(7, kGoldenIdentity);
  others[0].store_id = "feature";
  others[1].incarnation = "0123456789abcdef0123456789abcdee";
  others[2].sample_id = "run:00000001/";
  others[3].generation += 1;
  others[4].generation = 7;
  others[5].store_id = "features0", others[5].incarnation = "123456789abcdef0123456789abcdef";
  others[6].incarnation = "0123456789abcdef0123456789abcdefrun", others[6].sample_id = ":00000001/\u2603";
  return others;
}

// ---- Tags

// Computed by an outside program: BLAKE2b of Python's hashlib, Poly1305 in big integers (checked against RFC 8439).
TEST(Seal, GoldenTags) {
  const FileKeys file = golden_file();
  EXPECT_EQ(store_testing::hex_of(file.mac), "adf76be3868e64f328df8ad07907d986d55b536c668efd4b50eb40ab113c25b3");
  EXPECT_EQ(store_testing::hex_of(file.cipher), "6c7c94b68370bc5010492337c586b151110ff7e7e298a88881cabb3338317a28");
  EXPECT_EQ(to_hex(tag_chunk(file, 0, golden_bytes())), "1131c789fa3d9b1e55f7eeb194bc17fe");
  EXPECT_EQ(to_hex(tag_chunk(file, 1, golden_bytes())), "86c8c411f539069203b2df333f56d7b1");
  EXPECT_EQ(to_hex(tag_chunk(file, kHeaderIndex, golden_bytes())), "252c2b0ec031c775b2beeaf287c26c7e");
  EXPECT_EQ(to_hex(tag_chunk(file, 0, {})), "f6ea612e2ed4b5d9dd598ccba04ca9f3");
}

// From the policy and the secret to a tag, as a process does it.
TEST(Seal, GoldenFromTheSecretOn) {
  const Secret secret = Secret::from_bytes(store_testing::kGoldenSecret);
  const Keys keys = unlock(store_testing::golden_name(), AccessPolicy::from_json(store_testing::kGoldenPolicy, "x"), &secret);
  EXPECT_EQ(to_hex(tag_chunk(file_keys(keys, kGoldenIdentity, golden_salt()), 0, golden_bytes())),
            "1131c789fa3d9b1e55f7eeb194bc17fe");
}

TEST(Seal, EveryAlteredByteChangesTheTag) {
  const FileKeys file = golden_file();
  Bytes bytes = golden_bytes();
  const Tag tag = tag_chunk(file, 3, bytes);
  EXPECT_TRUE(same_tag(tag, tag_chunk(file, 3, bytes)));
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= std::byte{0x80};
    EXPECT_FALSE(same_tag(tag, tag_chunk(file, 3, bytes))) << i;
    bytes[i] ^= std::byte{0x80};
  }
  for (std::size_t i = 0; i < tag.size(); ++i) {
    Tag other = tag;
    other[i] ^= std::byte{1};
    EXPECT_FALSE(same_tag(tag, other)) << i;
  }
}

TEST(Seal, ShorterLongerAndPaddedBytesHaveOtherTags) {
  const FileKeys file = golden_file();
  const Bytes bytes(100);  // zeros: padding must not be taken for bytes
  std::set<std::string> tags;
  for (std::size_t size = 0; size <= bytes.size(); ++size)
    tags.insert(to_hex(tag_chunk(file, 0, std::span(bytes).first(size))));
  EXPECT_EQ(tags.size(), bytes.size() + 1);
}

TEST(Seal, ATagIsOfItsIndexOnly) {
  const FileKeys file = golden_file();
  std::set<std::string> tags;
  for (const std::uint64_t index : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{256}, std::uint64_t{1} << 32,
                                    std::uint64_t{1} << 56, kHeaderIndex - 1, kHeaderIndex}) {
    tags.insert(to_hex(tag_chunk(file, index, golden_bytes())));
  }
  EXPECT_EQ(tags.size(), 7u);
}

TEST(Seal, ATagIsOfItsFileOnly) {
  const Keys keys = golden_keys();
  const Tag tag = tag_chunk(golden_file(), 0, golden_bytes());
  for (const FileIdentity& identity : other_identities()) {
    EXPECT_FALSE(same_tag(tag, tag_chunk(file_keys(keys, identity, golden_salt()), 0, golden_bytes()))) << identity.sample_id;
  }
  FileSalt salt = golden_salt();
  for (std::byte& byte : salt) {
    byte ^= std::byte{1};
    EXPECT_FALSE(same_tag(tag, tag_chunk(file_keys(keys, kGoldenIdentity, salt), 0, golden_bytes())));
    byte ^= std::byte{1};
  }
  Keys other = keys;
  other.mac.data()[0] ^= std::byte{1};
  EXPECT_FALSE(same_tag(tag, tag_chunk(file_keys(other, kGoldenIdentity, golden_salt()), 0, golden_bytes())));
}

// Two writers of one identity, as after an old copy of the folder came back, still have keys of their own.
TEST(Seal, EachWriterDrawsItsOwnSalt) {
  std::set<std::string> salts;
  for (int i = 0; i < 1000; ++i) salts.insert(to_hex(random_file_salt()));
  EXPECT_EQ(salts.size(), 1000u);
}

TEST(Seal, KeysOfAFileAreApartFromEachOtherAndFromTheStores) {
  const Keys keys = golden_keys();
  const FileKeys file = golden_file();
  Keys same = keys;
  same.cipher = same.mac;  // even then
  const FileKeys of_same = file_keys(same, kGoldenIdentity, golden_salt());
  EXPECT_FALSE(of_same.mac == of_same.cipher);
  EXPECT_FALSE(file.mac == file.cipher || file.mac == keys.mac || file.cipher == keys.cipher || file.mac == keys.cipher);
}

// ---- Encryption

struct Sealed {
  Bytes bytes;
  Tag tag;
};

Sealed sealed(const FileKeys& file, std::uint64_t index, const Bytes& plain) {
  Sealed result{Bytes(plain.size()), {}};
  encrypt_chunk(file, index, plain, result.bytes, result.tag);
  return result;
}

bool opens(const FileKeys& file, std::uint64_t index, const Sealed& from) {
  Bytes out(from.bytes.size(), std::byte{0xee});
  const bool good = decrypt_chunk(file, index, from.bytes, out, from.tag);
  const Bytes zeros(from.bytes.size());
  EXPECT_TRUE(good || out == zeros) << "unverified bytes were left";
  return good;
}

// Computed by another library (Python's cryptography) under keys of Python's hashlib.
TEST(Seal, GoldenCipher) {
  const FileKeys file = golden_file();
  const struct {
    std::uint64_t index;
    const char* first;
    const char* tag;
  } cases[] = {{0, "7248a0b8f9b9b0b37af2def89c126e45", "a097d0507f44886716b12e5a07430020"},
               {1, "e26141e8a8bc30b074bc5a2e1c0e3832", "061a350036286acd0cda16465102fb66"}};
  for (const auto& [index, first, tag] : cases) {
    const Sealed result = sealed(file, index, golden_bytes());
    EXPECT_EQ(to_hex(std::span(result.bytes).first(16)), first);
    EXPECT_EQ(to_hex(result.tag), tag);
  }
}

TEST(Seal, EncryptedBytesComeBackAtAnyLengthAlsoInPlace) {
  const FileKeys file = golden_file();
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{15}, std::size_t{16}, std::size_t{17},
                                 std::size_t{1000}, (std::size_t{1} << 20) + 3}) {
    const Bytes plain = golden_bytes(size);
    const Sealed result = sealed(file, 5, plain);
    Bytes out(size);
    EXPECT_TRUE(decrypt_chunk(file, 5, result.bytes, out, result.tag));
    EXPECT_EQ(out, plain);
    Bytes place = plain;
    Tag tag;
    encrypt_chunk(file, 5, place, place, tag);
    EXPECT_EQ(place, result.bytes);
    EXPECT_EQ(tag, result.tag);
    EXPECT_TRUE(decrypt_chunk(file, 5, place, place, tag));
    EXPECT_EQ(place, plain);
    EXPECT_TRUE(size < 16 || result.bytes != plain);
  }
}

TEST(Seal, EveryAlteredByteOfAnEncryptedChunkIsRefused) {
  const FileKeys file = golden_file();
  Sealed chunk = sealed(file, 2, golden_bytes(200));
  EXPECT_TRUE(opens(file, 2, chunk));
  for (std::byte& byte : chunk.bytes) {
    byte ^= std::byte{1};
    EXPECT_FALSE(opens(file, 2, chunk));
    byte ^= std::byte{1};
  }
  for (std::byte& byte : chunk.tag) {
    byte ^= std::byte{1};
    EXPECT_FALSE(opens(file, 2, chunk));
    byte ^= std::byte{1};
  }
  chunk.bytes.pop_back();
  EXPECT_FALSE(opens(file, 2, chunk));
}

TEST(Seal, AnEncryptedChunkIsOfItsIndexAndFileOnly) {
  const Sealed chunk = sealed(golden_file(), 2, golden_bytes());
  for (const std::uint64_t index : {std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{2} << 32, std::uint64_t{2} << 56}) {
    EXPECT_FALSE(opens(golden_file(), index, chunk)) << index;
  }
  for (const FileIdentity& identity : other_identities()) {
    EXPECT_FALSE(opens(file_keys(golden_keys(), identity, golden_salt()), 2, chunk));
  }
  EXPECT_FALSE(opens(file_keys(golden_keys(), kGoldenIdentity, {}), 2, chunk));
}

// One switch must not open what the other closed.
TEST(Seal, ATagOfTheMacDoesNotOpenAnEncryptedChunk) {
  Sealed chunk = sealed(golden_file(), 2, golden_bytes());
  chunk.tag = tag_chunk(golden_file(), 2, chunk.bytes);
  EXPECT_FALSE(opens(golden_file(), 2, chunk));
}

TEST(Seal, BuffersThatCannotWorkAreRefused) {
  const FileKeys file = golden_file();
  Bytes bytes(64);
  Tag tag{};
  const std::span<std::byte> all(bytes);
  EXPECT_THAT(message_of<InvalidArgument>([&] { encrypt_chunk(file, kHeaderIndex, all, all, tag); }),
              HasSubstr("the header's own"));
  EXPECT_THAT(message_of<InvalidArgument>([&] { encrypt_chunk(file, 0, all, all.first(63), tag); }),
              HasSubstr("64 bytes into 63"));
  EXPECT_THAT(message_of<InvalidArgument>([&] { encrypt_chunk(file, 0, all.first(32), all.subspan(1, 32), tag); }),
              HasSubstr("overlap"));
  EXPECT_THAT(message_of<InvalidArgument>([&] { decrypt_chunk(file, 0, all.subspan(31, 32), all.first(32), tag); }),
              HasSubstr("overlap"));
  encrypt_chunk(file, 0, all.first(32), all.subspan(32), tag);  // side by side is apart
  EXPECT_TRUE(decrypt_chunk(file, 0, all.subspan(32), all.first(32), tag));
}

}  // namespace
}  // namespace draftflow::store

// SPDX-License-Identifier: Apache-2.0
#include "store/access.h"

#include <sys/stat.h>

#include <cstdlib>
#include <functional>
#include <new>
#include <type_traits>

#include "draftflow/base/file.h"
#include "store/access_testing.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

extern char** environ;

namespace draftflow::store {
namespace {

using store_testing::golden_name;
using store_testing::hex_of;
using store_testing::kCheap;
using store_testing::kGoldenPolicy;
using store_testing::kGoldenSecret;
using store_testing::message_of;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string text_of(const Secret& secret) {
  return {reinterpret_cast<const char*>(secret.bytes().data()), secret.bytes().size()};
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  return text.replace(text.find(what), what.size(), with);
}

AccessPolicy golden_policy() {
  return AccessPolicy::from_json(kGoldenPolicy, "store.json");
}

Keys open_golden(const AccessPolicy& policy, const std::string& secret = kGoldenSecret) {
  const Secret presented = Secret::from_bytes(secret);
  return unlock(golden_name(), policy, &presented);
}

std::string read_proc_environ() {
  const UniqueFd fd = open_file("/proc/self/environ", 0);
  std::string text(1 << 20, '\0');
  std::size_t have = 0;
  for (ssize_t got = 0; (got = ::read(fd.get(), text.data() + have, text.size() - have)) > 0;) {
    have += static_cast<std::size_t>(got);
  }
  text.resize(have);
  return text;
}

// ---- Secret

class SecretTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& text, mode_t mode = 0600) {
    const std::filesystem::path path = temp_.path() / "secret";
    replace_file(path, text);
    ::chmod(path.c_str(), mode);
    return path;
  }
  testing_support::TempFolder temp_;
};

template <class T>
concept Printed = requires(std::ostream& out, const T& value) {
  out << value;
};
static_assert(Printed<std::string> && !Printed<Secret> && !Printed<Key>);
static_assert(!std::is_convertible_v<Secret, std::string> && !std::is_convertible_v<Key, std::string>);
static_assert(!std::is_copy_constructible_v<Secret>);

TEST_F(SecretTest, IsTheFileWithoutItsNewline) {
  for (const std::string text : {"hunter2", "hunter2\n", "hunter2\r\n"}) {
    EXPECT_EQ(text_of(Secret::from_file(write(text))), "hunter2");
  }
  EXPECT_EQ(text_of(Secret::from_file(write("two\n\n"))), "two\n");
  EXPECT_EQ(text_of(Secret::from_file(write(std::string("a\0b", 3)))), std::string("a\0b", 3));
  EXPECT_EQ(text_of(Secret::from_file(write("for the group", 0640))), "for the group");
  EXPECT_EQ(Secret::from_file(write(std::string(kMaxSecretBytes, 'x'))).bytes().size(), kMaxSecretBytes);
}

TEST_F(SecretTest, AFileOpenToOthersIsRefusedSayingWhatToDo) {
  for (const mode_t mode : {0644, 0604, 0602, 0601, 0666}) {
    const auto path = write("hunter2", mode);
    EXPECT_THAT(message_of<PermissionDenied>([&] { Secret::from_file(path); }),
                AllOf(HasSubstr(path.string()), HasSubstr("chmod 600"), HasSubstr("640"), Not(HasSubstr("hunter2"))));
  }
}

TEST_F(SecretTest, AFileThatIsNoSecretIsRefused) {
  for (const std::string text : {"", "\n", "\r\n"}) {
    EXPECT_THAT(message_of<InvalidArgument>([&] { Secret::from_file(write(text)); }), HasSubstr("is empty"));
  }
  EXPECT_THAT(message_of<InvalidArgument>([&] { Secret::from_file(write(std::string(kMaxSecretBytes + 1, 'x'))); }),
              HasSubstr("longer than 65536 bytes"));
  EXPECT_THAT(message_of<NotFound>([&] { Secret::from_file(temp_.path() / "absent"); }), HasSubstr("absent"));
  EXPECT_THAT(message_of<InvalidArgument>([&] { Secret::from_file(temp_.path()); }), HasSubstr("not a regular file"));
  ASSERT_EQ(::mkfifo((temp_.path() / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(message_of<InvalidArgument>([&] { Secret::from_file(temp_.path() / "pipe"); }), HasSubstr("not a regular file"));
}

TEST_F(SecretTest, IsTakenOutOfTheEnvironmentUnlessItIsToBeKept) {
  constexpr const char* kName = "DRAFTFLOW_TEST_SECRET";
  ::unsetenv(kName);
  EXPECT_FALSE(Secret::from_environment(kName).has_value());
  ::setenv(kName, "hunter2\n", 1);
  EXPECT_EQ(text_of(*Secret::from_environment(kName, Secret::Afterwards::kKeep)), "hunter2");
  EXPECT_EQ(text_of(*Secret::from_environment(kName)), "hunter2");
  EXPECT_EQ(std::getenv(kName), nullptr);
  ::setenv(kName, "", 1);
  EXPECT_THAT(message_of<InvalidArgument>([&] { Secret::from_environment(kName); }),
              AllOf(HasSubstr(kName), HasSubstr("is empty")));
  ::setenv(kName, std::string(kMaxSecretBytes + 1, 'x').c_str(), 1);
  EXPECT_THAT(message_of<InvalidArgument>([&] { Secret::from_environment(kName); }), HasSubstr("longer than 65536 bytes"));
  EXPECT_EQ(std::getenv(kName), nullptr) << "a refused one is taken out as well";
}

// What a process started with stays in /proc/PID/environ when it is only unset. Any variable of this process will do.
TEST_F(SecretTest, ATakenSecretLeavesProcEnviron) {
  std::string entry;
  for (char** at = environ; *at != nullptr && entry.empty(); ++at) {
    const std::string candidate = *at;
    const auto equals = candidate.find('=');
    if (equals != std::string::npos && candidate.size() > equals + 4) entry = candidate;
  }
  if (entry.empty()) GTEST_SKIP() << "this process has an empty environment";
  const pid_t child = store_testing::fork_child([&] {
    const auto shown = [&] { return read_proc_environ().find(entry) != std::string::npos; };
    if (!shown()) throw std::runtime_error("the entry was not there to begin with");
    const std::string name = entry.substr(0, entry.find('='));
    const auto secret = Secret::from_environment(name.c_str());
    if (name + "=" + text_of(*secret) != entry) throw std::runtime_error("another value was read");
    if (shown()) throw std::runtime_error("/proc/self/environ still shows the value");
  });
  EXPECT_EQ(store_testing::wait_for(child), 0);
}

TEST(Key, IsWipedAtItsEnd) {
  alignas(Key) unsigned char place[sizeof(Key)];
  Key* const key = new (place) Key;
  std::fill_n(key->data(), Key::kBytes, std::byte{0xab});
  EXPECT_EQ(place[0], 0xab);
  key->~Key();
  EXPECT_TRUE(std::all_of(std::begin(place), std::end(place), [](unsigned char byte) { return byte == 0; }));
}

TEST(Key, OfOtherFieldsIsAnother) {
  const Key from;
  const std::vector<Key> keys = {derive_key(from, "a", {"bc"}),     derive_key(from, "ab", {"c"}),
                                 derive_key(from, "a", {"b", "c"}), derive_key(from, "a", {"bc", ""}),
                                 derive_key(from, "abc", {}),       derive_key(from, "a", {"cb"})};
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::size_t j = 0; j < keys.size(); ++j) EXPECT_EQ(keys[i] == keys[j], i == j) << i << " " << j;
  }
}

// ---- AccessPolicy

TEST(AccessPolicy, GoldenOpensForEver) {
  const AccessPolicy policy = golden_policy();
  EXPECT_EQ(policy.to_json(), kGoldenPolicy);
  const Keys keys = open_golden(policy);
  EXPECT_EQ(hex_of(keys.mac), store_testing::kGoldenMacKey);
  EXPECT_EQ(hex_of(keys.cipher), store_testing::kGoldenCipherKey);
  EXPECT_FALSE(keys.encrypted);
}

TEST(AccessPolicy, IsMadeRandomAndCostly) {
  const Secret secret = Secret::from_bytes(kGoldenSecret);
  const AccessPolicy policy = make_policy(golden_name(), secret, /*encrypted=*/true);
  EXPECT_EQ(policy.cost.opslimit, 2u);
  EXPECT_EQ(policy.cost.memlimit, 64u << 20);
  const AccessPolicy read = AccessPolicy::from_json(policy.to_json(), "store.json");
  EXPECT_EQ(read.to_json(), policy.to_json());
  const Keys keys = unlock(golden_name(), read, &secret);
  EXPECT_TRUE(keys.encrypted);
  EXPECT_FALSE(keys.mac == keys.cipher);
  const AccessPolicy other = make_policy(golden_name(), secret, true, kCheap);
  EXPECT_NE(other.salt, policy.salt);
  EXPECT_FALSE(unlock(golden_name(), other, &secret).mac == keys.mac) << "the master key is random";
}

TEST(AccessPolicy, AWrongOrMissingSecretIsDenied) {
  for (const std::string wrong :
       {"correct horse battery stapl", "correct horse battery staple ", "Correct horse battery staple", "x"}) {
    EXPECT_THAT(message_of<PermissionDenied>([&] { open_golden(golden_policy(), wrong); }),
                AllOf(HasSubstr("the secret presented does not open store 'features'"), HasSubstr(kSecretVariable)));
  }
  EXPECT_THAT(message_of<PermissionDenied>([&] { unlock(golden_name(), golden_policy(), nullptr); }),
              AllOf(HasSubstr("store 'features' opens only with its secret"), HasSubstr(kSecretVariable), HasSubstr("a file"),
                    HasSubstr("never from a command line")));
}

TEST(AccessPolicy, ASecretForAStoreWithoutOneIsRefused) {
  const Secret secret = Secret::from_bytes(kGoldenSecret);
  EXPECT_FALSE(open_access(golden_name(), std::nullopt, nullptr).has_value());
  EXPECT_TRUE(open_access(golden_name(), golden_policy(), &secret).has_value());
  EXPECT_THAT(message_of<PermissionDenied>([&] { open_access(golden_name(), golden_policy(), nullptr); }),
              HasSubstr("none was presented"));
  EXPECT_THAT(message_of<InvalidArgument>([&] { open_access(golden_name(), std::nullopt, &secret); }),
              HasSubstr("has no access policy, but a secret was presented"));
}

TEST(AccessPolicy, RotationChangesTheSecretAndKeepsTheKeys) {
  const Secret old_secret = Secret::from_bytes(kGoldenSecret);
  const Secret new_secret = Secret::from_bytes("another");
  const AccessPolicy before = golden_policy();
  const AccessPolicy after = rotate(golden_name(), before, old_secret, new_secret, kCheap);
  EXPECT_NE(after.salt, before.salt);
  EXPECT_NE(after.check, before.check);
  EXPECT_NE(after.wrapped_master, before.wrapped_master);
  EXPECT_EQ(after.encrypted, before.encrypted);
  const Keys keys = open_golden(after, "another");
  EXPECT_EQ(hex_of(keys.mac), store_testing::kGoldenMacKey);
  EXPECT_EQ(hex_of(keys.cipher), store_testing::kGoldenCipherKey);
  EXPECT_THROW(open_golden(after), PermissionDenied) << "the old secret";
  EXPECT_THROW(rotate(golden_name(), after, old_secret, new_secret, kCheap), PermissionDenied);
}

TEST(AccessPolicy, EveryAlteredByteIsRefused) {
  const auto each_byte = [](auto member, const char* name, auto refused) {
    for (std::size_t i = 0; i < (golden_policy().*member).size(); ++i) {
      AccessPolicy policy = golden_policy();
      (policy.*member)[i] ^= std::byte{1};
      SCOPED_TRACE(std::string(name) + " byte " + std::to_string(i));
      refused(policy);
    }
  };
  // An altered salt or check cannot be told from a wrong secret; past them, only an altered policy is left.
  const auto denied = [](const AccessPolicy& policy) { EXPECT_THROW(open_golden(policy), PermissionDenied); };
  each_byte(&AccessPolicy::salt, "salt", denied);
  each_byte(&AccessPolicy::check, "check", denied);
  each_byte(&AccessPolicy::wrapped_master, "wrapped_master", [](const AccessPolicy& policy) {
    EXPECT_THAT(message_of<Corrupt>([&] { open_golden(policy); }),
                HasSubstr("the access policy of store 'features' was altered"));
  });
  AccessPolicy policy = golden_policy();
  policy.encrypted = true;
  EXPECT_THROW(open_golden(policy), Corrupt);
  policy = golden_policy();
  policy.cost.opslimit = 2;
  EXPECT_THROW(open_golden(policy), PermissionDenied);
  policy = golden_policy();
  policy.cost.memlimit += 1 << 20;
  EXPECT_THROW(open_golden(policy), PermissionDenied);
}

TEST(AccessPolicy, AnotherStoresPolicyIsRefused) {
  const Secret secret = Secret::from_bytes(kGoldenSecret);
  const StoreName others[] = {{"other", golden_name().incarnation}, {"features", "ffffffffffffffffffffffffffffffff"}};
  for (const StoreName& name : others) EXPECT_THROW(unlock(name, golden_policy(), &secret), Corrupt);
}

TEST(AccessPolicy, AHostileOneIsCorruptByName) {
  const struct {
    const char* what;
    const char* with;
    const char* says;
  } cases[] = {
      {"{", "", "is not a JSON object"},
      {"\"scheme\"", "\"schema\"", "lacks 'scheme'"},
      {"\"draftflow.access.1\"", "7", "'scheme', but not as a string"},
      {"argon2id", "md5", "kdf 'md5', and only argon2id"},
      {"\"opslimit\":1", "\"opslimit\":0", "opslimit 0, and 1 to 8"},
      {"\"opslimit\":1", "\"opslimit\":9", "opslimit 9, and 1 to 8"},
      {"\"opslimit\":1", "\"opslimit\":-1", "opslimit -1"},
      {"\"opslimit\":1", "\"opslimit\":1.5", "opslimit 1.5"},
      {"\"opslimit\":1", "\"opslimit\":\"1\"", "opslimit \"1\""},
      {"8388608", "8192", "memlimit 8192, and 8388608 to 268435456"},
      {"8388608", "1099511627776", "memlimit 1099511627776, and 8388608 to 268435456"},
      {"8388608", "1e30", "memlimit 1e+30"},
      {"8388608", "8388609", "memlimit 8388609, and only whole MiB"},
      {"8388608", "null", "memlimit null"},
      {"000102", "0001", "'salt', but not as 32 lowercase hex"},
      {"000102", "00010G", "'salt', but not as 32 lowercase hex"},
      {"999c", "999C", "'check', but not as 64 lowercase hex"},
      {"\"8081", "\"808180", "'wrapped_master', but not as 144 lowercase hex"},
      {"false", "0", "'encrypted', but not as true or false"},
      {",\"encrypted\":false", "", "lacks 'encrypted'"},
  };
  for (const auto& [what, with, says] : cases) {
    const std::string text = replaced(kGoldenPolicy, what, with);
    EXPECT_THAT(message_of<Corrupt>([&] { AccessPolicy::from_json(text, "/st/store.json"); }),
                AllOf(HasSubstr("/st/store.json"), HasSubstr(says)));
  }
  EXPECT_THAT(message_of<InvalidArgument>(
                  [&] { AccessPolicy::from_json(replaced(kGoldenPolicy, "access.1", "access.2"), "/st/store.json"); }),
              AllOf(HasSubstr("'draftflow.access.2'"), HasSubstr("knows draftflow.access.1")));
  for (const std::string& text : {std::string(), std::string("[]"), std::string("\xff"), std::string(100'000, ' '),
                                  std::string(60'000, '['), std::string(kGoldenPolicy).substr(0, 300)}) {
    EXPECT_THROW(AccessPolicy::from_json(text, "store.json"), Corrupt);
  }
}

TEST(AccessPolicy, ACostOutOfRangeNeverReachesTheDerivation) {
  const Secret secret = Secret::from_bytes(kGoldenSecret);
  const std::uint64_t huge = 1ULL << 40;
  for (const PasswordCost cost : {PasswordCost{2, huge}, PasswordCost{0, 64 << 20}, PasswordCost{99, 64 << 20}}) {
    AccessPolicy policy = golden_policy();
    policy.cost = cost;
    EXPECT_THAT(message_of<InvalidArgument>([&] { make_policy(golden_name(), secret, false, cost); }),
                HasSubstr("8388608 to 268435456"));
    EXPECT_THROW(unlock(golden_name(), policy, &secret), InvalidArgument);
    EXPECT_THROW(rotate(golden_name(), policy, secret, secret, kCheap), InvalidArgument);
  }
}

// Every refusal this room knows, with a secret that could be found in it.
TEST_F(SecretTest, NoMessageAndNoPolicyHoldsASecretOrAKey) {
  const std::string text = "Zq7-unmistakable-Xw9";
  const Secret secret = Secret::from_bytes(text);
  const Secret wrong = Secret::from_bytes("Jk3-also-unmistakable");
  const AccessPolicy policy = make_policy(golden_name(), secret, false, kCheap);
  const Keys keys = unlock(golden_name(), policy, &secret);
  AccessPolicy altered = policy;
  altered.wrapped_master[30] ^= std::byte{1};
  const std::string long_text = text + std::string(kMaxSecretBytes, 'x');
  ::setenv("DRAFTFLOW_TEST_SECRET", long_text.c_str(), 1);
  const std::function<void()> refusals[] = {
      [&] { unlock(golden_name(), policy, &wrong); },
      [&] { unlock(golden_name(), policy, nullptr); },
      [&] { unlock(golden_name(), altered, &secret); },
      [&] {
        unlock({"other", "0"}, policy, &secret);
      },
      [&] { open_access(golden_name(), std::nullopt, &secret); },
      [&] { rotate(golden_name(), policy, wrong, secret, kCheap); },
      [&] { rotate(golden_name(), altered, secret, wrong, kCheap); },
      [&] { make_policy(golden_name(), secret, false, {.opslimit = 0}); },
      [&] { Secret::from_file(write(text, 0644)); },
      [&] { Secret::from_file(write(long_text)); },
      [&] { Secret::from_environment("DRAFTFLOW_TEST_SECRET"); },
      [&] { Secret::from_bytes(long_text); },
  };
  std::string said = policy.to_json() + "\n";
  for (const auto& refusal : refusals) {
    said += message_of<Error>(refusal) + "\n";
  }
  for (const std::string& part :
       {std::string("unmistakable"), std::string("Zq7"), std::string("Jk3"), to_hex(secret.bytes()).substr(0, 16),
        to_hex(wrong.bytes()).substr(0, 16), hex_of(keys.mac).substr(0, 16), hex_of(keys.cipher).substr(0, 16)}) {
    EXPECT_THAT(said, Not(HasSubstr(part)));
  }
}

TEST(AccessPolicy, DoesNotHoldTheMasterInTheClear) {
  EXPECT_THAT(std::string(kGoldenPolicy), Not(HasSubstr(std::string(store_testing::kGoldenMaster).substr(0, 16))));
}

}  // namespace
}  // namespace draftflow::store

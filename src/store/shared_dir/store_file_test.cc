// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/store_file.h"

#include <fcntl.h>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::message_of;
using ::testing::HasSubstr;

class StoreFileTest : public ::testing::Test {
 protected:
  void write(const std::string& text) { replace_file(temp_.path() / kStoreFileName, text); }
  std::string refused_as_argument() {
    return message_of<InvalidArgument>([&] { find_store_file(folder_, StoreId("st")); });
  }
  std::string refused_as_corrupt() {
    return message_of<Corrupt>([&] { find_store_file(folder_, StoreId("st")); });
  }

  testing_support::TempFolder temp_;
  Folder folder_ = Folder::open(temp_.path());
};

constexpr const char* kGood = R"({"format": "draftflow.shared_dir", "format_version": 2, "required": [], "store_id": "st",
                                  "kind": "consume_once", "durability": "data", "max_resident_bytes": 7, "max_hold_age_ms": 9,
                                  "incarnation": "0123456789abcdef0123456789abcdef", "note": "of a later version"})";

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  return text.replace(text.find(what), what.size(), with);
}

TEST_F(StoreFileTest, IsMadeOnceAndReadBack) {
  EXPECT_FALSE(find_store_file(folder_, StoreId("st")));
  const StoreFile made = make_store_file(folder_, StoreId("st"), {});
  EXPECT_EQ(made.incarnation.size(), 32u);
  EXPECT_EQ(make_store_file(folder_, StoreId("st"), {}).incarnation, made.incarnation);
  EXPECT_EQ(find_store_file(folder_, StoreId("st"))->incarnation, made.incarnation);
  EXPECT_EQ(temp_.list(), (std::vector<std::string>{"accounts", "epochs", "leases", "samples", "store.json", "tmp"}));
  EXPECT_TRUE(std::filesystem::is_empty(temp_.path() / "tmp"));
}

// The format outlives processes: a file that version 2 wrote stays readable.
TEST_F(StoreFileTest, Golden) {
  write(kGood);
  const auto file = find_store_file(folder_, StoreId("st"));
  EXPECT_EQ(file->incarnation, "0123456789abcdef0123456789abcdef");
  EXPECT_EQ(file->kind, StoreKind::kConsumeOnce);
  EXPECT_EQ(file->durability, Durability::kData);
  EXPECT_EQ(file->max_resident_bytes, 7u);
  EXPECT_EQ(file->max_hold_age_ms, 9);
}

TEST_F(StoreFileTest, AnotherVersionIsRefusedNamingBoth) {
  write(replaced(kGood, "\"format_version\": 2", "\"format_version\": 3"));
  EXPECT_THAT(refused_as_argument(), HasSubstr("has format version 3: this program knows 2"));
}

TEST_F(StoreFileTest, AnUnknownRequirementIsRefused) {
  write(replaced(kGood, "[]", "[\"secret\"]"));
  EXPECT_THAT(refused_as_argument(), HasSubstr("requires \"secret\""));
}

TEST_F(StoreFileTest, AnotherIdIsRefusedNamingBoth) {
  write(replaced(kGood, "\"st\"", "\"other\""));
  EXPECT_THAT(refused_as_argument(), HasSubstr("is the store 'other', not 'st'"));
}

TEST_F(StoreFileTest, DamageIsCorrupt) {
  const std::string good = kGood;
  for (const std::string& text :
       {std::string(), std::string("[]"), good.substr(0, 60), replaced(good, "shared_dir", "else"),
        replaced(good, ": 2", ": \"2\""), replaced(good, "consume_once", "twice"), replaced(good, ": 7", ": -7"),
        replaced(good, ": 9", ": 1e3"), replaced(good, "\"data\"", "3"), replaced(good, "[]", "3"),
        replaced(good, "\"st\"", "7"), replaced(good, "0123456789abcdef\"", "short\""), replaced(good, "store_id", "stare_id"),
        std::string(100'000, ' ')}) {
    write(text);
    EXPECT_NE(refused_as_corrupt(), "") << text.substr(0, 200);
  }
}

TEST_F(StoreFileTest, AUsersOwnFolderIsLeftAlone) {
  folder_.open_file("thesis.txt", O_CREAT | O_WRONLY);
  EXPECT_THAT(message_of<InvalidArgument>([&] { make_store_file(folder_, StoreId("st"), {}); }),
              HasSubstr("is not a store and holds 'thesis.txt'"));
  EXPECT_EQ(temp_.list(), std::vector<std::string>{"thesis.txt"});
}

TEST_F(StoreFileTest, ProcessesThatRaceAgreeOnOneIncarnation) {
  for (int round = 0; round < 10; ++round) {
    const testing_support::TempFolder temp;
    std::vector<pid_t> children;
    for (int i = 0; i < 4; ++i) {
      children.push_back(store_testing::fork_child([&] {
        const StoreFile file = make_store_file(Folder::open(temp.path()), StoreId("st"), {});
        replace_file(temp_.path() / std::to_string(i), file.incarnation);
      }));
    }
    for (const pid_t child : children) EXPECT_EQ(store_testing::wait_for(child), 0);
    const std::string kept = find_store_file(Folder::open(temp.path()), StoreId("st"))->incarnation;
    for (int i = 0; i < 4; ++i) EXPECT_EQ(read_text_file(temp_.path() / std::to_string(i)), kept);
  }
}

}  // namespace
}  // namespace draftflow::store

// SPDX-License-Identifier: Apache-2.0
#include "ledger/sql/ref_template.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "ledger/ledger_story.h"
#include "ledger/sqlite/database.h"

namespace draftflow::sql {
namespace {

using testing_support::expect_error;

// As a capture makes them: everything that tells one sample from another is here.
SampleRef ref_of(const std::string& id, std::int64_t tokens = 231, std::uint64_t generation = 16777217) {
  SampleRef ref{.sample_id = SampleId(id), .run_id = RunId("run")};
  ref.source_task_id = id;
  ref.feature_store_uri = "disagg://features/" + id;
  ref.feature_keys = {{"hidden", id + "/hidden"}, {"ids", id + "/ids"}};
  ref.feature_specs.push_back({.name = "hidden", .shape = {1, tokens, 4096}, .dtype = DType::kBFloat16});
  ref.feature_specs.push_back({.name = "ids", .shape = {tokens}, .dtype = DType::kInt64});
  ref.num_tokens = tokens;
  ref.estimated_bytes = static_cast<std::uint64_t>(tokens) * 8200;
  ref.generation = generation;
  ref.incarnation = "cafe";
  ref.set_metadata("layers", "[1,2]");
  ref.set_metadata("source", fmt::format("\"train.jsonl:{}\"", tokens));
  return ref;
}

std::optional<std::string> packed_by(const SampleRef& first, const SampleRef& ref) {
  const RefTemplate one = RefTemplate::of(sample_ref_to_json(first), RefColumns(first));
  const std::string json = sample_ref_to_json(ref);
  auto packed = one.pack(json, RefColumns(ref));
  if (packed) {
    EXPECT_EQ(RefTemplate(one.text()).unpack(*packed, RefColumns(ref)), json);
  }
  return packed;
}

TEST(RefTemplate, KeepsOfARefWhatItsRowDoesNotSay) {
  EXPECT_EQ(packed_by(ref_of("run:1"), ref_of("run:1")), "");
  const auto packed = packed_by(ref_of("run:1"), ref_of("run:20000", 17, 99));
  ASSERT_TRUE(packed);
  EXPECT_TRUE(packed->ends_with("=\"train.jsonl:17\"")) << *packed;
  EXPECT_LT(packed->size(), 24U);
}

TEST(RefTemplate, GivesEveryRefBackByteForByte) {
  std::vector<SampleRef> refs;
  for (const char* const id :
       {"7", "1", "a/b c", "\"quoted\\", "tab\there", "gr\xC3\xBC\xC3\x9F", "0", "231", "hidden", "run"}) {
    refs.push_back(ref_of(id));
    refs.push_back(ref_of(id, 1, 1));
    refs.push_back(ref_of(id, 4096, 0));
    refs.back().draft_weight_version = "w\n\"7\"";
    refs.push_back(ref_of(id, 7, 7));
    refs.back().feature_keys = {{"hidden", id + std::string("/hidden")}, {"ids", "elsewhere"}};
    refs.back().set_metadata("source", "null");
    refs.push_back(ref_of(id, 1));
    refs.back().set_metadata("layers", "[1,2,3]");
    refs.back().other.emplace_back("later", "{\"a\":1e5}");
    refs.push_back(ref_of(id, -3));
    refs.back().estimated_bytes = 1ULL << 63;
    refs.back().feature_specs.edit([](auto& specs) { specs[1].shape.clear(); });
  }
  int packed = 0;
  for (const SampleRef& first : refs) {
    for (const SampleRef& ref : refs) packed += packed_by(first, ref) ? 1 : 0;
  }
  EXPECT_GT(packed, static_cast<int>(refs.size() * refs.size() / 4)) << "of as many tries";
}

TEST(RefTemplate, AListIsOneValueWhateverItsLength) {
  SampleRef first = ref_of("run:1"), longer = ref_of("run:2"), other = ref_of("run:3");
  first.set_metadata("spans", "[]");
  longer.set_metadata("spans", "[[1,\"]\"],{\"a\":[2]},3]");
  other.set_metadata("spans", "null");
  EXPECT_TRUE(packed_by(first, longer));
  EXPECT_TRUE(packed_by(longer, first));
  EXPECT_TRUE(packed_by(longer, other));
  EXPECT_TRUE(packed_by(other, longer));
}

// Its closing quote is no part of a text, whatever the id ends in.
TEST(RefTemplate, AnIdThatIsAQuoteTakesNoText) {
  for (const char* const id : {"\"", "\\\"", "a\"", "\\"}) {
    SampleRef ref = ref_of(id);
    ref.set_metadata("note", "\"\\\\\"");
    EXPECT_TRUE(packed_by(ref, ref)) << id;
    EXPECT_TRUE(packed_by(ref_of("run:1"), ref_of(id))) << id;
  }
}

TEST(RefTemplate, AnotherStructureIsNotPacked) {
  SampleRef more = ref_of("run:1");
  more.set_metadata("more", "1");
  EXPECT_FALSE(packed_by(ref_of("run:1"), more));
  EXPECT_FALSE(packed_by(more, ref_of("run:1")));
  SampleRef longer = ref_of("run:1");
  longer.set_metadata("source", fmt::format("\"{}\"", std::string(4000, 'x')));
  EXPECT_FALSE(packed_by(ref_of("run:1"), longer)) << "it is no shorter packed";
}

TEST(RefTemplate, WhatWasAlteredIsCorrupt) {
  const SampleRef ref = ref_of("run:1");
  const RefColumns columns(ref);
  const RefTemplate one = RefTemplate::of(sample_ref_to_json(ref), columns);
  for (const char* const packed : {"x", "1", "9999=1", "-1=2", "3=1\n2=1", "3=1\n3=1", "3=1\nx", "=1"}) {
    expect_error<Corrupt>([&] { one.unpack(packed, columns); }, "a packed ref is none of its template's");
  }
  expect_error<Corrupt>([] { RefTemplate("{\"a"); }, "ends within a string");
}

class Templates : public ::testing::Test {
 protected:
  Templates() { db_.script("CREATE TABLE ref_template(number INTEGER PRIMARY KEY, text TEXT NOT NULL)"); }
  RefTemplates::Packed make(RefTemplates& templates, const SampleRef& ref) {
    Transaction transaction(db_);
    const auto packed = RefTemplates::Making(templates).pack(sample_ref_to_json(ref), RefColumns(ref));
    transaction.commit();
    return packed;
  }
  static SampleRef like(int fields) {
    SampleRef ref = ref_of("run:1");
    for (int i = 0; i < fields; ++i) ref.set_metadata(fmt::format("field{}", i), "1");
    return ref;
  }
  const testing_support::TempFolder folder_;
  sqlite::Database db_{folder_.path() / "db", sqlite::Database::Mode::kReadWrite};
  RefTemplates templates_{db_};
};

TEST_F(Templates, OneThatWasRolledBackIsNotBelieved) {
  const SampleRef one = like(1), two = like(2);
  {
    Transaction transaction(db_);
    EXPECT_EQ(RefTemplates::Making(templates_).pack(sample_ref_to_json(one), RefColumns(one)).number, 1);
  }
  EXPECT_FALSE(templates_.pack(sample_ref_to_json(one), RefColumns(one)));
  const auto packed = make(templates_, two);  // takes the number
  EXPECT_EQ(packed.number, 1);
  EXPECT_EQ(templates_.unpack(1, packed.text, RefColumns(two)), sample_ref_to_json(two));
  EXPECT_EQ(make(templates_, one).number, 2);
}

TEST_F(Templates, AnotherProcessesAreUsed) {
  RefTemplates theirs(db_);
  EXPECT_EQ(make(theirs, like(1)).number, 1);
  EXPECT_EQ(make(templates_, like(2)).number, 2);
  EXPECT_EQ(make(templates_, like(1)).number, 1);
  EXPECT_EQ(theirs.unpack(2, "", RefColumns(like(2))), sample_ref_to_json(like(2)));
}

TEST_F(Templates, WhatWasTriedIsNotTriedAgain) {
  const auto pack = [&](int fields, std::size_t tried) {
    return templates_.pack(sample_ref_to_json(like(fields)), RefColumns(like(fields)), tried);
  };
  for (int i = 0; i < 4; ++i) make(templates_, like(i));
  make(templates_, like(4));
  ASSERT_EQ(templates_.known(), 4U);
  for (const int last : {0, 3, 1, 2}) {
    ASSERT_EQ(pack(last, 0)->number, last + 1);  // the next one is tried from here on
    for (int fields = 0; fields < 4; ++fields) {
      for (std::size_t tried = 0; tried <= 4; ++tried) {
        const auto packed = pack(fields, tried);
        EXPECT_EQ(packed.has_value(), static_cast<std::size_t>(fields) >= tried) << fields << " " << tried;
        pack(last, 0);
      }
    }
  }
  Transaction transaction(db_);
  RefTemplates::Making making(templates_);
  EXPECT_EQ(making.pack(sample_ref_to_json(like(4)), RefColumns(like(4)), 4).number, 5) << "another made it meanwhile";
  EXPECT_EQ(making.pack(sample_ref_to_json(like(1)), RefColumns(like(1)), 5).number, 6) << "it fits the second, untried";
}

TEST_F(Templates, BeyondSomeRefsAreKeptWhole) {
  for (int i = 0; i < 20; ++i) {
    const auto packed = make(templates_, like(i));
    EXPECT_EQ(packed.number, i < 16 ? i + 1 : 0);
    EXPECT_EQ(templates_.unpack(packed.number, packed.text, RefColumns(like(i))), sample_ref_to_json(like(i)));
  }
}

TEST_F(Templates, WhatIsLargeIsKeptWhole) {
  SampleRef large = like(0);
  large.set_metadata("text", "\"" + std::string(70'000, 'x') + "\"");
  EXPECT_EQ(make(templates_, large).number, 0);
  EXPECT_EQ(db_.find("SELECT COUNT(*) FROM ref_template"), 0);
}

TEST_F(Templates, OneThatIsLostIsCorrupt) {
  make(templates_, like(1));
  make(templates_, like(2));
  db_.run("DELETE FROM ref_template WHERE number = 1");
  RefTemplates others(db_);
  expect_error<Corrupt>([&] { others.unpack(2, "", RefColumns(like(2))); }, "has lost template 1 of its refs");
  expect_error<Corrupt>([&] { templates_.unpack(3, "", RefColumns(like(2))); }, "has lost template");
}

}  // namespace
}  // namespace draftflow::sql

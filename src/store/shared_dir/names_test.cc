// SPDX-License-Identifier: Apache-2.0
#include "store/shared_dir/names.h"

#include <gtest/gtest.h>

#include <set>

namespace draftflow::store {
namespace {

const std::vector<std::string> kHostile = {"..",
                                           ".",
                                           "/",
                                           "a/b",
                                           "a_b",
                                           "a\nb",
                                           "\xF0\x9F\x98\x80",
                                           "~",
                                           std::string(1024, 'x'),
                                           "A",
                                           "a.",
                                           "-rf",
                                           "a~b",
                                           "tmp",
                                           std::string(1023, 'x') + "y"};

void expect_safe_name(const std::string& name) {
  EXPECT_LE(name.size(), 255u);
  EXPECT_NE(name.front(), '.');
  EXPECT_EQ(name.find_first_of(std::string("/\n\0", 3)), std::string::npos) << name;
}

TEST(Names, NoIdLeavesItsFolderOrMeetsAnother) {
  std::set<std::string> samples, stores;
  for (const std::string& id : kHostile) {
    const SamplePlace place = sample_place(SampleId(id));
    expect_safe_name(place.folder);
    expect_safe_name(generation_name(place, kMaxGeneration));
    expect_safe_name(store_folder_name(StoreId(id)));
    EXPECT_TRUE(samples.insert(place.folder).second) << id;
    EXPECT_TRUE(stores.insert(store_folder_name(StoreId(id))).second) << id;
  }
}

// Names outlive processes: these may never change.
TEST(Names, Golden) {
  const SamplePlace place = sample_place(SampleId("run:00000001"));
  EXPECT_EQ(place.folder, "run_00000001~e05f82007899926329759abeaec0fdf27f6218c5b421f1777e1a7cb477f76b40");
  EXPECT_EQ(place.fan_out, "e0");
  EXPECT_EQ(generation_name(place, 16777217), "run_00000001.g16777217.safetensors");
  EXPECT_EQ(store_folder_name(StoreId("features-1.a_B")), "features-1.a_B");
  EXPECT_EQ(store_folder_name(StoreId("a/b")), "a_b~c14cddc033f64b9dea80ea675cf280a015e672516090a5626781153dc68fea11");
}

TEST(Names, WhatWasNamedIsRecognised) {
  for (const std::string& id : kHostile) {
    const SamplePlace place = sample_place(SampleId(id));
    const auto parsed = parse_sample_folder(place.fan_out, place.folder);
    ASSERT_TRUE(parsed);
    EXPECT_EQ(parsed->readable, place.readable);
    EXPECT_EQ(parse_generation_name(*parsed, generation_name(place, 42)), 42u);
  }
}

TEST(Names, OtherNamesAreNot) {
  const SamplePlace place = sample_place(SampleId("a"));
  for (const char* name : {"a.g.safetensors", "a.g0.safetensors", "a.g01.safetensors", "a.g-1.safetensors",
                           "a.g1.safetensors.tmp", "a.g9007199254740992.safetensors", "a.g99999999999999999999.safetensors",
                           "b.g1.safetensors", "a.g1", "a.g1x.safetensors", "a.g+1.safetensors", ""}) {
    EXPECT_FALSE(parse_generation_name(place, name)) << name;
  }
  EXPECT_TRUE(parse_generation_name(place, "a.g9007199254740991.safetensors"));
  EXPECT_FALSE(parse_sample_folder("00", place.folder));
  EXPECT_FALSE(parse_sample_folder(place.fan_out, "x"));
  EXPECT_FALSE(is_fan_out_name("0G"));
}

}  // namespace
}  // namespace draftflow::store

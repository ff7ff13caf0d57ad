// SPDX-License-Identifier: Apache-2.0
//
// draftflow store on a folder that the reference runtime wrote.
#include <fcntl.h>

#include <fstream>

#include "cli/store_command_testing.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/torch_zip.h"

namespace draftflow::cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class StoreReference : public StoreCommand {
 protected:
  StoreReference() {
    std::filesystem::create_directory(path());
    write("a", 1);
    write("b c", 2);
  }
  void write(const std::string& id, float first) {
    const std::filesystem::path file = std::filesystem::path(path()) / (id + ".g1.ckpt");
    const UniqueFd fd = open_file(file, O_WRONLY | O_CREAT | O_TRUNC);
    write_torch_zip(fd.get(), file, tensors(first));
  }
  std::vector<std::string> everything() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path())) {
      found.push_back(entry.path().string() + " " + read_text_file(entry.path()));
    }
    std::sort(found.begin(), found.end());
    return found;
  }
};

TEST_F(StoreReference, IsListedShownAndCopiedOut) {
  const auto before = everything();
  const auto rows = json_lines(call({"ls", path(), "--json"}).out);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["generation"], 1);
  EXPECT_THAT(call({"ls", path()}).out, HasSubstr("  b c\n"));

  const Outcome shown = call({"inspect", path(), "b c"});
  EXPECT_EQ(shown.code, 0) << shown.err;
  EXPECT_THAT(shown.out, AllOf(HasSubstr("b c.g1.ckpt"), HasSubstr("hidden_state"), HasSubstr("store      st\n"),
                               Not(HasSubstr("incarnation"))));

  const std::string out = (temp_.path() / "out.safetensors").string();
  ASSERT_EQ(call({"get", path(), "b c", "--generation", "1", "--out", out}).code, 0);
  expect_same_by_name(read_safetensors(out), tensors(2));

  const auto health = json_lines(call({"stat", path(), "--json"}).out);
  EXPECT_EQ(health[0]["backend"], "reference");
  EXPECT_EQ(health[0]["resident_samples"], 2);
  EXPECT_EQ(call({"gc", path()}).code, 0);
  EXPECT_EQ(everything(), before);
}

TEST_F(StoreReference, VerifyNamesWhatIsDamaged) {
  EXPECT_THAT(call({"verify", path()}).out, AllOf(HasSubstr("checked 2 generations"), HasSubstr(": 0 damaged")));
  const std::filesystem::path file = std::filesystem::path(path()) / "a.g1.ckpt";
  std::string bytes = read_text_file(file);
  const std::size_t token = bytes.find("\x05\0\0\0\0\0\0\0\x06", 0, 9);
  ASSERT_NE(token, std::string::npos);
  bytes[token] ^= 1;
  replace_file(file, bytes);
  const Outcome outcome = call({"verify", path()});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("damaged "), HasSubstr(file.string()), HasSubstr("checked 2 generations")));
  EXPECT_EQ(call({"inspect", path(), "a"}).code, 7);
}

TEST_F(StoreReference, NothingIsPutIntoItOrMadeOfIt) {
  const auto before = everything();
  write_safetensors(temp_.path() / "x.safetensors", tensors());
  const Outcome put = call({"put", path(), (temp_.path() / "x.safetensors").string(), "--id", "x"});
  EXPECT_EQ(put.code, 2);
  EXPECT_THAT(put.err, AllOf(HasSubstr("only read"), HasSubstr("a store of draftflow's own")));
  EXPECT_THAT(put.err, Not(HasSubstr("'draftflow store create " + path())));
  const Outcome made = call({"create", path()});
  EXPECT_EQ(made.code, 2);
  EXPECT_THAT(made.err, HasSubstr("reference runtime wrote"));
  EXPECT_EQ(everything(), before);
}

TEST_F(StoreReference, OfTheReferenceItself) {
  DRAFTFLOW_REQUIRE_REAL_DATA(real, "reference-store");
  const std::string folder = (real / "st").string();
  EXPECT_EQ(json_lines(call({"ls", folder, "--json"}).out).size(), 8u);
  EXPECT_EQ(json_lines(call({"stat", folder, "--json"}).out)[0]["resident_samples"], 8);
  EXPECT_THAT(call({"verify", folder}).out, AllOf(HasSubstr("checked 8 generations"), HasSubstr(": 0 damaged")));
  const auto shown = json_lines(call({"inspect", folder, "stories:00000002", "--json"}).out);
  ASSERT_EQ(shown.size(), 1u);
  EXPECT_EQ(shown[0]["unpacked_bytes"], 101376);
  EXPECT_EQ(shown[0]["tensors"].size(), 4u);
  const std::string out = (temp_.path() / "out.safetensors").string();
  ASSERT_EQ(call({"get", folder, "stories:00000002", "--out", out}).code, 0);
  EXPECT_EQ(read_safetensors(out).size(), 4u);
}

TEST_F(StoreCommand, AStoreOfLayoutSpecforgeIsMadeFilledAndShown) {
  const Outcome made = call({"create", path(), "--layout", "specforge"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.out, HasSubstr(", readable by SpecForge\n"));
  EXPECT_EQ(json_lines(call({"create", path(), "--layout", "specforge", "--json"}).out)[0]["layout"], "specforge");
  EXPECT_THAT(call({"create", path()}).err, HasSubstr("made with layout 'specforge', but 'draftflow' is asked for"));
  const std::string file = (temp_.path() / "in.ckpt").string();
  write_torch_zip(open_file(file, O_WRONLY | O_CREAT).get(), file, tensors(3));
  ASSERT_EQ(call({"put", path(), file, "--id", "run:0"}).code, 0);
  const auto rows = json_lines(call({"ls", path(), "--json"}).out);
  ASSERT_EQ(rows.size(), 1u);
  const std::string flat = path() + "/run:0.g" + rows[0]["generation"].dump() + ".ckpt";
  expect_same_by_name(load_feature_file(flat), tensors(3));
  EXPECT_EQ(call({"verify", path()}).code, 0);
  EXPECT_THAT(call({"inspect", path(), "run:0"}).out, HasSubstr(flat));
  std::string bytes = read_text_file(flat);
  bytes[bytes.size() / 2] ^= 1;
  std::ofstream(flat, std::ios::in) << bytes;  // in place
  const Outcome damaged = call({"verify", path()});
  EXPECT_NE(damaged.code, 0);
  EXPECT_THAT(damaged.out + damaged.err, HasSubstr("run:0"));
}

}  // namespace
}  // namespace draftflow::cli

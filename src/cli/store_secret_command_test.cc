// SPDX-License-Identifier: Apache-2.0
//
// Secrets and codecs on the command line.
#include <sys/stat.h>

#include <cstdlib>

#include "cli/store_command_testing.h"
#include "store/access.h"

namespace draftflow::cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr int kDenied = 4;

class StoreSecret : public StoreCommand {
 protected:
  StoreSecret() { ::unsetenv(kSecretVariable); }

  std::string secret_file(const std::string& name, const std::string& text, mode_t mode = 0600) {
    const auto file = temp_.path() / name;
    replace_file(file, text + "\n");
    EXPECT_EQ(::chmod(file.c_str(), mode), 0);
    return file.string();
  }
  std::string feature_file() {
    write_safetensors(temp_.path() / "a.safetensors", tensors());
    return (temp_.path() / "a.safetensors").string();
  }
};

TEST_F(StoreSecret, EverySubcommandAsksForIt) {
  const std::string secret = secret_file("one.secret", "the first secret"), wrong = secret_file("wrong.secret", "a wrong one");
  ASSERT_EQ(call({"create", path(), "--secret-file", secret, "--encrypt", "--codec", "zstd"}).code, 0);
  ASSERT_EQ(call({"put", path(), feature_file(), "--id", "a", "--secret-file", secret}).code, 0);
  const std::string out = (temp_.path() / "out.safetensors").string();
  const std::vector<std::vector<std::string>> commands{{"create", path(), "--encrypt", "--codec", "zstd"},
                                                       {"put", path(), feature_file(), "--id", "b"},
                                                       {"get", path(), "a", "--out", out},
                                                       {"ls", path()},
                                                       {"inspect", path(), "a"},
                                                       {"verify", path()},
                                                       {"gc", path()},
                                                       {"stat", path()}};
  for (std::vector<std::string> command : commands) {
    const Outcome without = call(command);
    EXPECT_EQ(without.code, kDenied) << command[0];
    EXPECT_THAT(without.err, AllOf(HasSubstr("PermissionDenied"), HasSubstr("none was presented"))) << command[0];
    command.insert(command.end(), {"--secret-file", wrong});
    const Outcome mistaken = call(command);
    EXPECT_EQ(mistaken.code, kDenied) << command[0];
    EXPECT_THAT(mistaken.err, Not(HasSubstr("a wrong one"))) << command[0];
    command.back() = secret;
    EXPECT_EQ(call(command).code, 0) << command[0] << call(command).err;
  }
  expect_same_by_name(read_safetensors(out), tensors());
}

TEST_F(StoreSecret, TheEnvironmentsSecretIsTakenAndWiped) {
  ASSERT_EQ(call({"create", path(), "--secret-file", secret_file("one.secret", "the first secret")}).code, 0);
  ::setenv(kSecretVariable, "the first secret", 1);
  EXPECT_EQ(call({"stat", path()}).code, 0);
  EXPECT_EQ(std::getenv(kSecretVariable), nullptr);
  EXPECT_EQ(call({"stat", path()}).code, kDenied);
}

TEST_F(StoreSecret, AFileThatOthersMayReadIsRefused) {
  const Outcome outcome = call({"create", path(), "--secret-file", secret_file("open.secret", "seen by all", 0644)});
  EXPECT_EQ(outcome.code, kDenied);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("chmod 600"), Not(HasSubstr("seen by all"))));
  EXPECT_FALSE(std::filesystem::exists(path()));
}

TEST_F(StoreSecret, RotateChangesIt) {
  const std::string one = secret_file("one.secret", "the first secret"), two = secret_file("two.secret", "the second");
  ASSERT_EQ(call({"create", path(), "--secret-file", one}).code, 0);
  EXPECT_EQ(call({"rotate", path(), "--new-secret-file", two}).code, 2);  // the one it has now is needed
  EXPECT_EQ(call({"rotate", path(), "--secret-file", two, "--new-secret-file", two}).code, kDenied);
  const Outcome done = call({"rotate", path(), "--secret-file", one, "--new-secret-file", two});
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_THAT(done.out, AllOf(HasSubstr("two.secret"), Not(HasSubstr("the second"))));
  EXPECT_EQ(call({"stat", path(), "--secret-file", one}).code, kDenied);
  EXPECT_EQ(call({"stat", path(), "--secret-file", two}).code, 0);
  EXPECT_THAT(call({"rotate", "--help"}).out, HasSubstr("Example:\n"));
}

TEST_F(StoreSecret, InspectTellsWhatACodecDid) {
  ASSERT_EQ(call({"create", path(), "--codec", "int8"}).code, 0);
  const std::vector<float> states(64 * 32, 1.5F);
  write_safetensors(temp_.path() / "b.safetensors",
                    {{"hidden", Tensor::copy_of(DType::kFloat32, {64, 32}, std::as_bytes(std::span(states)))}});
  ASSERT_EQ(call({"put", path(), (temp_.path() / "b.safetensors").string(), "--id", "b"}).code, 0);
  const auto stat = nlohmann::json::parse(call({"stat", path(), "--json"}).out);
  EXPECT_EQ(stat["codec"], "int8");
  EXPECT_EQ(stat["codec_saved_bytes_total"], 64 * 32 * 4 - 64 * 32 - 64 * 4);
  EXPECT_THAT(call({"stat", path()}).out, HasSubstr("codec      int8: saved 5.8 KiB over all puts"));
  const auto json = nlohmann::json::parse(call({"inspect", path(), "b", "--json"}).out);
  EXPECT_EQ(json["tensors"][0]["codec"], "int8");
  EXPECT_EQ(json["bytes"], 64 * 32 + 64 * 4);
  EXPECT_EQ(json["unpacked_bytes"], 64 * 32 * 4);
  EXPECT_THAT(call({"inspect", path(), "b"}).out,
              AllOf(HasSubstr("packed     hidden by int8"), HasSubstr("saved      5.8 KiB")));
}

}  // namespace
}  // namespace draftflow::cli

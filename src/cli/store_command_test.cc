// SPDX-License-Identifier: Apache-2.0
#include "cli/store_command.h"

#include <fstream>

#include "cli/store_command_testing.h"
#include "draftflow/base/error.h"

namespace draftflow::cli {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

TEST_F(StoreCommand, EachHasHelpWithAnExample) {
  for (const std::string command : {"create", "put", "get", "ls", "inspect", "verify", "rm", "gc", "stat", "rotate"}) {
    const Outcome outcome = call({command, "--help"});
    EXPECT_EQ(outcome.code, 0) << command;
    EXPECT_THAT(outcome.out, HasSubstr("Example:\n  draftflow store " + command + " "));
    EXPECT_THAT(outcome.out, HasSubstr("--json"));
    EXPECT_EQ(outcome.err, "");
    EXPECT_THAT(call({"--help"}).out, HasSubstr("\n  " + command + " "));
  }
}

TEST_F(StoreCommand, ErrorsNameTheWholeCommand) {
  EXPECT_THAT(call({}).err, StartsWith("draftflow store: InvalidArgument: "));
  EXPECT_THAT(call({"ls"}).err, StartsWith("draftflow store ls: InvalidArgument: "));
  EXPECT_THAT(call({"ls"}).err, EndsWith("; see 'draftflow store ls --help'\n"));
  EXPECT_EQ(call({"get", path(), "a"}).code, 2);
  EXPECT_EQ(call({"ls", path(), "--limit=-1"}).code, 2);
  EXPECT_EQ(call({"inspect", path(), "a", "--generation=-1"}).code, 2);
  EXPECT_EQ(call({"get", path(), "a", "--generation=0", "--out", "a.safetensors"}).code, 2);
}

TEST_F(StoreCommand, AStoreThatIsNotThereIsNotFoundAndNotMade) {
  for (const std::string command : {"ls", "verify", "gc", "stat"}) {
    const Outcome outcome = call({command, path()});
    EXPECT_EQ(outcome.code, 3) << command;
    EXPECT_THAT(outcome.err, StartsWith("draftflow store " + command + ": NotFound: there is no store 'st' at "));
    EXPECT_THAT(outcome.err, HasSubstr("'draftflow store create " + path() + "' makes one"));
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_EQ(call({"inspect", path(), "a"}).code, 3);
  EXPECT_EQ(call({"put", path(), "none.ckpt", "--id", "a"}).code, 3);
  EXPECT_THAT(temp_.list(), testing::IsEmpty());
}

TEST_F(StoreCommand, AFolderThatIsNoStoreIsNotAdvisedToBecomeOne) {
  ASSERT_EQ(call({"create", path()}).code, 0);
  const Outcome above = call({"ls", temp_.path().string()});
  EXPECT_EQ(above.code, 3);
  EXPECT_THAT(above.err, HasSubstr("; there is a store in " + path() + "\n"));
  const std::string file = (temp_.path() / "0000.ckpt").string();
  std::ofstream(file) << "features";
  for (const std::string& place : {temp_.path().string(), file}) {
    EXPECT_THAT(call({"stat", place}).err, testing::Not(HasSubstr("makes one"))) << place;
  }
}

TEST_F(StoreCommand, CreateMakesWhatItSays) {
  const Outcome made = call({"create", path(), "--kind", "consume_once", "--durability", "data", "--max-resident-bytes",
                             "1.5GiB", "--max-hold-age-ms", "1000", "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto json = nlohmann::json::parse(made.out);
  EXPECT_EQ(json["created"], true);
  EXPECT_EQ(json["kind"], "consume_once");
  EXPECT_EQ(json["max_resident_bytes"], 3ULL << 29);
  const auto file = nlohmann::json::parse(read_text_file(temp_.path() / "st" / "store.json"));
  EXPECT_EQ(file["durability"], "data");
  EXPECT_EQ(file["max_hold_age_ms"], 1000);
  EXPECT_EQ(call({"create", path()}).code, 2);  // another kind
  EXPECT_THAT(call({"create", path()}).err, HasSubstr("was made with kind 'consume_once'"));
}

TEST_F(StoreCommand, CreateAgainIsFine) {
  EXPECT_EQ(call({"create", path()}).out, "created store 'st' in " + temp_.path().string() + ": ledgered, no cap\n");
  EXPECT_EQ(call({"create", path() + "/"}).out,
            "there already: store 'st' in " + temp_.path().string() + ": ledgered, no cap\n");
}

TEST_F(StoreCommand, CreateRefusesWhatCannotBe) {
  EXPECT_THAT(call({"create", path(), "--kind", "other"}).err, HasSubstr("--kind"));
  EXPECT_THAT(call({"create", path(), "--max-resident-bytes", "much"}).err,
              HasSubstr("--max-resident-bytes: 'much' is not a size such as 256MiB"));
  EXPECT_THAT(call({"create", path(), "--max-hold-age-ms", "5"}).err, HasSubstr("make it consume_once or leave the age out"));
  EXPECT_EQ(call({"create", "/"}).code, 2);
  EXPECT_THAT(temp_.list(), testing::IsEmpty());
  replace_file(temp_.path() / "mine.txt", "x");
  EXPECT_EQ(call({"create", temp_.path().string()}).code, 2);  // a user's own folder
}

TEST_F(StoreCommand, AStoreIsNamedByItsFolderHoweverWritten) {
  EXPECT_EQ(store_name("out/run/store").root, "out/run");
  EXPECT_EQ(store_name("out/run/store//").id.str(), "store");
  EXPECT_EQ(store_name("store").root, ".");
  EXPECT_EQ(store_name(".").id.str(), std::filesystem::current_path().filename().string());
  EXPECT_THROW(store_name(""), InvalidArgument);
  EXPECT_THROW(store_name("/"), InvalidArgument);
}

TEST_F(StoreCommand, AFolderWhoseNameIsNotTheIdGetsAHint) {
  create_shared_dir_store(temp_.path(), StoreId("two words"), {});
  const std::string named = (temp_.path() / "two words").string();
  EXPECT_EQ(call({"stat", named}).code, 0);
  const auto folder = temp_.path() / temp_.list().at(0);
  ASSERT_NE(folder, named);
  const Outcome outcome = call({"stat", folder.string()});
  EXPECT_NE(outcome.code, 0);
  EXPECT_THAT(outcome.err, HasSubstr("the store in that folder is named '" + named + "'"));
}

TEST_F(StoreCommand, StatShowsTheCounters) {
  store({.max_resident_bytes = 1 << 20});
  EXPECT_THAT(call({"stat", path()}).out, HasSubstr("age        -\n"));
  const SampleRef ref = store({.max_resident_bytes = 1 << 20})->put(tensors(), SampleId("a"), {.run_id = RunId("run")});
  const auto reader = open_shared_dir_store(temp_.path(), StoreId("st"), {});
  const Fetched leased = reader->get(ref);
  const Outcome text = call({"stat", path()});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("resident   1 generations, 36 B of at most 1.0 MiB (0 %)\n"));
  EXPECT_THAT(text.out, HasSubstr("leases     1 live\n"));
  const auto json = nlohmann::json::parse(call({"stat", path(), "--json"}).out);
  EXPECT_EQ(json["resident_bytes"], 36);
  EXPECT_EQ(json["live_leases"], 1);
  EXPECT_EQ(json["kind"], "ledgered");
}

TEST_F(StoreCommand, StatShowsWhatTheStoreWasMadeAs) {
  ASSERT_EQ(call({"create", path(), "--layout", "specforge", "--durability", "data"}).code, 0);
  EXPECT_THAT(call({"stat", path()}).out, HasSubstr("made as    layout specforge, durability data, incarnation "));
  const auto json = nlohmann::json::parse(call({"stat", path(), "--json"}).out);
  EXPECT_EQ(json["durability"], "data");
  EXPECT_EQ(json["encrypted"], false);
  EXPECT_EQ(json["read_only"], false);
  const Outcome more = call({"create", path(), "--layout", "specforge", "--durability", "full"});
  EXPECT_EQ(more.code, 2);
  EXPECT_THAT(more.err, HasSubstr("made with durability 'data', but 'full' is asked for"));
}

TEST_F(StoreCommand, RmTakesASampleAway) {
  const SampleRef a = put("a"), b = put("b");
  const Outcome gone = call({"rm", path(), "a"});
  EXPECT_EQ(gone.out, "removed 1 generation of sample 'a'\n") << gone.err;
  EXPECT_THROW(store()->read(a), NotFound);
  EXPECT_EQ(call({"rm", path(), "a"}).code, 3);
  EXPECT_EQ(call({"rm", path(), "b", "--generation", std::to_string(b.generation + 1)}).code, 3);
  const Outcome json = call({"rm", path(), "b", "--generation", std::to_string(b.generation), "--json"});
  EXPECT_EQ(nlohmann::json::parse(json.out)["generations_removed"], 1) << json.err;
  EXPECT_THROW(store()->read(b), NotFound);
}

TEST_F(StoreCommand, ASecretThatThePlainStoreHasNotIsToldFromWhere) {
  ASSERT_EQ(call({"create", path()}).code, 0);
  ::setenv(kSecretVariable, "from the shell", 1);
  EXPECT_THAT(call({"stat", path()}).err, HasSubstr("the secret came from the environment's DRAFTFLOW_STORE_SECRET"));
}

TEST_F(StoreCommand, GcSaysWhatItDid) {
  const SampleRef old = put("a");
  const auto file = file_of(old);
  const std::string bytes = read_text_file(file);
  put("a", 2);
  replace_file(file, bytes);  // as if the writer had died between publishing and retiring
  const auto json = nlohmann::json::parse(call({"gc", path(), "--json"}).out);
  EXPECT_EQ(json["generations_removed"], 1);
  EXPECT_EQ(json["bytes_removed"], 36);
  const Outcome again = call({"gc", path()});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.out, StartsWith("freed 0 B: 0 generations (0 past their greatest age), "));
}

}  // namespace
}  // namespace draftflow::cli

// SPDX-License-Identifier: Apache-2.0
//
// draftflow doctor and draftflow drain, over a real ledger and a real store.
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "cli/store_command_testing.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

class OperatorCommands : public StoreCommand {
 protected:
  std::string ledger_file() const { return (temp_.path() / "ledger.sqlite3").string(); }
  std::unique_ptr<Ledger> ledger() const { return open_sqlite_ledger(ledger_file()); }
  Outcome doctor() { return run({"doctor", "--ledger", ledger_file(), "--store", path()}); }
  // Puts and commits that many samples.
  std::vector<SampleRef> fill(int count) {
    std::vector<SampleRef> refs;
    for (int i = 0; i < count; ++i) refs.push_back(put(fmt::format("s{}", i)));
    ledger()->commit_samples(refs, {});
    return refs;
  }
};

TEST_F(OperatorCommands, DoctorFindsNothingWrongWhereNothingIs) {
  fill(3);
  const Outcome outcome = doctor();
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("ok       store and ledger: 3 samples are on the books and there\n"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("wrong")));
}

TEST_F(OperatorCommands, DoctorTellsTheMountsAttributeCache) {
  fill(1);
  EXPECT_THAT(doctor().out, HasSubstr("ok       ledger's clock: this machine's, since its boot\n"));
  struct stat status {};
  ASSERT_EQ(::stat(path().c_str(), &status), 0);
  const auto mounted = [&](const std::string& options) {
    const std::string mounts = (temp_.path() / "mounts").string();
    replace_file(mounts, fmt::format("1 0 {}:{} / /shared rw - nfs4 server:/s {}\n", major(status.st_dev), minor(status.st_dev),
                                     options));
    return run({"doctor", "--store", path(), "--mounts", mounts}).out;
  };
  EXPECT_THAT(mounted("rw"), HasSubstr("warning  attribute cache: nfs4: 60 s, and lease_ms is 60000\n         -> mount with"));
  EXPECT_THAT(mounted("rw,acregmax=3,acdirmax=30"), HasSubstr("ok       attribute cache: nfs4: 30 s\n"));
  EXPECT_THAT(mounted("rw,noac"), HasSubstr("ok       attribute cache: nfs4: 0 s\n"));
}

TEST_F(OperatorCommands, DoctorNamesLostBytesAndAStoreThatIsNotTheLedgers) {
  const auto refs = fill(3);
  store()->remove(refs[1]);
  const Outcome lost = doctor();
  EXPECT_EQ(lost.code, 7);
  EXPECT_THAT(lost.out, HasSubstr("wrong    bytes: 1 committed samples are not in the store\n"));
  EXPECT_THAT(lost.out, HasSubstr("sample 's1' generation"));
  EXPECT_THAT(lost.out, HasSubstr("-> training will fail them by name"));
  ledger()->declare("store", "elsewhere/0123");
  EXPECT_THAT(doctor().out, HasSubstr("the ledger's samples are in store elsewhere/0123, and this is st/"));
  const auto json = nlohmann::json::parse(run({"doctor", "--ledger", ledger_file(), "--store", path(), "--json"}).out);
  EXPECT_TRUE(json.is_array());
  EXPECT_EQ(json.back()["verdict"], "wrong");
}

TEST_F(OperatorCommands, DoctorGoesOnWhereOneThingCannotBeLookedAt) {
  fill(1);
  const Outcome outcome = run({"doctor", "--ledger", (temp_.path() / "none").string(), "--store", path()});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.out, HasSubstr("wrong    ledger: NotFound: "));
  EXPECT_THAT(outcome.out, HasSubstr("ok       store: 'st', ledgered"));
  EXPECT_EQ(run({"doctor"}).code, 2);
}

TEST_F(OperatorCommands, DoctorSweepsOrphansOnlyWhenAsked) {
  fill(1);
  put("orphan");
  EXPECT_THAT(doctor().out, Not(HasSubstr("sweep")));
  const Outcome swept = run({"doctor", "--ledger", ledger_file(), "--store", path(), "--sweep-orphans", "--orphan-age-s", "0"});
  EXPECT_THAT(swept.out, HasSubstr("ok       sweep: 1 orphans removed, 36 B\n"));
  EXPECT_EQ(store()->health().resident_samples, 1u);
}

TEST_F(OperatorCommands, DrainReadsEachSampleOnceAndLetsItGo) {
  fill(40);
  ledger()->close_prompts();
  const Outcome outcome = run({"drain", path(), "--ledger", ledger_file(), "--window", "8", "--json"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["samples"], 40);
  EXPECT_EQ(json["bytes"], 40 * 36);
  EXPECT_EQ(json["freed"], 40);
  EXPECT_EQ(store()->health().resident_samples, 0u);
  EXPECT_EQ(ledger()->trained_ids(GroupId("drain")).size(), 40u);
  const Outcome again = run({"drain", path(), "--ledger", ledger_file(), "--window", "8"});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("0 samples, "));
}

TEST_F(OperatorCommands, DrainGoesOnWhereItWasAndNamesWhatItCannotRead) {
  const auto refs = fill(8);
  EXPECT_EQ(run({"drain", path(), "--ledger", ledger_file(), "--window", "4", "--idle-seconds", "0.1"}).code, 0);
  const SampleRef lost = put("lost"), good = put("good");
  ledger()->commit_samples({lost, good, put("x"), put("y")}, {});
  store()->remove(lost);
  ledger()->close_prompts();
  const Outcome outcome = run({"drain", path(), "--ledger", ledger_file(), "--window", "4", "--json"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["samples"], 4);
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["failed"], 1);
  EXPECT_EQ(ledger()->status().of(GroupId("drain")).failed, 1);
}

}  // namespace
}  // namespace draftflow::cli

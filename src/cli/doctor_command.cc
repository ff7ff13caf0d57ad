// SPDX-License-Identifier: Apache-2.0
//
// draftflow doctor: looks a ledger and its store over, and says what to mend.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <CLI/CLI.hpp>
#include <ctime>
#include <fstream>
#include <memory>
#include <ostream>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/metrics.h"
#include "cli/mount.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/flow/cross_check.h"
#include "draftflow/ledger/ledger.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow doctor --ledger out/demo --store out/demo/store/features\n"
    "  draftflow doctor --ledger postgresql://host/runs --store /shared/store/features --json\n"
    "  draftflow doctor --ledger out/demo --store out/demo/store/features --sweep-orphans\n"
    "Changes nothing without --sweep-orphans, which removes what no ledger knows and is older than --orphan-age-s. Exits with "
    "7 if\n"
    "something is wrong.";

struct DoctorArguments {
  StorePath store;
  std::filesystem::path ledger;
  std::filesystem::path mounts = "/proc/self/mountinfo";
  double orphan_age_s = 3600;
  bool sweep = false, json = false;
};

enum class Verdict { kGood, kWarning, kWrong };

struct Finding {
  Verdict verdict;
  std::string what;  // "free space"
  std::string found, advice;
};

const char* verdict_text(Verdict verdict) {
  return verdict == Verdict::kGood ? "ok" : verdict == Verdict::kWarning ? "warning" : "wrong";
}

class Doctor {
 public:
  Doctor(const DoctorArguments& arguments, const Console& console) : arguments_(arguments), console_(console) {}

  std::vector<Finding> examine() {
    limits();
    if (!arguments_.ledger.empty()) look([&] { ledger(); }, "ledger");
    if (!arguments_.store.path.empty()) look([&] { store(); }, "store");
    if (ledger_ && store_.store) look([&] { together(); }, "store and ledger");
    return findings_;
  }

 private:
  void say(Verdict verdict, const std::string& what, const std::string& found, const std::string& advice = "") {
    findings_.push_back({verdict, what, found, advice});
  }

  // What cannot be looked at is wrong, and the rest is looked at all the same.
  template <class Look>
  void look(Look look_at, const char* what) {
    try {
      look_at();
    } catch (const Error& error) {
      say(Verdict::kWrong, what, fmt::format("{}: {}", error_kind_name(error.kind()), error.what()));
    }
  }

  void limits() {
    constexpr rlim_t kFewFiles = 1024;
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < kFewFiles) {
      say(Verdict::kWarning, "open files", fmt::format("at most {} for this user", files.rlim_cur), "ulimit -n 4096");
    } else {
      say(Verdict::kGood, "open files", fmt::format("at most {}", files.rlim_cur));
    }
    const mode_t mask = ::umask(0);
    ::umask(mask);
    if ((mask & 020) != 0) {
      say(Verdict::kWarning, "umask", fmt::format("{:03o} takes the group's right to write", mask),
          "umask 007, where producers and trainers are different users of one group");
    } else {
      say(Verdict::kGood, "umask", fmt::format("{:03o}", mask));
    }
  }

  void ledger() {
    const std::filesystem::path where = ledger_path(arguments_.ledger);
    ledger_ = open_ledger_read_only(where.string());
    const LedgerStatus status = ledger_->status();
    say(Verdict::kGood, "ledger",
        fmt::format("{} of run '{}': {} prompts, {} samples committed, {} resident", status.ledger_id, printable(status.run_id),
                    status.prompts, status.committed, human_bytes(status.resident_bytes)));
    if (status.prompts_failed > 0) {
      say(Verdict::kWarning, "prompts", fmt::format("{} failed for good", status.prompts_failed),
          "'draftflow status' shows their reasons");
    }
    if (!is_ledger_url(where.string())) {
      const std::filesystem::path folder = where.has_parent_path() ? where.parent_path() : ".";
      const auto space = std::filesystem::space(folder);
      if (space.available < kFewBytes) {
        say(Verdict::kWrong, "ledger's disk", fmt::format("{} free", human_bytes(space.available)),
            "free some space: a commit on a full disk is refused");
      }
    }
    ledger_clock(where.string());
    for (const GroupStatus& group : status.groups) {
      say(Verdict::kGood, "group " + printable(group.group),
          fmt::format("{}trained to step {}, durable to step {}; {} samples stay for it", group.open ? "" : "closed; ",
                      group.trained_step, group.durable_step, group.pinned));
    }
    std::int64_t most = 0, least = status.committed;
    std::string last;
    for (const GroupStatus& group : status.groups) {
      const std::int64_t seen = status.committed - group.available;
      if (!group.open) continue;
      most = std::max(most, seen);
      if (seen < least) last = group.group;
      least = std::min(least, seen);
    }
    if (most - least > status.committed / 10 + 1000) {
      say(Verdict::kWarning, "group " + printable(last),
          fmt::format("is {} samples behind and keeps their bytes", most - least), "start its trainer, or close the group");
    }
  }

  // Leases are measured by the ledger's time alone, so a difference harms nothing but a person's reading of the two logs.
  void ledger_clock(const std::string& where) {
    const std::optional<std::int64_t> ahead_ms = ledger_clock_ahead_ms(where);
    if (!ahead_ms) {
      say(Verdict::kGood, "ledger's clock", "this machine's, since its boot");
    } else if (std::abs(*ahead_ms) > 5000) {
      say(Verdict::kWarning, "ledger's clock",
          fmt::format("the server is {:+.1f} s from this machine", static_cast<double>(*ahead_ms) / 1000),
          "let both follow the same time server; leases go by the server's, and setting it back or forward ends them early");
    } else {
      say(Verdict::kGood, "ledger's clock",
          fmt::format("the server is {:+.1f} s from this machine", static_cast<double>(*ahead_ms) / 1000));
    }
  }

  void store() {
    store_ = open_store(arguments_.store);
    const StoreHealth health = store_.store->health();
    say(Verdict::kGood, "store",
        fmt::format("'{}', {}, layout {}: {} samples, {}", printable(health.store_id), kind_text(health.kind), health.layout,
                    health.resident_samples, human_bytes(health.resident_bytes)));
    if (health.read_only)
      say(Verdict::kWarning, "store's rights", "this user may only read there", "ask for the right to write");
    if (health.errors_total > 0) {
      say(Verdict::kWarning, "store's errors",
          fmt::format("{} calls met damage, a failing disk or a lack of rights", health.errors_total),
          "draftflow store verify");
    }
    if (health.free_bytes < kFewBytes) {
      say(Verdict::kWrong, "store's disk", fmt::format("{} free", human_bytes(health.free_bytes)),
          "free some space: puts are refused and producers wait");
    } else {
      say(Verdict::kGood, "store's disk", fmt::format("{} free", human_bytes(health.free_bytes)));
    }
    if (health.kind == StoreKind::kConsumeOnce && ledger_) {
      say(Verdict::kWrong, "store's kind", "consume_once: a reader's release frees what a checkpoint may still need",
          "pair a ledger with a ledgered store");
    }
    attribute_cache();
    clock();
  }

  // What another host did is seen here when the mount's cache has run out: a holder that beats must not look dead by then.
  void attribute_cache() {
    struct stat status {};
    if (::stat(arguments_.store.path.c_str(), &status) != 0) return;
    std::ifstream mounts(arguments_.mounts);
    const auto cache = find_attribute_cache(mounts, fmt::format("{}:{}", major(status.st_dev), minor(status.st_dev)));
    if (!cache) return;
    const std::int64_t lease_ms = SharedDirOptions{}.lease_ms;
    const std::string found = fmt::format("{}: {} s", cache->type, cache->ms / 1000);
    if (cache->ms < lease_ms) {
      say(Verdict::kGood, "attribute cache", found);
    } else {
      say(Verdict::kWarning, "attribute cache", fmt::format("{}, and lease_ms is {}", found, lease_ms),
          "mount with acregmax=30,acdirmax=30 or less: a lease must be longer than others may be told old attributes");
    }
  }

  // The file server's time against this machine's: ages and leases are measured by the server's.
  void clock() {
    if (store_.store->health().read_only) return;
    const std::filesystem::path probe = arguments_.store.path / "tmp" / fmt::format("doctor-{}.tmp", ::getpid());
    { std::ofstream(probe).put('x'); }
    struct stat status {};
    const bool there = ::stat(probe.c_str(), &status) == 0;
    std::error_code ignored;
    std::filesystem::remove(probe, ignored);
    if (!there) return;
    const double off = static_cast<double>(status.st_mtim.tv_sec) - static_cast<double>(::time(nullptr));
    if (std::abs(off) > 5) {
      say(Verdict::kWarning, "clock", fmt::format("the store's file server is {:+.0f} s from this machine", off),
          "let both follow the same time server; nothing is lost meanwhile, but ages are wrong");
    } else {
      say(Verdict::kGood, "clock", "agrees with the store's file server");
    }
  }

  void together() {
    const StoreHealth health = store_.store->health();
    if (const auto declared = ledger_->declared(kStoreFact); declared && *declared != store_fact(health)) {
      say(Verdict::kWrong, "store and ledger",
          fmt::format("the ledger's samples are in store {}, and this is {}", printable(*declared),
                      printable(store_fact(health))),
          "name the store that belongs to the ledger");
      return;
    }
    SingleProgress progress(console_.err, console_.err_is_terminal, "doctor", "samples");
    const CrossCheck found = cross_check(*ledger_, *store_.store, {.progress = [&](std::int64_t seen) {
      progress.show(seen, static_cast<std::int64_t>(health.resident_samples), "");
    }});
    progress.finish();
    std::string examples;
    for (const std::string& one : found.examples) examples += "\n           " + one;
    if (found.missing > 0) {
      say(Verdict::kWrong, "bytes", fmt::format("{} committed samples are not in the store{}", found.missing, examples),
          "training will fail them by name; was the ledger restored from an older backup, or the store emptied?");
    }
    if (found.newer > 0) {
      say(Verdict::kWrong, "generations",
          fmt::format("{} samples are newer in the store than on the books{}", found.newer, found.missing > 0 ? "" : examples),
          "the ledger is older than the store: restore its latest backup, or begin a new run");
    }
    if (found.orphans > 0) {
      say(Verdict::kWarning, "orphans",
          fmt::format("{} samples ({}) were never committed", found.orphans, human_bytes(found.orphan_bytes)),
          "of producers that died: --sweep-orphans removes the old ones");
    }
    if (found.missing + found.newer + found.orphans == 0) {
      say(Verdict::kGood, "store and ledger", fmt::format("{} samples are on the books and there", found.matching));
    }
    if (!arguments_.sweep) return;
    const OrphanSweep sweep = sweep_orphans(*ledger_, *store_.store, arguments_.orphan_age_s);
    say(Verdict::kGood, "sweep", fmt::format("{} orphans removed, {}", sweep.removed, human_bytes(sweep.bytes)));
  }

  static constexpr std::uint64_t kFewBytes = 1ULL << 30;
  const DoctorArguments& arguments_;
  const Console& console_;
  std::unique_ptr<Ledger> ledger_;
  OpenedStore store_{{}, StoreId("none"), nullptr};
  std::vector<Finding> findings_;
};

int run(const DoctorArguments& arguments, const Console& console) {
  if (arguments.ledger.empty() && arguments.store.path.empty()) {
    throw InvalidArgument("nothing to look at: give --ledger, --store or both");
  }
  const std::vector<Finding> findings = Doctor(arguments, console).examine();
  bool wrong = false;
  Json list = Json::array();
  for (const Finding& finding : findings) {
    wrong = wrong || finding.verdict == Verdict::kWrong;
    if (arguments.json) {
      list.push_back({{"verdict", verdict_text(finding.verdict)},
                      {"what", json_text(finding.what)},
                      {"found", json_text(finding.found)},
                      {"advice", json_text(finding.advice)}});
      continue;
    }
    console.out << fmt::format("{:<8} {}: {}\n", verdict_text(finding.verdict), finding.what, finding.found);
    if (!finding.advice.empty()) console.out << fmt::format("         -> {}\n", finding.advice);
  }
  if (arguments.json) console.out << list.dump() << "\n";
  return wrong ? exit_code(ErrorKind::kCorrupt) : 0;
}

}  // namespace

void add_doctor_command(CommandLine& line) {
  auto arguments = std::make_shared<DoctorArguments>();
  CLI::App& app = *line.app.add_subcommand("doctor", "Look a ledger and its store over, and say what to mend");
  app.add_option("--ledger", arguments->ledger, "the ledger's file or URL, or a run's folder")->type_name("PATH");
  app.add_option("--store", arguments->store.path, "the store's folder, {root}/{store id}")->type_name("PATH");
  add_secret_file(app, arguments->store.secret_file);
  app.add_flag("--sweep-orphans", arguments->sweep, "remove samples that no ledger knows and that are old");
  app.add_option("--orphan-age-s", arguments->orphan_age_s, "how old, seconds; longer than any producer takes to commit")
      ->capture_default_str();
  app.add_flag("--json", arguments->json, "print the findings as JSON");
  app.add_option("--mounts", arguments->mounts)->group("");  // for tests: a list of mounts in place of the kernel's
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli

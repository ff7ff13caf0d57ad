// SPDX-License-Identifier: Apache-2.0
//
// draftflow ledger: looks a ledger over, moves it, and lets a person try again or drop what a run cannot.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <limits>
#include <memory>
#include <ostream>
#include <unordered_set>

#include "cli/app.h"
#include "cli/inspect.h"
#include "cli/metrics.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/flow/cross_check.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/ledger/ledger_file.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow ledger check out/demo --store out/demo/store/features\n"
    "  draftflow ledger export out/demo > demo.jsonl\n"
    "  draftflow ledger retry out/demo --prompts --all\n"
    "LEDGER is a file, a run's folder, or a URL of PostgreSQL.";

constexpr const char* kCheckExample =
    "Example:\n"
    "  draftflow ledger check out/demo\n"
    "  draftflow ledger check postgresql://host/runs --store /shared/store/features --json\n"
    "Counts every row anew on one view, while a run goes on too, and changes nothing. Exits with 7 if something does not fit.";

constexpr const char* kExportExample =
    "Example:\n"
    "  draftflow ledger export out/demo > demo.jsonl\n"
    "  draftflow ledger export out/demo | draftflow ledger import 'postgresql://host/runs' --from -\n"
    "JSON lines of one view (docs/formats/ledger_export.md). Leases end: what is leased is told as pending or available.";

constexpr const char* kImportExample =
    "Example:\n"
    "  draftflow ledger import out/copy.sqlite3 --from demo.jsonl\n"
    "  draftflow ledger import 'postgresql://host/runs?options=-csearch_path%3Drun_7' --from demo.jsonl\n"
    "  draftflow ledger import out/taken-over.sqlite3 --from specforge.sqlite3\n"
    "Makes a new ledger of the same id, so that checkpoints can be resumed; stop the run first, and do not use the old ledger "
    "again.\nA SQLite file is taken for the reference runtime's ledger (docs/formats/reference.md).";

constexpr const char* kRetryExample =
    "Example:\n"
    "  draftflow ledger retry out/demo --group scores --all\n"
    "  draftflow ledger retry out/demo --group scores run:00000017 run:00000018 --dry-run\n"
    "  draftflow ledger retry out/demo --prompts --all\n"
    "What failed in a queue is available again as long as its bytes are there; prompts are pending again. No attempts are held "
    "against\nthem. 'draftflow status' shows why prompts failed, --dry-run shows it of both.";

constexpr const char* kDropExample =
    "Example:\n"
    "  draftflow ledger drop out/demo --group train run:00000017 --reason 'wrong language'\n"
    "  draftflow ledger drop out/demo --prompts run:00000018 --dry-run\n"
    "The group will not see the samples any more, for good; what is in a window, leased or trained is refused by name, and "
    "nothing\nis dropped. With --prompts pending prompts are failed.";

struct LedgerArguments {
  std::filesystem::path ledger;
  StorePath store;
  std::string from, group, reason = "dropped by hand";
  std::vector<std::string> ids;
  bool prompts = false, all = false, dry_run = false, json = false;
};

// A name that is spelt wrong must not make a ledger.
std::unique_ptr<Ledger> open_existing(const std::filesystem::path& where) {
  const std::string name = ledger_path(where).string();
  open_ledger_read_only(name);
  return open_ledger(name);
}

template <class Id>
std::vector<Id> typed(const std::vector<std::string>& ids) {
  return std::vector<Id>(ids.begin(), ids.end());
}

// --- check

void check_against_store(Ledger& ledger, const LedgerArguments& arguments, const Console& console,
                         std::vector<std::string>& found) {
  const OpenedStore opened = open_store(arguments.store);
  try {
    check_store(ledger, *opened.store);
  } catch (const Conflict& error) {
    found.emplace_back(error.what());
    return;
  }
  SingleProgress progress(console.err, console.err_is_terminal, "check", "samples");
  const auto resident = static_cast<std::int64_t>(opened.store->health().resident_samples);
  const CrossCheck crossed =
      cross_check(ledger, *opened.store, {.progress = [&](std::int64_t seen) { progress.show(seen, resident, ""); }});
  progress.finish();
  if (crossed.missing > 0) {
    found.push_back(fmt::format("{} committed samples are not in the store: training will fail them by name", crossed.missing));
  }
  if (crossed.newer > 0) {
    found.push_back(
        fmt::format("{} samples are newer in the store than on the books: the ledger is older than the store", crossed.newer));
  }
  if (crossed.missing + crossed.newer > 0) {
    for (const std::string& one : crossed.examples) found.push_back(one);
  }
}

int run_check(const LedgerArguments& arguments, const Console& console) {
  const auto ledger = open_ledger_read_only(ledger_path(arguments.ledger).string());
  const LedgerStatus status = ledger->status();
  std::vector<std::string> found = ledger->check();
  if (!arguments.store.path.empty()) check_against_store(*ledger, arguments, console, found);
  if (arguments.json) {
    Json list = Json::array();
    for (const std::string& one : found) list.push_back(json_text(one));
    console.out << json_line({{"ledger_id", status.ledger_id},
                              {"prompts", status.prompts},
                              {"committed", status.committed},
                              {"groups", status.groups.size()},
                              {"findings", std::move(list)}});
  } else if (found.empty()) {
    console.out << fmt::format("the books balance: {} prompts, {} samples, {} groups{}\n", status.prompts, status.committed,
                               status.groups.size(), arguments.store.path.empty() ? "" : "; the store has what they say");
  } else {
    for (const std::string& one : found) console.out << "wrong  " << printable_lines(one) << "\n";
  }
  if (found.empty()) return 0;
  console.out.flush();
  throw Corrupt(
      fmt::format("{} things do not fit in ledger {} and are named above: stop the run, keep a copy of the ledger, and "
                  "restore it from one that balances, or begin another run",
                  found.size(), printable(ledger_path(arguments.ledger).string(), 4096)));
}

// --- export, import

// Ends an export or an import within the ledger's call, which then leaves everything as it was.
struct Interrupted {};

int run_export(const LedgerArguments& arguments, const Console& console) {
  const auto ledger = open_ledger_read_only(ledger_path(arguments.ledger).string());
  try {
    ledger->export_to([&](const std::string& line) {
      if (stop_flag()) throw Interrupted();
      console.out << line << '\n';
      if (!console.out) throw Exhausted("writing to standard output failed: the disk behind it may be full; export again");
    });
  } catch (const Interrupted&) {
    return kInterruptedExitCode;  // without its last line an export is known to be cut short
  }
  return 0;
}

void stop_if_asked() {
  if (stop_flag()) throw Interrupted();
}

// What else there is to say of it.
std::string import_from(const std::string& from, const std::filesystem::path& where) {
  if (from == "-") {
    open_ledger(where.string())->import_from([] {
      stop_if_asked();
      return next_export_line(std::cin);
    });
    return "";
  }
  LedgerFile file(from);
  const auto taken = file.import_into(*open_ledger(where.string()), stop_if_asked);
  return taken ? fmt::format("; of the reference's samples {} wait and {} are done with", taken->waiting, taken->done) : "";
}

int run_import(const LedgerArguments& arguments, const Console& console) {
  const std::filesystem::path where = ledger_path(arguments.ledger);
  std::string more;
  try {
    more = import_from(arguments.from, where);
  } catch (const Interrupted&) {
    return kInterruptedExitCode;
  }
  const LedgerStatus status = open_ledger_read_only(where.string())->status();
  if (arguments.json) {
    console.out << to_json(status).dump() << "\n";
    return 0;
  }
  console.out << fmt::format("imported ledger {} of run '{}': {} prompts, {} samples, {} groups{}\n", status.ledger_id,
                             printable(status.run_id), status.prompts, status.committed, status.groups.size(), more);
  return 0;
}

// --- retry, drop

void check_ids(const LedgerArguments& arguments) {
  if (arguments.ids.empty() != arguments.all) {
    throw InvalidArgument(arguments.all ? "ids beside --all: give one or the other" : "nothing is named: give ids, or --all");
  }
}

GroupId find_group_id(Ledger& ledger, const LedgerArguments& arguments, bool queues_only) {
  if (!arguments.group.empty()) return GroupId(arguments.group);
  std::vector<std::string> names;
  for (const GroupStatus& group : ledger.status().groups) {
    if (group.open && (!queues_only || group.kind == GroupKind::kQueue)) names.push_back(group.group);
  }
  if (names.size() == 1) return GroupId(names.front());
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? ": " : ", ") + printable(name);
  throw InvalidArgument(
      fmt::format("the ledger has {} open {}{}; name one with --group", names.size(), queues_only ? "queues" : "groups", all));
}

// "retried 2 of 3", and with --dry-run each with its reason.
int tell(const LedgerArguments& arguments, const Console& console, const char* did, const char* would, std::int64_t count,
         const std::vector<std::pair<std::string, std::string>>& each) {
  if (arguments.json) {
    Json ids = Json::array();
    for (const auto& [id, reason] : each) ids.push_back({{"id", json_text(id)}, {"reason", json_text(reason)}});
    Json result = {{arguments.dry_run ? "would_change" : "changed", count}, {"dry_run", arguments.dry_run}};
    if (arguments.dry_run) result["ids"] = std::move(ids);
    console.out << json_line(result);
    return 0;
  }
  if (arguments.dry_run) {
    for (const auto& [id, reason] : each) console.out << fmt::format("{}: {}\n", printable(id, 1024), printable(reason, 400));
  }
  console.out << fmt::format("{} {}\n", arguments.dry_run ? would : did, count);
  return 0;
}

int run_retry(const LedgerArguments& arguments, const Console& console) {
  check_ids(arguments);
  const auto ledger =
      arguments.dry_run ? open_ledger_read_only(ledger_path(arguments.ledger).string()) : open_existing(arguments.ledger);
  constexpr int kAll = std::numeric_limits<int>::max();
  std::vector<std::pair<std::string, std::string>> failed;  // id, reason
  std::optional<GroupId> group;
  if (arguments.prompts) {
    failed = ledger->failed_prompts(kAll);
  } else {
    group = find_group_id(*ledger, arguments, true);
    for (const FailedSample& one : ledger->failed_refs(*group, kAll)) failed.emplace_back(one.sample_id.str(), one.reason);
  }
  if (!arguments.all) {
    std::unordered_set<std::string> wanted(arguments.ids.begin(), arguments.ids.end());
    std::erase_if(failed, [&](const auto& one) { return wanted.erase(one.first) == 0; });
    for (const std::string& id : arguments.ids) {
      if (wanted.erase(id) > 0) console.err << fmt::format("not failed, left as it is: {}\n", printable(id, 1024));
    }
  }
  std::vector<std::string> ids;
  for (const auto& [id, reason] : failed) ids.push_back(id);
  auto count = static_cast<std::int64_t>(ids.size());
  if (!arguments.dry_run) {
    const std::int64_t named = count;
    count = group ? ledger->retry_failed(*group, typed<SampleId>(ids)) : ledger->retry_prompts(typed<TaskId>(ids));
    if (count < named) {
      console.err << fmt::format("{} stay failed: their bytes are gone, or somebody was faster\n", named - count);
    }
  }
  return arguments.prompts
             ? tell(arguments, console, "prompts pending again:", "prompts that would be pending again:", count, failed)
             : tell(arguments, console,
                    "samples available again:", "samples that would be available again, where their bytes are there:", count,
                    failed);
}

int run_drop(const LedgerArguments& arguments, const Console& console) {
  const auto ledger = open_existing(arguments.ledger);
  std::int64_t count = 0;
  if (arguments.prompts) {
    count = ledger->drop_prompts(typed<TaskId>(arguments.ids), arguments.reason, arguments.dry_run);
    return tell(arguments, console, "prompts dropped:", "prompts that would be dropped:", count, {});
  }
  const GroupId group = find_group_id(*ledger, arguments, false);
  count = ledger->drop_refs(group, typed<SampleId>(arguments.ids), arguments.reason, arguments.dry_run);
  return tell(arguments, console, "samples dropped:", "samples that would be dropped:", count, {});
}

// --- the command line

CLI::App& add(CLI::App& group, CommandLine& line, const char* name, const char* about, const char* example,
              std::shared_ptr<LedgerArguments> arguments, int (*run)(const LedgerArguments&, const Console&)) {
  CLI::App& app = *group.add_subcommand(name, about);
  app.add_option("LEDGER", arguments->ledger, "the ledger's file or URL, or a run's folder")->required()->type_name("PATH");
  app.footer(example);
  app.callback([&line, arguments, run] { line.action = [&line, arguments, run] { return run(*arguments, line.console); }; });
  return app;
}

void add_json(CLI::App& app, LedgerArguments& arguments) {
  app.add_flag("--json", arguments.json, "print JSON");
}

}  // namespace

void add_ledger_command(CommandLine& line) {
  CLI::App& group = *line.app.add_subcommand("ledger", "Look a ledger over, move it, try again or drop by hand");
  group.require_subcommand(1);
  group.footer(kExample);

  auto check = std::make_shared<LedgerArguments>();
  CLI::App& check_app =
      add(group, line, "check", "Count everything anew and name what does not fit", kCheckExample, check, run_check);
  check_app.add_option("--store", check->store.path, "hold it against this store, too")->type_name("PATH");
  add_secret_file(check_app, check->store.secret_file);
  add_json(check_app, *check);

  add(group, line, "export", "Print a ledger as JSON lines", kExportExample, std::make_shared<LedgerArguments>(), run_export);

  auto import = std::make_shared<LedgerArguments>();
  CLI::App& import_app = add(group, line, "import", "Make a new ledger of an export", kImportExample, import, run_import);
  import_app.add_option("--from", import->from, "the export, or - for standard input; or the reference's SQLite ledger")
      ->required()
      ->type_name("FILE");
  add_json(import_app, *import);

  auto retry = std::make_shared<LedgerArguments>();
  CLI::App& retry_app = add(group, line, "retry", "Give what failed another chance", kRetryExample, retry, run_retry);
  retry_app.add_option("ID", retry->ids, "samples, or prompts");
  retry_app.add_flag("--all", retry->all, "all that failed");
  auto drop = std::make_shared<LedgerArguments>();
  CLI::App& drop_app =
      add(group, line, "drop", "Take samples from a group, or prompts from a run", kDropExample, drop, run_drop);
  drop_app.add_option("ID", drop->ids, "samples, or prompts")->required();
  drop_app.add_option("--reason", drop->reason, "what the books say of it")->capture_default_str()->type_name("TEXT");
  for (const auto& [app, arguments] : {std::pair(&retry_app, retry), std::pair(&drop_app, drop)}) {
    CLI::Option* of_group =
        app->add_option("--group", arguments->group, "of which group; may be left out if there is one")->type_name("NAME");
    app->add_flag("--prompts", arguments->prompts, "prompts, not samples")->excludes(of_group);
    app->add_flag("--dry-run", arguments->dry_run, "say what would be done, and change nothing");
    add_json(*app, *arguments);
  }
}

}  // namespace draftflow::cli

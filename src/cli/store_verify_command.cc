// SPDX-License-Identifier: Apache-2.0
//
// draftflow store verify: reads everything in a store and names what is damaged.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ostream>

#include "cli/metrics.h"
#include "cli/progress_bar.h"
#include "cli/stop.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow store verify out/store\n"
    "  draftflow store verify out/store --json | jq -r 'select(.kind == \"damaged\") | .path'\n"
    "Takes no leases and consumes nothing; may run beside capture and training. Exits with 7 if anything is damaged. --json\n"
    "prints one object a line: the damaged ones as they are found, the summary last.";

struct VerifyArguments {
  StorePath store;
  bool json = false;
};

// Reads a store, telling as it goes; holds counts only, however much is damaged.
class Verification {
 public:
  Verification(const OpenedStore& opened, bool json, const Console& console)
      : opened_(opened),
        console_(console),
        json_(json),
        total_(static_cast<std::int64_t>(opened.store->health().resident_samples)),
        progress_(console.err, console.err_is_terminal, "verify", "samples"),
        begin_(steady_seconds()) {}

  void run() {
    opened_.store->for_each([&](const ResidentSample& sample) { return visit(sample); },
                            [&](const std::filesystem::path& path, const std::string& why) { tell(path, why); });
    progress_.finish();
    summarise();
  }

  std::uint64_t damaged() const { return damaged_; }
  std::uint64_t seen() const { return good_ + damaged_; }

 private:
  bool visit(const ResidentSample& sample) {
    if (stop_flag()) return false;
    const SampleCheck check = check_sample(*opened_.store, sample);
    if (check.state == SampleCheck::State::kFreed) ++freed_;
    if (check.state == SampleCheck::State::kDamaged) tell(sample.path, check.why);
    if (check.state == SampleCheck::State::kGood) ++good_;
    if (check.state != SampleCheck::State::kFreed) bytes_ += sample.bytes;
    show();
    return console_.out.good();
  }

  void tell(const std::filesystem::path& path, const std::string& why) {
    ++damaged_;
    progress_.hide();
    if (json_) {
      console_.out << json_line({{"kind", "damaged"}, {"path", json_text(path.string())}, {"why", json_text(why)}});
    } else {
      console_.out << damage_text(path, why) << "\n";
    }
    console_.out.flush();
  }

  void show() {
    meter_.add(steady_seconds(), static_cast<std::int64_t>(bytes_));
    std::string note = fmt::format("{}, {}/s", human_bytes(bytes_), human_bytes(static_cast<std::uint64_t>(meter_.rate())));
    if (damaged_ > 0) note += fmt::format(", {} damaged", damaged_);
    const auto done = static_cast<std::int64_t>(seen() + freed_);
    progress_.show(done, std::max(done, total_), note);
  }

  void summarise() {
    const double seconds = steady_seconds() - begin_;
    if (json_) {
      console_.out << json_line({{"kind", "summary"},
                                 {"checked", seen()},
                                 {"bytes", bytes_},
                                 {"damaged", damaged_},
                                 {"freed_meanwhile", freed_},
                                 {"seconds", seconds},
                                 {"interrupted", stop_flag().load()}});
    } else {
      console_.out << fmt::format("{} {} generations, {} in {}: {} damaged", stop_flag() ? "interrupted after" : "checked",
                                  seen(), human_bytes(bytes_), human_seconds(seconds), damaged_)
                   << (freed_ > 0 ? fmt::format("; {} freed meanwhile", freed_) : "") << "\n";
    }
    console_.out.flush();
  }

  const OpenedStore& opened_;
  const Console& console_;
  const bool json_;
  const std::int64_t total_;
  SingleProgress progress_;
  RateMeter meter_;
  const double begin_;
  std::uint64_t good_ = 0, damaged_ = 0, freed_ = 0, bytes_ = 0;
};

int run(const VerifyArguments& arguments, const Console& console) {
  const OpenedStore opened = open_store(arguments.store);
  Verification verification(opened, arguments.json, console);
  verification.run();
  if (stop_flag()) return kInterruptedExitCode;
  if (verification.damaged() == 0) return 0;
  throw Corrupt(
      fmt::format("{} of the {} generations in {} are damaged and are named above: capture or put those samples again (a "
                  "new generation replaces the damaged one), and look at the disk below",
                  verification.damaged(), verification.seen(), printable(arguments.store.path.string(), 4096)));
}

}  // namespace

void add_store_verify_command(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<VerifyArguments>();
  CLI::App& app = *group.add_subcommand("verify", "Read everything in a store and name what is damaged");
  add_store_path(app, arguments->store);
  app.add_flag("--json", arguments->json, "print one JSON object a line");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli

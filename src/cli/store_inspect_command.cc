// SPDX-License-Identifier: Apache-2.0
//
// draftflow store inspect: one sample, tensor by tensor.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ostream>

#include "cli/inspect.h"
#include "cli/metrics.h"
#include "cli/store_command.h"
#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow store inspect out/store sample-0\n"
    "  draftflow store inspect out/store sample-0 --generation 3 --json\n"
    "Reads and checks every byte of the sample, and leaves it as it is. An id that begins with a dash goes after '--'.";

struct InspectArguments {
  StorePath store;
  std::string id;
  std::optional<std::uint64_t> generation;
  bool json = false;
};

Json checked_entry(FeatureStore& store, const SampleRef& ref, const FeatureSpec& spec) {
  try {
    Json entry = tensor_entry(spec.name, store.read(ref, {spec.name}).at(0).second, /*with_values=*/true);
    entry["checksum"] = "ok";
    return entry;
  } catch (const Corrupt& error) {
    Json entry = tensor_entry(spec.name, spec.dtype, spec.shape);
    entry["checksum"] = "differs";
    entry["problem"] = json_text(error.what());
    return entry;
  }
}

// What the ref says that a codec changed: {"hidden": "int8"}.
Json codecs_of(const SampleRef& ref) {
  for (const auto& [key, text] : ref.metadata) {
    if (key == "codecs") return Json::parse(text);
  }
  return Json::object();
}

Json look_at(const OpenedStore& opened, const SampleRef& ref) {
  const ResidentSample resident = opened.store->resident(ref);
  Json found{{"sample_id", ref.sample_id.str()},
             {"generation", ref.generation},
             {"store_id", opened.id.str()},
             {"incarnation", ref.incarnation},
             {"uri", json_text(ref.feature_store_uri)},
             {"path", json_text(resident.path.string())},
             {"bytes", resident.bytes},
             {"leases", resident.leases},
             {"age_s", resident.age_s}};
  found["tensors"] = Json::array();
  const Json codecs = codecs_of(ref);
  for (const FeatureSpec& spec : ref.feature_specs) {
    found["tensors"].push_back(checked_entry(*opened.store, ref, spec));
    found["tensors"].back()["codec"] = codecs.value(spec.name, "raw");
  }
  found["unpacked_bytes"] = ref.estimated_bytes;
  return found;
}

std::string plain_text(const Json& found, const SampleRef& ref) {
  const auto text_of = [&](const char* key) { return printable(found[key].get<std::string>(), 16384); };
  std::string text = fmt::format("sample     {}   generation {}\n", printable_id(ref.sample_id), ref.generation);
  const std::string incarnation = text_of("incarnation");  // none in a folder of the reference runtime
  text += fmt::format("store      {}{}\n", text_of("store_id"), incarnation.empty() ? "" : ", incarnation " + incarnation);
  text += fmt::format("file       {}\n", text_of("path"));
  text += fmt::format("resident   {}, {} leases, age {}\n", human_bytes(found["bytes"].get<std::uint64_t>()),
                      found["leases"].get<std::uint64_t>(), human_seconds(found["age_s"].get<double>()));
  for (const Json& entry : found["tensors"]) {
    if (entry["codec"] == "raw") continue;
    text +=
        fmt::format("packed     {} by {}\n", printable(entry["name"].get<std::string>()), entry["codec"].get<std::string>());
  }
  const std::uint64_t stored = found["bytes"].get<std::uint64_t>(), unpacked = found["unpacked_bytes"].get<std::uint64_t>();
  if (stored < unpacked) text += fmt::format("saved      {} of {}\n", human_bytes(unpacked - stored), human_bytes(unpacked));
  text += fmt::format("tensors    {}\n{}", found["tensors"].size(), tensor_rows(found["tensors"]));
  for (const Json& entry : found["tensors"]) {
    if (entry.contains("problem")) text += "damaged    " + printable(entry["problem"].get<std::string>(), 8192) + "\n";
  }
  return text;
}

int run(const InspectArguments& arguments, const Console& console) {
  const OpenedStore opened = open_store(arguments.store);
  const SampleRef ref = find_sample(opened, arguments.id, arguments.generation);
  const Json found = look_at(opened, ref);
  console.out << (arguments.json ? json_line(found) : plain_text(found, ref)) << std::flush;
  const auto damaged = std::count_if(found["tensors"].begin(), found["tensors"].end(),
                                     [](const Json& entry) { return entry.contains("problem"); });
  if (damaged == 0) return 0;
  throw Corrupt(
      fmt::format("{} of the {} tensors of sample '{}' are not what was written: capture it, or put it, again: the new "
                  "generation replaces this one",
                  damaged, found["tensors"].size(), printable_id(ref.sample_id)));
}

}  // namespace

void add_store_inspect_command(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App& app = *group.add_subcommand("inspect", "Show a sample's tensors and whether its bytes are what was written");
  add_store_path(app, arguments->store);
  app.add_option("id", arguments->id, "the sample's id")->required()->type_name("ID");
  app.add_option("--generation", arguments->generation, "which generation; default: the current one")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", arguments->json, "print JSON");
  app.footer(kExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run(*arguments, line.console); }; });
}

}  // namespace draftflow::cli

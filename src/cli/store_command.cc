// SPDX-License-Identifier: Apache-2.0
//
// draftflow store: the group, and create, gc and stat.
#include "cli/store_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <ostream>

#include "cli/metrics.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"

namespace draftflow::cli {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  draftflow store create out/store\n"
    "  draftflow store put out/store features/0000.ckpt --id sample-0\n"
    "  draftflow store ls out/store\n"
    "  draftflow store verify out/store\n"
    "PATH is a store's folder, {root}/{store id}: what 'draftflow capture --store' takes.";

constexpr const char* kCreateExample =
    "Example:\n"
    "  draftflow store create out/store\n"
    "  draftflow store create out/scratch --kind consume_once --max-resident-bytes 20GiB --max-hold-age-ms 3600000 --json\n"
    "  (umask 077; head -c 32 /dev/urandom | base64 > store.secret)\n"
    "  draftflow store create out/closed --secret-file store.secret --encrypt --codec zstd\n"
    "Creating a store that is there already with the same options is fine; 'capture --store' creates what it needs itself.";

constexpr const char* kRemoveExample =
    "Example:\n"
    "  draftflow store rm out/store sample-0\n"
    "  draftflow store rm out/store sample-0 --generation 268435457 --json\n"
    "Takes every generation of the sample away, or the one named; bytes that a live reader leases go with its lease. A ledger "
    "that "
    "lists the\nsample is not told: who trains on it will find it missing, by name.";

constexpr const char* kRotateExample =
    "Example:\n"
    "  draftflow store rotate out/store --secret-file store.secret --new-secret-file next.secret\n"
    "with a new file made by (umask 077; head -c 32 /dev/urandom | base64 > next.secret).\n"
    "Files stay as they are, and processes that have the store open go on. Who had the old secret may have kept the keys that "
    "it\n"
    "opened: to lock somebody out, make a new store.";

constexpr const char* kGcExample =
    "Example:\n"
    "  draftflow store gc out/store\n"
    "  draftflow store gc out/store --json\n"
    "Safe at any time, beside a running capture or training too: it touches nothing that is leased by a live process.";

constexpr const char* kStatExample =
    "Example:\n"
    "  draftflow store stat out/store\n"
    "  draftflow store stat out/store --json\n"
    "Reads counters alone, so that it costs the same for ten samples and ten million; 'draftflow store gc' counts again.";

std::string share_of_cap(const StoreHealth& health) {
  if (health.max_resident_bytes == 0) return "";
  return fmt::format(" of at most {} ({:.0f} %)", human_bytes(health.max_resident_bytes),
                     100 * static_cast<double>(health.resident_bytes) / static_cast<double>(health.max_resident_bytes));
}

const char* durability_text(Durability durability) {  // as --durability takes it
  return durability == Durability::kNone ? "none" : durability == Durability::kData ? "data" : "full";
}

Json to_json(const StoreHealth& h) {
  return {{"store_id", json_text(h.store_id)},
          {"backend", h.backend},
          {"root", json_text(h.root)},
          {"kind", kind_text(h.kind)},
          {"incarnation", h.incarnation},
          {"layout", h.layout},
          {"durability", durability_text(h.durability)},
          {"secret", h.secret},
          {"encrypted", h.encrypted},
          {"read_only", h.read_only},
          {"resident_samples", h.resident_samples},
          {"resident_bytes", h.resident_bytes},
          {"max_resident_bytes", h.max_resident_bytes},
          {"live_leases", h.live_leases},
          {"release_pending", h.release_pending},
          {"freed_total", h.freed_total},
          {"freed_bytes_total", h.freed_bytes_total},
          {"errors_total", h.errors_total},
          {"codec", codec_name(h.codec)},
          {"codec_saved_bytes_total", h.codec_saved_bytes_total},
          {"oldest_age_s", h.oldest_age_s},
          {"average_age_s", h.average_age_s},
          {"free_bytes", h.free_bytes}};
}

std::string plain_text(const StoreHealth& h) {
  std::string text = fmt::format("store      {}   {} in {}, {}\n", printable(h.store_id, 4096), h.backend,
                                 printable(h.root, 4096), kind_text(h.kind));
  if (!h.incarnation.empty()) {
    text += fmt::format("made as    layout {}, durability {}{}, incarnation {}\n", h.layout, durability_text(h.durability),
                        !h.secret     ? ""
                        : h.encrypted ? ", with a secret, encrypted"
                                      : ", with a secret",
                        h.incarnation);
  }
  if (h.read_only) text += "access     this user may only read here: no put, lease, remove or gc\n";
  text += fmt::format("resident   {} generations, {}{}\n", h.resident_samples, human_bytes(h.resident_bytes), share_of_cap(h));
  text += fmt::format("leases     {} live\n", h.live_leases);
  text += h.resident_samples == 0 ? "age        -\n"
                                  : fmt::format("age        oldest {}, average {}\n", human_seconds(h.oldest_age_s),
                                                human_seconds(h.average_age_s));
  text += fmt::format("freed      {} generations, {}; {} waiting for gc to try again\n", h.freed_total,
                      human_bytes(h.freed_bytes_total), h.release_pending);
  if (h.errors_total > 0) {
    text +=
        fmt::format("errors     {} calls met damage, a failing disk or a lack of permission: see 'draftflow store verify'\n",
                    h.errors_total);
  }
  if (h.codec != Codec::kRaw) {
    text += fmt::format("codec      {}: saved {} over all puts\n", codec_name(h.codec), human_bytes(h.codec_saved_bytes_total));
  }
  return text + fmt::format("disk       {} free\n", human_bytes(h.free_bytes));
}

Json to_json(const GcReport& r) {
  return {{"temporaries_removed", r.temporaries_removed},
          {"generations_removed", r.generations_removed},
          {"force_freed", r.force_freed},
          {"bytes_removed", r.bytes_removed},
          {"leases_dropped", r.leases_dropped},
          {"release_pending", r.release_pending}};
}

std::string plain_text(const GcReport& r) {
  return fmt::format(
      "freed {}: {} generations ({} past their greatest age), {} unfinished files of writers that died; {} leases of holders "
      "that "
      "died dropped; {} frees to try again\n",
      human_bytes(r.bytes_removed), r.generations_removed, r.force_freed, r.temporaries_removed, r.leases_dropped,
      r.release_pending);
}

struct CreateArguments {
  StorePath store;
  std::string kind = "ledgered", durability = "none", codec = "raw", layout = "draftflow";
  SharedDirOptions options;
  bool json = false;
};

bool is_there(const StoreName& name, const std::shared_ptr<const Secret>& secret) {
  try {
    open_shared_dir_store(name.root, name.id, {.secret = secret});
    return true;
  } catch (const NotFound&) {
    return false;
  }
}

int run_create(CreateArguments arguments, const Console& console) {
  const StoreName name = store_name(arguments.store.path);
  arguments.options.secret = take_secret(arguments.store.secret_file);
  arguments.options.codec = codec_from_name(arguments.codec);
  arguments.options.layout = arguments.layout == "specforge" ? StoreLayout::kSpecforge : StoreLayout::kDraftflow;
  arguments.options.kind = arguments.kind == "ledgered" ? StoreKind::kLedgered : StoreKind::kConsumeOnce;
  arguments.options.durability = arguments.durability == "none"   ? Durability::kNone
                                 : arguments.durability == "data" ? Durability::kData
                                                                  : Durability::kFull;
  const bool there = is_there(name, arguments.options.secret);
  const StoreHealth health = create_shared_dir_store(name.root, name.id, arguments.options)->health();
  if (health.durability < arguments.options.durability) {
    throw InvalidArgument(
        fmt::format("the store at {} was made with durability '{}', but '{}' is asked for: make a new store, or "
                    "ask for more at each attach ('draftflow capture --durable')",
                    printable(arguments.store.path.string(), 4096), durability_text(health.durability), arguments.durability));
  }
  if (arguments.json) {
    console.out << json_line({{"store_id", health.store_id},
                              {"root", json_text(health.root)},
                              {"kind", kind_text(health.kind)},
                              {"max_resident_bytes", health.max_resident_bytes},
                              {"codec", arguments.codec},
                              {"layout", arguments.layout},
                              {"secret", arguments.options.secret != nullptr},
                              {"encrypted", arguments.options.encrypt},
                              {"created", !there}});
    return 0;
  }
  const char* const access = arguments.options.secret == nullptr ? ""
                             : arguments.options.encrypt         ? ", opens with its secret, encrypted"
                                                                 : ", opens with its secret";
  console.out << fmt::format(
      "{} store '{}' in {}: {}, {}{}{}{}\n", there ? "there already:" : "created", printable(health.store_id, 4096),
      printable(health.root, 4096), kind_text(health.kind),
      health.max_resident_bytes == 0 ? "no cap" : "at most " + human_bytes(health.max_resident_bytes) + " resident",
      arguments.codec == "raw" ? "" : ", packed by " + arguments.codec, access,
      arguments.options.layout == StoreLayout::kSpecforge ? ", readable by SpecForge" : "");
  return 0;
}

void add_create(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<CreateArguments>();
  CLI::App& app = *group.add_subcommand("create", "Make a feature store");
  add_store_path(app, arguments->store);
  app.add_option("--kind", arguments->kind, "who frees: the ledger (ledgered) or the last release (consume_once)")
      ->check(CLI::IsMember({"ledgered", "consume_once"}))
      ->capture_default_str();
  app.add_option("--durability", arguments->durability, "what a put waits for: none, data (bytes on disk) or full (names too)")
      ->check(CLI::IsMember({"none", "data", "full"}))
      ->capture_default_str();
  app.add_option("--codec", arguments->codec, "packs tensors: zstd loses nothing; int8 and fp8_e4m3 keep a scale a token")
      ->check(CLI::IsMember({"raw", "zstd", "int8", "fp8_e4m3"}))
      ->capture_default_str();
  app.add_option("--layout", arguments->layout,
                 "specforge: each sample also as the torch.save file that SpecForge reads and frees")
      ->check(CLI::IsMember({"draftflow", "specforge"}))
      ->capture_default_str();
  app.add_flag("--encrypt", arguments->options.encrypt, "encrypt the files, too; needs a secret");
  SharedDirOptions& o = arguments->options;
  add_fields(app, {{"max_resident_bytes", ByteSize{&o.max_resident_bytes}, "a put that would pass this is refused; 0: no cap"},
                   {"max_hold_age_ms", &o.max_hold_age_ms, "consume_once: gc frees what nobody took for so long; 0: never"}});
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kCreateExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run_create(*arguments, line.console); }; });
}

struct RemoveArguments {
  StorePath store;
  std::string id;
  std::optional<std::uint64_t> generation;
  bool json = false;
};

int run_remove(const RemoveArguments& arguments, const Console& console) {
  const OpenedStore opened = open_store(arguments.store);
  const SampleRef ref = find_sample(opened, arguments.id, arguments.generation);
  const std::uint64_t removed =
      arguments.generation ? (opened.store->remove(ref) ? 1 : 0) : opened.store->abort(SampleId(arguments.id));
  if (arguments.json) {
    console.out << json_line({{"sample_id", arguments.id}, {"generations_removed", removed}});
    return 0;
  }
  console.out << fmt::format("removed {} generation{} of sample '{}'\n", removed, removed == 1 ? "" : "s",
                             printable_id(SampleId(arguments.id)));
  return 0;
}

void add_remove(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<RemoveArguments>();
  CLI::App& app = *group.add_subcommand("rm", "Take a sample out of a store");
  add_store_path(app, arguments->store);
  app.add_option("id", arguments->id, "the sample's id")->required()->type_name("ID");
  app.add_option("--generation", arguments->generation, "only this one; default: all")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kRemoveExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run_remove(*arguments, line.console); }; });
}

struct RotateArguments {
  StorePath store;
  std::filesystem::path new_secret_file;
  bool json = false;
};

int run_rotate(const RotateArguments& arguments, const Console& console) {
  const StoreName name = store_name(arguments.store.path);
  const auto old_secret = take_secret(arguments.store.secret_file);
  if (old_secret == nullptr) {
    throw InvalidArgument(fmt::format("the secret that store '{}' has now is needed: name its file with --secret-file",
                                      printable(name.id.str(), 4096)));
  }
  rotate_shared_dir_secret(name.root, name.id, *old_secret, Secret::from_file(arguments.new_secret_file));
  if (arguments.json) {
    console.out << json_line({{"store_id", json_text(name.id.str())}, {"rotated", true}});
    return 0;
  }
  console.out << fmt::format("store '{}' opens with the secret in {} from now on\n", printable(name.id.str(), 4096),
                             printable(arguments.new_secret_file.string(), 4096));
  return 0;
}

void add_rotate(CLI::App& group, CommandLine& line) {
  auto arguments = std::make_shared<RotateArguments>();
  CLI::App& app = *group.add_subcommand("rotate", "Change a store's secret");
  add_store_path(app, arguments->store);
  app.add_option("--new-secret-file", arguments->new_secret_file, "the secret from now on")->required()->type_name("FILE");
  app.add_flag("--json", arguments->json, "print the result as JSON");
  app.footer(kRotateExample);
  app.callback([&line, arguments] { line.action = [&line, arguments] { return run_rotate(*arguments, line.console); }; });
}

// gc and stat: a store in, a report out.
template <class Ask>
void add_report(CLI::App& group, CommandLine& line, const char* name, const char* about, const char* example, Ask ask) {
  struct Arguments {
    StorePath store;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App& app = *group.add_subcommand(name, about);
  add_store_path(app, arguments->store);
  app.add_flag("--json", arguments->json, "print JSON");
  app.footer(example);
  app.callback([&line, arguments, ask] {
    line.action = [&line, arguments, ask] {
      const auto report = ask(*open_store(arguments->store).store);
      line.console.out << (arguments->json ? json_line(to_json(report)) : plain_text(report));
      return 0;
    };
  });
}

// For those who name the folder above: "; it holds the stores 'features'", or nothing.
std::string stores_below(const std::filesystem::path& folder) {
  std::string names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (!std::filesystem::is_regular_file(entry.path() / "store.json", ignored)) continue;
    names += (names.empty() ? "" : ", ") + printable(entry.path().string(), 4096);
  }
  return names.empty() ? "" : fmt::format("; there is a store in {}", names);
}

// For those who name a store by a folder whose name is not its id, such as one with a hash in it.
std::string other_name_hint(const std::filesystem::path& folder, const StoreName& name) {
  constexpr std::uint64_t kMostBytes = 64 << 10;
  std::error_code ignored;
  const bool empty = std::filesystem::is_directory(folder, ignored) && std::filesystem::is_empty(folder, ignored);
  if (std::filesystem::exists(folder, ignored) && !empty) {
    if (!std::filesystem::is_regular_file(folder / "store.json", ignored)) return stores_below(folder);
  } else {
    return fmt::format("; 'draftflow store create {}' makes one", printable(folder.string(), 4096));
  }
  const Json file = Json::parse(read_text_file(folder / "store.json", kMostBytes), nullptr, /*allow_exceptions=*/false);
  if (!file.is_object() || !file.contains("store_id") || !file["store_id"].is_string()) return "";
  const auto id = file["store_id"].get<std::string>();
  if (id == name.id.str() || id.find('/') != std::string::npos) return "";
  return fmt::format("; the store in that folder is named '{}'", printable((name.root / id).string(), 4096));
}

}  // namespace

StoreName store_name(const std::filesystem::path& folder) {
  std::filesystem::path named = folder;
  if (!named.has_filename() && named.has_relative_path()) named = named.parent_path();  // a slash at the end
  if (named.filename() == "." || named.filename() == "..") named = std::filesystem::weakly_canonical(named);
  if (named.filename().empty()) {
    throw InvalidArgument(
        fmt::format("'{}' names no store: a store's folder is needed, such as out/store", printable(folder.string(), 4096)));
  }
  return {named.has_parent_path() ? named.parent_path() : ".", StoreId(named.filename().string())};
}

std::shared_ptr<const Secret> take_secret(const std::filesystem::path& secret_file) {
  auto found = Secret::from_environment(kSecretVariable);  // wiped in any case
  return find_secret(secret_file, found ? std::make_shared<Secret>(std::move(*found)) : nullptr);
}

OpenedStore open_store(const StorePath& store) {
  const std::filesystem::path& folder = store.path;
  const StoreName name = store_name(folder);
  const std::shared_ptr<const Secret> secret = take_secret(store.secret_file);
  try {
    return {folder, name.id, open_shared_dir_store(name.root, name.id, {.secret = secret})};
  } catch (const NotFound& error) {
    throw NotFound(error.what() + other_name_hint(folder, name));
  } catch (const InvalidArgument& error) {
    const bool from_environment = secret != nullptr && store.secret_file.empty();
    throw InvalidArgument(
        error.what() + other_name_hint(folder, name) +
        (from_environment ? fmt::format("; the secret came from the environment's {}", kSecretVariable) : ""));
  }
}

SampleRef find_sample(const OpenedStore& opened, const std::string& id, std::optional<std::uint64_t> generation) {
  const SampleId sample_id(id);
  const std::string path = printable(opened.path.string(), 4096);
  std::optional<SampleRef> current;
  try {
    if (generation) return opened.store->find(sample_id, generation);
  } catch (const NotFound&) {  // told below, with what there is instead
  }
  try {
    current = opened.store->find(sample_id);
    if (!generation) return *current;
  } catch (const NotFound&) {
    throw NotFound(
        fmt::format("store {} has no sample '{}': it was freed or never put; 'draftflow store ls {}' lists what is there", path,
                    printable_id(sample_id), path));
  }
  throw NotFound(fmt::format("store {} has no generation {} of sample '{}': it was freed or superseded; the current one is {}",
                             path, *generation, printable_id(sample_id), current->generation));
}

SampleCheck check_sample(FeatureStore& store, const ResidentSample& sample) {
  try {
    store.read(store.find(sample.sample_id, sample.generation));
    return {};
  } catch (const NotFound&) {
    return {SampleCheck::State::kFreed, ""};
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kExhausted) throw;  // files or memory ran out here: it says nothing about the sample
    return {SampleCheck::State::kDamaged, error.what()};
  }
}

std::string damage_text(const std::filesystem::path& path, const std::string& why) {
  const bool told = why.find(path.string()) != std::string::npos;
  return "damaged " + (told ? "" : printable(path.string(), 4096) + ": ") + printable(why, 8192);
}

std::string printable_id(const SampleId& id) {
  return printable(id.str(), 4 * kMaxIdBytes);
}

std::string json_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/true) + "\n";
}

const char* kind_text(StoreKind kind) {
  return kind == StoreKind::kLedgered ? "ledgered" : "consume_once";
}

void add_secret_file(CLI::App& app, std::filesystem::path& secret_file) {
  app.add_option("--secret-file", secret_file, "of a store with a secret; default: the environment's DRAFTFLOW_STORE_SECRET")
      ->type_name("FILE");
}

void add_store_path(CLI::App& app, StorePath& store) {
  app.add_option("store", store.path, "the store's folder, {root}/{store id}")->required()->type_name("PATH");
  add_secret_file(app, store.secret_file);
}

void add_store_command(CommandLine& line) {
  CLI::App& group = *line.app.add_subcommand("store", "Make feature stores and look after them");
  group.require_subcommand(1);
  group.footer(kExample);
  add_create(group, line);
  add_store_put_command(group, line);
  add_store_list_command(group, line);
  add_store_inspect_command(group, line);
  add_store_verify_command(group, line);
  add_remove(group, line);
  add_rotate(group, line);
  add_report(group, line, "gc", "Free what nobody can use any more", kGcExample,
             [](FeatureStore& store) { return store.gc(); });
  add_report(group, line, "stat", "Show a store's counters at once", kStatExample,
             [](FeatureStore& store) { return store.health(); });
}

}  // namespace draftflow::cli
